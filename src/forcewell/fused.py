"""The Equivariant Transformer's energy, forces, features and training gradients by compiled kernels (CPU, float32).

Same function and same parameters as the PyTorch modules, which stay the reference; sums are ordered differently and radial
functions below e^-18 left out, so forces agree to a few 1e-6 of their size. A loss L on forces needs d/dθ of Σ_i w_i·dE/dr_i with
w = -dL/dF: the kernels carry the derivative along w through the forward and the reverse pass, so no second-order graph is built
(kernels/layers.h). What is no derivative of an energy (noise, properties, energies alone) is read from the features by PyTorch,
and needs a plain reverse pass.
"""

from __future__ import annotations

import ctypes
import sysconfig
from collections.abc import Iterator
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
_PLAIN = (nn.Linear, nn.LayerNorm)
INSTRUCTIONS = {AMX: "AMX", 16: "AVX-512", 8: "AVX2", 4: "portable vectors"}


class Molecules(ctypes.Structure):
    """``Molecules`` of kernels/chunks.h."""

    _fields_ = (
        ("count", _LONG),
        *((name, _POINTER) for name in ("offsets", "positions", "embedded", "neighbours", "vectors")),
        ("pair_count", _LONG),
        *((name, _POINTER) for name in ("first", "second", "shifts")),
    )


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
    found.forcewell_instructions.restype = found.forcewell_sample.restype = _LONG
    found.forcewell_gradient.restype = found.forcewell_features_gradient.restype = found.forcewell_advance.restype = _LONG
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
    if found is None or type(encoder) is not EquivariantTransformer or type(head) is not EquivariantScalar:
        return 0
    if not encoder.layers or not encoder.smooth_cutoff or encoder.lower_cutoff > 0 or isinstance(encoder.basis.means, nn.Parameter):
        return 0
    if forces and encoder.vector_norm is not None:
        return 0
    # A map of another kind, with hooks or with a parametrisation (pruning, weight norm) is PyTorch's.
    maps = [module for _, _, module in _maps(encoder, head)]
    if any(type(module) not in _PLAIN for module in maps) or any(any(_hooks(m)) for m in (encoder, head, *maps)):
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
        self.tables = tuple((table, _version(table)) for table in (encoder.basis.means, encoder.basis.betas))
        means, betas = (table.detach().contiguous() for table, _ in self.tables)
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
        # Where each map and parameter is kept: to ask fifty modules by name takes 0.2 ms, a fifth of a small model's energy and forces.
        self.maps = list(_maps(encoder, head))
        self.hooks = [hooks for module in (encoder, head, *(m for _, _, m in self.maps)) for hooks in _hooks(module)]
        self.places = [(m._parameters, name) for _, _, m in self.maps for name in ("weight", "bias") if getattr(m, name) is not None]
        mine = {id(module._parameters) for module in encoder.modules()}
        self.of_encoder = sum(id(table) in mine for table, _ in self.places)  # and these come first

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self.functions.forcewell_destroy(self.handle)

    def __call__(self, batch: Batch, differentiable: bool) -> tuple[Tensor, Tensor]:
        """Energy of each atom (N,), eV, and forces (N, 3), eV/Å; ``differentiable`` by parameters, not by positions."""
        with torch.set_grad_enabled(differentiable):
            inputs = *self.embeddings(batch), self._vectors(batch), *self.parameters()
            return _EnergyAndForces.apply(self, batch, differentiable, *inputs)  # type: ignore[return-value]

    def features(self, batch: Batch, differentiable: bool) -> Features:
        """Scalars (N, C) and vectors (N, 3, C); ``differentiable`` by parameters, not by positions."""
        with torch.set_grad_enabled(differentiable):
            inputs = *self.embeddings(batch), self._vectors(batch), *self.parameters()[: self.of_encoder]
            scalars, vectors = _Features.apply(self, batch, differentiable, *inputs)  # type: ignore[misc]
            norm = self.encoder.vector_norm
            return Features(scalars, vectors if norm is None else norm(vectors))

    def embeddings(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Of each atom, and of it as a neighbour, (N, C) each; neither depends on positions."""
        return self.encoder.embed(batch), self.encoder.neighbour_embedding(self.encoder.species(batch))

    def _vectors(self, batch: Batch) -> Tensor | None:
        """(N, 3, C) before the first layer, where forces are an input."""
        given = self.encoder.force_embedding
        return None if given is None or bool(torch.isnan(batch.given_forces).all()) else given.vectors(batch)

    def parameters(self) -> list[Tensor]:
        """All that the kernels read, in their order."""
        return [kept[name] for kept, name in self.places]  # type: ignore[misc]

    def of(self, encoder: nn.Module, head: nn.Module) -> bool:
        """Whether these are the modules that the kernels were made from, and nothing in them was exchanged since."""
        whole = encoder is self.encoder and head is self.head and not any(self.hooks)
        # A parametrisation changes the module's type, pruning and the old weight norm add hooks.
        kept = all(table.get(name) is module and type(module) in _PLAIN for table, name, module in self.maps)
        means, betas = self.encoder.basis.means, self.encoder.basis.betas
        same = all(now is then and _version(now) == version for now, (then, version) in zip((means, betas), self.tables, strict=True))
        return whole and kept and same

    def state(self, parameters: list[Tensor]) -> tuple[int, ...]:
        """What tells these parameters' values from others. Not only their versions: ``parameter.data`` changes without."""
        places = [parameter.data_ptr() for parameter in parameters]
        try:
            versions = [parameter._version for parameter in parameters]
        except RuntimeError:  # of inference tensors
            versions = [_version(parameter) for parameter in parameters]
        return (_steps, self.functions.forcewell_sample(self.handle, (_POINTER * len(places))(*places)), *places, *versions)

    def load(self) -> None:
        """Packs the weights if any of them has changed since the last call."""
        parameters = self.parameters()
        state = self.state(parameters)
        if state != self.loaded:
            self.functions.forcewell_load(self.handle, _addresses(parameters))
            self.loaded = state


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _address(tensor: Tensor | None) -> Any:
    return _POINTER(None if tensor is None else tensor.data_ptr())


def _addresses(tensors: list[Tensor]) -> Any:
    return (_POINTER * len(tensors))(*[tensor.data_ptr() for tensor in tensors])


def _sizes(encoder: EquivariantTransformer) -> tuple[int, int, int, int]:
    heads = encoder.layers[0].heads
    return encoder.channels, len(encoder.layers), int(heads), len(encoder.basis.means)  # type: ignore[arg-type]


def _hooks(module: nn.Module) -> tuple[dict[int, Any], ...]:
    return module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks


def _maps(encoder: EquivariantTransformer, head: EquivariantScalar) -> Iterator[tuple[dict[str, Any], str, nn.Module]]:
    """All that the kernels read, in their order: the table that each module is kept in, its name there, and itself. The last block's
    vectors lead nowhere."""
    first, second = head.blocks
    owners: list[tuple[nn.Module, tuple[str, ...]]] = [(encoder, ("neighbour_filter", "combine"))]
    owners += [(layer, ("norm", "query_key_value", "filters", "vector_maps", "output")) for layer in encoder.layers]
    owners += [(encoder, ("norm",)), (first, ("norm_map", "vector_map", "mix", "gate")), (second, ("norm_map", "mix", "gate"))]
    for owner, names in owners:
        yield from ((owner._modules, name, owner._modules[name]) for name in names)  # type: ignore[misc]


class _EnergyAndForces(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, fused: Fused, batch: Batch, keep: bool, *inputs: Any) -> tuple[Tensor, Tensor]:
        energies, forces = inputs[0].new_empty(len(inputs[0])), inputs[0].new_empty(len(inputs[0]), 3)
        ctx.kept = _call(fused.functions.forcewell_run, fused, batch, keep, inputs, energies, forces)
        return energies, forces

    @staticmethod
    def backward(ctx: Any, energies_bar: Tensor, forces_bar: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        kept: _Kept = ctx.kept
        return kept.gradients(kept.fused.functions.forcewell_gradient, -forces_bar.contiguous(), energies_bar.contiguous())


class _Features(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, fused: Fused, batch: Batch, keep: bool, *inputs: Any) -> tuple[Tensor, Tensor]:
        scalars, vectors = torch.empty_like(inputs[0]), inputs[0].new_empty(len(inputs[0]), 3, fused.encoder.channels)
        ctx.kept = _call(fused.functions.forcewell_features, fused, batch, keep, inputs, scalars, vectors)
        return scalars, vectors

    @staticmethod
    def backward(ctx: Any, scalars_bar: Tensor, vectors_bar: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        kept: _Kept = ctx.kept
        gradient = kept.fused.functions.forcewell_features_gradient
        return kept.gradients(gradient, scalars_bar.contiguous(), vectors_bar.contiguous())


def _call(function: Any, fused: Fused, batch: Batch, keep: bool, inputs: tuple[Any, ...], *results: Tensor) -> _Kept | None:
    """Fills the two results of one of the kernels' two functions of a batch. Raises MemoryError."""
    fused.load()
    held = [batch.offsets, batch.positions.detach().double().contiguous()]  # as long as the kernels read them
    held += [None if tensor is None else tensor.contiguous() for tensor in inputs[:3]]
    pairs = periodic_pairs(batch, fused.encoder.cutoff) if bool(batch.pbc.any()) else None
    first, second, shifts = pairs or (None, None, None)
    given = Molecules(
        len(batch), *map(_address, held), 0 if first is None else len(first), _address(first), _address(second), _address(shifts)
    )
    failed, threads = _LONG(0), _LONG(torch.get_num_threads())
    kept = function(fused.handle, ctypes.byref(given), threads, _LONG(keep), *map(_address, results), ctypes.byref(failed))
    tapes = _Kept(fused, kept, inputs) if kept else None
    if failed.value:
        raise MemoryError("not enough memory for the neighbours of this batch")
    return tapes


class _Kept:
    """Activations of one call; their memory goes back to the kernels when nobody needs them any more."""

    def __init__(self, fused: Fused, handle: int, inputs: tuple[Any, ...]) -> None:
        self.fused, self.handle, self.loaded = fused, _POINTER(handle), fused.loaded
        self.vectors, self.wanted = inputs[2], len(inputs[3:])
        self.parameters = fused.parameters()  # all stay in memory, also a head's: the kernels read them again

    def __del__(self) -> None:
        self.fused.functions.forcewell_release(self.fused.handle, self.handle)

    def gradients(self, function: Any, first: Tensor, second: Tensor) -> tuple[Any, ...]:
        """What the backward passes return: by embeddings, given vectors and parameters, from the results' two adjoints."""
        fused = self.fused
        if fused.loaded != self.loaded or fused.state(self.parameters) != self.loaded:
            raise RuntimeError("the potential's parameters were changed between its forces and the backward pass")
        sizes = [parameter.numel() for parameter in self.parameters]
        parts = first.new_zeros(sum(sizes)).split(sizes)
        N, C = len(first), fused.encoder.channels
        inputs = [first.new_empty(N, C), first.new_empty(N, C), None if self.vectors is None else first.new_empty(N, 3, C)]
        bar, threads = (_POINTER * 3)(*map(_address, inputs)), _LONG(torch.get_num_threads())
        if function(fused.handle, self.handle, _address(first), _address(second), threads, _addresses(list(parts)), ctypes.byref(bar)):
            raise MemoryError("not enough memory for the gradients of this batch")
        gradients = [part.view(parameter.shape) for part, parameter in zip(parts, self.parameters, strict=True)]
        found = [*inputs, *gradients[: self.wanted]]
        if torch.is_grad_enabled():  # somebody wants to differentiate these once more
            of = next((parameter for parameter in self.parameters if parameter.requires_grad), first)
            found = [None if tensor is None else _Once.apply(of, tensor) for tensor in found]
        return None, None, None, *found


class _Once(torch.autograd.Function):
    """Gradients that cannot be differentiated again, and say so where it is tried; else they would pass for constants."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, gradient: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:  # type: ignore[override]
        raise RuntimeError(
            "the compiled kernels have no second derivatives by parameters; a model in float64 (potential.double()) is computed by PyTorch"
        )
