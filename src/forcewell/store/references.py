"""Reference energies per level of theory: of isolated atoms where known, else those of the elements that explain the totals best."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from forcewell.fields import ELEMENTS
from forcewell.store.gathering import Gatherer
from forcewell.store.reading import Dataset

CHUNK = 16384  # conformations whose compositions are told apart at once


@dataclass(frozen=True, slots=True)
class PerAtom:
    """Mean and standard deviation over conformations of an energy per atom [eV]."""

    mean: float
    spread: float


@dataclass(frozen=True, slots=True)
class ReferenceFit:
    """values: (119,) eV by atomic number, 0 for elements not met. rank: independent compositions; below the number of
    elements the split between elements is a convention (minimum norm), though the sums are right. conformations: used.
    before, after: energies per atom as they are, and with the references taken off. isolated: not fitted, but the energies of
    isolated atoms that came with the data.
    """

    values: np.ndarray
    elements: tuple[int, ...]
    rank: int
    conformations: int
    before: PerAtom
    after: PerAtom
    isolated: bool = False

    def as_json(self) -> dict[str, Any]:
        """For the manifest; floats round-trip exactly."""
        return {
            "energies": {str(element): float(self.values[element]) for element in self.elements},
            "rank": self.rank,
            "isolated": self.isolated,
            "conformations": self.conformations,
            "per_atom": {"before": asdict(self.before), "after": asdict(self.after)},
        }


def reference_fits(dataset: Dataset) -> dict[str, ReferenceFit]:
    """Least squares in float64, of minimum norm, of the total energies on the compositions; one fit per level of theory.

    The data's ``isolated_atoms`` instead, at levels where they have one of every element met there.
    Conformations of one composition enter as their mean energy with the weight of their number, which is the same
    problem with as many rows as there are compositions. Levels without energies are left out.
    """
    if "energy" not in dataset.fields:
        return {}
    met: dict[tuple[int, bytes], np.ndarray] = {}
    for level, composition, more in _compositions(dataset):
        key = (level, composition)
        met[key] = _merged(met[key], more) if key in met else more
    fits = {}
    for index, name in enumerate(dataset.levels):
        rows = [(np.frombuffer(key, dtype=np.int64), *sums) for (level, key), sums in met.items() if level == index]
        if rows:
            compositions, number, mean, scatter = (np.array(column) for column in zip(*rows, strict=True))
            fits[name] = _fit(compositions, number, mean, scatter, dataset.isolated_atoms.get(name, {}))
    return fits


def fit_references(compositions: np.ndarray, index: np.ndarray, energies: np.ndarray) -> ReferenceFit:
    """The fit to energies (n,) [eV] of conformations whose composition is ``compositions[index]``, (U, 119) and (n,)."""
    used, inverse = np.unique(index, return_inverse=True)
    inverse = inverse.reshape(-1)
    number = np.bincount(inverse)
    mean = np.bincount(inverse, weights=energies) / number
    return _fit(compositions[used], number, mean, np.bincount(inverse, weights=(energies - mean[inverse]) ** 2))


def references(dataset: Dataset) -> dict[str, np.ndarray]:
    """(119,) eV per level of theory, as ``Potential`` takes them; see ``reference_fits``."""
    return {level: fit.values for level, fit in reference_fits(dataset).items()}


def least_norm(design: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, int]:
    """The solution of least norm of design (R, K) x = values (R,) by least squares, and the rank; what all fits of references are."""
    solution, _, rank, _ = np.linalg.lstsq(design, values, rcond=1e-10)
    return solution, int(rank)


def _fit(
    compositions: np.ndarray, number: np.ndarray, mean: np.ndarray, scatter: np.ndarray, known: Mapping[int, float] = MappingProxyType({})
) -> ReferenceFit:
    """From each composition's conformations, mean energy, and sum of squared deviations from it. known: energies of isolated atoms."""
    elements = np.flatnonzero(compositions.any(axis=0))
    weight = np.sqrt(number)
    design = compositions[:, elements].astype(np.float64)
    isolated = known.keys() >= set(elements.tolist())
    if isolated:
        solution, rank = np.array([known[element] for element in elements.tolist()]), len(elements)
    else:
        solution, rank = least_norm(design * weight[:, None], mean * weight)
    values = np.zeros(ELEMENTS)
    values[elements] = solution
    atoms = design.sum(axis=1)

    def per_atom(centre: np.ndarray) -> PerAtom:
        middle = float(np.average(centre / atoms, weights=number))
        squares = number * (centre / atoms - middle) ** 2 + scatter / atoms**2
        return PerAtom(middle, float(np.sqrt(squares.sum() / number.sum())))

    before, after = per_atom(mean), per_atom(mean - design @ solution)
    return ReferenceFit(values, tuple(elements.tolist()), rank, int(number.sum()), before, after, isolated)


def _merged(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Number, mean and sum of squared deviations of two sets together (Chan et al. 1983), without cancellation."""
    number = one[0] + two[0]
    gap = two[1] - one[1]
    return np.array([number, one[1] + gap * two[0] / number, one[2] + two[2] + gap**2 * one[0] * two[0] / number])


def _compositions(dataset: Dataset) -> Iterator[tuple[int, bytes, np.ndarray]]:
    """(level, composition as bytes of (119,) int64, conformations with their mean energy and squared deviations) by chunks."""
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
        mean = np.bincount(inverse, weights=energies[usable]) / number
        scatter = np.bincount(inverse, weights=(energies[usable] - mean[inverse]) ** 2)
        offsets = found.block.offsets
        for k, row in enumerate(usable[first]):
            composition = np.bincount(numbers[offsets[row] : offsets[row + 1]], minlength=ELEMENTS).astype(np.int64)
            yield int(found.level[row]), composition.tobytes(), np.array([number[k], mean[k], scatter[k]])
