"""QM7-X: molecules of up to seven heavy atoms, at minima and away from them, padded .npz layout."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from forcewell.errors import InputError
from forcewell.sources.card import Card, Paths, check_options, chunks, load_npz, pick
from forcewell.system import Block

CARD = Card(
    name="qm7x",
    title="QM7-X: non-equilibrium conformations of small molecules (H, C, N, O, S, Cl)",
    licence="CC-BY-4.0",
    citation="Hoja et al., Sci. Data 8, 43 (2021), doi:10.1038/s41597-021-00812-2",
    level="PBE0+MBD",
    units="eV, eV/Å, Å",
    page="https://doi.org/10.5281/zenodo.4288677",
    files="an .npz with z (padded by 0), pos, energy, forces, mol; as in the package (upstream's HDF5 is not read)",
)


def read(paths: Paths, **options: Any) -> Iterator[Block]:
    """Blocks in eV, Å; the molecule identifier is ``qm7x/MOL``. Raises InputError for files of another layout."""
    check_options(CARD, options)
    for path in paths:
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
