"""Has a model met these conformations in training? Compact geometry hashes answer it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from forcewell.system import Block

# The smallest hashes of a data set are a uniform sample of it (a bottom-k sketch): 16,384 take 128 kB in a model
# file and are everything for a small data set; for a larger one they still give the overlap to about 1 %.
KEPT = 16384
PAIRS_AT_ONCE = 16_384  # in 1 MB of arrays of doubles: larger ones leave the cache, smaller ones cost more calls
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
        a, b = np.triu_indices(int(count), 1)
        for chunk in np.array_split(rows, max(1, len(rows) * max(1, len(a)) // PAIRS_AT_ONCE)):
            atoms = offsets[chunk] + np.arange(count)[:, None]
            # Pairs first, conformations last: every operation then runs along contiguous numbers, three times faster.
            z, r = numbers[atoms], np.ascontiguousarray(positions[atoms].transpose(2, 0, 1))
            apart = r.take(a, axis=1)
            apart -= r.take(b, axis=1)
            inverse = np.einsum("dpf,dpf->pf", apart, apart)
            np.sqrt(inverse, out=inverse)
            np.reciprocal(inverse, out=inverse)
            product = z.take(a, axis=0)
            product *= z.take(b, axis=0)
            product *= inverse
            keys[chunk, 0] = np.rint(product.sum(0) * 1e4)
            product *= inverse
            keys[chunk, 1] = np.rint(product.sum(0) * 1e4)
            keys[chunk, 2] = np.rint((z**3).sum(0))
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


def sketch_of(blocks: Iterable[Block]) -> np.ndarray:
    """The sketch of all conformations of some blocks; memory does not grow with their number."""
    kept = np.zeros(0, dtype=np.uint64)
    for block in blocks:
        hashes = geometry_hashes(block)
        kept = sketch(np.concatenate([kept, hashes if len(kept) < KEPT else hashes[hashes < kept[-1]]]))
    return kept


def overlap(hashes: np.ndarray, training: np.ndarray) -> float | None:
    """Fraction of ``hashes`` that the training data contain; exact where the sketch holds all of them.

    None where it cannot be told: without a sketch, or where of ``hashes`` fewer than ``FEWEST`` can be looked up in a truncated
    one, which are those up to its largest.
    """
    if len(hashes) == 0:
        return 0.0
    if len(training) == 0:
        return None
    if len(training) < KEPT:
        return float(np.isin(hashes, training).mean())
    comparable = hashes[hashes <= training.max()]
    return float(np.isin(comparable, training).mean()) if len(comparable) >= FEWEST else None


def overlap_lines(shares: Sequence[float | None]) -> list[str]:
    """What to say of the overlap of some conformations with each training of a model, the first (pre-training) first."""
    lines = []
    for number, share in enumerate(shares, 1):
        where = "in the model's training data" + (f" (training {number} of {len(shares)})" if len(shares) > 1 else "")
        lines.append(
            f"cannot tell whether the conformations were {where}"
            if share is None
            else f"{100 * share:.1f} % of the conformations were {where}"
        )
    return lines
