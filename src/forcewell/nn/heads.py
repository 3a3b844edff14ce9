"""Read-outs: Features -> energies, or one vector per atom. Every encoder has a default one of each, and may use others.

An energy head has ``energies(features, batch) -> (M,)``; those of single atoms are also called as ``head(features) ->
(N,)``. ``needs`` names what an encoder must provide besides scalars.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from forcewell.batch import Batch
from forcewell.errors import InputError, nearest
from forcewell.nn.activation import shifted_softplus, silu
from forcewell.nn.embedding import Encoder
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


def _half(channels: int) -> int:
    """The width of a head that halves the channels. Raises InputError where nothing would be left."""
    if channels < 2:
        raise InputError(f"this head halves the channels of the encoder, which has {channels}; 2 or more are needed")
    return channels // 2


def sum_atoms(energies: Tensor, batch: Batch) -> Tensor:
    """(N, ...) -> (M, ...): the sum over the atoms of each conformation."""
    return energies.new_zeros(len(batch), *energies.shape[1:]).index_add(0, batch.molecule, energies)


class AtomicEnergies(nn.Module):
    """Base of heads that give each atom an energy: size-extensive, and the sum over atoms is the molecule's."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def energies(self, features: Features, batch: Batch) -> Tensor:
        """(M,) eV."""
        return sum_atoms(self(features), batch)


class EquivariantHead(AtomicEnergies):
    """Two gated blocks C -> C/2 -> 1, as TorchMD-Net's EquivariantScalar and EquivariantVectorOutput."""

    needs = frozenset({"vectors"})

    def __init__(self, channels: int, softening: float = 1e-4, outputs: int = 1) -> None:
        super().__init__()
        first, second = (channels, _half(channels), True), (_half(channels), outputs, False)
        self.blocks = nn.ModuleList([GatedEquivariantBlock(*first, softening), GatedEquivariantBlock(*second, softening)])

    def _read(self, features: Features) -> tuple[Tensor, Tensor]:
        scalars, vectors = features.scalars, features.vectors
        assert vectors is not None
        for block in self.blocks:
            scalars, vectors = block(scalars, vectors)
        return scalars, vectors


class EquivariantScalar(EquivariantHead):
    """Features -> energy of each atom (N,), eV; their sum over a molecule is its energy."""

    def forward(self, features: Features) -> Tensor:
        return self._read(features)[0][:, 0]


class EquivariantVector(EquivariantHead):
    """Features -> one vector per atom (N, 3), e.g. NoisyNode's noise prediction."""

    def forward(self, features: Features) -> Tensor:
        return self._read(features)[1][:, :, 0]


# The published heads do not soften norms at all. With 1e-8 energies are theirs to 1e-11 (with the default 1e-4, to 1e-5),
# and derivatives stay finite, if large, where a vector is zero.
SHARP = 1e-8


class SharpScalar(EquivariantScalar):
    """``EquivariantScalar`` with norms as sharp as the published ones, for published weights."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, SHARP)


class SharpVector(EquivariantVector):
    """``EquivariantVector`` with norms as sharp as the published ones, for published weights."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, SHARP)


class AtomEnergy(AtomicEnergies):
    """An energy for each atom from its scalars by two layers C -> C -> 1. Parameters as in ``PooledEnergy``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.hidden, self.out = _perceptron(channels, channels)

    def forward(self, features: Features) -> Tensor:
        return self.out(silu(self.hidden(features.scalars)))[:, 0]


class SchNetEnergy(AtomicEnergies):
    """SchNet's read-out: an energy for each atom by C -> C/2 -> 1 with the shifted softplus."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.hidden, self.out = _perceptron(channels, _half(channels))

    def forward(self, features: Features) -> Tensor:
        return self.out(shifted_softplus(self.hidden(features.scalars)))[:, 0]


class PooledEnergy(nn.Module):
    """Wang et al.'s read-out: two layers C -> C -> 1 of the sum of all atoms' scalars.

    Not size-extensive: two molecules far apart do not have the sum of their energies. For published weights only.
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.hidden, self.out = _perceptron(channels, channels)

    def energies(self, features: Features, batch: Batch) -> Tensor:
        """(M,) eV."""
        return self.out(silu(self.hidden(sum_atoms(features.scalars, batch))))[:, 0]


class MeanPooledEnergy(PooledEnergy):
    """The same of the mean over atoms, with ReLU: the read-out of their SE(3)-Transformer. For published weights only."""

    def energies(self, features: Features, batch: Batch) -> Tensor:
        """(M,) eV."""
        mean = sum_atoms(features.scalars, batch) / batch.counts.clamp_min(1)[:, None]
        return self.out(torch.relu(self.hidden(mean)))[:, 0]


class OwnEnergies(AtomicEnergies):
    """The energies of the encoder's own output blocks, summed (GemNet-T); no parameters."""

    needs = frozenset({"energies"})

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, features: Features) -> Tensor:
        assert features.energies is not None
        return features.energies if features.energies.dim() == 1 else features.energies.sum(1)


