"""Radial and angular bases of GemNet (Gasteiger et al., NeurIPS 2021, with DimeNet's definitions)."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import Tensor, nn

from forcewell.products import exact


def polynomial_envelope(x: Tensor, exponent: int = 5) -> Tensor:
    """u(x) of DimeNet (eq. 8): 1 at x = 0, zero with two zero derivatives at x = 1 and beyond; x = distance / cutoff.

    The published 1 - (p+1)(p+2)/2 x^p + p (p+2) x^(p+1) - p (p+1)/2 x^(p+2) has (1 - x)³ as a factor. Multiplied out
    it loses every digit near the cutoff (terms of 20-35 that cancel to 1e-9), so the factor is kept:
    u = (1 - x)³ Σ_{k<p} (k+1)(k+2)/2 x^k.
    """
    total = torch.zeros_like(x)
    for k in reversed(range(exponent)):
        total = total * x + (k + 1) * (k + 2) / 2
    return torch.clamp(1.0 - x, min=0.0) ** 3 * total


class BesselBasis(nn.Module):
    """u(x) sqrt(2/c) sin(f_n x) / d with trainable f_n, first n π (DimeNet eq. 7): distances (E,) in Å -> (E, R)."""

    def __init__(self, size: int, cutoff: float, exponent: int = 5) -> None:
        super().__init__()
        self.cutoff, self.exponent = cutoff, exponent
        self.frequencies = nn.Parameter(math.pi * torch.arange(1, size + 1, dtype=torch.get_default_dtype()))

    def forward(self, distances: Tensor) -> Tensor:
        x = distances / self.cutoff
        factor = math.sqrt(2.0 / self.cutoff) * polynomial_envelope(x, self.exponent) / distances
        return torch.sin(x[:, None] * self.frequencies) * factor[:, None]


class GaussianRadialBasis(nn.Module):
    """u(x) exp(-(x - μ_n)² / (2 Δ²)) with R centres from 0 to 1, Δ apart: distances (E,) in Å -> (E, R)."""

    def __init__(self, size: int, cutoff: float, exponent: int = 5) -> None:
        super().__init__()
        self.size, self.cutoff, self.exponent = size, cutoff, exponent

    def forward(self, distances: Tensor) -> Tensor:
        x = distances / self.cutoff
        centres = torch.linspace(0.0, 1.0, self.size, dtype=x.dtype, device=x.device)
        exponent = -0.5 * ((x[:, None] - centres) * (self.size - 1)) ** 2
        # Below exp(-40) exactly zero: denormal numbers are slow.
        return torch.exp(exponent.masked_fill(exponent < -40.0, -torch.inf)) * polynomial_envelope(x, self.exponent)[:, None]


class SphericalBesselBasis(nn.Module):
    """u(x) c^(-3/2) sqrt(2) / |j_{l+1}(z_ln)| j_l(z_ln x), z_ln the n-th root of j_l: distances (E,) in Å -> (E, L, R).

    The closed forms of j_l cancel at short distance (at 0.05 Å the published ones for l = 6 are wrong by 5e-5 in
    float64 and worthless in float32). j_l(z x) is entire in x, so here all L R functions are one polynomial matrix in
    Chebyshev's T_k(x), exact to 1e-14 in float64 on all of 0 <= x <= 1, derivatives included.
    """

    coefficients: Tensor

    def __init__(self, degrees: int, size: int, cutoff: float, exponent: int = 5) -> None:
        super().__init__()
        self.degrees, self.size, self.cutoff, self.exponent = degrees, size, cutoff, exponent
        # float64 whatever the model's dtype, so that a model built in float32 and moved to float64 loses nothing.
        table = torch.from_numpy(_chebyshev_coefficients(degrees, size) * cutoff**-1.5)
        self.register_buffer("coefficients", table, persistent=False)

    def forward(self, distances: Tensor) -> Tensor:
        x = distances / self.cutoff
        envelope = polynomial_envelope(x, self.exponent)
        # Beyond the cutoff the envelope is 0, but T_k grows like x^k: padded distances must not overflow.
        polynomials = chebyshev(x.clamp(max=1.0), len(self.coefficients))
        with exact(x.device):  # terms of both signs nearly cancel
            values = polynomials @ self.coefficients.to(x.dtype)
        return (values * envelope[:, None]).unflatten(1, (self.degrees, self.size))


def chebyshev(x: Tensor, count: int) -> Tensor:
    """T_0 ... T_{count-1} at x (E,) in [-1, 1] -> (E, count), by doubling: T_{m+k} = 2 T_m T_k - T_{m-k}."""
    table = torch.stack([torch.ones_like(x), x], dim=1)
    while table.shape[1] < count:
        last = table.shape[1] - 1
        more = 2.0 * table[:, -1:] * table[:, 1:] - table[:, :last].flip(1)
        table = torch.cat([table, more], dim=1)
    return table[:, :count]


def spherical_bessel_roots(degrees: int, count: int) -> np.ndarray:
    """(degrees, count) float64: the first positive roots of j_0 ... j_{degrees-1}.

    Between two neighbouring roots of j_{l-1} there is exactly one of j_l.
    """
    from scipy.optimize import brentq
    from scipy.special import spherical_jn

    roots = [math.pi * np.arange(1, count + degrees)]
    for degree in range(1, degrees):
        ends = roots[-1]
        found = [brentq(lambda z, n=degree: spherical_jn(n, z), low, high, xtol=1e-14) for low, high in itertools.pairwise(ends)]
        roots.append(np.array(found))
    return np.stack([row[:count] for row in roots])


def _chebyshev_coefficients(degrees: int, size: int) -> np.ndarray:
    """(terms, degrees * size): expansion of sqrt(2) / |j_{l+1}(z_ln)| j_l(z_ln x), l slow, n fast."""
    from numpy.polynomial.chebyshev import chebpts1, chebvander
    from scipy.special import spherical_jn

    roots = spherical_bessel_roots(degrees, size)
    # An oscillation of frequency z needs about z + 30 terms for 1e-16.
    terms = int(roots.max()) + 30
    nodes = chebpts1(terms)
    values = np.empty((terms, degrees, size))
    for degree, row in enumerate(roots):
        norm = math.sqrt(2.0) / np.abs(spherical_jn(degree + 1, row))
        values[:, degree] = norm * np.sign(nodes[:, None]) ** degree * spherical_jn(degree, np.abs(nodes)[:, None] * row)
    # T_k are orthogonal over their own nodes.
    coefficients = chebvander(nodes, terms - 1).T @ values.reshape(terms, -1) * (2 / terms)
    coefficients[0] /= 2
    parity = (np.arange(terms)[:, None] + np.repeat(np.arange(degrees), size)) % 2 == 1
    return np.where(parity, 0.0, coefficients)  # j_l is even or odd as l is; rounding would break it


def zonal_harmonics(cosines: Tensor, degrees: int, dim: int) -> Tensor:
    """Y_l0 = sqrt((2l+1)/4π) P_l(cos θ), l = 0 ... degrees-1, stacked along a new dimension ``dim``.

    Polynomials of the cosine by Bonnet's recurrence: no angle is ever computed, so the first and second derivatives
    of collinear atoms (θ = 0 or π, where acos and atan2 have a kink) are as finite as any.
    """
    legendre = [torch.ones_like(cosines), cosines]
    for degree in range(2, degrees):
        legendre.append(((2 * degree - 1) * cosines * legendre[-1] - (degree - 1) * legendre[-2]) / degree)
    scaled = [math.sqrt((2 * degree + 1) / (4 * math.pi)) * values for degree, values in enumerate(legendre[:degrees])]
    return torch.stack(scaled, dim=dim)
