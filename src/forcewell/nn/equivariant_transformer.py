"""The Equivariant Transformer (Thölke & De Fabritiis, TorchMD-NET, ICLR 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from forcewell.batch import Batch
from forcewell.errors import InputError
from forcewell.graph import ListedBatch, neighbours
from forcewell.nn.activation import silu
from forcewell.nn.embedding import Encoder
from forcewell.nn.features import Features
from forcewell.nn.fused_messages import FusedMessages, supported
from forcewell.nn.radial import ExponentialNormalBasis, cosine_cutoff
from forcewell.nn.whitening import WhitenedNorm
from forcewell.static_batch import StaticBatch


class EquivariantTransformer(Encoder):
    """Attention over neighbours with scalar and vector channels: Batch -> Features.

    Equal to TorchMD-Net's ``TorchMD_ET`` with distance influence "both" (6,519,808 parameters at the defaults).
    Two differences of form, none of function: the query, key and value maps are one matrix and the two filter maps
    another, and the message of an atom to itself (r = 0) is a per-atom term, so no edge has zero length.

    channels C, layers, heads (a divisor of C), radial R; cutoff and lower_cutoff in Å. smooth_cutoff damps the three
    value parts of a message by the cutoff, so energies are continuous where a pair crosses it; False is the original
    form, which damps only the attention weight and jumps there (TorchMD-Net issue 254). vector_norm whitens the final
    vectors (see ``WhitenedNorm``): "whitened", or "published-whitened" as in NoisyNode, which is not rotation-invariant.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"vectors"})
    energy_head: ClassVar[str] = "equivariant"
    noise_head: ClassVar[str] = "vectors"

    def __init__(
        self,
        channels: int = 256,
        layers: int = 8,
        heads: int = 8,
        radial: int = 64,
        cutoff: float = 5.0,
        lower_cutoff: float = 0.0,
        smooth_cutoff: bool = True,
        trainable_radial: bool = False,
        vector_norm: Literal["none", "whitened", "published-whitened"] = "none",
        **inputs: Any,
    ) -> None:
        super().__init__(channels, cutoff, **inputs)
        if channels % heads:
            raise InputError(f"equivariant-transformer: channels ({channels}) must be a multiple of heads ({heads})")
        if channels < 2:  # the norm of one channel is a constant
            raise InputError(f"equivariant-transformer: channels is {channels}; it must be 2 or more")
        if not lower_cutoff < cutoff:
            raise InputError(
                f"equivariant-transformer: lower_cutoff ({lower_cutoff} Å) must be below cutoff ({cutoff} Å); it sees what is between"
            )
        self.lower_cutoff, self.smooth_cutoff, self.heads = lower_cutoff, smooth_cutoff, heads
        self.basis = ExponentialNormalBasis(radial, cutoff, lower_cutoff, trainable_radial)
        self.neighbour_embedding = nn.Embedding(self.rows, channels)
        self.neighbour_filter = nn.Linear(radial, channels)
        self.combine = nn.Linear(2 * channels, channels)
        self.layers = nn.ModuleList(AttentionLayer(channels, heads, radial, smooth_cutoff) for _ in range(layers))
        self.norm = nn.LayerNorm(channels)
        self.vector_norm = None if vector_norm == "none" else WhitenedNorm(channels, published=vector_norm == "published-whitened")
        self.capturable = vector_norm != "published-whitened"  # eigenvectors wait for the device
        for linear in (self.neighbour_filter, self.combine):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, batch: Batch, layers: bool = False) -> Features:
        """Scalars (N, C) and vectors (N, 3, C), differentiable in ``batch.positions`` and ``batch.cell``; ``layers``: the
        scalars after each layer, before the last normalisation, too."""
        geometry = self._geometry(batch)
        x = self.embed(batch)  # (N, C)
        filters = self.neighbour_filter(geometry.basis) * (geometry.envelope * geometry.mask)[:, :, None]
        nearby = geometry.gather(self.neighbour_embedding(self.species(batch)))
        x = self.combine(torch.cat([x, (filters * nearby).sum(1)], dim=1))
        vectors: Tensor | None = None  # all zero before the first layer, whose vector terms are skipped
        if self.force_embedding is not None and self._given(batch):
            vectors = self.force_embedding.vectors(batch)
        kept = []
        for layer in self.layers:
            dx, dv = layer(x, vectors, geometry)
            x = x + dx
            vectors = dv if vectors is None else vectors + dv
            kept.append(x)
        vectors = x.new_zeros(len(x), 3, self.channels) if vectors is None else vectors
        if self.vector_norm is not None:
            vectors = self.vector_norm(vectors)
        return Features(self.norm(x), vectors, layers=tuple(kept) if layers else None)

    def _given(self, batch: Batch) -> bool:
        """Whether forces may be an input: in static shapes without a look at them, which would wait for the device."""
        if isinstance(batch, StaticBatch):
            return isinstance(batch, ListedBatch)  # of training; there are none in molecular dynamics
        return not bool(torch.isnan(batch.given_forces).all())

    def _geometry(self, batch: Batch) -> Geometry:
        """What all layers share: radial bases, envelopes and directions of the neighbours and of the atom itself."""
        near = neighbours(batch, self.cutoff, self.lower_cutoff)
        zero = near.distances.new_zeros(1)
        return Geometry(
            near.sender.reshape(-1),
            near.mask,
            self.basis(near.distances),
            cosine_cutoff(near.distances, self.cutoff, self.lower_cutoff),
            near.vectors / near.distances[:, :, None],
            self.basis(zero),
            cosine_cutoff(zero, self.cutoff, self.lower_cutoff),
            FusedMessages.of(near, self.basis, self.heads) if self.fused(near.mask.device) else None,
        )

    def fused(self, device: torch.device) -> bool:
        """Whether Triton kernels compute its messages there; the PyTorch modules are the reference."""
        smooth = self.smooth_cutoff and not self.lower_cutoff > 0
        return smooth and supported(self.channels, self.heads, self.basis, device)


