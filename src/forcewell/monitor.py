"""What a simulation watches: bonds against their reference lengths, temperature, and values that are not finite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forcewell import integrators
from forcewell.errors import InputError
from forcewell.evaluate.stability import THRESHOLD, bond_lengths, bonds
from forcewell.system import Block, System
from forcewell.units import ACCELERATION, BOLTZMANN

HOTTEST = 1e5  # K, as in the MDsim benchmark; no molecule is whole there


@dataclass(slots=True)
class Replica:
    """One copy of one structure: its bonds (pairs (B, 2), shifts (B, 3) Å of the periodic image, reference lengths (B,) Å),
    and how it ended (``broke`` is None while it is whole)."""

    structure: int
    number: int
    system: System
    pairs: np.ndarray
    shifts: np.ndarray
    lengths: np.ndarray
    broke: dict[str, Any] | None = None


def copies_of(systems: Sequence[System], copies: int, reference: Block | None) -> list[Replica]:
    """The copies of each structure in turn. Bonds are those of the structure; their reference lengths are the means over
    the frames of the same molecule in ``reference``, or without one those of the structure."""
    members = []
    for index, system in enumerate(systems):
        cell = system.get("cell") * system.get("pbc")[:, None] if system.get("pbc").any() else None  # no bonds through an open axis
        pairs, shifts = bonds(system.numbers, system.positions, cell)
        lengths = np.linalg.norm(system.positions[pairs[:, 1]] + shifts - system.positions[pairs[:, 0]], axis=1)
        if reference is not None:
            lengths = bond_lengths(frames_of(reference, system), pairs, cell).mean(axis=0)
        members += [Replica(index, number, system, pairs, shifts, lengths) for number in range(copies)]
    return members


def frames_of(reference: Block, system: System) -> np.ndarray:
    """(F, n, 3) Å, the conformations of ``reference`` with the same atoms in the same order as ``system``.

    Raises InputError where there are none.
    """
    offsets, rows = reference.offsets, np.flatnonzero(reference.counts == len(system))
    numbers, positions = reference.arrays["numbers"], reference.arrays["positions"]
    same = [row for row in rows if np.array_equal(numbers[offsets[row] : offsets[row + 1]], system.numbers)]
    if not same:
        raise InputError(f"the reference data hold no frame with the {len(system)} atoms of the structure, in its order")
    return np.stack([positions[offsets[row] : offsets[row + 1]] for row in same])


class Monitor:
    """The bonds of the replicas in a State as one list, looked at in NumPy: a look costs a copy from the device and some 20 calls
    whatever the number of replicas. In torch they took 3 % of a small molecule's steps on the CPU, in NumPy 1 %."""

    def __init__(self, members: Sequence[Replica], state: integrators.State) -> None:
        self.members, self.starts = list(members), state.batch.offsets.numpy(force=True)[: len(members)]
        pairs = [member.pairs + start for member, start in zip(members, self.starts, strict=True)]
        self.first, self.second = np.concatenate([np.zeros((0, 2), dtype=np.int64), *pairs]).T.copy()
        self.shifts = np.concatenate([np.zeros((0, 3)), *(member.shifts for member in members)])
        self.lengths = np.concatenate([np.zeros(0), *(member.lengths for member in members)])
        self.owner = np.repeat(np.arange(len(members)), [len(member.pairs) for member in members])
        self.weights = 0.5 / ACCELERATION * state.masses[:, 0].numpy(force=True)
        self.most = HOTTEST * BOLTZMANN / 2 * state.freedom.numpy(force=True)  # (M,) eV of kinetic energy

    def deviations(self, state: integrators.State) -> np.ndarray:
        """(B,) Å, how far each bond is off its reference length."""
        positions = state.positions.numpy(force=True)
        vectors = positions.take(self.second, axis=0) - positions.take(self.first, axis=0) + self.shifts
        return np.abs(np.sqrt(np.einsum("bk,bk->b", vectors, vectors)) - self.lengths)

    def look(self, state: integrators.State) -> Tensor | None:
        """(M,) which replicas have broken, or None where none has."""
        velocities, energy = state.velocities.numpy(force=True), state.energy.numpy(force=True)
        with np.errstate(all="ignore"):
            deviations = self.deviations(state)
            kinetic = np.add.reduceat(self.weights * np.einsum("nk,nk->n", velocities, velocities), self.starts)
            cool = kinetic + 0.0 * energy <= self.most  # never of an energy that is not finite: 0 E is no number then
        if cool.all() and (deviations <= THRESHOLD).all():
            return None
        cool[self.owner[~(deviations <= THRESHOLD)]] = False
        return torch.from_numpy(~cool).to(state.energy.device)

    def describe(self, state: integrators.State, row: int) -> dict[str, Any]:
        """Why the broken replica in ``row`` of the batch counts as broken: a reason and its numbers, for JSON."""
        from ase.data import chemical_symbols

        temperature, mine = float(integrators.temperatures(state)[row]), np.flatnonzero(self.owner == row)
        finite = bool(torch.isfinite(state.positions[state.batch.molecule == row]).all() & torch.isfinite(state.energy[row]))
        if not (finite and math.isfinite(temperature)):
            return {"reason": "not finite"}
        with np.errstate(all="ignore"):  # of other replicas
            deviation = self.deviations(state)[mine]
        if len(mine) == 0 or deviation.max() <= THRESHOLD:
            return {"reason": "temperature", "temperature": temperature}
        worst = deviation.argmax()
        bond, numbers = mine[worst], self.members[row].system.numbers
        first, second = int(self.first[bond] - self.starts[row]), int(self.second[bond] - self.starts[row])
        return {
            "reason": "bond",
            "atoms": [first, second],
            "elements": f"{chemical_symbols[numbers[first]]}-{chemical_symbols[numbers[second]]}",
            "deviation": float(deviation[worst]),
            "reference_length": float(self.lengths[bond]),
        }
