"""QM7-X: molecules of up to seven heavy atoms, at minima and away from them; upstream's HDF5 and a padded .npz."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from forcewell.errors import InputError
from forcewell.sources.card import Card, Paths, check_options, chunks, count_conformations, load_npz, merged, pick
from forcewell.sources.hdf5_groups import open_hdf5
from forcewell.system import Block

CARD = Card(
    name="qm7x",
    title="QM7-X: minima and 100 displaced conformations each of small molecules (H, C, N, O, S, Cl)",
    licence="CC-BY-4.0",
    citation="Hoja et al., Sci. Data 8, 43 (2021), doi:10.1038/s41597-021-00812-2",
    level="PBE0+MBD",
    units="eV, eV/Å, Å",
    page="https://doi.org/10.5281/zenodo.4288677",
    files=(
        "1000.hdf5 to 8000.hdf5 (a group per molecule, in it one per conformation: atNUM, atXYZ, ePBE0+MBD, totFOR; those named "
        "...opt are the minima), or an .npz with z (padded by 0), pos, energy, forces, mol, as in the package"
    ),
    download="https://zenodo.org/records/4288677/files/1000.xz to 8000.xz (unpack: xz -d, and add the ending .hdf5), DupMols.dat",
    size="8.6 GB packed, 40 GB unpacked",
    conformations="4,195,237",
    options={"duplicates": "DupMols.dat: upstream's list of minima that appear twice; they and their displaced conformations stay out"},
)
ARRAYS = (b"atNUM", b"atXYZ", b"ePBE0+MBD", b"totFOR")


def read(paths: Paths, **options: Any) -> Iterator[Block]:
    """Blocks in eV, Å; the molecule identifier is ``qm7x/MOL``, shared by its stereo-isomers and conformers.

    ``equilibrium`` is 1 for the conformations named ``Geom-mM-iI-cC-opt``, which were relaxed with DFTB3+MBD and then with
    PBE0+MBD, and 0 for the displaced ones (``-dD``). Raises InputError for files of another layout.
    """
    check_options(CARD, options)
    duplicates = _duplicates(Path(options["duplicates"])) if "duplicates" in options else frozenset()
    for path in map(Path, paths):
        yield from _padded(path) if path.suffix == ".npz" else merged(_molecules(path, duplicates))


def count(path: Path) -> int | None:
    """Conformations of a file: groups in the HDF5, rows in the .npz."""
    if path.suffix == ".npz":
        return count_conformations(path)
    with open_hdf5(path) as file:
        return sum(len(molecule) for molecule in file.values())


def _duplicates(path: Path) -> frozenset[str]:
    """Names without their last part, e.g. ``Geom-m10-i1-c2``."""
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    return frozenset(line.strip().rpartition("-")[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip())


def _molecules(path: Path, duplicates: frozenset[str]) -> Iterator[Block]:
    """One Block per molecule."""
    with open_hdf5(path) as file:
        for name, molecule in file.items():
            names = [conformation for conformation in molecule if conformation.rpartition("-")[0] not in duplicates]
            if not names:
                continue
            numbers, positions, energies, forces = zip(*(_arrays(molecule, key, path) for key in names), strict=True)
            counts = np.array([len(z) for z in numbers])
            yield Block(
                counts,
                {
                    "numbers": np.concatenate(numbers),
                    "positions": np.concatenate(positions),
                    "energy": np.array(energies),
                    "forces": np.concatenate(forces),
                    "equilibrium": np.array([key.endswith("opt") for key in names]),
                },
                source=CARD.name,
                level=CARD.level,
                molecule=np.full(len(names), f"qm7x/{name}", dtype=object),
            )


def _arrays(molecule: Any, key: str, path: Path) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    """numbers (A,), positions (A, 3), energy, forces (A, 3) of one conformation.

    Through h5py's low level: four million groups of four data sets each take a third of the time that way.
    """
    import h5py

    try:
        low: Any = h5py
        group = low.h5g.open(molecule.id, key.encode())
        found = []
        for name in ARRAYS:
            dataset = low.h5d.open(group, name)
            array = np.empty(dataset.shape, dtype=dataset.dtype)
            dataset.read(low.h5s.ALL, low.h5s.ALL, array)
            found.append(array)
    except KeyError as error:
        raise InputError(f"{path}, {molecule.name}/{key} lacks a data set ({error})") from None
    numbers, positions, energy, forces = found
    if positions.shape != (len(numbers), 3) or forces.shape != positions.shape or energy.size != 1:
        raise InputError(f"{path}, {molecule.name}/{key}: shapes {numbers.shape}, {positions.shape}, {energy.shape}, {forces.shape}")
    return numbers, positions, float(energy.reshape(-1)[0]), forces


def _padded(path: Path) -> Iterator[Block]:
    arrays = load_npz(path)
    numbers, positions, forces = (pick(arrays, path, name) for name in ("z", "pos", "forces"))
    energy, molecule = pick(arrays, path, "energy"), pick(arrays, path, "mol")
    frames = len(numbers)
    if numbers.ndim != 2 or positions.shape != (*numbers.shape, 3) or forces.shape != positions.shape or len(energy) != frames:
        raise InputError(f"{path} is not the padded layout: z {numbers.shape}, pos {positions.shape}, forces {forces.shape}")
    for part in chunks(frames):
        real = numbers[part] != 0
        arrays_of_part = {
            "numbers": numbers[part][real],
            "positions": positions[part][real],
            "energy": energy[part],
            "forces": forces[part][real],
            # This subset leaves the minima out: its smallest largest force is 0.45 eV/Å.
            "equilibrium": np.where(np.abs(forces[part]).max(axis=(1, 2)) > 0.1, 0, -1),
        }
        names = np.array([f"qm7x/{name}" for name in molecule[part]], dtype=object)
        yield Block(real.sum(axis=1), arrays_of_part, source=CARD.name, level=CARD.level, molecule=names)