class Displacement(nn.Module):
    """How far the encoder moved each atom (N, 3), Å: Wang et al.'s noise head of EGNN; no parameters."""

    needs: ClassVar[frozenset[str]] = frozenset({"coordinates"})

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, features: Features, positions: Tensor) -> Tensor:
        assert features.coordinates is not None
        return features.coordinates - positions


class GradientNoise(AtomEnergy):
    """A second energy whose negative gradient is the noise: for encoders without vectors. Never the potential's energy."""


class EquivariantProperties(EquivariantHead):
    """P numbers per molecule, sums over its atoms of gated blocks' scalars: the read-out of NoisyNode's QM9 models."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__(channels, outputs=outputs)

    def forward(self, features: Features, batch: Batch) -> Tensor:
        """(M, P), standardised."""
        return sum_atoms(self._read(features)[0], batch)


class PooledProperties(nn.Module):
    """P numbers per molecule by two layers C -> C -> P of the sum of all atoms' scalars (Gao et al.)."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.hidden, self.out = _perceptron(channels, channels, outputs)

    def pool(self, scalars: Tensor, batch: Batch) -> Tensor:
        """(M, C)."""
        return sum_atoms(scalars, batch)

    def forward(self, features: Features, batch: Batch) -> Tensor:
        """(M, P), standardised."""
        return self.out(silu(self.hidden(self.pool(features.scalars, batch))))


class MeanPooledProperties(PooledProperties):
    """The same of the mean over atoms, for what does not grow with the molecule."""

    def pool(self, scalars: Tensor, batch: Batch) -> Tensor:
        """(M, C)."""
        return sum_atoms(scalars, batch) / batch.counts.clamp_min(1)[:, None]


def _perceptron(channels: int, hidden: int, outputs: int = 1) -> tuple[nn.Linear, nn.Linear]:
    linears = nn.Linear(channels, hidden), nn.Linear(hidden, outputs)
    for linear in linears:
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
    return linears


ENERGY_HEADS: dict[str, Callable[[int], nn.Module]] = {
    "equivariant": EquivariantScalar,
    "published-equivariant": SharpScalar,
    "per-atom": AtomEnergy,
    "schnet": SchNetEnergy,
    "pooled": PooledEnergy,
    "mean-pooled": MeanPooledEnergy,
    "own": OwnEnergies,
}
NOISE_HEADS: dict[str, Callable[[int], nn.Module]] = {
    "vectors": EquivariantVector,
    "published-vectors": SharpVector,
    "coordinates": Displacement,
    "gradient": GradientNoise,
}
PROPERTY_HEADS: dict[str, Callable[[int, int], nn.Module]] = {
    "equivariant": EquivariantProperties,
    "pooled": PooledProperties,
    "mean-pooled": MeanPooledProperties,
}


def read_out(encoder: Encoder, kind: str, heads: Mapping[str, Callable[..., nn.Module]], *outputs: int) -> nn.Module:
    """A head by name for this encoder; ``outputs``: how many numbers, where a kind of head leaves that open.

    Raises InputError for an unknown name, or features that the encoder has not."""
    if kind not in heads:
        raise InputError(f"unknown head {kind!r}{nearest(kind, heads)} (known: {', '.join(heads)})")
    possible = [name for name, head in heads.items() if head.needs <= encoder.provides]  # type: ignore[attr-defined]
    if kind not in possible:
        needed = ", ".join(heads[kind].needs)  # type: ignore[attr-defined]
        raise InputError(f"head {kind!r} needs {needed}, which {type(encoder).__name__} has not (possible: {', '.join(possible)})")
    return heads[kind](encoder.channels, *outputs)


def from_torchmd(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a published two-block ``output_network`` under our names; old and new TorchMD-Net names."""
    names = {"vec1_proj": "norm_map", "vec2_proj": "vector_map", "update_net.0": "mix", "update_net.2": "gate"}
    renamed = {}
    for name, tensor in state.items():
        index, rest = name.replace("update_net.layers.", "update_net.").split(".", 1)
        module, kind = rest.rsplit(".", 1)
        renamed[f"blocks.{index}.{names[module]}.{kind}"] = tensor
    return renamed


def from_perceptron(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a published two-layer ``Sequential`` (names ``0.weight`` ... ``2.bias``) under ours."""
    return {f"{ours}.{kind}": state[f"{theirs}.{kind}"] for theirs, ours in (("0", "hidden"), ("2", "out")) for kind in ("weight", "bias")}
