"""Transition1x: structures on and around the reaction paths of 10,000 organic reactions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from forcewell.errors import InputError
from forcewell.sources.card import Card, Paths, check_options, chunks, largest_force, merged, rows_of
from forcewell.sources.hdf5_groups import open_hdf5, shaped
from forcewell.system import Block

ENERGY, FORCES = "wB97x_6-31G(d).energy", "wB97x_6-31G(d).forces"
MINIMUM_FORCE = 0.1  # eV/Å; an endpoint whose largest force is above it is not called a minimum
ENDPOINTS = ("reactant", "product", "transition_state")  # sub-groups, and the property "role" 1, 2, 3
SPLITS = ("data", "train", "val", "test")

CARD = Card(
    name="transition1x",
    title="Transition1x: reaction paths by nudged elastic bands (H, C, N, O), up to seven heavy atoms",
    licence="CC-BY-4.0",
    citation="Schreiner et al., Sci. Data 9, 779 (2022), doi:10.1038/s41597-022-01870-w",
    level="wB97X/6-31G(d)",
    units="eV, eV/Å, Å",
    page="https://doi.org/10.6084/m9.figshare.19614657",
    files=f"Transition1x.h5; data/FORMULA/RXN with atomic_numbers, positions, {ENERGY}, {FORCES}, and the same in {', '.join(ENDPOINTS)}",
    download="https://figshare.com/ndownloader/files/36035789 (layout: https://gitlab.com/matschreiner/Transition1x)",
    size="6.2 GB",
    conformations="9,644,740",
    isomers=True,
    options={"split": f"{', '.join(SPLITS)} (default data: everything); the other three are upstream's own"},
    properties={"role": "0 on the path, 1 reactant, 2 product, 3 transition state"},
)


def read(paths: Paths, **options: Any) -> Iterator[Block]:
    """Blocks in eV, Å; the molecule identifier is ``transition1x/FORMULA``, since reactions share reactants and products.

    ``equilibrium`` is 1 for a reactant or product whose largest force is below 0.1 eV/Å (unknown, -1, above it), and 0 on
    the path and for transition states, whose forces vanish but which are no minima. Raises InputError for another layout.
    """
    check_options(CARD, options)
    split = str(options.get("split", "data"))
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r} (known: {', '.join(SPLITS)})")
    for path in paths:
        yield from merged(_reactions(Path(path), split))


def count(path: Path) -> int | None:
    """Conformations of the whole file, from the shapes alone."""
    with open_hdf5(path) as file:
        if "data" not in file:
            return None
        reactions = [reaction for formula in file["data"].values() for reaction in formula.values()]
        return sum(reaction[ENERGY].shape[0] + sum(part in reaction for part in ENDPOINTS) for reaction in reactions)


def _reactions(path: Path, split: str) -> Iterator[Block]:
    with open_hdf5(path) as file:
        if split not in file:
            raise InputError(f"{path} has no group {split!r} (it has: {', '.join(file)})")
        for formula, reactions in file[split].items():
            for name, reaction in reactions.items():
                where = f"{path}, {split}/{formula}/{name}"
                yield from _frames(reaction, reaction, formula, 0, where)
                for role, part in enumerate(ENDPOINTS, start=1):
                    if part in reaction:
                        yield from _frames(reaction[part], reaction, formula, role, f"{where}/{part}")


def _frames(group: Any, reaction: Any, formula: str, role: int, where: str) -> Iterator[Block]:
    if "positions" not in group or "atomic_numbers" not in reaction:
        raise InputError(f"{where} has no positions or atomic_numbers (it has: {', '.join(group)})")
    numbers, frames = reaction["atomic_numbers"][()], group["positions"].shape[0]
    positions = shaped(group, "positions", (frames, len(numbers), 3), where)
    forces, energies = shaped(group, FORCES, positions.shape, where), shaped(group, ENERGY, (frames,), where)
    for part in chunks(frames, rows_of(len(numbers))):
        size, force = part.stop - part.start, forces[part]
        largest = largest_force(force)
        yield Block.shared(
            numbers,
            positions[part].astype(np.float64),
            energy=energies[part].astype(np.float64),
            forces=force,
            equilibrium=np.where(largest < MINIMUM_FORCE, 1, -1) if role in (1, 2) else np.zeros(size),
            source=CARD.name,
            level=CARD.level,
            molecule=np.full(size, f"transition1x/{formula}", dtype=object),
            properties={"role": np.full(size, float(role))},
        )
