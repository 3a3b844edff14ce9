"""Reference energies: per level of theory, the energies of the elements that explain the totals best."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from forcewell.store.gathering import Gatherer
from forcewell.store.reading import Dataset

ELEMENTS = 119  # length of a reference-energy vector: index = atomic number
CHUNK = 16384  # conformations whose compositions are told apart at once


@dataclass(frozen=True, slots=True)
class ReferenceFit:
    """values: (119,) eV by atomic number, 0 for elements not met. rank: independent compositions; below the number of
    elements the split between elements is a convention (minimum norm), though the sums are right. conformations: used.
    """

    values: np.ndarray
    elements: tuple[int, ...]
    rank: int
    conformations: int

    def as_json(self) -> dict[str, Any]:
        """For the manifest; floats round-trip exactly."""
        energies = {str(element): float(self.values[element]) for element in self.elements}
        return {"energies": energies, "rank": self.rank, "conformations": self.conformations}


def reference_fits(dataset: Dataset) -> dict[str, ReferenceFit]:
    """Least squares in float64, of minimum norm, of the total energies on the compositions; one fit per level of theory.

    Conformations of one composition enter as their mean energy with the weight of their number, which is the same
    problem with as many rows as there are compositions. Levels without energies are left out.
    """
    if "energy" not in dataset.fields:
        return {}
    sums: dict[tuple[int, bytes], list[float]] = {}
    for level, composition, energy in _compositions(dataset):
        entry = sums.setdefault((level, composition), [0.0, 0.0])
        entry[0] += energy[0]
        entry[1] += energy[1]
    fits = {}
    for index, name in enumerate(dataset.levels):
        rows = [(np.frombuffer(key, dtype=np.int64), n, total) for (level, key), (n, total) in sums.items() if level == index]
        if rows:
            fits[name] = _fit(np.array([row[0] for row in rows]), np.array([row[1] for row in rows]), np.array([row[2] for row in rows]))
    return fits


def references(dataset: Dataset) -> dict[str, np.ndarray]:
    """(119,) eV per level of theory, as ``Potential`` takes them; see ``reference_fits``."""
    return {level: fit.values for level, fit in reference_fits(dataset).items()}


def _fit(compositions: np.ndarray, number: np.ndarray, total: np.ndarray) -> ReferenceFit:
    elements = np.flatnonzero(compositions.sum(axis=0))
    weight = np.sqrt(number)
    design, target = compositions[:, elements] * weight[:, None], total / number * weight
    solution, _, rank, _ = np.linalg.lstsq(design, target, rcond=None)
    values = np.zeros(ELEMENTS)
    values[elements] = solution
    return ReferenceFit(values, tuple(elements.tolist()), int(rank), int(number.sum()))


def _compositions(dataset: Dataset) -> Iterator[tuple[int, bytes, tuple[float, float]]]:
    """(level, composition as bytes of (119,) int64, (conformations, sum of their energies)) by chunks."""
    # One unsigned number per composition, the sum of its atoms' numbers, instead of counting the elements of every
    # conformation: ten times faster, and checked for collisions by nothing but their odds of 2^-64 per pair.
    weights = np.random.default_rng(0).integers(1, 2**63, size=ELEMENTS + len(dataset.levels), dtype=np.uint64) | np.uint64(1)
    gather = Gatherer([dataset])
    for start in range(0, len(dataset), CHUNK):
        found = gather(np.arange(start, min(start + CHUNK, len(dataset))), bare=True)
        numbers, energies = found.block.arrays["numbers"], found.block.arrays["energy"]
        sums = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(weights[numbers], dtype=np.uint64)])  # wraps around, on purpose
        keys = np.diff(sums[found.block.offsets]) + weights[ELEMENTS + found.level]
        usable = np.flatnonzero(np.isfinite(energies))
        _, first, inverse = np.unique(keys[usable], return_index=True, return_inverse=True)
        number = np.bincount(inverse)
        total = np.bincount(inverse, weights=energies[usable])
        offsets = found.block.offsets
        for k, row in enumerate(usable[first]):
            composition = np.bincount(numbers[offsets[row] : offsets[row + 1]], minlength=ELEMENTS).astype(np.int64)
            yield int(found.level[row]), composition.tobytes(), (float(number[k]), float(total[k]))
