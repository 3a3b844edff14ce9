"""Ring-opening enthalpies and energies per repeat unit from sampled loops, with error bars and the limit of an endless loop.

Of a loop of L repeat units without end groups the value is ⟨E(loop_L)⟩ / L − ⟨E(monomer)⟩: the enthalpy of opening one ring
(Tran et al., J. Phys. Chem. Lett. 2022, 13, 4778). E is the potential energy: at one temperature the kinetic energies of L n
atoms, divided by L, and of n atoms are the same. What a gas of monomers gains over that by its pressure, k_B T, is not in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from forcewell.errors import InputError


@dataclass(frozen=True, slots=True)
class Average:
    """A mean and its standard error, both in eV; of how many frames and independent trajectories."""

    mean: float
    error: float
    frames: int
    trajectories: int


@dataclass(frozen=True, slots=True)
class PerUnit:
    """Per repeat unit, eV: ``value`` and its standard error for a loop of ``repeats``."""

    repeats: int
    value: float
    error: float


@dataclass(frozen=True, slots=True)
class Limit:
    """The limit L → ∞ of value(L) = value + slope / L, all in eV. chi_squared: per degree of freedom, NaN where there is none."""

    value: float
    error: float
    slope: float
    chi_squared: float


def average(trajectories: Sequence[np.ndarray]) -> Average:
    """The mean over all frames of independent trajectories, (n_k,) each in the order of time, with its error by block averages.

    Blocks of 1, 2, 4, ... frames, up to one block per trajectory and at least two in all, are treated as independent; the shortest
    are taken for which 8^k > 2 n (e_k / e_0)^4, where e_k is the error from blocks of 2^k among n frames: the length that
    minimises bias and noise together (Lee et al., Phys. Rev. E 2011, 83, 066706, after Flyvbjerg and Petersen, J. Chem. Phys.
    1989, 91, 461). Conformations and stereoisomers between which no trajectory crosses make the error grow with the block up to whole
    trajectories, and so are counted. Raises InputError for fewer than four frames.
    """
    series = [np.asarray(one, dtype=np.float64) for one in trajectories if len(one)]
    frames = sum(map(len, series))
    if frames < 4:
        raise InputError(f"{frames} frames are too few for an error bar; expected at least 4")
    mean = float(np.concatenate(series).mean())
    first = error = _blocked(series, 1, mean) or 0.0
    length = 1
    while first > 0 and length**3 <= 2 * frames * (error / first) ** 4:
        length *= 2
        longer = _blocked(series, length, mean)
        if longer is None:
            break
        error = longer
        if length >= max(map(len, series)):
            break
    return Average(mean, error, frames, len(series))


def _blocked(series: Sequence[np.ndarray], length: int, mean: float) -> float | None:
    """Standard error from blocks of ``length`` frames, none across trajectories; None where there are fewer than two blocks."""
    sums = []
    for one in series:
        count = max(1, len(one) // length)
        sums.append(np.add.reduceat(one - mean, np.arange(count) * len(one) // count))
    blocks = np.concatenate(sums)
    if len(blocks) < 2:
        return None
    return math.sqrt(float(blocks @ blocks) * len(blocks) / (len(blocks) - 1)) / sum(map(len, series))


def per_repeat_unit(loops: Mapping[int, Average]) -> list[PerUnit]:
    """⟨E(loop_L)⟩ / L − ⟨E(monomer)⟩ of every L > 1. loops: by L; 1 is the monomer, and must be there."""
    monomer = loops[1]
    return [
        PerUnit(repeats, one.mean / repeats - monomer.mean, math.hypot(one.error / repeats, monomer.error))
        for repeats, one in sorted(loops.items())
        if repeats > 1
    ]


def endless(loops: Mapping[int, Average]) -> Limit | None:
    """The limit of an endless loop: E(L) / L fitted by e + a / L, weighted by the errors; None with fewer than two L > 1.

    Both what the ends of the ring strain and the fluctuations that closing it forbids are paid once per loop: hence 1 / L. The
    monomer, a strained ring of its own, is not in the fit, and its error is added afterwards. Where the points scatter more than
    their errors say (χ² per degree of freedom above 1), the error is scaled up by its root. Without any errors (minima), it is
    that of a fit with equal weights, NaN for two points.
    """
    points = [(repeats, one) for repeats, one in sorted(loops.items()) if repeats > 1]
    if len(points) < 2:
        return None
    repeats = np.array([number for number, _ in points], dtype=np.float64)
    values = np.array([one.mean for _, one in points]) / repeats
    errors = np.array([one.error for _, one in points]) / repeats
    exact = not errors.all()
    weights = np.ones_like(errors) if exact else 1 / errors
    design = np.stack([np.ones_like(repeats), 1 / repeats], axis=1)
    solution = np.linalg.lstsq(design * weights[:, None], values * weights, rcond=None)[0]
    covariance = np.linalg.inv((design * weights[:, None] ** 2).T @ design)
    freedom = len(points) - 2
    squares = float(np.sum((weights * (values - design @ solution)) ** 2))
    chi_squared = squares / freedom if freedom else math.nan
    scale = chi_squared if exact else max(1.0, chi_squared) if freedom else 1.0
    error = math.hypot(math.sqrt(covariance[0, 0] * scale), loops[1].error)
    return Limit(float(solution[0]) - loops[1].mean, error, float(solution[1]), math.nan if exact else chi_squared)
