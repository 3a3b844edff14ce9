"""Acetylacetone at 300 and 600 K, its hydrogen transfer and torsion, with its isolated atoms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from forcewell.sources.card import Card, Paths, check_options
from forcewell.sources.molecule_xyz import energies_of_atoms, read_molecule
from forcewell.system import Block

CARD = Card(
    name="acac",
    title="Acetylacetone at 300 and 600 K, hydrogen transfer and dihedral scans (H, C, O)",
    licence="MIT",
    citation="Batatia et al., Nat. Mach. Intell. 7, 56 (2025), arXiv:2205.06643",
    level="PBE-D3/def2-SVP",
    units="eV, eV/Å, Å",
    page="https://github.com/davkovacs/BOTNet-datasets",
    files=(
        "train_300K.xyz, test_MD_*.xyz, test_H_transfer.xyz, test_dihedral.xyz (extended XYZ), "
        "and isolated_atoms.xyz, whose energies become the store's references"
    ),
    download="the folder dataset_acac of the repository",
    size="5 MB",
    conformations="2,700",
)


def read(paths: Paths, **options: Any) -> Iterator[Block]:
    """Blocks in eV, Å; the molecule identifier is ``acac``. Frames of a single atom stay out: see ``isolated_atoms``."""
    check_options(CARD, options)
    yield from read_molecule(paths, CARD)


def isolated_atoms(paths: Paths) -> dict[str, dict[int, float]]:
    """Level of theory -> atomic number -> energy in eV of the isolated atom, from frames of one atom."""
    return {CARD.level: energies_of_atoms(paths)}
