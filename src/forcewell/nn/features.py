"""What an encoder returns."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(slots=True)
class Features:
    """Per-atom features: invariant ``scalars`` (N, C) and equivariant ``vectors`` (N, 3, C)."""

    scalars: Tensor
    vectors: Tensor
