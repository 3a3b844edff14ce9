"""Running normalisation of noise targets."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RunningNormaliser(nn.Module):
    """Targets (n, 3) -> (targets - mean) / deviation, both over all targets seen in training so far.

    per_component: mean and deviation of x, y and z each, as NoisyNode's, which makes the target depend on the molecule's
    orientation (little, as the noise is isotropic); else mean zero and one deviation for all three. Moments are averages, not
    sums, so that float32 holds them after any number of steps. deviation: what to expect before anything was seen (Å), rigid-body
    motion that is taken out considered, so that validation at step 0 and later ones are in the same measure.
    """

    mean: Tensor
    square: Tensor
    count: Tensor

    def __init__(self, per_component: bool, deviation: float) -> None:
        super().__init__()
        self.per_component = per_component
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("square", torch.full((3,), deviation**2))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    @staticmethod
    def moments(targets: Tensor) -> Tensor:
        """(7,) float64: count, sums and sums of squares; those of several processes may be added."""
        targets = targets.double()
        return torch.cat([targets.new_tensor([len(targets)]), targets.sum(0), (targets**2).sum(0)])

    def observe(self, moments: Tensor) -> None:
        """Takes the targets of one more step into account."""
        seen = int(moments[0])
        if seen:
            self.count += seen
            share = seen / float(self.count)
            self.mean += share * (moments[1:4] / seen - self.mean).to(self.mean.dtype)
            self.square += share * (moments[4:] / seen - self.square).to(self.square.dtype)

    def forward(self, targets: Tensor) -> Tensor:
        """Normalised targets."""
        if self.per_component:
            return (targets - self.mean) / torch.sqrt((self.square - self.mean**2).clamp(min=1e-12))
        return targets / torch.sqrt(self.square.mean().clamp(min=1e-12))
