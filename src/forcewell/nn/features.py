"""What an encoder returns."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(slots=True)
class Features:
    """Per-atom features: invariant ``scalars`` and, where the encoder has them, the rest.

    ``coordinates`` differ from the positions by an equivariant vector of the encoder's own. ``layers`` are there only
    where they were asked for (``encoder(batch, layers=True)``). ``energies`` are those of the encoder's own output blocks.
    """

    scalars: Tensor  # (N, C)
    vectors: Tensor | None = None  # (N, 3, C)
    coordinates: Tensor | None = None  # (N, 3) Å, moved by the encoder
    layers: tuple[Tensor, ...] | None = None  # (N, C) scalars after each layer
    energies: Tensor | None = None  # (N,) or (N, blocks) eV
