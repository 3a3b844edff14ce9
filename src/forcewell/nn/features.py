"""What an encoder returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(slots=True)
class Features:
    """Per-atom features: invariant ``scalars`` (N, C); where the encoder has them, equivariant ``vectors`` (N, 3, C),
    moved ``coordinates`` (N, 3), ``layers`` (scalars after each layer) and ``energies`` (N,) of output blocks."""

    scalars: Tensor
    vectors: Tensor | None = None
    coordinates: Tensor | None = None
    layers: list[Tensor] | None = None
    energies: Tensor | None = None
