"""Radial bases and cutoff envelopes. r: distances of any shape, in Å."""

import math

import torch
from torch import Tensor, nn


def cosine_cutoff(r: Tensor, upper: float, lower: float = 0.0) -> Tensor:
    """Envelope, 0 with zero slope at ``upper`` and beyond (Behler 2011).

    With ``lower`` > 0 it is zero at both ends and one halfway, as TorchMD-Net defines it.
    """
    if lower > 0:
        wave = torch.cos(math.pi * (2 * (r - lower) / (upper - lower) + 1))
        return 0.5 * (wave + 1) * ((r > lower) & (r < upper))
    return 0.5 * (torch.cos(math.pi / upper * r) + 1) * (r < upper)


class ExponentialNormalBasis(nn.Module):
    """Gaussians in exp(-r), denser at short range (PhysNet, Unke & Meuwly 2019): (...) -> (..., R).

    e_k(r) = φ(r) exp(-β_k (exp(α (lower - r)) - μ_k)²) with α = 5 / (upper - lower), μ evenly spaced from
    exp(lower - upper) to 1 and one β. φ is the cosine cutoff from zero, whatever ``lower`` is, as published.
    """

    means: Tensor
    betas: Tensor

    def __init__(self, size: int, upper: float, lower: float = 0.0, trainable: bool = False) -> None:
        super().__init__()
        self.upper, self.lower = upper, lower
        start = math.exp(lower - upper)
        means = torch.linspace(start, 1.0, size, dtype=torch.float64)
        betas = torch.full((size,), (2.0 / size * (1.0 - start)) ** -2, dtype=torch.float64)
        for name, value in (("means", means), ("betas", betas)):
            value = value.to(torch.get_default_dtype())
            if trainable:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def forward(self, r: Tensor) -> Tensor:
        """Distances (...) in Å -> basis values (..., R)."""
        alpha = 5.0 / (self.upper - self.lower)
        scaled = torch.exp(alpha * (self.lower - r))[..., None]
        exponent = -self.betas * (scaled - self.means) ** 2
        # Below exp(-40) = 4e-18 exactly zero: most of the basis would otherwise be denormal numbers, and arithmetic
        # on those made a whole training step 1.5-1.9 times slower.
        return cosine_cutoff(r, self.upper)[..., None] * torch.exp(exponent.masked_fill(exponent < -40.0, -torch.inf))


class GaussianBasis(nn.Module):
    """Gaussians on an even grid from 0 to ``upper``, as wide as their spacing (SchNet): (...) -> (..., R). No cutoff."""

    offsets: Tensor

    def __init__(self, size: int, upper: float) -> None:
        super().__init__()
        self.width = upper / (size - 1)
        self.register_buffer("offsets", torch.linspace(0.0, upper, size, dtype=torch.float64).to(torch.get_default_dtype()))

    def forward(self, r: Tensor) -> Tensor:
        """Distances (...) in Å -> basis values (..., R)."""
        exponent = -0.5 * ((r[..., None] - self.offsets) / self.width) ** 2
        return torch.exp(exponent.masked_fill(exponent < -40.0, -torch.inf))  # no denormal numbers, as above
