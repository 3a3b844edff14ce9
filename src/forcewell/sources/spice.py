"""SPICE 1 and 2: drug-like molecules, peptides, dimers, ions and water clusters, with charges."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from forcewell.errors import InputError
from forcewell.sources.card import Card, Paths, check_options, chunks, merged, rows_of
from forcewell.sources.hdf5_groups import leaves, open_hdf5, shaped, text
from forcewell.sources.mapped_smiles import ordered_atoms, total_charge
from forcewell.system import Block
from forcewell.units import BOHR, HARTREE

CARD = Card(
    name="spice",
    title="SPICE 1 and 2: drug-like molecules, peptides, dimers, ions, water clusters (17 elements)",
    licence="CC0-1.0",
    citation="Eastman et al., Sci. Data 10, 11 (2023), doi:10.1038/s41597-022-01882-6; J. Chem. Theory Comput. 20, 8583 (2024)",
    level="wB97M-D3BJ/def2-TZVPPD",
    units="Hartree, gradients in Hartree/bohr, bohr",
    page="https://doi.org/10.5281/zenodo.10975225",
    files=(
        "SPICE-1.1.4.hdf5, SPICE-2.0.1.hdf5; a group per molecule with atomic_numbers, conformations, dft_total_energy, "
        "dft_total_gradient, smiles, subset"
    ),
    download="https://zenodo.org/records/10975225/files/SPICE-2.0.1.hdf5 (version 1: https://zenodo.org/records/8222043/files/SPICE-1.1.4.hdf5)",
    size="37.5 GB (SPICE 2), 16 GB (SPICE 1)",
    conformations="2,008,628 (SPICE 2), 1,132,808 (SPICE 1)",
    options={"subset": "only groups whose subset contains this text, e.g. PubChem, DES370K, Dipeptides, Ion Pairs, Solvated"},
)
NEEDED = ("atomic_numbers", "conformations", "dft_total_energy", "dft_total_gradient")


def read(paths: Paths, **options: Any) -> Iterator[Block]:
    """Blocks in eV, Å; forces are minus the stored gradients; the molecule identifier is ``spice/GROUP``, the SMILES is kept.

    Elements and their order come from ``atomic_numbers``. The total charge is the sum of the SMILES's formal charges, and
    those of the atoms are stored where the SMILES is mapped; its element order is compared with ``atomic_numbers``. No
    conformation is a relaxed minimum of this level. Raises InputError for another layout and elements that differ.
    """
    check_options(CARD, options)
    for path in paths:
        yield from merged(_molecules(Path(path), str(options.get("subset", ""))))


def count(path: Path) -> int:
    """Conformations of a file, from the shapes alone."""
    with open_hdf5(path) as file:
        return sum(group["conformations"].shape[0] for _, group in leaves(file, NEEDED))


def _molecules(path: Path, subset: str) -> Iterator[Block]:
    with open_hdf5(path) as file:
        for name, group in leaves(file, NEEDED):
            if subset and subset.lower() not in text(group["subset"][()] if "subset" in group else "").lower():
                continue
            where, numbers, frames = f"{path}, {name}", group["atomic_numbers"][()], group["conformations"].shape[0]
            positions = shaped(group, "conformations", (frames, len(numbers), 3), where)
            gradients = shaped(group, "dft_total_gradient", positions.shape, where)
            energies = shaped(group, "dft_total_energy", (frames,), where)
            smiles = text(group["smiles"][()]) if "smiles" in group else ""
            atoms = ordered_atoms(smiles)
            if atoms is not None and not np.array_equal(atoms[0], numbers):
                raise InputError(f"{where}: the elements of its SMILES {smiles} are not those of atomic_numbers")
            for part in chunks(frames, rows_of(len(numbers))):
                size = part.stop - part.start
                fields = {"charge": np.full(size, total_charge(smiles))} if smiles else {}
                if atoms is not None:
                    fields["formal_charges"] = np.tile(atoms[1], (size, 1))
                yield Block.shared(
                    numbers,
                    positions[part].astype(np.float64) * BOHR,
                    energy=energies[part].astype(np.float64) * HARTREE,
                    forces=gradients[part] * (-HARTREE / BOHR),
                    equilibrium=np.zeros(size),
                    source=CARD.name,
                    level=CARD.level,
                    molecule=np.full(size, f"spice/{name}", dtype=object),
                    smiles=np.full(size, smiles, dtype=object),
                    **fields,
                )
