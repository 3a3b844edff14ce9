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
from forcewell.units import BOLTZMANN

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
        cell = system.get("cell") if system.get("pbc").any() else None
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
    """The bonds of the replicas in a State as one list, so that looking costs a few tensor operations whatever their number."""

    def __init__(self, members: Sequence[Replica], state: integrators.State) -> None:
        device = state.positions.device
        starts = state.batch.offsets.tolist()[: len(members)]
        pairs = [member.pairs + start for member, start in zip(members, starts, strict=True)]
        owner = np.repeat(np.arange(len(members)), [len(member.pairs) for member in members])
        self.members = list(members)
        self.pairs = torch.from_numpy(np.concatenate([np.zeros((0, 2), dtype=np.int64), *pairs]).T.copy()).to(device)
        self.shifts = torch.from_numpy(np.concatenate([np.zeros((0, 3)), *(member.shifts for member in members)])).to(device)
        self.lengths = torch.from_numpy(np.concatenate([np.zeros(0), *(member.lengths for member in members)])).to(device)
        self.owner = torch.from_numpy(owner.astype(np.int64)).to(device)
        self.most = HOTTEST * BOLTZMANN / 2 * state.freedom  # (M,) eV of kinetic energy

    def deviations(self, state: integrators.State) -> Tensor:
        """(B,) Å, how far each bond is off its reference length."""
        first, second = (state.positions.index_select(0, atoms) for atoms in self.pairs)
        return (torch.linalg.vector_norm(second - first + self.shifts, dim=1) - self.lengths).abs()

    def look(self, state: integrators.State) -> Tensor | None:
        """(M,) which replicas have broken, or None where none has.

        Mostly none has, and that takes one answer for all of them: a wait for the device, and 3 % of a small molecule's steps
        on the CPU, where each of PyTorch's calls takes some 7 µs between the kernels.
        """
        deviations = self.deviations(state)
        kinetic = integrators.kinetic_energy(state) + 0.0 * state.energy  # not a number where the energy is not finite
        if bool((deviations <= THRESHOLD).all() & (kinetic <= self.most).all()):
            return None
        worst = torch.zeros_like(kinetic).scatter_reduce(0, self.owner, deviations.nan_to_num(nan=math.inf), "amax")
        return (worst > THRESHOLD) | ~(kinetic <= self.most)

    def describe(self, state: integrators.State, row: int) -> dict[str, Any]:
        """Why the broken replica in ``row`` of the batch counts as broken: a reason and its numbers, for JSON."""
        from ase.data import chemical_symbols

        deviation, temperature = self.deviations(state), float(integrators.temperatures(state)[row])
        mine = (self.owner == row).nonzero()[:, 0]
        finite = bool(torch.isfinite(state.positions[state.batch.molecule == row]).all() & torch.isfinite(state.energy[row]))
        if not (finite and math.isfinite(temperature)):
            return {"reason": "not finite"}
        if len(mine) == 0 or float(deviation[mine].max()) <= THRESHOLD:
            return {"reason": "temperature", "temperature": temperature}
        bond = int(mine[deviation[mine].argmax()])
        first, second = (self.pairs[:, bond] - state.batch.offsets[row]).tolist()
        numbers = self.members[row].system.numbers
        return {
            "reason": "bond",
            "atoms": [first, second],
            "elements": f"{chemical_symbols[numbers[first]]}-{chemical_symbols[numbers[second]]}",
            "deviation": float(deviation[bond]),
            "reference_length": float(self.lengths[bond]),
        }
