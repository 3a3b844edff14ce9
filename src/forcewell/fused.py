"""The Equivariant Transformer's energy, forces and training gradients by compiled kernels (CPU, float32).

Same function and same parameters as the PyTorch modules, which stay the reference; sums are ordered differently, so forces
agree to a few 1e-6 of their size. A loss L on forces needs d/dθ of Σ_i w_i·dE/dr_i with w = -dL/dF: the kernels carry the
derivative along w through the forward and the reverse pass, so no second-order graph is built (kernels/layers.h).
"""

from __future__ import annotations

import ctypes
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from forcewell.batch import Batch
from forcewell.display import say
from forcewell.graph import periodic_pairs
from forcewell.nn import EquivariantScalar, EquivariantTransformer

_POINTER, _LONG = ctypes.c_void_p, ctypes.c_long
# Floats per vector, and one more where matrix products are by AMX tiles.
AMX = 17
INTERFACE = 1  # of the functions in kernels/equivariant_transformer.cpp
INSTRUCTIONS = {AMX: "AMX", 16: "AVX-512", 8: "AVX2", 4: "portable vectors"}


@cache
def functions() -> ctypes.CDLL | None:
    """The compiled kernels, or None where the package was installed without a compiler, or they are of other sources than this file."""
    path = Path(__file__).with_name("_kernels" + (sysconfig.get_config_var("EXT_SUFFIX") or ".so"))
    if not path.is_file():
        return None
    found = ctypes.CDLL(str(path))
    if not hasattr(found, "forcewell_interface") or found.forcewell_interface() != INTERFACE:
        say(f"{path.name} was built from other sources and is not used; install Forcewell again")
        return None
    found.forcewell_create.restype = found.forcewell_run.restype = _POINTER
    found.forcewell_instructions.restype = _LONG
    register_optimizer_step_post_hook(_count_step)
    return found


# Steps of any optimiser in this process. PyTorch's fused optimisers change parameters without changing their versions.
_steps = 0


def _count_step(*_: Any) -> None:
    global _steps
    _steps += 1


def instructions(encoder: nn.Module, head: nn.Module, most: int | None = None) -> int:
    """The best of ``INSTRUCTIONS``, at most ``most``, that this machine and the kernels have for an encoder and a head; 0: none.

    Without ``most``, AMX only from 128 channels on: it lowers the clock of all that is not a product, which costs smaller
    models up to 13 %.
    """
    found = functions()
    if found is None or not isinstance(encoder, EquivariantTransformer) or type(head) is not EquivariantScalar:
        return 0
    if not encoder.layers or not encoder.smooth_cutoff or encoder.lower_cutoff > 0 or isinstance(encoder.basis.means, nn.Parameter):
        return 0
    if encoder.vector_norm is not None:
        return 0
    if most is None:
        most = AMX if encoder.channels >= 128 else 16
    return int(found.forcewell_instructions((_LONG * 4)(*_sizes(encoder)), _LONG(most)))


