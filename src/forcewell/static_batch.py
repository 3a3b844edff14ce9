"""A batch whose tensors keep their shapes whatever its positions: what a CUDA graph can hold."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from forcewell.batch import Batch

# Every pair of a molecule (and image) is tried in every step. So many candidates take 3 to 4 GB; 8,000 atoms in one molecule.
MOST_CANDIDATES = 2**26
ROOM, UNIT = 1.25, 8  # neighbours that there is room for, per neighbour met; and in multiples of this


def has_graphs(device: torch.device) -> bool:
    """Whether work on ``device`` can be captured in a graph."""
    return device.type == "cuda"


@contextlib.contextmanager
def capturing(device: torch.device) -> Iterator[None]:
    """Within, ``device`` is the current one; afterwards the current stream is what it was (a capture that fails leaves its own)."""
    with torch.cuda.device(device):
        before = torch.cuda.current_stream()
        torch.cuda.graph.default_capture_stream = None  # of the device that this process captured on first
        try:
            yield
        finally:
            torch.cuda.set_stream(before)


@dataclass(slots=True)
class StaticBatch(Batch):
    """A batch with room for ``capacity`` neighbours of each atom, and a neighbour search that never waits for the device.

    width W: atoms of the largest molecule. images (S, 3): lattice shifts to try around the nearest image, None where nothing is
    periodic; inverse (M, 3, 3): Cartesian to fractional coordinates, 0 along directions that are not periodic. most: the largest
    number of neighbours met so far, written by every search. Where it exceeds ``capacity`` neighbours were left out and
    results are void: whoever uses the batch looks (when it likes), and does it again with ``with_room``.
    Molecules and cells do not change, and forces are never given (but in a ``ListedBatch``), so encoders leave out checks of
    values, which would wait; an ordinary batch of the same atoms has been through them before.
    """

    width: int
    capacity: int
    images: Tensor | None
    inverse: Tensor
    most: Tensor

    @classmethod
    def of(cls, batch: Batch, cutoff: float) -> StaticBatch | None:
        """``batch`` with room for a quarter more neighbours than it has now; None where that takes too many candidates."""
        rows = batch.cell.double() * batch.pbc[:, :, None]
        inverse = torch.linalg.pinv(rows)
        # The nearest image is at most half a cell off along each axis, of height 1/|column|; farther ones come within the
        # cutoff where so many heights do.
        reach = torch.ceil(cutoff * torch.linalg.vector_norm(inverse, dim=1) + 0.5).long() - 1
        spans = [torch.arange(-n, n + 1) for n in reach.amax(0).clamp(min=0).tolist()] if len(batch) else []
        periodic = bool(batch.pbc.any())
        images = torch.cartesian_prod(*spans).to(batch.positions) if periodic else None
        width = int(batch.counts.max()) if len(batch) else 0
        if len(batch.numbers) * width * (1 if images is None else len(images)) > MOST_CANDIDATES:
            return None
        parts = {f.name: getattr(batch, f.name) for f in dataclasses.fields(Batch)}
        most = torch.zeros((), dtype=torch.long, device=batch.positions.device)
        made = cls(**parts, width=width, capacity=1, images=images, inverse=inverse.to(batch.positions.dtype), most=most)
        made.search(cutoff, 0.0)
        return made.with_room()

    def with_room(self) -> StaticBatch:
        """The same with room for a quarter more neighbours than were ever met."""
        candidates = self.width * (1 if self.images is None else len(self.images))
        room = math.ceil(ROOM * int(self.most) / UNIT) * UNIT
        return dataclasses.replace(self, capacity=max(min(room, candidates), 1), most=torch.zeros_like(self.most))

    def search(self, cutoff: float, lower: float) -> tuple[Tensor, Tensor, Tensor | None]:
        """Senders (N, K), mask (N, K) and lattice shifts (N, K, 3) of ``graph.Neighbours``, K the capacity."""
        atoms = torch.arange(len(self.numbers), device=self.numbers.device)[:, None]
        place = torch.arange(self.width, device=atoms.device)
        there = place < self.counts[self.molecule][:, None]
        sender = torch.where(there, self.offsets[:-1][self.molecule][:, None] + place, atoms)  # (N, W)
        vectors = self.positions[sender] - self.positions[:, None]
        shifts, different = None, sender != atoms
        if self.images is not None:
            nearest = torch.round(torch.einsum("nwa,nab->nwb", vectors, self.inverse[self.molecule]))
            shifts = self.images - nearest[:, :, None]  # (N, W, S, 3)
            vectors = vectors[:, :, None] + torch.einsum("nwsa,nab->nwsb", shifts, self.cell[self.molecule])
            allowed = ((shifts == 0) | self.pbc[self.molecule][:, None, None]).all(3)
            there = (there[:, :, None] & allowed).flatten(1)
            different = (different[:, :, None] | (shifts != 0).any(3)).flatten(1)
            sender = sender[:, :, None].expand(-1, -1, len(self.images)).flatten(1)
            vectors, shifts = vectors.flatten(1, 2), shifts.flatten(1, 2)
        distances = torch.linalg.vector_norm(vectors, dim=2)
        within = there & different & (distances < cutoff) & (distances >= lower)
        degree = within.sum(1)
        self.most.copy_(torch.maximum(self.most, degree.max()))
        # Each neighbour's place in the list; whatever is none, or has no place, goes to one more column that is cut off.
        K = self.capacity
        slot = torch.where(within, within.cumsum(1) - 1, K).clamp(max=K)
        padded = atoms.repeat(1, K + 1).scatter_(1, slot, sender)[:, :K]
        mask = (torch.arange(K, device=atoms.device) < degree[:, None]).to(self.positions.dtype)
        if shifts is not None:
            empty = shifts.new_zeros(len(atoms), K + 1, 3)
            shifts = empty.scatter_(1, slot[:, :, None].expand(-1, -1, 3), shifts)[:, :K]
        return padded.contiguous(), mask, shifts  # kernels take rows one after another
