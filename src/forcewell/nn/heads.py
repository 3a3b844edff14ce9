"""Read-outs: Features -> one energy per atom, or one vector per atom."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from forcewell.nn.activation import silu
from forcewell.nn.features import Features


class GatedEquivariantBlock(nn.Module):
    """Mixes scalars (N, C) and vectors (N, 3, C) into ``out`` channels of each (PaiNN, Schütt et al. 2021, fig. 2).

    The norm of a vector has a cone at zero, where its second derivative is infinite: in force training an atom in
    a tetrahedral site (the carbon of methane) then gives NaN. ``softening`` δ replaces |v| by sqrt(|v|² + δ²), whose
    curvature is at most 1/δ; at 1e-4 the published function is changed by less than float32 can tell.
    """

    def __init__(self, channels: int, out: int, activate: bool, softening: float) -> None:
        super().__init__()
        self.activate, self.softening = activate, softening
        self.norm_map = nn.Linear(channels, channels, bias=False)
        self.vector_map = nn.Linear(channels, out, bias=False)
        self.mix = nn.Linear(2 * channels, channels)
        self.gate = nn.Linear(channels, 2 * out)
        for linear in (self.norm_map, self.vector_map, self.mix, self.gate):
            nn.init.xavier_uniform_(linear.weight)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(self, scalars: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        norms = torch.sqrt((self.norm_map(vectors) ** 2).sum(1) + self.softening**2)
        mixed = self.gate(silu(self.mix(torch.cat([scalars, norms], dim=1))))
        scalars, gate = mixed.chunk(2, dim=1)
        return (silu(scalars) if self.activate else scalars), self.vector_map(vectors) * gate[:, None, :]


class EquivariantHead(nn.Module):
    """Two gated blocks C -> C/2 -> 1, as TorchMD-Net's EquivariantScalar and EquivariantVectorOutput."""

    def __init__(self, channels: int, softening: float = 1e-4) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            [GatedEquivariantBlock(channels, channels // 2, True, softening), GatedEquivariantBlock(channels // 2, 1, False, softening)]
        )

    def _read(self, features: Features) -> tuple[Tensor, Tensor]:
        scalars, vectors = features.scalars, features.vectors
        for block in self.blocks:
            scalars, vectors = block(scalars, vectors)
        return scalars[:, 0], vectors[:, :, 0]


class EquivariantScalar(EquivariantHead):
    """Features -> energy of each atom (N,), eV; their sum over a molecule is its energy."""

    def forward(self, features: Features) -> Tensor:
        return self._read(features)[0]


class EquivariantVector(EquivariantHead):
    """Features -> one vector per atom (N, 3), e.g. NoisyNode's noise prediction."""

    def forward(self, features: Features) -> Tensor:
        return self._read(features)[1]


def from_torchmd(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a published two-block ``output_network`` under our names; old and new TorchMD-Net names."""
    names = {"vec1_proj": "norm_map", "vec2_proj": "vector_map", "update_net.0": "mix", "update_net.2": "gate"}
    renamed = {}
    for name, tensor in state.items():
        index, rest = name.replace("update_net.layers.", "update_net.").split(".", 1)
        module, kind = rest.rsplit(".", 1)
        renamed[f"blocks.{index}.{names[module]}.{kind}"] = tensor
    return renamed
