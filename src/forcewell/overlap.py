"""Has a model met these conformations in training? Compact geometry hashes answer it."""

from __future__ import annotations

import numpy as np

from forcewell.system import Block

# The smallest hashes of a data set are a uniform sample of it (a bottom-k sketch): 16,384 take 128 kB in a model
# file and are everything for a small data set; for a larger one they still give the overlap to about 1 %.
KEPT = 16384
FEWEST = 20  # comparable hashes; their share is then known to about 10 %


def geometry_hashes(block: Block) -> np.ndarray:
    """(F,) uint64 that survive rotation, translation and reordering of the atoms, but not a move of 1e-3 Å.

    From the composition and two sums over pairs, Σ z z / d and Σ z z / d², in steps of 1e-4. A rounded copy can fall into the
    next step: of coordinates written with 8 decimals 99.5 % are recognised, with float32 98 %, with 6 decimals 56-94 %.
    """
    numbers, positions = block.arrays["numbers"].astype(np.float64), block.arrays["positions"]
    keys = np.zeros((len(block), 4), dtype=np.int64)
    offsets = block.offsets
    for count in np.unique(block.counts):
        rows = np.flatnonzero(block.counts == count)
        for chunk in np.array_split(rows, max(1, len(rows) * int(count) ** 2 // 2_000_000)):
            atoms = offsets[chunk][:, None] + np.arange(count)
            z, r = numbers[atoms], positions[atoms]
            a, b = np.triu_indices(int(count), 1)
            inverse = 1.0 / np.linalg.norm(r[:, a] - r[:, b], axis=2)
            product = z[:, a] * z[:, b]
            for column, power in ((0, 1), (1, 2)):
                keys[chunk, column] = np.rint((product * inverse**power).sum(1) * 1e4)
            keys[chunk, 2] = np.rint((z**3).sum(1))
            keys[chunk, 3] = count
    mixed = np.zeros(len(block), dtype=np.uint64)
    with np.errstate(over="ignore"):  # splitmix64's finaliser over the four numbers, wrapping on purpose
        for column in range(4):
            mixed = (mixed ^ keys[:, column].astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            mixed ^= mixed >> np.uint64(31)
    return mixed


def sketch(hashes: np.ndarray) -> np.ndarray:
    """The smallest ``KEPT`` distinct hashes, sorted."""
    return np.unique(hashes)[:KEPT]


def overlap(hashes: np.ndarray, training: np.ndarray) -> float | None:
    """Fraction of ``hashes`` that the training data contain; exact where the sketch holds all of them.

    None where it cannot be told: of a truncated sketch only hashes up to its largest can be looked up, and fewer
    than ``FEWEST`` of them say nothing.
    """
    if len(hashes) == 0 or len(training) == 0:
        return 0.0
    if len(training) < KEPT:
        return float(np.isin(hashes, training).mean())
    comparable = hashes[hashes <= training.max()]
    return float(np.isin(comparable, training).mean()) if len(comparable) >= FEWEST else None
