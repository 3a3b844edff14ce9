"""The Equivariant Transformer's energy, forces, features and training gradients by compiled kernels (CPU, float32).

Same function and same parameters as the PyTorch modules, which stay the reference; sums are ordered differently, so forces
agree to a few 1e-6 of their size. A loss L on forces needs d/dθ of Σ_i w_i·dE/dr_i with w = -dL/dF: the kernels carry the
derivative along w through the forward and the reverse pass, so no second-order graph is built (kernels/layers.h). What is no
derivative of an energy (noise, properties, energies alone) is read from the features by PyTorch, and needs a plain reverse pass.
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
from forcewell.nn import EquivariantScalar, EquivariantTransformer, Features

_POINTER, _LONG = ctypes.c_void_p, ctypes.c_long
# Floats per vector, and one more where matrix products are by AMX tiles.
AMX = 17
INTERFACE = 2  # of the functions in kernels/equivariant_transformer.cpp
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
    found.forcewell_create.restype = found.forcewell_run.restype = found.forcewell_features.restype = _POINTER
    found.forcewell_instructions.restype = _LONG
    register_optimizer_step_post_hook(_count_step)
    return found


# Steps of any optimiser in this process. PyTorch's fused optimisers change parameters without changing their versions.
_steps = 0


def _count_step(*_: Any) -> None:
    global _steps
    _steps += 1


def instructions(encoder: nn.Module, head: nn.Module, most: int | None = None, forces: bool = True) -> int:
    """The best of ``INSTRUCTIONS``, at most ``most``, that this machine and the kernels have for an encoder and a head; 0: none.

    Whitened vectors are whitened in PyTorch, so there are features of such an encoder, but no ``forces``.
    Without ``most``, AMX only from 128 channels on: it lowers the clock of all that is not a product, which costs smaller
    models up to 13 %.
    """
    found = functions()
    if found is None or not isinstance(encoder, EquivariantTransformer) or type(head) is not EquivariantScalar:
        return 0
    if not encoder.layers or not encoder.smooth_cutoff or encoder.lower_cutoff > 0 or isinstance(encoder.basis.means, nn.Parameter):
        return 0
    if forces and encoder.vector_norm is not None:
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
        self.gives_forces = encoder.vector_norm is None
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
        mine = {id(table) for module in encoder.modules() for table in [module._parameters]}
        self.of_encoder = sum(id(table) in mine for table, _ in self.places)  # and these come first

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self.functions.forcewell_destroy(self.handle)

    def __call__(self, batch: Batch, differentiable: bool) -> tuple[Tensor, Tensor]:
        """Energy of each atom (N,), eV, and forces (N, 3), eV/Å; ``differentiable`` by parameters, not by positions."""
        with torch.set_grad_enabled(differentiable):
            return _EnergyAndForces.apply(self, batch, differentiable, *self.embeddings(batch), *self.parameters())  # type: ignore[return-value]

    def features(self, batch: Batch, differentiable: bool) -> Features:
        """Scalars (N, C) and vectors (N, 3, C); ``differentiable`` by parameters, not by positions."""
        with torch.set_grad_enabled(differentiable):
            parameters = self.parameters()
            self.load(parameters)
            own = parameters[: self.of_encoder]
            scalars, vectors = _Features.apply(self, batch, differentiable, *self.embeddings(batch), *own)  # type: ignore[misc]
            norm = self.encoder.vector_norm
            return Features(scalars, vectors if norm is None else norm(vectors))

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
        energies, forces = torch.empty(len(embedded)), torch.empty(len(embedded), 3)
        ctx.kept = _call(fused.functions.forcewell_run, fused, batch, keep, embedded, neighbours, energies, forces)
        ctx.shapes = [parameter.shape for parameter in parameters]
        return energies, forces

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, energies_bar: Tensor, forces_bar: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        kept: _Kept = ctx.kept
        return kept.gradients(kept.fused.functions.forcewell_gradient, ctx.shapes, -forces_bar.contiguous(), energies_bar.contiguous())


class _Features(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, fused: Fused, batch: Batch, keep: bool, embedded: Tensor, neighbours: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        scalars, vectors = torch.empty_like(embedded), embedded.new_empty(len(embedded), 3, fused.encoder.channels)
        ctx.kept = _call(fused.functions.forcewell_features, fused, batch, keep, embedded, neighbours, scalars, vectors)
        ctx.shapes = [parameter.shape for parameter in parameters]
        return scalars, vectors

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scalars_bar: Tensor, vectors_bar: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        kept: _Kept = ctx.kept
        gradient = kept.fused.functions.forcewell_features_gradient
        return kept.gradients(gradient, ctx.shapes, scalars_bar.contiguous(), vectors_bar.contiguous())


def _call(function: Any, fused: Fused, batch: Batch, keep: bool, embedded: Tensor, neighbours: Tensor, *results: Tensor) -> _Kept | None:
    """Fills the two results of one of the kernels' two functions of a batch. Raises MemoryError."""
    given = [batch.offsets, batch.positions.detach().double().contiguous(), embedded.contiguous(), neighbours.contiguous()]
    pairs = periodic_pairs(batch, fused.encoder.cutoff) if bool(batch.pbc.any()) else None
    first, second, shifts = pairs or (None, None, None)
    failed = _LONG(0)
    kept = function(
        fused.handle, _LONG(len(batch)), *map(_address, given), _LONG(0 if first is None else len(first)), _address(first),
        _address(second), _address(shifts), _LONG(torch.get_num_threads()), _LONG(keep), *map(_address, results), ctypes.byref(failed),
    )  # fmt: skip
    held = _Kept(fused, kept) if kept else None
    if failed.value:
        raise MemoryError("not enough memory for the neighbours of this batch")
    return held


class _Kept:
    """Activations of one call; their memory goes back to the kernels when nobody needs them any more."""

    def __init__(self, fused: Fused, handle: int) -> None:
        self.fused, self.handle, self.loaded = fused, _POINTER(handle), fused.loaded

    def gradients(self, function: Any, shapes: list[torch.Size], first: Tensor, second: Tensor) -> tuple[Any, ...]:
        """What the backward passes return: by both embeddings and by parameters of these shapes, from the results' two adjoints."""
        fused = self.fused
        if fused.loaded != self.loaded:
            raise RuntimeError("the potential's parameters were changed between its forces and the backward pass")
        # The kernels know of all parameters, also of a head's that the features do not depend on.
        sizes = [shape.numel() for shape in shapes] + [kept[name].numel() for kept, name in fused.places[len(shapes) :]]
        parts = torch.zeros(sum(sizes)).split(sizes)
        embedded, neighbours = (torch.empty(len(first), fused.encoder.channels) for _ in range(2))
        function(
            fused.handle, self.handle, _address(first), _address(second), _LONG(torch.get_num_threads()),
            _addresses(list(parts)), _address(embedded), _address(neighbours),
        )  # fmt: skip
        return None, None, None, embedded, neighbours, *[part.view(shape) for part, shape in zip(parts, shapes, strict=False)]

    def __del__(self) -> None:
        self.fused.functions.forcewell_release(self.fused.handle, self.handle)
