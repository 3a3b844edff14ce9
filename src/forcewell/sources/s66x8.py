"""S66x8: dimers held together by hydrogen bonds, dispersion and both, at eight separations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from forcewell.sources.card import Card, Paths, check_options
from forcewell.sources.npz import read_file
from forcewell.system import Block

CARD = Card(
    name="s66x8",
    title="S66x8 dimers from the COMP6 benchmark (55 dimers of H, C, N, O at 8 separations)",
    licence="MIT",
    citation="Smith et al., J. Chem. Phys. 148, 241733 (2018), doi:10.1063/1.5023802; Rezac et al., JCTC 7, 2427 (2011)",
    level="wB97X/6-31G*",
    units="eV, eV/Å, Å",
    page="https://github.com/isayev/COMP6",
    files="an .npz with natoms, z, pos, forces, energy, mol, as in the package (upstream HDF5, with gradients: source comp6)",
    download="https://raw.githubusercontent.com/isayev/COMP6/master/COMP6v1/s66x8/s66x8_wb97x6-31gd.h5 (source comp6)",
    size="1 MB",
    conformations="440 in the package",
)


def read(paths: Paths, **options: Any) -> Iterator[Block]:
    """Blocks in eV, Å; the molecule identifier is ``s66x8/DIMER``. Raises InputError for files of another layout."""
    check_options(CARD, options)
    for path in paths:
        for block in read_file(Path(path), CARD.name, {"level": CARD.level}):
            assert block.molecule is not None
            block.molecule = np.array([f"s66x8/{name}" for name in block.molecule], dtype=object)
            yield block