class Fused:
    """The kernels for one encoder and head, with their weights packed; ``half``: the encoder's linear maps' rounded to bfloat16."""

    def __init__(self, encoder: EquivariantTransformer, head: EquivariantScalar, instructions: int, half: bool = False) -> None:
        found = functions()
        assert found is not None
        self.functions, self.instructions, self.half, self.encoder, self.head = found, instructions, half, encoder, head
        own = encoder.basis(encoder.basis.means.new_zeros(1)).double()
        means, betas = (table.detach().contiguous() for table in (encoder.basis.means, encoder.basis.betas))
        softening = float(head.blocks[0].softening)  # type: ignore[arg-type]
        self.handle = _POINTER(
            found.forcewell_create(
                _LONG(instructions), (_LONG * 4)(*_sizes(encoder)), ctypes.c_double(encoder.cutoff), ctypes.c_double(softening),
                _address(means), _address(betas), _address(own), _LONG(half),
            )
        )  # fmt: skip
        if not self.handle:
            raise MemoryError("no memory for the compiled kernels' weights")
        self.loaded: tuple[int, ...] = ()
        # Where each parameter is kept: to ask fifty modules by name takes 0.2 ms, a fifth of a small model's energy and forces.
        self.places = _places(encoder, head)

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self.functions.forcewell_destroy(self.handle)

    def __call__(self, batch: Batch, differentiable: bool) -> tuple[Tensor, Tensor]:
        """Energy of each atom (N,), eV, and forces (N, 3), eV/Å; ``differentiable`` by parameters, not by positions."""
        with torch.set_grad_enabled(differentiable):
            return _EnergyAndForces.apply(self, batch, differentiable, *self.embeddings(batch), *self.parameters())  # type: ignore[return-value]

    def embeddings(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Of each atom, and of it as a neighbour, (N, C) each; neither depends on positions."""
        return self.encoder.embed(batch), self.encoder.neighbour_embedding(self.encoder.species(batch))

    def parameters(self) -> list[Tensor]:
        """All that the kernels read, in their order."""
        return [kept[name] for kept, name in self.places]

    def load(self, parameters: list[Tensor]) -> None:
        """Packs the weights if any of them has changed since the last call."""
        state = (_steps, *[parameter.data_ptr() for parameter in parameters], *[parameter._version for parameter in parameters])
        if state != self.loaded:
            self.functions.forcewell_load(self.handle, _addresses(parameters))
            self.loaded = state


def _address(tensor: Tensor | None) -> Any:
    return _POINTER(None if tensor is None else tensor.data_ptr())


def _addresses(tensors: list[Tensor]) -> Any:
    return (_POINTER * len(tensors))(*[tensor.data_ptr() for tensor in tensors])


def _sizes(encoder: EquivariantTransformer) -> tuple[int, int, int, int]:
    heads = encoder.layers[0].heads
    return encoder.channels, len(encoder.layers), int(heads), len(encoder.basis.means)  # type: ignore[arg-type]


def _places(encoder: EquivariantTransformer, head: EquivariantScalar) -> list[tuple[dict[str, Any], str]]:
    """Module's table and name of all that the kernels read, in their order. The last block's vectors lead nowhere."""
    modules: list[Any] = [encoder.neighbour_filter, encoder.combine]
    layers: list[Any] = list(encoder.layers)
    for layer in layers:
        modules += [layer.norm, layer.query_key_value, layer.filters, layer.vector_maps, layer.output]
    blocks: list[Any] = list(head.blocks)
    modules += [encoder.norm]
    modules += [blocks[0].norm_map, blocks[0].vector_map, blocks[0].mix, blocks[0].gate, blocks[1].norm_map, blocks[1].mix, blocks[1].gate]
    return [(module._parameters, name) for module in modules for name in ("weight", "bias") if getattr(module, name) is not None]


class _EnergyAndForces(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, fused: Fused, batch: Batch, keep: bool, embedded: Tensor, neighbours: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        fused.load(list(parameters))
        N = len(embedded)
        energies, forces, failed = torch.empty(N), torch.empty(N, 3), _LONG(0)
        given = [batch.offsets, batch.positions.detach().double().contiguous(), embedded.contiguous(), neighbours.contiguous()]
        pairs = periodic_pairs(batch, fused.encoder.cutoff) if bool(batch.pbc.any()) else None
        first, second, shifts = pairs or (None, None, None)
        kept = fused.functions.forcewell_run(
            fused.handle, _LONG(len(batch)), *map(_address, given), _LONG(0 if first is None else len(first)), _address(first),
            _address(second), _address(shifts), _LONG(torch.get_num_threads()), _LONG(keep), _address(energies), _address(forces),
            ctypes.byref(failed),
        )  # fmt: skip
        ctx.kept = _Kept(fused, kept) if kept else None
        if failed.value:
            raise MemoryError("not enough memory for the neighbours of this batch")
        ctx.shapes = [parameter.shape for parameter in parameters]
        return energies, forces

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, energies_bar: Tensor, forces_bar: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        kept: _Kept = ctx.kept
        fused = kept.fused
        if fused.loaded != kept.loaded:
            raise RuntimeError("the potential's parameters were changed between its forces and the backward pass")
        N, C = len(energies_bar), fused.encoder.channels
        sizes = [shape.numel() for shape in ctx.shapes]
        parts = torch.zeros(sum(sizes)).split(sizes)
        gradients = [part if len(shape) == 1 else part.view(shape) for part, shape in zip(parts, ctx.shapes, strict=True)]
        embedded, neighbours = torch.empty(N, C), torch.empty(N, C)
        displacement, seeds = -forces_bar.contiguous(), energies_bar.contiguous()
        fused.functions.forcewell_gradient(
            fused.handle, kept.handle, _address(displacement), _address(seeds), _LONG(torch.get_num_threads()),
            _addresses(gradients), _address(embedded), _address(neighbours),
        )  # fmt: skip
        return None, None, None, embedded, neighbours, *gradients


class _Kept:
    """Activations of one call; their memory goes back to the kernels when nobody needs them any more."""

    def __init__(self, fused: Fused, handle: int) -> None:
        self.fused, self.handle, self.loaded = fused, _POINTER(handle), fused.loaded

    def __del__(self) -> None:
        self.fused.functions.forcewell_release(self.fused.handle, self.handle)
