"""Directed edges and the triplets that share an atom: flat for maps, padded for sums over pairs of neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from forcewell.graph import Neighbours, places_of, reverse_edges
from forcewell.products import exact


@dataclass(slots=True)
class Edges:
    """The E directed edges c -> a of a batch (a receives), ordered by receiver but for batches that bring theirs.

    Two layouts of one thing. Dense maps of edge features run on the flat E rows: padding to the largest number K of
    neighbours would cost 1.4 times as much for aspirin and more in mixed batches. A sum over the other edges into the
    same atom is a product with an (N, K, K) matrix, without gathers of the triplets (E K of them) or scatters.
    Edges to different images of one atom are different edges, so triplets of such images count.
    """

    sender: Tensor  # (E,) c
    receiver: Tensor  # (E,) a
    reverse: Tensor  # (E,) index of the edge a -> c
    distances: Tensor  # (E,) Å
    directions: Tensor  # (N, K, 3) unit vectors from a to c, padded
    place: Tensor  # (E,) row of each edge in the padded layout, of N K rows
    row: Tensor  # (N K,) edge of each padded row; E (a row of zeros that ``pad`` appends) where there is none

    def pad(self, values: Tensor) -> Tensor:
        """(E, C) -> (N, K, C), zero where there is no edge."""
        padded = torch.cat([values, values.new_zeros(1, values.shape[1])]).index_select(0, self.row)
        return padded.unflatten(0, self.directions.shape[:2])

    def flat(self, padded: Tensor) -> Tensor:
        """(N, K, ...) -> (E, ...)."""
        return padded.flatten(0, 1).index_select(0, self.place)

    def ends(self, atoms: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C) -> (E, C) of each edge's sender, and of its receiver."""
        return atoms.index_select(0, self.sender), atoms.index_select(0, self.receiver)

    def sum_to_atoms(self, values: Tensor) -> Tensor:
        """(E, C) -> (N, C): the sum over the edges that each atom receives."""
        return values.new_zeros(len(self.directions), values.shape[1]).index_add(0, self.receiver, values)

    def cosines(self) -> Tensor:
        """(N, K, K) cosine of the angle between every two neighbours of an atom."""
        with exact(self.directions.device):
            return torch.bmm(self.directions, self.directions.mT)


def edges_of(near: Neighbours) -> Edges:
    """The flat and padded layouts of a padded neighbour list; differentiable in its vectors and distances."""
    N, K = near.mask.shape
    if near.fixed:
        # Their number never changes: padded places count as edges, or edges are added, beyond the cutoff, so their weights are zero.
        places = places_of(near, opposite=True)
        return _edges(near, places.place, places.row, places.reverse)
    place = near.mask.reshape(-1).nonzero()[:, 0]
    row = torch.full((N * K,), len(place), device=place.device)
    row[place] = torch.arange(len(place), device=place.device)
    images = None if near.images is None else near.images.reshape(-1, 3)[place].long()
    receiver = torch.div(place, max(K, 1), rounding_mode="floor")
    return _edges(near, place, row, reverse_edges(near.sender.reshape(-1)[place], receiver, images, N))


def _edges(near: Neighbours, place: Tensor, row: Tensor, reverse: Tensor) -> Edges:
    return Edges(
        near.sender.reshape(-1)[place],
        torch.div(place, max(near.mask.shape[1], 1), rounding_mode="floor"),
        reverse,
        near.distances.reshape(-1).index_select(0, place),
        near.vectors / near.distances[:, :, None],
        place,
        row,
    )
