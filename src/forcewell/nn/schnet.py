"""SchNet (Schütt et al. 2018), as PyTorch Geometric has it and Wang et al. (JCTC 2023) pre-trained it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from forcewell.batch import Batch
from forcewell.errors import InputError
from forcewell.graph import neighbours, places_of
from forcewell.nn.activation import shifted_softplus
from forcewell.nn.embedding import Encoder
from forcewell.nn.features import Features
from forcewell.nn.radial import GaussianBasis, cosine_cutoff


class SchNet(Encoder):
    """Continuous-filter convolutions on scalars: Batch -> Features. 1,415,425 parameters at the defaults with its head.

    channels C; filters F; layers; radial R Gaussians on [0, cutoff]; cutoff in Å.

    published is the form of Wang et al., in which the first class of atoms has an embedding of zeros that is never
    trained (PyTorch Geometric's ``padding_idx=0``; with their classes that is Br⁻). Nothing else needed mending: the
    filters already vanish smoothly at the cutoff, and no neighbour is ever left out here (there 32 were kept).
    """

    energy_head: ClassVar[str] = "schnet"

    def __init__(
        self,
        channels: int = 256,
        layers: int = 5,
        filters: int = 256,
        radial: int = 32,
        cutoff: float = 5.0,
        published: bool = False,
        **inputs: Any,
    ) -> None:
        super().__init__(channels, cutoff, **inputs)
        if radial < 2:
            raise InputError(f"schnet: radial is {radial}; it must be 2 or more: its Gaussians are as wide as the distance between two")
        if published:
            self.embedding = nn.Embedding(self.rows, channels, padding_idx=0)
        self.basis = GaussianBasis(radial, cutoff)
        self.layers = nn.ModuleList(Interaction(channels, filters, radial) for _ in range(layers))

    def forward(self, batch: Batch, layers: bool = False) -> Features:
        """Scalars (N, C), differentiable in ``batch.positions`` and ``batch.cell``; ``layers``: after each layer, too."""
        near = neighbours(batch, self.cutoff)
        places = places_of(near)
        # Filters depend on the distance alone, so there is one for both directions of a pair.
        distances = near.distances.reshape(-1).index_select(0, places.place[:: places.ways])
        basis, envelope = self.basis(distances), cosine_cutoff(distances, self.cutoff)
        receiver = torch.div(places.place, max(near.mask.shape[1], 1), rounding_mode="floor")
        pairs = Pairs(near.sender.reshape(-1)[places.place], receiver, places.ways, basis, envelope)
        x = self.embed(batch)
        kept = []
        for layer in self.layers:
            x = x + layer(x, pairs)
            kept.append(x)
        return Features(x, layers=tuple(kept) if layers else None)


@dataclass(slots=True)
class Pairs:
    """What all layers share of E directed edges, ``ways`` of which at a time have one distance."""

    sender: Tensor  # (E,)
    receiver: Tensor  # (E,)
    ways: int
    basis: Tensor  # (E / ways, R)
    envelope: Tensor  # (E / ways,)


class Interaction(nn.Module):
    """x_i += L₃ σ(L₂ Σ_j (L₁ x_j) ∘ W(r_ij) φ(r_ij)), σ the shifted softplus (SchNet, fig. 2)."""

    def __init__(self, channels: int, filters: int, radial: int) -> None:
        super().__init__()
        self.filter_in, self.filter_out = nn.Linear(radial, filters), nn.Linear(filters, filters)
        self.spread, self.gather = nn.Linear(channels, filters, bias=False), nn.Linear(filters, channels)
        self.output = nn.Linear(channels, channels)
        for linear in (self.filter_in, self.filter_out, self.spread, self.gather, self.output):
            nn.init.xavier_uniform_(linear.weight)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, pairs: Pairs) -> Tensor:
        """x (N, C) -> its update."""
        weights = self.filter_out(shifted_softplus(self.filter_in(pairs.basis))) * pairs.envelope[:, None]
        spread = self.spread(x)
        messages = spread.index_select(0, pairs.sender).unflatten(0, (len(weights), pairs.ways)) * weights[:, None]
        summed = messages.new_zeros(spread.shape).index_add(0, pairs.receiver, messages.flatten(0, 1))
        return self.output(shifted_softplus(self.gather(summed)))


def from_published(state: Mapping[str, Tensor], rows: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors of a PyTorch Geometric ``SchNet`` (published names) for our encoder with ``rows`` classes, and for its head."""
    encoder = {"embedding.weight": state["embedding.weight"][:rows], "basis.offsets": state["distance_expansion.offset"]}
    names = {"mlp.0": "filter_in", "mlp.2": "filter_out", "conv.lin1": "spread", "conv.lin2": "gather", "lin": "output"}
    for index in range(1 + max(int(name.split(".")[1]) for name in state if name.startswith("interactions."))):
        for theirs, ours in names.items():
            for kind in ("weight",) if theirs == "conv.lin1" else ("weight", "bias"):
                encoder[f"layers.{index}.{ours}.{kind}"] = state[f"interactions.{index}.{theirs}.{kind}"]
    head = {"hidden": "lin1", "out": "lin2"}
    return encoder, {f"{ours}.{kind}": state[f"{theirs}.{kind}"] for ours, theirs in head.items() for kind in ("weight", "bias")}
