"""How well a micro-canonical run keeps its energy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Conservation:
    """drift: slope of a linear fit, meV/atom/ps. deviation: largest distance of the total energy from its first value, meV/atom."""

    drift: float
    deviation: float


def conservation(time: np.ndarray, energy: np.ndarray, atoms: int) -> Conservation:
    """Drift and largest deviation of total energies (R,) in eV at times (R,) in ps, of ``atoms`` atoms.

    Entries with a NaN energy (after a break) are left out; with fewer than two times left, both are NaN.
    """
    time, energy = np.asarray(time, dtype=np.float64), np.asarray(energy, dtype=np.float64)
    known = np.isfinite(energy)
    time, change = time[known], 1000.0 / atoms * (energy[known] - energy[known][:1])
    if len(time) < 2:
        return Conservation(float("nan"), float("nan"))
    centered = time - time.mean()
    return Conservation(float((centered * change).sum() / (centered**2).sum()), float(np.abs(change).max()))
