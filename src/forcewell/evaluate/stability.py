"""How long a molecule stays whole in molecular dynamics: the bond-length criterion of Fu et al., TMLR 2023 (MDsim).

A frame is broken when any bond is further than 0.5 Å from its mean length in the reference data. Frames are numbered from
0, the start, and ``Stability.picoseconds`` is the time of the first broken frame, the published figure. Published code
reports one more than that frame's number as its point of collapse (``Stability.collapse``), never looks at the last frame,
and takes h(r) over the frames before that point, hence with the first broken frame. Here the last frame is looked at too;
that changes no published figure, for a run that breaks there and one that does not end at the same time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

THRESHOLD = 0.5  # Å
# ASE's NeighborList adds its default skin to each atom's natural (covalent) radius: a pair is bonded up to 0.6 Å beyond the
# sum of the two radii, e.g. C-H up to 1.67 Å.
SKIN = 0.3  # Å


@dataclass(frozen=True, slots=True)
class Stability:
    """frames: number looked at. first_broken: number of the first broken frame, None where all are whole (the time is then
    censored). picoseconds: how long it was whole. bond: row of the worst bond. deviation: (F,) Å, largest of each frame."""

    frames: int
    first_broken: int | None
    picoseconds: float
    bond: int | None
    deviation: np.ndarray

    @property
    def collapse(self) -> int:
        """Number of frames that h(r) is taken over, MDsim's ``collapse_pt``."""
        return self.frames if self.first_broken is None else self.first_broken + 1


def bonds(numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Bonded pairs (B, 2), i < j, of one structure (n,), (n, 3) Å, and the shifts (B, 3) in Å of j's periodic image.

    From ASE's natural cutoffs. A hydrogen keeps its nearest partner only: a short hydrogen bond (1.5 Å in salicylic acid at
    500 K) is within the cutoffs, too, and is no bond to watch. ``cell`` (3, 3) with rows of zeros where open.
    """
    import ase
    from ase.neighborlist import natural_cutoffs, neighbor_list

    atoms = ase.Atoms(numbers, positions, cell=cell, pbc=False if cell is None else np.any(cell != 0, axis=1))
    radii = np.asarray(natural_cutoffs(atoms)) + SKIN
    first, second, distance, images = neighbor_list("ijdS", atoms, radii)
    nearest = np.full(len(numbers), np.inf)
    np.minimum.at(nearest, first, distance)
    limit = np.where(np.asarray(numbers) == 1, nearest + 1e-9, np.inf)
    keep = (distance <= limit[first]) & (distance <= limit[second]) & (first < second)
    pairs = np.stack([first[keep], second[keep]], axis=1)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    shifts = images[keep] @ np.asarray(atoms.cell)
    return pairs[order], shifts[order]


def bond_lengths(positions: np.ndarray, pairs: np.ndarray, cell: np.ndarray | None = None) -> np.ndarray:
    """(F, B) Å for frames (F, n, 3) and pairs (B, 2); by minimum image where a ``cell`` (3, 3) is given."""
    vectors = positions[:, pairs[:, 1]] - positions[:, pairs[:, 0]]
    if cell is not None and np.any(cell):
        periodic = np.any(cell != 0, axis=1)
        fractions = vectors @ np.linalg.pinv(cell)
        vectors = vectors - (np.round(fractions) * periodic) @ cell
    return np.linalg.norm(vectors, axis=-1)


def stability(positions: np.ndarray, pairs: np.ndarray, lengths: np.ndarray, frame: float, cell: np.ndarray | None = None) -> Stability:
    """Judges frames (F, n, 3), ``frame`` ps apart, by bonds (B, 2) with reference lengths (B,) in Å.

    A frame with NaN is broken.
    """
    deviations = np.abs(bond_lengths(positions, pairs, cell) - lengths)
    worst = deviations.max(axis=1, initial=0.0)
    broken = np.flatnonzero(~(worst <= THRESHOLD))
    if len(broken) == 0:
        return Stability(len(positions), None, (len(positions) - 1) * frame, None, worst)
    first = int(broken[0])
    return Stability(len(positions), first, first * frame, int(np.argmax(deviations[first])), worst)
