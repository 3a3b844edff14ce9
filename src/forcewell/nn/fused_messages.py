"""The Equivariant Transformer's messages by Triton kernels (attention_kernels.py), differentiable twice."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from forcewell.graph import Neighbours
from forcewell.nn.radial import ExponentialNormalBasis

BLOCK = 16  # neighbours that a program takes at once: the least that the matrix units do; not tuned
# Filters' weights of a head, radial functions times channels, that a program's shared memory holds twice over: compiled for sm_90, 64 x 32
# take 63 to 79 kB of its 232, 64 x 64 139 (and three kilobytes of spilled registers), 64 x 128 more than there is.
LARGEST = 2048


def supported(channels: int, heads: int, basis: ExponentialNormalBasis, device: torch.device) -> bool:
    """Whether there are kernels for these sizes here: a GPU, Triton and what it needs, float32, and powers of two from 16 for R and
    C / heads, whose product is at most ``LARGEST``."""
    sizes = (channels // heads, len(basis.means))
    if not all(size >= 16 and size & (size - 1) == 0 for size in sizes) or isinstance(basis.means, torch.nn.Parameter):
        return False
    return sizes[0] * sizes[1] <= LARGEST and device.type == "cuda" and basis.means.dtype == torch.float32 and _triton_runs()


@functools.cache
def _triton_runs() -> bool:
    """Whether Triton is here, and the C compiler and Python's headers with which it builds what launches its kernels."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")  # as Triton does, for Debian's Python
    headers = Path(sysconfig.get_path("include", scheme)) / "Python.h"
    return bool(compiler) and headers.is_file() and importlib.util.find_spec("triton") is not None


