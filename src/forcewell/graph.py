"""Directed edges within a cutoff, for molecules and periodic systems, without any limit on neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from forcewell.batch import Batch

# Up to here all pairs of a molecule are tried at once (0.17 ms for 64 aspirins); above, a cell list is faster.
DENSE_ATOMS = 300


@dataclass(slots=True)
class Edges:
    """Messages go from ``sender`` to ``receiver``; sorted by receiver. An atom never sends to itself in the same
    periodic image, but it does send to itself from another image."""

    sender: Tensor  # (E,)
    receiver: Tensor  # (E,)
    vectors: Tensor  # (E, 3) Å, from receiver to sender
    distances: Tensor  # (E,) Å


def edges(batch: Batch, cutoff: float, lower: float = 0.0) -> Edges:
    """All ordered pairs of one conformation with ``lower`` <= distance < ``cutoff`` (Å), differentiable in
    ``batch.positions`` and ``batch.cell``. Which pairs those are is found without gradients."""
    with torch.no_grad():
        if bool(batch.pbc.any()) or (len(batch) and int(batch.counts.max()) > DENSE_ATOMS):
            sender, receiver, shifts = _cell_list(batch, cutoff)
        else:
            sender, receiver = _all_pairs(batch)
            shifts = None
        keep = _within(batch.positions, sender, receiver, shifts, batch, cutoff, lower)
        sender, receiver = sender[keep], receiver[keep]
        shifts = None if shifts is None else shifts[keep]
    vectors = _vectors(batch.positions, sender, receiver, shifts, batch)
    return Edges(sender, receiver, vectors, torch.linalg.vector_norm(vectors, dim=1))


def _all_pairs(batch: Batch) -> tuple[Tensor, Tensor]:
    """Sender and receiver of every ordered pair of different atoms of the same conformation, sorted by receiver."""
    atoms = torch.arange(len(batch.numbers), device=batch.numbers.device)
    partners = batch.counts[batch.molecule]  # (N,) candidates of each receiver, itself included
    receiver = torch.repeat_interleave(atoms, partners)
    first = torch.repeat_interleave(batch.offsets[:-1][batch.molecule] - (partners.cumsum(0) - partners), partners)
    sender = first + torch.arange(len(receiver), device=receiver.device)
    different = sender != receiver
    return sender[different], receiver[different]


def _cell_list(batch: Batch, cutoff: float) -> tuple[Tensor, Tensor, Tensor]:
    """Sender, receiver and integer lattice shifts (E, 3) from vesin, one conformation at a time on the CPU."""
    from vesin import NeighborList

    calculator = NeighborList(cutoff=cutoff, full_list=True)
    offsets = batch.offsets.tolist()
    senders, receivers, shifts = [], [], []
    for m in range(len(batch)):
        atoms = slice(offsets[m], offsets[m + 1])
        points = batch.positions[atoms].detach().double().cpu().numpy()
        periodic = batch.pbc[m].cpu().numpy()
        box = batch.cell[m].detach().double().cpu().numpy()
        i, j, shift = calculator.compute(points=points, box=box, periodic=periodic.tolist(), quantities="ijS")
        order = np.argsort(i, kind="stable")
        receivers.append(i[order].astype(np.int64) + atoms.start)
        senders.append(j[order].astype(np.int64) + atoms.start)
        shifts.append(shift[order].astype(np.float64))
    device, dtype = batch.positions.device, batch.positions.dtype
    stacked = [torch.from_numpy(np.concatenate(part)).to(device) for part in (senders, receivers, shifts)]
    return stacked[0], stacked[1], stacked[2].to(dtype)


def _vectors(positions: Tensor, sender: Tensor, receiver: Tensor, shifts: Tensor | None, batch: Batch) -> Tensor:
    # index_select, not advanced indexing: its backward (index_add) has a fixed order of summation on the CPU,
    # which bit-identical resuming needs.
    vectors = positions.index_select(0, sender) - positions.index_select(0, receiver)
    if shifts is not None:
        cells = batch.cell.index_select(0, batch.molecule.index_select(0, receiver))
        vectors = vectors + torch.einsum("ea,eab->eb", shifts, cells)
    return vectors


def _within(positions: Tensor, sender: Tensor, receiver: Tensor, shifts: Tensor | None, batch: Batch, cutoff: float, lower: float) -> Tensor:
    distances = torch.linalg.vector_norm(_vectors(positions, sender, receiver, shifts, batch), dim=1)
    return ((distances < cutoff) & (distances >= lower)).nonzero()[:, 0]