@dataclass(slots=True)
class Geometry:
    """N atoms with K neighbours each (padded places have ``mask`` 0), and r = 0 for an atom's message to itself."""

    sender: Tensor  # (N K,)
    mask: Tensor  # (N, K)
    basis: Tensor  # (N, K, R)
    envelope: Tensor  # (N, K)
    directions: Tensor  # (N, K, 3)
    own_basis: Tensor  # (1, R)
    own_envelope: Tensor  # (1,)
    fused: FusedMessages | None

    def gather(self, per_atom: Tensor) -> Tensor:
        """(N, ...) -> (N, K, ...): the neighbours' values."""
        return per_atom.index_select(0, self.sender).unflatten(0, self.mask.shape)


class AttentionLayer(nn.Module):
    """One layer of equivariant attention; returns the updates of scalars (N, C) and vectors (N, 3, C).

    a_ij = SiLU(Σ_d q_i k_j d^k_ij) per head, no softmax; (s1, s2, s3) = v_j d^v_ij;
    scalar message a_ij s1, vector message s2 v_j + s3 u_ij (papers: TorchMD-NET eq. 5-10).
    """

    def __init__(self, channels: int, heads: int, radial: int, smooth_cutoff: bool) -> None:
        super().__init__()
        self.channels, self.heads, self.smooth_cutoff = channels, heads, smooth_cutoff
        self.norm = nn.LayerNorm(channels)
        self.query_key_value = nn.Linear(channels, 5 * channels)
        self.filters = nn.Linear(radial, 4 * channels)
        self.vector_maps = nn.Linear(channels, 3 * channels, bias=False)
        self.output = nn.Linear(channels, 3 * channels)
        # Xavier's bound depends on the rows of each published matrix, not of the merged one.
        for linear, rows in ((self.query_key_value, (1, 1, 3)), (self.filters, (1, 3)), (self.vector_maps, (3,)), (self.output, (3,))):
            for part in linear.weight.split([r * channels for r in rows]):
                nn.init.xavier_uniform_(part)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, vectors: Tensor | None, geometry: Geometry) -> tuple[Tensor, Tensor]:
        """x (N, C) and vectors (N, 3, C; None: all zero) -> their updates."""
        C = self.channels
        node = self.query_key_value(self.norm(x))
        query, key_value = node.split([C, 4 * C], dim=1)
        if geometry.fused is not None:
            scalars, summed = geometry.fused(node, vectors, self.filters.weight, self.filters.bias)
        else:
            scalars, summed = self._messages(query, key_value, vectors, geometry)
        own_key, own_s1, own_s2, _ = (key_value * silu(self.filters(geometry.own_basis))).chunk(4, dim=1)
        own_attention = silu((query * own_key).unflatten(1, (self.heads, -1)).sum(2)) * geometry.own_envelope
        scalars = scalars + (own_s1.unflatten(1, (self.heads, -1)) * own_attention[..., None]).flatten(1)
        o1, o2, o3 = self.output(scalars).chunk(3, dim=1)
        if vectors is None:
            return o3, summed
        if self.smooth_cutoff:
            own_s2 = own_s2 * geometry.own_envelope
        v1, v2, v3 = self.vector_maps(vectors).chunk(3, dim=2)
        return (v1 * v2).sum(1) * o2 + o3, v3 * o1[:, None] + summed + vectors * own_s2[:, None]

    def _messages(self, query: Tensor, key_value: Tensor, vectors: Tensor | None, geometry: Geometry) -> tuple[Tensor, Tensor]:
        """Sums over neighbours of scalar (N, C) and vector (N, 3, C) messages."""
        # Damping is the smooth form's on the three value parts, the original's on the attention weight alone.
        damping = geometry.mask * geometry.envelope if self.smooth_cutoff else geometry.mask  # (N, K)
        key, s1, s2, s3 = (geometry.gather(key_value) * silu(self.filters(geometry.basis))).chunk(4, dim=2)
        attention = silu((query[:, None] * key).unflatten(2, (self.heads, -1)).sum(3)) * damping[:, :, None]
        if not self.smooth_cutoff:
            attention = attention * geometry.envelope[:, :, None]
        scalars = (s1.unflatten(2, (self.heads, -1)) * attention[..., None]).sum(1).flatten(1)
        summed = torch.bmm((geometry.directions * damping[:, :, None]).mT, s3)  # (N, 3, C)
        if vectors is not None:
            summed = summed + (geometry.gather(vectors) * (s2 * damping[:, :, None])[:, :, None]).sum(1)
        return scalars, summed


