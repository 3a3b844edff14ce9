"""Energies and forces through graphs of fixed shapes: compiled ones on the CPU, CUDA graphs on a GPU.

PyTorch's compiler does not differentiate twice. So energy and forces (or noise) together are traced first, which leaves a graph of plain
operations whose ordinary backward is the second derivative, and that graph is compiled (``torch.compile`` with Inductor, which needs a
C++ compiler at run time). A compiled graph has fixed shapes: batches are padded to one shape with atoms, molecules and pairs that change
neither energies nor gradients. Who uses such a graph, and when: step_path.py.
"""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

from forcewell.batch import Batch
from forcewell.graph import ListedBatch, Places, neighbours, places_of
from forcewell.potential import Potential
from forcewell.products import products
from forcewell.static_batch import capturing, has_graphs

ROOM = 1.1  # of the largest shape seen
DYNAMICS_ROOM = 1.25
# Of torch.compile; None runs the traced graph as it is, which tests do, for no C++ compiler is as fast as they must be.
BACKEND: str | None = "inductor"


class Shape(NamedTuple):
    """Numbers of atoms, molecules, neighbours of an atom, and directed edges."""

    atoms: int = 0
    molecules: int = 0
    neighbours: int = 0
    edges: int = 0

    def together(self, other: Shape) -> Shape:
        """The smallest shape that both fit into."""
        return Shape(*map(max, self, other))

    def with_room(self) -> Shape:
        """A shape that batches like those seen fit into, with at least one atom and one molecule, to which the padding belongs."""
        atoms, edges = (8 * round(1 + size * ROOM / 8) for size in (self.atoms, self.edges))
        return Shape(atoms, self.molecules + 1, self.neighbours + 2, edges)

    def for_replicas(self, complete: Shape) -> Shape:
        """A shape for the same atoms while they move, and for fewer: room for a quarter more neighbours, as far as there can be so many."""
        neighbours, pairs = math.ceil(DYNAMICS_ROOM * self.neighbours), math.ceil(DYNAMICS_ROOM * self.edges / 2)
        return Shape(self.atoms + 1, self.molecules + 1, min(neighbours, complete.neighbours), min(2 * pairs, complete.edges))

    def holds(self, other: Shape) -> bool:
        """Whether a batch of that shape fits, with an atom and a molecule for the padding."""
        return all(size > used for size, used in zip(self[:2], other[:2], strict=True)) and self[2] >= other[2] and self[3] >= other[3]


@dataclass(slots=True)
class Lists:
    """A batch's neighbours before padding."""

    sender: Tensor  # (N, K)
    mask: Tensor  # (N, K)
    places: Places
    shape: Shape


def lists_of(batch: Batch, cutoff: float) -> Lists:
    """The neighbours of a batch without periodic conformations."""
    with torch.no_grad():
        near = neighbours(batch, cutoff)
        places = places_of(near)
    shape = Shape(len(batch.numbers), len(batch), near.mask.shape[1], len(places.place))
    return Lists(near.sender, near.mask, places, shape)


def complete(batch: Batch) -> Shape:
    """The shape that a batch has when every atom of a molecule is every other's neighbour."""
    counts = batch.counts.tolist()
    return Shape(sum(counts), len(counts), max(max(counts, default=0) - 1, 0), sum(n * (n - 1) for n in counts))


def padded(batch: Batch, lists: Lists, shape: Shape) -> ListedBatch:
    """The batch in that shape, into which it must fit.

    Atoms without neighbours are added, all in one molecule of their own, copies of the first atom in all but its neighbours; further
    molecules are empty; and edges from the last atom to itself, twice the cutoff long, which is where every envelope is zero.
    """
    N, M, K, E = lists.shape
    atoms, molecules = shape.atoms - N, shape.molecules - M

    def longer(tensor: Tensor, rows: int, fill: Tensor | int | float) -> Tensor:
        more = tensor.new_empty(rows, *tensor.shape[1:])
        more[:] = fill
        return torch.cat([tensor, more])

    parts: dict[str, Any] = {"targets": batch.targets}
    for name in _TENSORS:
        tensor = getattr(batch, name)
        if name == "molecule":
            parts[name] = longer(tensor, atoms, M)
        elif name == "counts":
            parts[name] = torch.cat([longer(tensor, 1, atoms), tensor.new_zeros(molecules - 1)])
        elif name == "spin":
            parts[name] = longer(tensor, molecules, 1)
        else:
            fill = tensor[0] if name in ("numbers", "formal_charges", "given_forces") else 0
            parts[name] = longer(tensor, atoms if name in _PER_ATOM else molecules, fill)
    own = torch.arange(shape.atoms, device=batch.numbers.device)[:, None].repeat(1, shape.neighbours)
    own[:N, :K] = lists.sender
    mask = lists.mask.new_zeros(shape.atoms, shape.neighbours)
    mask[:N, :K] = lists.mask
    # The last place of the last atom is empty. Rows of the padded layout are counted anew, as each has more places.
    last = shape.atoms * shape.neighbours - 1
    old = lists.places.place
    place = torch.full((shape.edges,), last, device=old.device)
    place[:E] = torch.div(old, max(K, 1), rounding_mode="floor") * shape.neighbours + old % max(K, 1)
    row = torch.full((last + 1,), shape.edges, device=old.device)
    row[place[:E]] = torch.arange(E, device=old.device)
    places = Places(place, row, torch.arange(shape.edges, device=old.device) ^ 1)
    extra = {"width": 0, "capacity": shape.neighbours, "images": None, "inverse": parts["cell"], "most": own.new_zeros(())}
    return ListedBatch(**parts, **extra, sender=own, mask=mask, places=places)