@dataclass(slots=True)
class FusedMessages:
    """What all layers share. Lists of neighbours must be symmetric and fill their places from the first on, as all do here.

    products: "tf32x3" (as exact as float32) or "tf32" (10-bit mantissa) for those of the filters.
    """

    near: Neighbours
    basis: ExponentialNormalBasis
    heads: int
    degrees: Tensor  # (N,) int32
    products: str

    @classmethod
    def of(cls, near: Neighbours, basis: ExponentialNormalBasis, heads: int) -> FusedMessages:
        """For the messages of one evaluation, in the precision that matrix products have in it."""
        coarse = torch.is_autocast_enabled(near.mask.device.type) or torch.backends.cuda.matmul.fp32_precision == "tf32"
        return cls(near, basis, heads, near.mask.sum(1).int(), "tf32" if coarse else "tf32x3")

    def __call__(self, node: Tensor, vectors: Tensor | None, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """node (N, 5 C): query, key and three values; vectors (N, 3, C), None: all zero; weight (4 C, R) and bias of the filters.

        Returns sums over neighbours of scalar messages (N, C) and vector messages (N, 3, C), without an atom's to itself.
        Gradients that are themselves to be differentiated (``create_graph``) are those by everything but the filters' weight
        and bias, whose come as NaN then: force training does not need them, and they cost a third more.
        """
        return _Messages.apply(self, node.float().contiguous(), vectors, self.near.vectors, weight, bias)  # type: ignore[return-value]

    def forward(self, inputs: tuple[Any, ...], changes: tuple[Any, ...] | None) -> tuple[Tensor, Tensor]:
        """The sums, or their derivatives along ``changes`` of node, vectors and displacements."""
        from forcewell.nn import attention_kernels

        kernel: Any = attention_kernels._forward
        node, vectors = inputs[:2]
        N, C = len(node), node.shape[1] // 5
        scalars, summed = node.new_empty(N, C), node.new_empty(N, 3, C)
        arguments = (*self._arguments(inputs, changes), scalars, summed, *self._sizes(C))
        with torch.cuda.device_of(node):
            kernel[(N, self.heads)](*arguments, **self._options(C, vectors, changes))
        return scalars, summed

    def reverse(
        self, inputs: tuple[Any, ...], changes: tuple[Any, ...] | None, scalars_bar: Tensor, vectors_bar: Tensor, parameters: bool
    ) -> tuple[Tensor | None, ...]:
        """Gradients by node, vectors, displacements, weight and bias of what ``forward`` gives, or their derivatives."""
        from forcewell.nn import attention_kernels

        kernel: Any = attention_kernels._reverse
        node, vectors, displacements, weight, bias = inputs
        N, C, K = len(node), node.shape[1] // 5, displacements.shape[1]
        node_bar, vectors_bar_out = torch.empty_like(node), None if vectors is None else torch.empty_like(vectors)
        by_head = node.new_zeros(N, K, self.heads, 3)
        filters = [node.new_zeros(N * K, 4 * C) if parameters and (k == 0 or changes) else node for k in (0, 1)]
        outputs = (node_bar, node if vectors_bar_out is None else vectors_bar_out, by_head, *filters)
        arguments = (*self._arguments(inputs, changes), scalars_bar.contiguous(), vectors_bar.contiguous(), *outputs, *self._sizes(C))
        with torch.cuda.device_of(node):
            kernel[(N, self.heads)](*arguments, **self._options(C, vectors, changes), PARAMETERS=parameters)
        found = node_bar, vectors_bar_out, by_head.sum(2)
        if not parameters:
            return *found, weight.new_full((), torch.nan).expand_as(weight), bias.new_full((), torch.nan).expand_as(bias)
        distances = torch.linalg.vector_norm(displacements, dim=2)
        if changes is None:
            return *found, filters[0].mT @ self.basis(distances).flatten(0, 1), filters[0].sum(0)
        shifts = (displacements * changes[2]).sum(2) / distances
        basis, change = torch.func.jvp(self.basis, (distances,), (shifts,))  # type: ignore[misc]
        return *found, filters[1].mT @ basis.flatten(0, 1) + filters[0].mT @ change.flatten(0, 1), filters[1].sum(0)

    def _arguments(self, inputs: tuple[Any, ...], changes: tuple[Any, ...] | None) -> list[Any]:
        node, vectors, displacements, weight, bias = inputs
        given = [node, vectors, displacements]
        pairs = [part for pair in zip(given, given if changes is None else changes, strict=True) for part in pair]
        shown = [node if part is None else part.contiguous() for part in pairs]  # a kernel without vectors reads none
        return [*shown, self.near.sender, self.degrees, weight, bias, self.basis.means, self.basis.betas]

    def _sizes(self, C: int) -> tuple[Any, ...]:
        return self.near.mask.shape[1], C, self.basis.upper, 5.0 / self.basis.upper

    def _options(self, C: int, vectors: Tensor | None, changes: Any) -> dict[str, Any]:
        options: dict[str, Any] = {"R": len(self.basis.means), "D": C // self.heads, "B": BLOCK}
        return options | {"VECTORS": vectors is not None, "DUAL": changes is not None, "PRECISION": self.products}


class _Messages(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, fused: FusedMessages, *inputs: Any) -> tuple[Tensor, Tensor]:
        ctx.fused = fused
        ctx.save_for_backward(*inputs)
        return fused.forward(inputs, None)

    @staticmethod
    def backward(ctx: Any, scalars_bar: Tensor, vectors_bar: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        # Not under create_graph, and not in molecular dynamics, where weights are frozen: they are written pair by pair.
        parameters = not torch.is_grad_enabled() and ctx.needs_input_grad[4]
        return None, *_Gradients.apply(ctx.fused, parameters, scalars_bar, vectors_bar, *ctx.saved_tensors)  # type: ignore[misc]


class _Gradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, fused: FusedMessages, parameters: bool, scalars_bar: Tensor, vectors_bar: Tensor, *inputs: Any) -> Any:
        ctx.fused = fused
        ctx.save_for_backward(scalars_bar, vectors_bar, *inputs)
        return fused.reverse(inputs, None, scalars_bar, vectors_bar, parameters)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *changes: Any) -> tuple[Any, ...]:  # type: ignore[override]
        scalars_bar, vectors_bar, *inputs = ctx.saved_tensors
        along = changes[:3]
        sums = ctx.fused.forward(tuple(inputs), along)
        return None, None, *sums, *ctx.fused.reverse(tuple(inputs), along, scalars_bar, vectors_bar, True)
