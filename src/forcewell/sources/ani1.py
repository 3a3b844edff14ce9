"""ANI-1: 22 million conformations of 57,000 small molecules around their minima, energies only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from forcewell.sources.card import Card, Paths, check_options, chunks, merged, rows_of
from forcewell.sources.hdf5_groups import atomic_numbers, leaves, open_hdf5, shaped, text
from forcewell.system import Block
from forcewell.units import HARTREE

CARD = Card(
    name="ani1",
    title="ANI-1: normal modes of small molecules (H, C, N, O), energies without forces",
    licence="CC0-1.0",
    citation="Smith, Isayev and Roitberg, Sci. Data 4, 170193 (2017), doi:10.1038/sdata.2017.193",
    level="wB97X/6-31G(d)",
    units="Hartree, Å",
    page="https://doi.org/10.6084/m9.figshare.c.3846712",
    files="ani_gdb_s01.h5 to ani_gdb_s08.h5, by number of heavy atoms; the groups coordinatesHE and energiesHE (high energies) stay out",
    download="https://ndownloader.figshare.com/files/9057631 (ANI1_release.tar.gz); unpack it",
    size="4.3 GB packed, 10 GB unpacked",
    conformations="22,057,374",
)
NEEDED = ("coordinates", "energies", "species")


def read(paths: Paths, **options: Any) -> Iterator[Block]:
    """Blocks in eV, Å; the molecule identifier is ``ani1/GROUP``, one group per molecule, and its SMILES is kept.

    Normal modes were sampled around minima, the minima themselves are not marked: ``equilibrium`` is 0. Raises
    InputError for a file of another layout.
    """
    check_options(CARD, options)
    for path in paths:
        yield from merged(_molecules(Path(path)))


def count(path: Path) -> int:
    """Conformations in a file, from the shapes alone."""
    with open_hdf5(path) as file:
        return sum(group["energies"].shape[0] for _, group in leaves(file, NEEDED))


def _molecules(path: Path) -> Iterator[Block]:
    with open_hdf5(path) as file:
        for name, group in leaves(file, NEEDED):
            where = f"{path}, {name}"
            numbers, coordinates = atomic_numbers(group["species"][()], where), group["coordinates"]
            frames = len(coordinates)
            positions = shaped(group, "coordinates", (frames, len(numbers), 3), where)
            energies = shaped(group, "energies", (frames,), where)
            smiles = text(group["smiles"][()]) if "smiles" in group else ""
            for part in chunks(frames, rows_of(len(numbers))):
                size = part.stop - part.start
                yield Block.shared(
                    numbers,
                    positions[part].astype(np.float64),
                    energy=energies[part].astype(np.float64) * HARTREE,
                    equilibrium=np.zeros(size),
                    source=CARD.name,
                    level=CARD.level,
                    molecule=np.full(size, f"ani1/{name.rpartition('/')[2]}", dtype=object),
                    smiles=np.full(size, smiles, dtype=object),
                )
