"""Energies against forces: for two conformations of a molecule that are close, dE is minus the forces along the displacement.

The slope of one against the other is 1 where sign and units agree, -1 where gradients were stored as forces, 23.06 where
energies in kcal/mol pass for eV. Only neighbours that correlate above ``CORRELATION`` are counted: others are too far apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from forcewell.store import Dataset
from forcewell.system import Block

CLOSEST_PAIRS, FEWEST_PAIRS = 15, 8  # pairs that decide; on the ten molecules of rMD17, 40 are already too far apart
CORRELATION = 0.98
FARTHEST = 0.3  # Å root mean square; dimers that share a SMILES and nothing else are 0.8 Å apart and correlate by chance
CANDIDATES = 2000  # pairs per molecule that are aligned
FRAMES_OF_A_MOLECULE, FRAMES_IN_ALL, MOLECULES = 2000, 20_000, 2000


@dataclass(frozen=True, slots=True)
class Slope:
    """dE = value * (-F·dR) over ``pairs`` pairs of neighbours. molecule: whose, "" for all. rows: two conformations of it."""

    value: float
    correlation: float
    pairs: int
    molecule: str = ""
    rows: tuple[int, ...] = ()

    @property
    def counts(self) -> bool:
        """Whether the pairs are enough and near enough to say anything."""
        return self.pairs >= FEWEST_PAIRS and abs(self.correlation) > CORRELATION


def slopes(dataset: Dataset, rows: np.ndarray, molecule: np.ndarray) -> tuple[Slope, list[Slope]]:
    """The slope over the closest pairs of all ``rows`` (k,), and of each molecule (codes (k,)) whose own pairs count."""
    found, each = [np.zeros((0, 5))], []
    for group in _groups(dataset, rows, molecule):
        block = dataset.block(group)
        if (block.counts == block.counts[0]).all() and block.counts[0] > 1:
            pairs = _pairs_of(block)
            pairs[:, 3:] = group[pairs[:, 3:].astype(np.int64)]
            found.append(pairs)
            assert block.molecule is not None
            slope = _slope(pairs, str(block.molecule[0]))
            each += [slope] if slope.counts else []
    return _slope(_closest(np.concatenate(found))), each


def _closest(pairs: np.ndarray) -> np.ndarray:
    """The ``CLOSEST_PAIRS`` of ``pairs`` (P, 5), each once: fifteen copies of one pair always correlate and prove nothing."""
    alike = np.rint(np.abs(pairs[:, [0, 2]]) * 1e5)  # Å, eV; whichever of the two comes first
    pairs = pairs[np.unique(alike, axis=0, return_index=True)[1]]
    return pairs[np.argsort(pairs[:, 0], kind="stable")[:CLOSEST_PAIRS]]


def _slope(pairs: np.ndarray, molecule: str = "") -> Slope:
    work, difference = pairs[:, 1], pairs[:, 2]
    if not work.any() or not difference.any():
        return Slope(np.nan, 0.0, len(pairs), molecule)
    correlation = float(work @ difference / np.sqrt((work @ work) * (difference @ difference)))
    return Slope(float(work @ difference / (work @ work)), correlation, len(pairs), molecule, tuple(pairs[0, 3:].astype(int).tolist()))


def _groups(dataset: Dataset, rows: np.ndarray, molecule: np.ndarray) -> Iterator[np.ndarray]:
    """Rows of one molecule in order of time, the molecules with most rows first, within the limits on their number."""
    frame = dataset.column("property:frame")[rows] if "frame" in dataset.properties else rows
    order = np.lexsort((frame, molecule))
    groups = np.split(rows[order], np.flatnonzero(np.diff(molecule[order])) + 1)
    budget = FRAMES_IN_ALL
    for group in sorted(groups, key=len, reverse=True)[:MOLECULES]:
        if len(group) < 2 or budget <= 0:
            return
        yield group[:FRAMES_OF_A_MOLECULE]
        budget -= min(len(group), FRAMES_OF_A_MOLECULE)


def _pairs_of(block: Block) -> np.ndarray:
    """(P, 5) root mean square distance after alignment [Å], -F·dR (trapezoidal) [eV], dE [eV] and the two positions in
    the block, of one molecule's closest pairs."""
    frames, atoms = len(block), int(block.counts[0])
    numbers = block.arrays["numbers"].reshape(frames, atoms)
    forces = block.arrays["forces"].reshape(frames, atoms, 3).astype(np.float64)
    positions = block.arrays["positions"].reshape(frames, atoms, 3)
    usable = np.flatnonzero(
        (numbers == numbers[0]).all(axis=1) & np.isfinite(forces).all(axis=(1, 2)) & np.isfinite(positions).all(axis=(1, 2))
    )
    # Of equal conformations one: the pairs of repeated ones are one pair, which alone says nothing and correlates perfectly.
    usable = usable[np.sort(np.unique(np.round(positions[usable].reshape(len(usable), -1), 3), axis=0, return_index=True)[1])]
    positions, forces, energy = positions[usable], forces[usable], block.arrays["energy"][usable]
    if len(usable) < 2:
        return np.zeros((0, 5))
    one, two = _candidates(positions)
    a, b = (positions[k] - positions[k].mean(axis=1, keepdims=True) for k in (one, two))
    rotation = kabsch(a, b)
    step = b @ rotation - a
    work = -0.5 * ((forces[one] + forces[two] @ rotation) * step).sum(axis=(1, 2))
    distance = np.sqrt((step**2).sum(axis=(1, 2)) / atoms)
    pairs = np.stack([distance, work, energy[two] - energy[one], usable[one], usable[two]], axis=1)
    # Closer than 1e-4 Å is the same conformation, whose energy difference is rounding.
    return _closest(pairs[(distance > 1e-4) & (distance < FARTHEST)])


def _candidates(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of up to ``CANDIDATES`` pairs of frames with the most similar interatomic distances."""
    atoms = positions.shape[1]
    first, second = np.triu_indices(atoms, 1)
    if len(first) > 500:  # 500 of the distances place a conformation well enough, and bound the memory to 8 MB
        chosen = np.random.default_rng(0).choice(len(first), 500, replace=False)
        first, second = first[chosen], second[chosen]
    distances = np.linalg.norm(positions[:, first] - positions[:, second], axis=-1)
    square = (distances**2).sum(axis=1)
    one, two = np.triu_indices(len(positions), 1)
    gap = (square[:, None] + square - 2 * distances @ distances.T)[one, two]
    if len(gap) > CANDIDATES:
        nearest = np.argpartition(gap, CANDIDATES)[:CANDIDATES]
        one, two = one[nearest], two[nearest]
    return one, two


def kabsch(target: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """(P, 3, 3) rotations R that bring ``moved @ R`` closest to ``target``; both (P, A, 3), centred. No reflections."""
    u, _, vt = np.linalg.svd(np.einsum("pai,paj->pij", moved, target))
    u[:, :, 2] *= np.sign(np.linalg.det(u @ vt))[:, None]
    return u @ vt
