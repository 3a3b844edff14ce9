"""MD17@CCSD(T): five small molecules with coupled-cluster energies and forces, official training and test parts."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from forcewell.errors import InputError
from forcewell.sources.card import Card, Paths, check_options, load_npz
from forcewell.sources.trajectory_npz import molecule_name, read_trajectory
from forcewell.system import Block

# Method and basis differ between the molecules (Chmiela et al. 2018, Methods).
LEVELS = {
    "aspirin": "CCSD/cc-pVDZ",
    "benzene": "CCSD(T)/cc-pVDZ",
    "ethanol": "CCSD(T)/cc-pVTZ",
    "malonaldehyde": "CCSD(T)/cc-pVDZ",
    "toluene": "CCSD(T)/cc-pVDZ",
}
KEYS = {"numbers": ("z",), "positions": ("R",), "energy": ("E",), "forces": ("F",), "frame": ()}

CARD = Card(
    name="md17-ccsdt",
    title="MD17@CCSD(T): aspirin, benzene, ethanol, malonaldehyde, toluene (H, C, O), 1000 training frames each",
    licence="not stated by its authors",
    citation="Chmiela et al., Nat. Commun. 9, 3887 (2018), doi:10.1038/s41467-018-06169-2",
    level="CCSD(T) (aspirin: CCSD); basis by molecule",
    units="kcal/mol, kcal/mol/Å, Å",
    page="http://www.sgdml.org/#datasets",
    files="MOLECULE_ccsd_t.zip, aspirin_ccsd.zip as they come, or the ...-train.npz and ...-test.npz inside (z, R, E, F)",
    download="http://www.quantum-machine.org/gdml/data/npz/ethanol_ccsd_t.zip and so on",
    size="0.2 to 0.9 MB each",
    conformations="8,001",
    options={"part": "train or test: only that part; default both", "molecule": "its name, instead of the file's"},
    properties={"test": "1 in the official test part, 0 in the training part"},
)


def read(paths: Paths, **options: Any) -> Iterator[Block]:
    """Blocks in eV, Å; the molecule identifier is the molecule's name, the property "test" tells the official parts apart.

    Raises InputError for a file of another layout, or of a molecule whose level is not known.
    """
    check_options(CARD, options)
    part = str(options.get("part", ""))
    if part not in ("", "train", "test"):
        raise InputError(f"option part is {part!r}, expected train or test")
    for path in map(Path, paths):
        for name, arrays in _archives(path):
            test = name.stem.endswith("-test")
            if part and test != (part == "test"):
                continue
            molecule = str(options.get("molecule", molecule_name(name)))
            if molecule not in LEVELS:
                raise InputError(f"{path}: the level of {molecule!r} is not known (known: {', '.join(LEVELS)}); give option molecule")
            for block in read_trajectory(name, CARD, KEYS, molecule, arrays):
                block.level, block.properties["test"] = LEVELS[molecule], np.full(len(block), float(test))
                yield block


def _archives(path: Path) -> Iterator[tuple[Path, dict[str, np.ndarray]]]:
    """(name, arrays) of an .npz, or of those inside a .zip in the order training, test."""
    if path.suffix != ".zip":
        yield path, load_npz(path)
        return
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    try:
        with zipfile.ZipFile(path) as archive:
            # __MACOSX/._NAME.npz are leftovers of the archive's making.
            names = [name for name in archive.namelist() if name.endswith(".npz") and not name.startswith("__MACOSX")]
            if not names:
                raise InputError(f"{path} holds no .npz file")
            for name in sorted(names, key=lambda name: ("-test" in name, name)):
                with archive.open(name) as stream:
                    yield path.parent / Path(name).name, load_npz(path, stream)
    except zipfile.BadZipFile as error:
        raise InputError(f"{path} is not a whole .zip file ({error}); fetch it again") from None
