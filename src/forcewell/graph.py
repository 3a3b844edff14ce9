"""Neighbours within a cutoff, for molecules and periodic systems, without any limit on their number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from forcewell.batch import Batch
from forcewell.products import exact
from forcewell.static_batch import StaticBatch

# Up to here all pairs of a molecule are tried at once (0.17 ms for 64 aspirins); above, a cell list is faster.
DENSE_ATOMS = 300


@dataclass(slots=True)
class Neighbours:
    """Each atom's neighbours, padded to the largest number K of them in the batch.

    Padded rather than a flat edge list: sums over neighbours are then contiguous reductions and matrix products
    instead of scatters, which made a training step 2-3 times faster on a CPU. A padded place has ``mask`` 0, a
    distance of twice the cutoff, and the atom itself as sender. An atom is never its own neighbour in the same
    periodic image, but it is in another image.
    """

    sender: Tensor  # (N, K)
    vectors: Tensor  # (N, K, 3) Å, from the atom to its neighbour
    distances: Tensor  # (N, K) Å
    mask: Tensor  # (N, K) 1.0 or 0.0
    images: Tensor | None = None  # (N, K, 3) lattice shifts of the neighbours; None where nothing is periodic
    fixed: bool = False  # K is a capacity, and nothing may depend on how much of it is used (see ``StaticBatch``)
    places: Places | None = None  # of its edges, where they are known already


@dataclass(slots=True)
class Places:
    """The E directed edges of a padded list as one flat list, in which edges 2 p and 2 p + 1 are the two directions of a pair.

    What depends on the distance alone is computed for E / 2 pairs: of the N K padded places of 16 molecules of QM7-X, 31 % are empty, so
    those are 2.9 times fewer rows. In static shapes (``Neighbours.fixed``) nothing may depend on how many edges there are: all padded
    places are edges then, and each is a pair of its own (``ways`` 1).
    """

    place: Tensor  # (E,) row of each edge in the padded layout, of N K rows
    row: Tensor  # (N K,) edge of each padded row; E where there is none
    reverse: Tensor  # (E,) the edge of the other direction
    ways: int = 2  # directions of a pair that follow each other


@dataclass(slots=True)
class ListedBatch(StaticBatch):
    """A batch that brings its neighbours, whose numbers are fixed, with it. Not for periodic conformations."""

    sender: Tensor  # (N, K)
    mask: Tensor  # (N, K)
    places: Places

    def search(self, cutoff: float, lower: float) -> tuple[Tensor, Tensor, Tensor | None]:
        """What was given."""
        return self.sender, self.mask, None


def neighbours(batch: Batch, cutoff: float, lower: float = 0.0) -> Neighbours:
    """All neighbours with ``lower`` <= distance < ``cutoff`` (Å), differentiable in ``batch.positions`` and
    ``batch.cell``. Which atoms those are is found without gradients."""
    with exact(batch.positions.device):
        return _neighbours(batch, cutoff, lower)


def _neighbours(batch: Batch, cutoff: float, lower: float) -> Neighbours:
    with torch.no_grad():
        padded, mask, images = batch.search(cutoff, lower) if isinstance(batch, StaticBatch) else _search(batch, cutoff, lower)
        N, K = mask.shape
        offset = torch.stack([(1.0 - mask) * 2 * cutoff, torch.zeros_like(mask), torch.zeros_like(mask)], dim=2)
    # index_select, not advanced indexing: its backward (index_add) sums in a fixed order on the CPU, which
    # bit-identical resuming needs.
    vectors = batch.positions.index_select(0, padded.reshape(-1)).reshape(N, K, 3) - batch.positions[:, None] + offset
    if images is not None:
        vectors = vectors + torch.einsum("nka,nab->nkb", images, batch.cell.index_select(0, batch.molecule))
    places = batch.places if isinstance(batch, ListedBatch) else None
    return Neighbours(padded, vectors, torch.linalg.vector_norm(vectors, dim=2), mask, images, isinstance(batch, StaticBatch), places)


def places_of(near: Neighbours, opposite: bool = False) -> Places:
    """The flat list of a padded neighbour list. opposite: with ``reverse`` in static shapes, too, whose search takes K numbers a place."""
    if near.places is not None:
        return near.places
    N, K = near.mask.shape
    if near.fixed:
        places = torch.arange(N * K, device=near.sender.device)
        return Places(places, places, _reverse_places(near) if opposite else places, 1)
    place = near.mask.reshape(-1).nonzero()[:, 0]
    sender, receiver = near.sender.reshape(-1)[place], torch.div(place, max(K, 1), rounding_mode="floor")
    images = None if near.images is None else near.images.reshape(-1, 3)[place].long()
    reverse = reverse_edges(sender, receiver, images, N)
    edges = torch.arange(len(place), device=place.device)
    first = edges[edges < reverse]
    place = place[torch.stack([first, reverse[first]], dim=1).reshape(-1)]
    row = torch.full((N * K,), len(place), device=place.device)
    row[place] = edges
    return Places(place, row, edges ^ 1)


def _reverse_places(near: Neighbours) -> Tensor:
    """(N K,) for every place c -> a the place of a -> c in the list of c; a padded place itself."""
    N, K = near.mask.shape
    sender, places = near.sender.reshape(-1), torch.arange(N * K, device=near.sender.device)
    back = (near.sender[sender] == (places // K)[:, None]) & (near.mask[sender] > 0)  # (N K, K)
    if near.images is not None:
        back = back & (near.images[sender] == -near.images.reshape(-1, 1, 3)).all(2)
    return torch.where(near.mask.reshape(-1) > 0, sender * K + back.long().argmax(1), places)


def reverse_edges(sender: Tensor, receiver: Tensor, images: Tensor | None, atoms: int) -> Tensor:
    """(E,) for every edge c -> a the index of a -> c, whose lattice shift is the opposite one; ``images`` (E, 3)."""
    forward, backward = receiver * atoms + sender, sender * atoms + receiver
    if images is not None and len(images):
        reach = int(images.abs().max())
        base = torch.tensor([(2 * reach + 1) ** 2, 2 * reach + 1, 1], device=images.device)
        code = (images * base).sum(1)  # in -span ... span, and odd: the opposite shift has the opposite code
        width = (2 * reach + 1) ** 3
        forward, backward = forward * width + code, backward * width - code
    reverse = torch.empty_like(sender)
    reverse[backward.argsort()] = forward.argsort()
    return reverse


def _search(batch: Batch, cutoff: float, lower: float) -> tuple[Tensor, Tensor, Tensor | None]:
    """Senders (N, K), mask (N, K) and lattice shifts (N, K, 3) of all neighbours."""
    if bool(batch.pbc.any()) or (len(batch) and int(batch.counts.max()) > DENSE_ATOMS):
        sender, receiver, shifts = _cell_list(batch, cutoff)
    else:
        sender, receiver = _all_pairs(batch)
        shifts = None
    keep = _within(sender, receiver, shifts, batch, cutoff, lower)
    sender, receiver = sender[keep], receiver[keep]
    N = len(batch.numbers)
    degree = torch.bincount(receiver, minlength=N)
    K = int(degree.max()) if N else 0
    place = torch.arange(len(receiver), device=receiver.device) - (degree.cumsum(0) - degree)[receiver]
    padded = torch.arange(N, device=receiver.device)[:, None].repeat(1, K)
    padded[receiver, place] = sender
    mask = batch.positions.new_zeros(N, K)
    mask[receiver, place] = 1.0
    if shifts is None:
        return padded, mask, None
    images = batch.positions.new_zeros(N, K, 3)
    images[receiver, place] = shifts[keep]
    return padded, mask, images


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


def periodic_pairs(batch: Batch, cutoff: float) -> tuple[Tensor, Tensor, Tensor]:
    """First and second atom (P,) int32 and lattice offset of the second (P, 3) float64 Å of every pair closer than
    ``cutoff``, each pair once, sorted by the first atom. An atom pairs with its own images, too."""
    with torch.no_grad():
        second, first, shifts = _cell_list(batch, cutoff)
        keep = _within(second, first, shifts, batch, cutoff, 0.0)
        second, first, shifts = second[keep], first[keep], shifts[keep]
        # Of an atom and its images, the half whose first non-zero shift is positive.
        sign = (shifts.double() * torch.tensor([2.0**40, 2.0**20, 1.0], dtype=torch.float64)).sum(1)
        once = (first < second) | ((first == second) & (sign > 0))
        first, second, shifts = first[once], second[once], shifts[once].double()
        offsets = torch.einsum("pa,pab->pb", shifts, batch.cell.double()[batch.molecule[first]])
    return first.int(), second.int(), offsets.contiguous()


def _within(sender: Tensor, receiver: Tensor, shifts: Tensor | None, batch: Batch, cutoff: float, lower: float) -> Tensor:
    """Places (kept,) of the candidate pairs whose distance is in range."""
    vectors = batch.positions[sender] - batch.positions[receiver]
    if shifts is not None:
        vectors = vectors + torch.einsum("ea,eab->eb", shifts, batch.cell[batch.molecule[receiver]])
    distances = torch.linalg.vector_norm(vectors, dim=1)
    return ((distances < cutoff) & (distances >= lower)).nonzero()[:, 0]
