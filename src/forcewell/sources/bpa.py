"""3BPA: a flexible drug-like molecule at 300, 600 and 1200 K, with its isolated atoms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from forcewell.sources.card import Card, Paths, check_options
from forcewell.sources.molecule_xyz import energies_of_atoms, read_molecule
from forcewell.system import Block

CARD = Card(
    name="3bpa",
    title="3BPA: 3-(benzyloxy)pyridin-2-amine at 300, 600 and 1200 K and along dihedral scans (H, C, N, O)",
    licence="MIT",
    citation="Kovács et al., J. Chem. Theory Comput. 17, 7696 (2021), doi:10.1021/acs.jctc.1c00647",
    level="wB97X/6-31G(d)",
    units="eV, eV/Å, Å",
    page="https://github.com/davkovacs/BOTNet-datasets",
    files="train_300K.xyz, train_mixedT.xyz, test_*.xyz (extended XYZ), and iso_atoms.xyz, whose energies become the store's references",
    download="the folder dataset_3BPA of the repository",
    size="30 MB",
    conformations="14,246",
)


def read(paths: Paths, **options: Any) -> Iterator[Block]:
    """Blocks in eV, Å; the molecule identifier is ``3bpa``. Frames of a single atom stay out: see ``isolated_atoms``."""
    check_options(CARD, options)
    yield from read_molecule(paths, CARD)


def isolated_atoms(paths: Paths) -> dict[str, dict[int, float]]:
    """Level of theory -> atomic number -> energy in eV of the isolated atom, from frames of one atom."""
    return {CARD.level: energies_of_atoms(paths)}
