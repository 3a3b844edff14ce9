"""The one batch type of training, evaluation and MD: flat tensors, inputs apart from targets."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forcewell.fields import ATOM_FIELDS, FIELDS
from forcewell.system import Block, System, block_of


@dataclass(slots=True)
class Targets:
    """What a model should predict. A missing float label is NaN: mask it before any arithmetic."""

    energy: Tensor  # (M,) eV, float64: absolute energies lose 0.03 eV at -40,000 eV in float32
    forces: Tensor  # (N, 3) eV/Å
    stress: Tensor  # (M, 3, 3) eV/Å³
    equilibrium: Tensor  # (M,) 1 yes, 0 no, -1 unknown
    noise_target: Tensor  # (N, 3) what the objective named by ``role`` should find; NaN elsewhere
    properties: Tensor  # (M, P) float64, the P properties that the run learns, in the order of its potential's head

    def cleared(self) -> Targets:
        """The same with every label unknown."""
        empty = {f.name: torch.full_like(getattr(self, f.name), torch.nan) for f in dataclasses.fields(self) if f.name != "equilibrium"}
        return Targets(**empty, equilibrium=torch.full_like(self.equilibrium, -1))


@dataclass(slots=True)
class Batch:
    """M conformations with N atoms in total.

    ``role`` says what a conformation is for: 0 data as they are, k > 0 one that belongs to an objective alone (its
    labels are cleared, so nothing leaks). ``condition`` selects a learned token (0: none, always so at inference).
    ``given_forces`` are an input, NaN where not given, as always at inference. ``fragment`` numbers the pieces that remain of a
    molecule without its rotatable bonds, where they are known (-1: not), for objectives that turn them.
    ``source`` and ``index`` name the sample; ``level`` is the index of its level of theory in the potential's list.

    >>> batch = Batch.from_systems([System({"numbers": np.array([8, 1, 1]), "positions": np.eye(3)})])
    >>> batch.molecule.tolist(), batch.counts.tolist(), batch.charge.tolist()
    ([0, 0, 0], [3], [0])
    >>> batch.positions.dtype, torch.isnan(batch.targets.forces).all().item()
    (torch.float32, True)
    """

    numbers: Tensor  # (N,)
    positions: Tensor  # (N, 3) Å
    formal_charges: Tensor  # (N,)
    molecule: Tensor  # (N,) index of the conformation that each atom belongs to, ascending
    counts: Tensor  # (M,) atoms of each
    charge: Tensor  # (M,)
    spin: Tensor  # (M,) multiplicity
    cell: Tensor  # (M, 3, 3) Å
    pbc: Tensor  # (M, 3)
    level: Tensor  # (M,)
    source: Tensor  # (M,)
    index: Tensor  # (M,)
    role: Tensor  # (M,)
    condition: Tensor  # (M,)
    given_forces: Tensor  # (N, 3) eV/Å
    fragment: Tensor  # (N,)
    targets: Targets

    @classmethod
    def from_block(cls, block: Block, *, dtype: torch.dtype = torch.float32, level: Any = 0, source: Any = 0, index: Any = None) -> Batch:
        """Tensors of a Block on the CPU; floats of the model in ``dtype``, energies in float64."""
        frames, atoms = len(block), int(block.counts.sum())

        def column(name: str) -> Tensor:
            declared = FIELDS[name]
            array = block.arrays.get(name)
            if array is None:
                array = np.full((atoms if declared.scope == "atom" else frames, *declared.shape), declared.missing, dtype=declared.stored)
            array = np.ascontiguousarray(array)
            tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
            if tensor.dtype == torch.bool:
                return tensor
            if name == "energy":
                return tensor.double()
            return tensor.to(dtype) if tensor.dtype.is_floating_point else tensor.long()

        def per_molecule(value: Any) -> Tensor:
            return torch.as_tensor(np.array(np.broadcast_to(np.asarray(value, dtype=np.int64), frames)))

        counts = torch.from_numpy(np.ascontiguousarray(block.counts))
        forces = column("forces")
        unknown = torch.full_like(forces, torch.nan)
        none = torch.zeros(frames, 0, dtype=torch.float64)
        targets = Targets(column("energy"), forces, column("stress"), column("equilibrium"), unknown, none)
        inputs = {name: column(name) for name in ("numbers", "positions", "formal_charges", "charge", "spin", "cell", "pbc")}
        return cls(
            **inputs,
            molecule=torch.repeat_interleave(torch.arange(frames), counts),
            counts=counts,
            level=per_molecule(level),
            source=per_molecule(source),
            index=per_molecule(np.arange(frames) if index is None else index),
            role=torch.zeros(frames, dtype=torch.long),
            condition=torch.zeros(frames, dtype=torch.long),
            given_forces=unknown.clone(),
            fragment=torch.full((atoms,), -1),
            targets=targets,
        )

    @classmethod
    def from_systems(cls, systems: Sequence[System], **keywords: Any) -> Batch:
        """A batch of single conformations; keywords as in ``from_block``."""
        return cls.from_block(block_of(systems), **keywords)

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def offsets(self) -> Tensor:
        """(M + 1,) position of each conformation's first atom."""
        return torch.cat([self.counts.new_zeros(1), self.counts.cumsum(0)])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Batch:
        """Moved to a device and with model floats in ``dtype``; energies stay float64."""

        def move(name: str, tensor: Tensor) -> Tensor:
            floats = tensor.dtype.is_floating_point and name not in ("energy", "properties")
            return tensor.to(device=device, dtype=dtype if floats and dtype is not None else tensor.dtype)

        return self._map(move)

    def take(self, molecules: Tensor) -> Batch:
        """The conformations at ``molecules`` (integers (K,) or a mask (M,)), in that order."""
        rows = molecules.nonzero()[:, 0] if molecules.dtype == torch.bool else molecules
        counts = self.counts[rows]
        start = torch.repeat_interleave(self.offsets[rows] - (counts.cumsum(0) - counts), counts)
        atoms = start + torch.arange(int(counts.sum()), device=counts.device)
        taken = self._map(lambda name, tensor: tensor[atoms if _per_atom(name) else rows])
        taken.molecule = torch.repeat_interleave(torch.arange(len(rows), device=counts.device), counts)
        return taken

    def _map(self, function: Any) -> Batch:
        inputs = {f.name: function(f.name, getattr(self, f.name)) for f in dataclasses.fields(Batch) if f.name != "targets"}
        targets = {f.name: function(f.name, getattr(self.targets, f.name)) for f in dataclasses.fields(self.targets)}
        return Batch(**inputs, targets=Targets(**targets))


def _per_atom(name: str) -> bool:
    return name in ATOM_FIELDS or name in ("molecule", "noise_target", "given_forces", "fragment")


def concatenate(batches: Sequence[Batch]) -> Batch:
    """Batches one after another; ``molecule`` is renumbered."""
    joined = {f.name: torch.cat([getattr(batch, f.name) for batch in batches]) for f in dataclasses.fields(Batch) if f.name != "targets"}
    targets = {f.name: torch.cat([getattr(batch.targets, f.name) for batch in batches]) for f in dataclasses.fields(Targets)}
    counts = joined["counts"]
    joined["molecule"] = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    return Batch(**joined, targets=Targets(**targets))
