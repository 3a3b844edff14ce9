"""Whether the data of a run can teach its objectives, found out before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from forcewell.errors import InputError
from forcewell.loader import Source
from forcewell.objectives import ForceDenoising, Objective, PropertyMatching
from forcewell.sources.unread import missing_labels
from forcewell.store import Dataset, MemoryData

LOOKED_AT = 20_000  # conformations of a large data set that are looked at together


def applies(objective: Objective, number: int) -> bool:
    """Whether an objective has to do with the source of this number."""
    return objective.sources is None or number in objective.sources


def serves(dataset: Dataset, rows: np.ndarray, applied: Sequence[Objective], name: str, path: str) -> None:
    """Raises InputError where none of the objectives that apply to this source can learn anything from it."""
    if any(_useful(objective, dataset, rows) for objective in applied):
        return
    wanted = " or ".join(_wanted(applied, dataset))
    has = f"it has no {wanted}" if wanted else "data.*.objectives names none"
    if "energy" in dataset.fields:
        has += "; it has energies, which --set objectives=joint learns, with or without forces"
    if isinstance(dataset, MemoryData):
        source = dataset.sources[0]
        unread = missing_labels(source, Path(path), dataset.fields, {}, needed=False)
        has += f"; {unread} in forcewell data import {source} {path}" if unread else ""
    raise InputError(f"{name}: nothing to learn here with {', '.join(objective.name for objective in applied) or 'no objective'}: {has}")


def labels_left(objectives: Sequence[Objective], training: Sequence[Source]) -> None:
    """Raises InputError where force denoising with ``place: instead`` moves every conformation that another objective has labels of."""
    moving = next((objective for objective in objectives if isinstance(objective, ForceDenoising) and objective.place == "instead"), None)
    if moving is None:
        return
    for objective in objectives:
        own = [(number, source) for number, source in enumerate(training) if applies(objective, number)]
        by_minima_alone = objective.useful(frozenset(), True, frozenset())
        if by_minima_alone or not any(_useful(objective, source.data, source.rows) for _, source in own):
            continue
        if not any(_labelled(objective, source, applies(moving, number)) for number, source in own):
            raise InputError(
                f"objectives.{moving.name}.place 'instead' leaves nothing for {objective.name}: it moves minima, and no other "
                "conformation to train on has a label for it; use 'copies'"
            )


def minima_are_open(objectives: Sequence[Objective], sources: Sequence[Source]) -> None:
    """Raises InputError for periodic minima where force denoising needs their model Hessian."""
    for objective in objectives:
        if not isinstance(objective, ForceDenoising) or not objective.of_hessian:
            continue
        for number, source in enumerate(sources):
            if applies(objective, number) and "pbc" in source.data.fields:
                found = (source.data.column("equilibrium") == 1) & source.data.column("pbc").any(axis=1)
                periodic = source.rows[found[source.rows]]
                if len(periodic):
                    raise InputError(
                        f"{source.name}: {len(periodic)} minima are periodic (the first is conformation {periodic[0]}), and "
                        f"objectives.{objective.name} has a model Hessian (target harmonic, or temperature), which is for open "
                        "structures; leave those out, or use target isotropic without temperature"
                    )


def _wanted(applied: Sequence[Objective], dataset: Dataset) -> list[str]:
    """In words, each thing that some of the objectives could learn from."""
    kinds = {"energies": (frozenset({"energy"}), False), "forces": (frozenset({"forces"}), False), "minima": (frozenset[str](), True)}
    wanted = [name for name, kind in kinds.items() if any(objective.useful(*kind, frozenset()) for objective in applied)]
    for objective in applied:
        if isinstance(objective, PropertyMatching):
            known = ", ".join(sorted(dataset.properties)) or "none"
            wanted.append(f"property {' or '.join(objective.names)} (its own: {known})")
    return wanted


def _useful(objective: Objective, dataset: Dataset, rows: np.ndarray) -> bool:
    """Whether the rows can teach an objective anything, by the fields of the data set."""
    minima = "equilibrium" in dataset.fields and bool((dataset.column("equilibrium")[rows] == 1).any())
    return objective.useful(frozenset(dataset.fields), minima, frozenset(dataset.properties))


def _labelled(objective: Objective, source: Source, moved: bool) -> bool:
    """Whether any row has a label for an objective; moved: minima do not count."""
    rows = source.rows[source.data.column("equilibrium")[source.rows] != 1] if moved else source.rows
    for start in range(0, len(rows), LOOKED_AT):
        block = source.data.block(rows[start : start + LOOKED_AT])
        fields = frozenset(name for name, values in block.arrays.items() if np.isfinite(values).any())
        properties = frozenset(name for name, values in block.properties.items() if np.isfinite(values).any())
        if objective.useful(fields, False, properties):
            return True
    return False
