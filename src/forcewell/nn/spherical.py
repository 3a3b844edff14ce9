"""Real spherical harmonics as polynomials, and the Clebsch-Gordan coefficients that couple them.

One convention throughout. The polar axis is y and azimuth is counted from z towards x, so degree 1 is (x, y, z) in
this order; components run m = -l ... l, those with m < 0 carrying the sine; no Condon-Shortley phase; the integral
of each squared over the sphere is 1. Degree l has parity (-1)^l.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from forcewell.products import exact


def harmonics(directions: Tensor, degree: int) -> Tensor:
    """Unit vectors (..., 3) -> real spherical harmonics (..., (degree + 1)²), degrees 0 to ``degree`` in a row.

    Polynomials in x, y, z without any angle, so every derivative is finite, at the poles too.

    >>> (harmonics(torch.tensor([0.0, 0.6, 0.8]), 1) / math.sqrt(0.75 / math.pi))[1:].tolist()
    [0.0, 0.6000000238418579, 0.800000011920929]
    """
    x, y, z = directions.unbind(-1)
    # cosine[m] + i sine[m] = (z + i x)^m, that is sin^m(polar angle) times the azimuth's cosine and sine of m.
    cosine, sine = [torch.ones_like(x)], [torch.zeros_like(x)]
    for _ in range(degree):
        cosine.append(cosine[-1] * z - sine[-1] * x)
        sine.append(sine[-1] * z + cosine[-2] * x)
    legendre: dict[tuple[int, int], Tensor | float] = {}
    values: list[Tensor] = []
    for L in range(degree + 1):
        for m in range(L + 1):
            if m == L:
                legendre[L, m] = float(math.prod(range(1, 2 * L, 2)))  # (2l - 1)!!
            else:
                higher = legendre[L - 2, m] if m <= L - 2 else 0.0
                legendre[L, m] = ((2 * L - 1) * y * legendre[L - 1, m] - (L + m - 1) * higher) / (L - m)
        for m in range(-L, L + 1):
            norm = (2 * L + 1) / (4 * math.pi) * math.factorial(L - abs(m)) / math.factorial(L + abs(m))
            wave = sine[-m] if m < 0 else cosine[m]
            values.append(math.sqrt(norm * (2 if m else 1)) * legendre[L, abs(m)] * wave)
    return torch.stack(values, dim=-1)


@lru_cache
def clebsch_gordan(first: int, second: int, total: int) -> np.ndarray:
    """Coupling (2 first + 1, 2 second + 1, 2 total + 1) of real harmonics, float64, with squares summing to 1.

    The only tensor, up to a factor, that is unchanged when all three are rotated. Its sign is that of Racah's formula
    carried to real harmonics, a fixed one: the null vectors of published implementations have the sign that their
    linear algebra library happened to give.

    >>> np.round(clebsch_gordan(1, 1, 0)[:, :, 0] * math.sqrt(3), 12).tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    standard = np.zeros((2 * first + 1, 2 * second + 1, 2 * total + 1))
    for a in range(-first, first + 1):
        for b in range(max(-second, -total - a), min(second, total - a) + 1):
            standard[a + first, b + second, a + b + total] = _racah(first, a, second, b, total)
    real = np.einsum("abc,ai,bj,ck->ijk", standard, *(_real_from_complex(L) for L in (first, second)), _real_from_complex(total).conj())
    # Real for an even sum of degrees and imaginary for an odd one.
    coupling = real.imag if (first + second + total) % 2 else real.real
    coupling = coupling / math.sqrt((coupling**2).sum())
    coupling.setflags(write=False)
    return coupling


