"""Conformations that are there more than once, also turned, reordered or rounded to float32 or four decimals."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from forcewell.doctor.findings import Finding, worst
from forcewell.doctor.scan import Facts
from forcewell.system import Block

SAME = 1e-4  # Å: distances within copies differ by no more; an MD step of 0.5 fs moves hydrogens by 0.01
NEIGHBOURS = 4  # candidates looked at for each conformation
EXACT = 1e-9  # relative: invariants of bit-identical coordinates in another orientation
CONFLICT = 2e-3  # eV: more than a move of ``SAME`` changes the energy by, at forces of a few eV/Å
PAIRS = 4096  # compared at a time
Fetch = Callable[[np.ndarray], Block]


def groups(facts: Facts, fetch: Fetch) -> np.ndarray:
    """(n,) the same number for all copies of one conformation, a number of its own for every other.

    fetch: the Block of positions (k,) in the facts. Candidates come from sums over all pairs of atoms (``Facts.invariants``),
    the nearest ``NEIGHBOURS`` of each conformation with the same composition; their atoms are then compared one by one.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs = [np.zeros((0, 2), dtype=np.int64)]
    usable = np.flatnonzero(facts.sound & (facts.count > 1) & (facts.overlap > 0))
    order = usable[np.argsort(facts.composition[usable], kind="stable")]
    for mine in np.split(order, np.flatnonzero(np.diff(facts.composition[order])) + 1) if len(order) else []:
        if len(mine) > 1:
            pairs += _candidates(mine, facts.invariants[mine], facts.sensitivity[mine], int(facts.count[mine[0]]))
    found = np.concatenate(pairs)
    same = np.concatenate([np.zeros(0, dtype=bool), *(_same(fetch, part) for part in np.array_split(found, len(found) // PAIRS + 1))])
    left, right = found[same].T
    graph = coo_array((np.ones(len(left), dtype=np.int8), (left, right)), shape=(len(facts), len(facts)))
    return connected_components(graph, directed=False)[1]


def _candidates(mine: np.ndarray, values: np.ndarray, sensitivity: np.ndarray, count: int) -> list[np.ndarray]:
    """Pairs (P, 2) of positions whose invariants differ by no more than copies' can; each copy is paired with the first of its kind."""
    from scipy.spatial import KDTree

    # Three deviations of what atoms that are off by SAME / 2 at random change each sum by.
    scaled = values / (1.5 * SAME * np.median(sensitivity, axis=0))
    step = EXACT * np.abs(scaled).max(axis=0)
    _, first, inverse = np.unique(np.rint(scaled / step), axis=0, return_index=True, return_inverse=True)
    exact = np.stack([mine, mine[first[inverse.reshape(-1)]]], axis=1)
    found = [exact[exact[:, 0] != exact[:, 1]]]
    if count == 2 or len(first) < 2:  # two atoms have one distance, and scans of it have neighbours that close
        return found
    tree = KDTree(scaled[first])
    _, near = tree.query(scaled[first], k=min(NEIGHBOURS, len(first)), distance_upper_bound=np.sqrt(3.0))
    near = np.asarray(near)
    one, column = np.nonzero((near < len(first)) & (near != np.arange(len(first))[:, None]))
    # A pair is met from either side, or from one where the other has nearer ones.
    pairs = np.unique(np.sort(np.stack([one, near[one, column]], axis=1), axis=1), axis=0)
    return [*found, mine[first[pairs]]]


def _same(fetch: Fetch, pairs: np.ndarray) -> np.ndarray:
    """(P,) whether each atom of one has its like in the other: sums of z / d and of z d to all other atoms, sorted within elements."""
    if not len(pairs):
        return np.zeros(0, dtype=bool)
    block = fetch(pairs.reshape(-1))
    offsets, same = block.offsets, np.zeros(len(pairs), dtype=bool)
    for count in np.unique(block.counts[::2]):
        rows = np.flatnonzero(block.counts[::2] == count)
        for part in np.array_split(rows, max(1, len(rows) * int(count) ** 2 // 500_000)):
            one, two = (_surroundings(block, offsets[2 * part + k][:, None] + np.arange(count)) for k in (0, 1))
            # Linear response to every atom moving by SAME / 2 in the worst direction.
            close = [np.abs(a - b) <= SAME * slope for a, b, slope in zip(one[:2], two[:2], one[2:], strict=True)]
            same[part] = (close[0] & close[1]).all(axis=1)
    return same


def _surroundings(block: Block, atoms: np.ndarray) -> tuple[np.ndarray, ...]:
    """(F, A) each: Σ z/d, Σ z d of every atom, sorted within elements, and how much each can change per Å."""
    z, r = block.arrays["numbers"][atoms].astype(np.float64), block.arrays["positions"][atoms]
    distance = np.linalg.norm(r[:, :, None] - r[:, None], axis=-1)
    diagonal = np.arange(atoms.shape[1])
    distance[:, diagonal, diagonal] = np.inf
    weight = np.repeat(z[:, None], atoms.shape[1], axis=1)
    near, slope = (weight / distance).sum(axis=2), (weight / distance**2).sum(axis=2)
    distance[:, diagonal, diagonal] = 0.0
    far, total = (weight * distance).sum(axis=2), weight.sum(axis=2)

    def ordered(values: np.ndarray, *along: np.ndarray) -> list[np.ndarray]:
        order = np.lexsort((values, z))
        return [np.take_along_axis(array, order, axis=1) for array in (values, *along)]

    near, slope = ordered(near, slope)
    far, total = ordered(far, total)
    return near, far, slope, total


def duplicate_findings(facts: Facts, group: np.ndarray, where: str) -> Iterator[Finding]:
    """group (n,): see ``groups``. Copies, and copies whose energies contradict each other.

    One geometry at two levels of theory, or in two charge or spin states, is no copy.
    """
    kinds = np.stack([group, facts.level, facts.electrons, facts.spin], axis=1)
    _, first, inverse, number = np.unique(kinds, axis=0, return_index=True, return_inverse=True, return_counts=True)
    original = first[inverse.reshape(-1)]
    extra = original != np.arange(len(facts))
    if not extra.any():
        return
    pairs = ", ".join(f"{facts.row[k]} = {facts.row[original[k]]}" for k in np.flatnonzero(extra)[:5])
    evidence = {"duplicates": int(extra.sum()), "conformations_that_have_copies": int((number > 1).sum()), "first_copies": pairs}
    said = "conformations that are there more than once"
    yield Finding("warning", "duplicates", said, where, evidence, worst(facts.row[extra], np.zeros(int(extra.sum()))))
    gap = np.abs(np.nan_to_num(facts.energy - facts.energy[original]))
    conflict = extra & (gap > CONFLICT)
    if conflict.any():
        evidence = {"conformations": int(conflict.sum()), "largest_difference_eV": float(gap.max())}
        said = "copies of a conformation with different energies at one level of theory: mixed levels, or energies out of order"
        yield Finding("warning", "duplicates", said, where, evidence, worst(facts.row[conflict], gap[conflict]))