_TENSORS = tuple(f.name for f in dataclasses.fields(Batch) if f.name != "targets")
_PER_ATOM = ("numbers", "positions", "formal_charges", "molecule", "given_forces", "fragment")
_OUTPUTS = ("energy", "forces", "noise", "properties")


class CompiledStep:
    """Energies and what else was asked for of batches in one shape; when training, differentiable in the parameters once."""

    def __init__(self, potential: Potential, shape: Shape, asked: Mapping[str, bool], training: bool = True) -> None:
        self.potential, self.shape, self.asked, self.training = potential, shape, dict(asked), training
        self.parameters = dict(potential.named_parameters())
        self.present = [name for name in _OUTPUTS if name == "energy" or asked.get(name)]
        self.function: Any = None

    def __call__(self, batch: Batch, lists: Lists) -> dict[str, Tensor]:
        """The parts of a Prediction."""
        listed = padded(batch, lists, self.shape)
        inputs = [*(getattr(listed, name) for name in _TENSORS), *self._lists(listed), *self.parameters.values()]
        if self.function is None:
            self.function = self._compile(listed, inputs)
        sizes = {"energy": len(batch), "properties": len(batch)}
        with torch.set_grad_enabled(self.training):
            found = self.function(*inputs)
        return {name: values[: sizes.get(name, len(batch.numbers))] for name, values in zip(self.present, found, strict=True)}

    @staticmethod
    def _lists(listed: ListedBatch) -> list[Tensor]:
        return [listed.sender, listed.mask, listed.places.place, listed.places.row, listed.places.reverse]

    def _compile(self, like: ListedBatch, inputs: list[Tensor]) -> Any:
        names, asked = list(self.parameters), {**self.asked, "create_graph": self.training}

        def function(*tensors: Tensor) -> list[Tensor]:
            given = dict(zip(_TENSORS, tensors, strict=False))
            sender, mask, place, row, reverse, *parameters = tensors[len(_TENSORS) :]
            batch = dataclasses.replace(like, **given, sender=sender, mask=mask, places=Places(place, row, reverse))
            prediction = functional_call(self.potential, dict(zip(names, parameters, strict=True)), (batch,), asked)
            return [getattr(prediction, name) for name in self.present]

        if has_graphs(self.potential.device):
            # One CUDA graph forward and one backward. The parameters' memory is what the graphs read, so none is copied. They read it
            # through leaves of their own: where an eager graph is alive (``differences``), the parameters' own nodes for gradients
            # belong to the default stream, which may not wait for one that is being captured.
            own = tuple(tensor.detach().requires_grad_(tensor.requires_grad) for tensor in inputs)
            with capturing(self.potential.device), products(self.potential.precision):
                return torch.cuda.make_graphed_callables(function, own, allow_unused_input=True)
        from torch.fx.experimental.proxy_tensor import make_fx  # brings sympy

        # PyTorch knows no derivative of silu_backward.
        graph = make_fx(function, decomposition_table={torch.ops.aten.silu_backward.default: _silu_backward})(*inputs)
        # What autograd saved of an operation's own result stands in the graph without its history, so that a derivative of the
        # derivative would miss it. Where a model itself detaches something that matters, the comparison in the first step shows it.
        for node in list(graph.graph.nodes):
            if node.target is torch.ops.aten.detach.default:
                node.replace_all_uses_with(node.args[0])
                graph.graph.erase_node(node)
        graph.recompile()
        if BACKEND is None:
            return graph
        compiled = torch.compile(graph, backend=BACKEND, dynamic=False)
        if torch.get_num_threads() == 1:
            return compiled
        # Otherwise threads of a generated kernel add to the same numbers in the order in which they come.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        if self.training:  # for the backward pass, too, which comes after the call
            torch.use_deterministic_algorithms(True)
            return compiled
        return partial(_deterministic, compiled)


def _deterministic(function: Callable[..., Any], *inputs: Tensor) -> Any:
    """A call with PyTorch's deterministic algorithms, which the rest of the user's process may not want."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        return function(*inputs)
    finally:
        torch.use_deterministic_algorithms(before)


def _silu_backward(grad: Tensor, x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return grad * (s * (1 + x * (1 - s)))


def differences(step: CompiledStep, batch: Batch, lists: Lists) -> tuple[float, float]:
    """From the ordinary way: the largest relative one in the outputs and, when training, in the gradient of the sum of their squares."""
    right = step.potential(batch, create_graph=step.training, **step.asked)
    pairs = [(found, getattr(right, name)) for name, found in step(batch, lists).items()]
    # Energies and forces may nearly cancel, forces do near a minimum: those below 1 eV and 1 eV/Å count as that much.
    outputs = [_apart(a, b, 1.0 if name in ("energy", "forces") else 1e-12) for name, (a, b) in zip(step.present, pairs, strict=True)]
    gradients = []
    if step.training:
        parameters = list(step.parameters.values())
        for which in range(2):
            loss = torch.stack([(pair[which] ** 2).sum() for pair in pairs]).sum()
            with products(step.potential.precision):
                found = torch.autograd.grad(loss, parameters, materialize_grads=True)
            gradients.append(torch.cat([part.reshape(-1) for part in found]))
    return float(torch.stack(outputs).max()), float(_apart(gradients[0], gradients[1], 1e-12)) if gradients else 0.0


def _apart(a: torch.Tensor, b: torch.Tensor, least: float) -> torch.Tensor:
    return (a - b).detach().abs().max() / b.detach().abs().max().clamp(min=least)


def has_compiler() -> bool:
    """Whether there is a C++ compiler, which compiling at run time needs."""
    return BACKEND != "inductor" or any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++", "cl") if name)
