"""E(n)-equivariant graph network (Satorras et al. 2021), as Wang et al. (JCTC 2023) pre-trained it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from forcewell.batch import Batch
from forcewell.graph import neighbours, places_of
from forcewell.nn.activation import silu
from forcewell.nn.embedding import Encoder
from forcewell.nn.features import Features
from forcewell.nn.radial import cosine_cutoff

# Å; the length |x| of a difference of moved coordinates is sqrt(|x|² + SOFTENING²), which is smooth where two meet.
SOFTENING = 0.01


class EGNN(Encoder):
    """Messages of features and squared distances, which also move the coordinates: Batch -> Features with coordinates.

    channels C, layers, cutoff in Å. attention: messages are gated by a sigmoid; normalise: coordinates move along unit
    vectors; tanh: each step per neighbour is bounded. 2,377,222 parameters at the defaults with the per-atom head or the
    published pooled one.

    published is the form of Wang et al., which has no envelope and takes the mean over neighbours, so energies jump
    (by 16-82 % in tests) where a pair crosses the cutoff, and which detaches the length in the unit vectors, so its
    gradient is not the force. The default multiplies messages and steps by the cosine cutoff φ of the distance in the
    input, divides the sum of steps by 1 + Σ φ instead of the number of neighbours, and differentiates everything.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"coordinates"})
    noise_head: ClassVar[str] = "coordinates"

    def __init__(
        self,
        channels: int = 256,
        layers: int = 5,
        cutoff: float = 5.0,
        attention: bool = True,
        normalise: bool = True,
        tanh: bool = True,
        published: bool = False,
        **inputs: Any,
    ) -> None:
        super().__init__(channels, cutoff, **inputs)
        self.published = published
        self.layers = nn.ModuleList(MovingLayer(channels, attention, normalise, tanh, published) for _ in range(layers))

    def forward(self, batch: Batch, layers: bool = False) -> Features:
        """Scalars (N, C) and coordinates (N, 3) Å; ``layers``: the scalars after each layer, too."""
        near = neighbours(batch, self.cutoff)
        envelope = near.mask if self.published else near.mask * cosine_cutoff(near.distances, self.cutoff)
        count = near.mask.sum(1).clamp(min=1.0) if self.published else 1.0 + envelope.sum(1)
        place = places_of(near).place
        receiver = torch.div(place, max(near.mask.shape[1], 1), rounding_mode="floor")
        vectors, envelope = near.vectors.flatten(0, 1).index_select(0, place), envelope.reshape(-1).index_select(0, place)
        pairs = Pairs(near.sender.reshape(-1)[place], receiver, vectors, envelope[:, None], count)
        x, moved = self.embed(batch), torch.zeros_like(batch.positions)
        kept = []
        for layer in self.layers:
            dx, step = layer(x, moved, pairs)
            x, moved = x + dx, moved + step
            kept.append(x)
        return Features(x, coordinates=batch.positions + moved, layers=tuple(kept) if layers else None)


@dataclass(slots=True)
class Pairs:
    """What all layers share of E directed edges: padded, a third of the rows of all maps would be empty."""

    sender: Tensor  # (E,)
    receiver: Tensor  # (E,)
    vectors: Tensor  # (E, 3) Å, from the receiver to the sender, before anything moved
    envelope: Tensor  # (E, 1)
    count: Tensor  # (N,) what the sum of steps is divided by

    def ends(self, of_senders: Tensor, of_receivers: Tensor) -> tuple[Tensor, Tensor]:
        """(N, ...) each -> (E, ...) each."""
        return of_senders.index_select(0, self.sender), of_receivers.index_select(0, self.receiver)

    def sum(self, per_edge: Tensor) -> Tensor:
        """(E, C) -> (N, C): the sum over the edges that each atom receives."""
        return per_edge.new_zeros(len(self.count), per_edge.shape[1]).index_add(0, self.receiver, per_edge)


class MovingLayer(nn.Module):
    """One layer (EGNN eq. 3-6): m_ij = φ_e(x_i, x_j, d²), gated; coordinates by φ_x(m_ij), features by φ_h(x_i, Σ_j m_ij)."""

    def __init__(self, channels: int, attention: bool, normalise: bool, tanh: bool, published: bool) -> None:
        super().__init__()
        self.normalise, self.tanh, self.published = normalise, tanh, published
        self.edge_in, self.edge_out = nn.Linear(2 * channels + 1, channels), nn.Linear(channels, channels)
        self.gate = nn.Linear(channels, 1) if attention else None
        self.step_in, self.step_out = nn.Linear(channels, channels), nn.Linear(channels, 1, bias=False)
        self.node_in, self.node_out = nn.Linear(2 * channels, channels), nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.step_out.weight, gain=1e-3)

    def forward(self, x: Tensor, moved: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """x (N, C) and what the coordinates moved so far (N, 3) -> the update of each."""
        C = x.shape[1]
        there, here = pairs.ends(moved, moved)
        difference = there - here + pairs.vectors  # (E, 3), to the neighbour
        squared = (difference**2).sum(1, keepdim=True)
        # The first map, applied to each of its three inputs before they meet: C/2 times less work than on pairs.
        own, other, distance = self.edge_in.weight.split([C, C, 1], dim=1)
        there, here = pairs.ends(linear(x, other), linear(x, own, self.edge_in.bias))
        mixed = here + there + squared * distance[:, 0]
        messages = silu(self.edge_out(silu(mixed)))
        if self.gate is not None:
            messages = messages * torch.sigmoid(self.gate(messages))
        messages = messages * pairs.envelope
        lengths = self.step_out(silu(self.step_in(messages)))
        lengths = (torch.tanh(lengths) if self.tanh else lengths) * pairs.envelope
        if self.normalise:
            difference = difference / (squared.sqrt().detach() + 1e-8 if self.published else torch.sqrt(squared + SOFTENING**2))
        step = -pairs.sum(difference * lengths) / pairs.count[:, None]
        return self.node_out(silu(self.node_in(torch.cat([x, pairs.sum(messages)], dim=1)))), step


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of Wang et al.'s EGNN (published names) under ours."""
    names = {
        "edge_mlp.0": "edge_in", "edge_mlp.2": "edge_out", "att_mlp.0": "gate", "coord_mlp.0": "step_in", "coord_mlp.2": "step_out",
        "node_mlp.0": "node_in", "node_mlp.2": "node_out",
    }  # fmt: skip
    renamed = {"embedding.weight": state["type_embedding.weight"]}
    for name, tensor in state.items():
        if name.startswith("gcl_"):
            index, rest = name.removeprefix("gcl_").split(".", 1)
            module, kind = rest.rsplit(".", 1)
            renamed[f"layers.{index}.{names[module]}.{kind}"] = tensor
    return renamed
