"""Distribution of interatomic distances h(r), and how far a simulation's is from the reference's.

As in Fu et al., "Forces are not enough", TMLR 2023 (the MDsim benchmark): all pairs of all frames, 500 bins up to 10 Å,
normalised to a density; the error is the mean absolute difference times 10 Å, i.e. the integral of |Δh| over r.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

EDGES = np.linspace(1e-6, 10.0, 501)  # Å
RANGE = 10.0  # Å; the factor between the mean over bins and the integral


@dataclass(frozen=True, slots=True)
class DistanceError:
    """mae: the error of h(r), between 0 (equal) and 2 (no overlap). floor: the same between two halves of the reference;
    an ``mae`` near or below it cannot be told from sampling noise."""

    mae: float
    floor: float


def histogram(positions: np.ndarray) -> np.ndarray:
    """(500,) int64 counts of the pair distances of frames (F, n, 3) in Å; each pair once, frames with NaN left out.

    Distances beyond 10 Å and below 1e-6 Å are not counted. Self pairs are excluded by index, not by their distance: the
    matrix-product distances of ``torch.cdist``, which it uses for more than 25 atoms, put 3e-3 Å on the diagonal.
    """
    positions = np.asarray(positions, dtype=np.float64)
    positions = positions[np.isfinite(positions).all(axis=(1, 2))]
    counts = np.zeros(len(EDGES) - 1, dtype=np.int64)
    first, second = np.triu_indices(positions.shape[1], k=1)
    # 2 million pairs at a time hold 50 MB.
    for chunk in np.array_split(positions, max(1, len(positions) * len(first) // 2_000_000)):
        counts += np.histogram(np.linalg.norm(chunk[:, first] - chunk[:, second], axis=-1), bins=EDGES)[0]
    return counts


def density(counts: np.ndarray) -> np.ndarray:
    """(500,) h(r) in 1/Å of counts (500,), with integral 1; zero throughout where there are no counts."""
    total = counts.sum()
    return counts / np.diff(EDGES) / total if total else np.zeros(len(counts))


def mean_absolute_error(h: np.ndarray, reference: np.ndarray) -> float:
    """Integral of |Δh| over r, the published error of h(r)."""
    return float(np.abs(h - reference).mean() * RANGE)


def distance_error(counts: np.ndarray, reference: np.ndarray) -> DistanceError:
    """Error of a simulation's counts (500,) against reference frames (F, n, 3) in Å, beside its floor.

    The floor compares the first half of the reference frames with the second, as they are ordered.
    """
    half = len(reference) // 2
    first, second = histogram(reference[:half]), histogram(reference[half:])
    floor = mean_absolute_error(density(first), density(second)) if half else float("nan")
    return DistanceError(mean_absolute_error(density(counts), density(first + second)), floor)