def from_torchmd(state: Mapping[str, Tensor], heads: int) -> dict[str, Tensor]:
    """Tensors of a published ``TorchMD_ET`` (names without prefix; NoisyNode's and Wang's, too) under our names and in
    our layout.

    Published value and dv rows are interleaved per head, [head, part, d]; ours are [part, head, d].
    """

    def part_major(rows: Tensor) -> Tensor:
        return rows.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)

    renamed = {
        "basis.means": state["distance_expansion.means"],
        "basis.betas": state["distance_expansion.betas"],
        "embedding.weight": state["embedding.weight" if "embedding.weight" in state else "type_embedding.weight"],
        "neighbour_embedding.weight": state["neighbor_embedding.embedding.weight"],
        "norm.weight": state["out_norm.weight"],
        "norm.bias": state["out_norm.bias"],
    }
    if "out_norm_vec.weight" in state:
        renamed["vector_norm.weight"] = state["out_norm_vec.weight"]
    for kind in ("weight", "bias"):
        renamed[f"neighbour_filter.{kind}"] = state[f"neighbor_embedding.distance_proj.{kind}"]
        renamed[f"combine.{kind}"] = state[f"neighbor_embedding.combine.{kind}"]
    for index in range(1 + max(int(name.split(".")[1]) for name in state if name.startswith("attention_layers."))):
        theirs, ours = f"attention_layers.{index}", f"layers.{index}"
        renamed[f"{ours}.vector_maps.weight"] = state[f"{theirs}.vec_proj.weight"]
        for kind in ("weight", "bias"):
            q, k, v = (state[f"{theirs}.{name}_proj.{kind}"] for name in "qkv")
            renamed[f"{ours}.norm.{kind}"] = state[f"{theirs}.layernorm.{kind}"]
            renamed[f"{ours}.query_key_value.{kind}"] = torch.cat([q, k, part_major(v)])
            renamed[f"{ours}.filters.{kind}"] = torch.cat(
                [state[f"{theirs}.dk_proj.{kind}"], part_major(state[f"{theirs}.dv_proj.{kind}"])]
            )
            renamed[f"{ours}.output.{kind}"] = state[f"{theirs}.o_proj.{kind}"]
    return renamed
