"""Reference energies per level of theory: what a model's energies must be shifted by to be that level's energies."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from forcewell.fields import ELEMENTS
from forcewell.potential import Potential
from forcewell.store import Dataset
from forcewell.store.references import least_norm
from forcewell.system import Block, System, block_of


@dataclass(slots=True)
class Correction:
    """A fit of per-element energies to E_label - E_model (eV): its rank, and the mean error before and after."""

    level: str
    elements: tuple[int, ...]
    rank: int
    conformations: int
    before: float
    after: float

    def __str__(self) -> str:
        known = f"{self.rank} of {len(self.elements)} element energies are fixed by the data"
        change = f"mean |E error| {self.before:.4g} eV before, {self.after:.4g} eV after ({self.conformations} conformations)"
        return f"reference energies of {self.level or 'the level not stated'}: {known}; {change}"


def minimum_norm(block: Block, energies: np.ndarray) -> tuple[np.ndarray, int]:
    """(119,) float64 eV per element of least norm that best reproduce ``energies`` (F,), and the rank of the fit.

    Frames of a single molecule fix one number only (rank 1), which the minimum norm shares out by composition.
    """
    composition = np.zeros((len(block), ELEMENTS))
    np.add.at(composition, (np.repeat(np.arange(len(block)), block.counts), block.arrays["numbers"]), 1.0)
    present = np.flatnonzero(composition.any(axis=0))
    solution, rank = least_norm(composition[:, present], energies)
    references = np.zeros(ELEMENTS)
    references[present] = solution
    return references, rank


def correct(
    potential: Potential, data: Sequence[tuple[Dataset, np.ndarray]], level: str, limit: int = 256, untrained: bool = False
) -> Correction | None:
    """Adds the minimum-norm correction fitted to E_label - E_model on labelled rows of ``level``.

    data: data sets with the rows (indices) to use, up to ``limit`` of each; one fit for all, since they share the level.
    untrained: the model says nothing yet, E_model is 0 and up to sixteen times as many rows are used.
    Changes ``potential.references[level]``; returns None, changing nothing, where no row has an energy.
    """
    systems = [system for dataset, rows in data for system in _labelled(dataset, rows, level, limit * (16 if untrained else 1))]
    if not systems:
        return None
    block = block_of(systems)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*charged or not singlets")  # told of the data as a whole
        error = block.arrays["energy"] - (0.0 if untrained else potential.predict(systems, level=level)["energy"])
    shift, rank = minimum_norm(block, error)
    potential.references[level] = potential.references[level] + shift
    remaining = error - np.array([shift[system.numbers].sum() for system in systems])
    elements = tuple(int(z) for z in np.unique(block.arrays["numbers"]))
    return Correction(level, elements, rank, len(systems), float(np.abs(error).mean()), float(np.abs(remaining).mean()))


def energy_spread(data: Sequence[tuple[Dataset, np.ndarray]], limit: int = 4096) -> float:
    """Standard deviation (eV) of labelled energies around the least-squares references of their level of theory.

    data: data sets with the rows to use, up to ``limit`` of each and level; all levels are pooled. 1.0 where nothing is left
    to spread: no labels, or as many elements as conformations.
    """
    left: list[np.ndarray] = []
    for level in dict.fromkeys(level for dataset, _ in data for level in dataset.levels):
        if systems := [system for dataset, rows in data for system in _labelled(dataset, rows, level, limit)]:
            block = block_of(systems)
            references, _ = minimum_norm(block, block.arrays["energy"])
            left.append(block.arrays["energy"] - np.array([references[system.numbers].sum() for system in systems]))
    spread = float(np.sqrt(np.mean(np.concatenate(left) ** 2))) if left else 0.0
    return spread if spread > 1e-6 else 1.0


def _labelled(data: Dataset, rows: np.ndarray, level: str, limit: int) -> list[System]:
    """Up to ``limit`` of ``rows``, evenly spread, that are at ``level`` and have an energy."""
    if "energy" not in data.fields or level not in data.levels:
        return []
    rows = rows[(data.column("level")[rows] == data.levels.index(level)) & np.isfinite(data.column("energy")[rows])]
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(limit, len(rows))).astype(int))]
    block = data.block(rows)
    return [block.system(i) for i in range(len(block))]
