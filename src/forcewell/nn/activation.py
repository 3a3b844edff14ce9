"""SiLU with a cheap second derivative."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


class _Derivative(torch.autograd.Function):
    """(g, x) -> g silu'(x), differentiable once more in both."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(grad, x)
        return torch.ops.aten.silu_backward(grad, x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        grad, x = ctx.saved_tensors
        # silu'' = s (1 - s) (2 + x (1 - 2 s)) with s = sigmoid(x), in place: the memory traffic is what costs.
        s = torch.sigmoid(x)
        second = s.mul(-2.0).add_(1.0).mul_(x).add_(2.0)
        second.mul_(s.addcmul_(s, s, value=-1.0)).mul_(grad).mul_(outer)
        return torch.ops.aten.silu_backward(outer, x), second


class _SiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.nn.functional.silu(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return _Derivative.apply(grad, *ctx.saved_tensors)  # type: ignore[return-value]


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x), twice differentiable.

    PyTorch composes the second derivative of its SiLU from about fifteen passes over memory; for the filters of a
    force-trained encoder that was a third of the whole training step.
    """
    return _SiLU.apply(x)  # type: ignore[return-value]


def shifted_softplus(x: Tensor) -> Tensor:
    """ln(1 + exp(x)) - ln 2, SchNet's activation."""
    return torch.nn.functional.softplus(x) - math.log(2.0)