def _racah(j1: int, m1: int, j2: int, m2: int, J: int) -> float:
    """<j1 m1 j2 m2 | J m1+m2> up to a factor of j1, j2 and J alone, in exact integers until the last step."""
    f, M = math.factorial, m1 + m2
    total = 0.0
    for k in range(max(0, j2 - J - m1, j1 - J + m2), min(j1 + j2 - J, j1 - m1, j2 + m2) + 1):
        below = f(k) * f(j1 + j2 - J - k) * f(j1 - m1 - k) * f(j2 + m2 - k) * f(J - j2 + m1 + k) * f(J - j1 - m2 + k)
        total += (-1) ** k / below
    return total * math.sqrt(f(J + M) * f(J - M) * f(j1 - m1) * f(j1 + m1) * f(j2 - m2) * f(j2 + m2))


def _real_from_complex(L: int) -> np.ndarray:
    """Columns: the real harmonics in terms of the complex ones (with Condon-Shortley phase), both m = -l ... l."""
    matrix = np.zeros((2 * L + 1, 2 * L + 1), dtype=complex)
    matrix[L, L] = 1.0
    for m in range(1, L + 1):
        matrix[L - m, L + m], matrix[L + m, L + m] = math.sqrt(0.5), (-1) ** m * math.sqrt(0.5)
        matrix[L - m, L - m], matrix[L + m, L - m] = 1j * math.sqrt(0.5), -1j * (-1) ** m * math.sqrt(0.5)
    return matrix


class Couplings(nn.Module):
    """Kernels that turn degree l_in into l_out along a direction u: K_J(u) = Σ_M Q^J_M Y_JM(u) (Fuchs et al. eq. 8).

    Q is the Clebsch-Gordan tensor of (l_out, l_in, J) with squares summing to 1, times a sign per (l_in, l_out, J).
    The default form scales each kernel to keep the variance of one component.
    """

    signs: Tensor
    constants: Tensor
    path_of: Tensor

    def __init__(self, degrees: int, published: bool) -> None:
        super().__init__()
        self.degrees = degrees
        pairs = [(l_in, l_out) for l_in in range(degrees) for l_out in range(degrees)]
        step = 1 if published else 2
        self.paths = {(a, b): list(range(abs(a - b), a + b + 1, step)) for a, b in pairs}
        self.names = [(l_in, l_out, J) for (l_in, l_out), Js in self.paths.items() for J in Js]
        self.columns = [sum((2 * b + 1) * len(self.paths[a, b]) for b in range(degrees)) * (2 * a + 1) for a in range(degrees)]
        constants, path_of = [], []
        for (l_in, l_out), Js in self.paths.items():
            block = np.zeros(((2 * degrees - 1) ** 2, 2 * l_out + 1, len(Js), 2 * l_in + 1))
            scale = 1.0 if published else math.sqrt(4 * math.pi * (2 * l_out + 1))
            for place, J in enumerate(Js):
                block[J**2 : (J + 1) ** 2, :, place] = clebsch_gordan(l_out, l_in, J).transpose(2, 0, 1) * scale
            constants.append(block.reshape(len(block), -1))
            index = np.array([self.names.index((l_in, l_out, J)) for J in Js])
            path_of.append(np.broadcast_to(index[None, :, None], block.shape[1:]).reshape(-1))
        # Kept as bits: float32 constants in a model that is later used in float64 would leave it inexact at 1e-8.
        bits = torch.from_numpy(np.concatenate(constants, axis=1)).view(torch.int64)
        self.register_buffer("constants", bits, persistent=False)
        self.register_buffer("path_of", torch.from_numpy(np.concatenate(path_of)), persistent=False)
        self.register_buffer("signs", torch.ones(len(self.names)))

    def forward(self, directions: Tensor) -> list[Tensor]:
        """Unit vectors (E, 3) -> per degree l_in: (E, rows, 2 l_in + 1); see Geometry.kernels."""
        table = self.constants.view(torch.float64).to(directions.dtype) * self.signs.to(directions.dtype).index_select(0, self.path_of)
        with exact(directions.device):
            values = harmonics(directions, 2 * self.degrees - 2) @ table
        parts = values.split(self.columns, dim=1)
        return [part.unflatten(1, (-1, 2 * l_in + 1)) for l_in, part in enumerate(parts)]
