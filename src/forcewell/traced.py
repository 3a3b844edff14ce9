"""Training steps through graphs of fixed shapes: compiled ones on the CPU, for encoders without kernels of their own, in runs long enough
to win the compilation back; CUDA graphs on a GPU.

PyTorch's compiler does not differentiate twice. So energy and forces (or noise) together are traced first, which leaves a graph of plain
operations whose ordinary backward is the second derivative, and that graph is compiled (``torch.compile`` with Inductor, which needs a
C++ compiler at run time). A compiled graph has fixed shapes: batches are padded to one shape with atoms, molecules and pairs that change
neither energies nor gradients, and a batch that does not fit goes the ordinary way. So each run compiles once.

On a GPU the same padded shapes are captured: starting some thousand kernels one by one takes longer than they do. To capture takes
seconds, so a batch that fits into no shape gets one of its own, up to ``BUCKETS`` of them.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

from forcewell.batch import Batch
from forcewell.display import say
from forcewell.graph import ListedBatch, Places, neighbours, places_of
from forcewell.potential import Potential, Prediction
from forcewell.static_batch import has_graphs

Setting = Literal["auto", "always", "never"]
LOOK = 20  # ordinary steps whose shapes and times decide
FIRST = 5  # of them are not timed: libraries warm up
ROOM = 1.1  # of the largest shape seen
BUCKETS = 8  # shapes that are captured on a GPU at most; each keeps its activations' memory
# Relative differences of forces and of gradients between the two paths, above which the compiled one is not used. Rounding in float32
# gives 1e-6 to 1e-5.
TOLERANCE = 1e-4
# Of torch.compile; None runs the traced graph as it is, which tests do, for no C++ compiler is as fast as they must be.
BACKEND: str | None = "inductor"


class Gain(NamedTuple):
    """What was measured of an encoder (docs/speed.md): speed-up of a training step on forces, and CPU seconds of compiling it."""

    speed: float
    seconds: float
    seconds_per_layer: float


# Measured at the sizes of the small recipes, on x86-64 with AVX-512, by benchmarks/encoders.py with one layer and with two or three.
GAINS = {
    "egnn": Gain(1.57, 35.0, 19.0),
    "schnet": Gain(1.45, 44.0, 6.0),
    "se3-transformer": Gain(1.45, 30.0, 64.0),
    "gemnet-t": Gain(1.59, 96.0, 39.0),
}


class Shape(NamedTuple):
    """Numbers of atoms, molecules, neighbours of an atom, and directed edges."""

    atoms: int
    molecules: int
    neighbours: int
    edges: int

    def together(self, other: Shape) -> Shape:
        """The smallest shape that both fit into."""
        return Shape(*map(max, self, other))

    def with_room(self) -> Shape:
        """A shape that batches like those seen fit into, with at least one atom and one molecule, to which the padding belongs."""
        atoms, edges = (8 * round(1 + size * ROOM / 8) for size in (self.atoms, self.edges))
        return Shape(atoms, self.molecules + 1, self.neighbours + 2, edges)

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
    """Energies and what else was asked for of batches in one shape, differentiable in the parameters once."""

    def __init__(self, potential: Potential, shape: Shape, asked: Mapping[str, bool]) -> None:
        self.potential, self.shape, self.asked = potential, shape, dict(asked)
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
        found = self.function(*inputs)
        return {name: values[: sizes.get(name, len(batch.numbers))] for name, values in zip(self.present, found, strict=True)}

    @staticmethod
    def _lists(listed: ListedBatch) -> list[Tensor]:
        return [listed.sender, listed.mask, listed.places.place, listed.places.row, listed.places.reverse]

    def _compile(self, like: ListedBatch, inputs: list[Tensor]) -> Any:
        names, asked = list(self.parameters), {**self.asked, "create_graph": True}

        def function(*tensors: Tensor) -> list[Tensor]:
            given = dict(zip(_TENSORS, tensors, strict=False))
            sender, mask, place, row, reverse, *parameters = tensors[len(_TENSORS) :]
            batch = dataclasses.replace(like, **given, sender=sender, mask=mask, places=Places(place, row, reverse))
            prediction = functional_call(self.potential, dict(zip(names, parameters, strict=True)), (batch,), asked)
            return [getattr(prediction, name) for name in self.present]

        if has_graphs(self.potential.device):
            # One CUDA graph forward and one backward. The parameters' memory is what the graphs read, so none is copied.
            return torch.cuda.make_graphed_callables(function, tuple(inputs), allow_unused_input=True)
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
        if torch.get_num_threads() > 1:
            # Otherwise threads of a generated kernel add to the same numbers in the order in which they come.
            torch.use_deterministic_algorithms(True)
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        return torch.compile(graph, backend=BACKEND, dynamic=False)


def _silu_backward(grad: Tensor, x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return grad * (s * (1 + x * (1 - s)))


@dataclass(slots=True)
class StepPath:
    """How the training steps of a run are computed: looks at the first ones, decides once, and is part of the run's state.

    A potential whose ``step_path`` this is asks it for every prediction of a training step.
    """

    potential: Potential
    asked: dict[str, bool]
    steps: int
    setting: Setting = "auto"
    quiet: bool = False  # another process tells the user
    largest: Shape = field(default_factory=lambda: Shape(0, 0, 0, 0))
    decided: bool = False
    shape: Shape | None = None  # of the compiled step, where there is one; of the first captured one
    times: list[tuple[float, float]] = field(default_factory=list)  # wall and CPU seconds of steps
    _made: list[CompiledStep] = field(default_factory=list)
    _busy: bool = False
    _began: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        potential = self.potential
        usual = potential.device.type == "cpu" and potential.dtype == torch.float32 and potential.precision == "float32"
        known = str(potential.config["encoder"]["name"]) in GAINS or self.setting == "always"
        possible = has_graphs(potential.device) or (usual and known and not potential.path.startswith("compiled"))
        if self.setting == "never" or not possible or self.steps <= LOOK:
            self.decided = True

    def begin(self) -> None:
        """A step begins."""
        self._began = time.monotonic(), time.process_time()

    def end(self) -> None:
        """The step has ended."""
        if not self.decided:
            self.times.append((time.monotonic() - self._began[0], time.process_time() - self._began[1]))

    def due(self, step: int) -> bool:
        """Whether the path is to be chosen after this step."""
        return not self.decided and step >= LOOK

    def plan(self, step: int) -> tuple[bool, Shape, str]:
        """Whether compiling pays for the rest of the run, in which shape, and why, in a line for the user."""
        if has_graphs(self.potential.device):
            return True, self.largest.with_room(), "training steps will be CUDA graphs"
        timed = sorted(self.times[FIRST:] or self.times)
        wall, cpu = timed[len(timed) // 2]
        left = (self.steps - step) * wall
        settings = self.potential.config["encoder"]
        gain = GAINS.get(str(settings["name"]), Gain(1.0, 0.0, 0.0))
        layers = len(getattr(self.potential.encoder, "layers", None) or getattr(self.potential.encoder, "blocks", []))
        # Where other programs take a part of the processor, they take it of the compilation, too.
        cost = (gain.seconds + layers * gain.seconds_per_layer) * max(1.0, wall / max(cpu, 1e-9))
        saved = left * (1 - 1 / gain.speed)
        facts = "the gain of this encoder was not measured"
        if settings["name"] in GAINS:
            facts = f"{gain.speed:.1f} times as fast, compiling takes about {_clock(cost)} and would save {_clock(saved)} of {_clock(left)}"
        if not _has_compiler():
            return False, self.largest, f"training steps by PyTorch: no C++ compiler for the compiled ones ({facts})"
        if self.setting == "always" or saved > cost:
            return True, self.largest.with_room(), f"training steps will be compiled: {facts}"
        return False, self.largest, f"training steps by PyTorch: compiled ones: {facts}"

    def decide(self, compiled: bool, shape: Shape) -> None:
        """Takes a plan."""
        self.decided, self.shape = True, shape if compiled else None

    def state(self) -> dict[str, Any]:
        """For the run's state file."""
        return {"decided": self.decided, "shape": self.shape and list(self.shape), "largest": list(self.largest)}

    def restore(self, state: dict[str, Any] | None) -> None:
        """The inverse of ``state``; None is a run of a version that did not have this, and goes on as it did."""
        state = state or {"decided": True, "shape": None, "largest": [0] * 4}
        self.decided, self.largest = bool(state["decided"]), Shape(*state["largest"])
        self.shape = Shape(*state["shape"]) if state["shape"] else None

    def __call__(self, batch: Batch, asked: Mapping[str, bool]) -> Prediction | None:
        """The prediction, or None for the ordinary way."""
        if self._busy or isinstance(batch, ListedBatch) or (self.decided and self.shape is None):
            return None
        if bool(batch.pbc.any()) or not len(batch.numbers):
            return None
        lists = lists_of(batch, self.potential.cutoff)
        if not self.decided:
            self.largest = self.largest.together(lists.shape)
            return None
        if self.shape is None or dict(asked) != self.asked:
            return None
        step = next((made for made in self._made if made.shape.holds(lists.shape)), None) or self._prepare(batch, lists)
        return None if step is None else Prediction(**step(batch, lists))

    def _shape_for(self, lists: Lists) -> Shape | None:
        """Of a step to be made for these lists; None where they go the ordinary way."""
        captured = has_graphs(self.potential.device)
        if self.shape is None or len(self._made) >= (BUCKETS if captured else 1):
            return None
        if self.shape.holds(lists.shape):
            return self.shape
        return lists.shape.with_room() if captured else None

    def _prepare(self, batch: Batch, lists: Lists) -> CompiledStep | None:
        """Compiles or captures, and compares with the ordinary way; where that fails, the rest of the run goes the ordinary way."""
        shape, captured = self._shape_for(lists), has_graphs(self.potential.device)
        if shape is None:
            return None
        began, step = time.monotonic(), CompiledStep(self.potential, shape, self.asked)
        problem = "" if captured or _has_compiler() else "no C++ compiler"
        self._busy = True
        try:
            error = float("inf") if problem else self._difference(step, batch, lists)
        except Exception as failure:  # whatever a compiler may come to
            failed = "capturing failed" if captured else "compiling failed"
            error, problem = float("inf"), f"{failed} ({[*str(failure).strip().splitlines(), type(failure).__name__][0][:200]})"
        finally:
            self._busy = False
        if not error <= TOLERANCE:  # nor if it is no number
            self.shape = None
            self._made.clear()
            self._say(
                f"training steps by PyTorch: {problem or f'the compiled ones differ by {error:.0e}'}; results may differ in the last bits"
            )
            return None
        self._made.append(step)
        how = f"{'captured' if captured else 'compiled'} in {_clock(time.monotonic() - began)}"
        self._say(f"training steps {how}; difference in forces and gradients {error:.0e}")
        return step

    def _say(self, words: str) -> None:
        if not self.quiet:
            say(words)

    def _difference(self, step: CompiledStep, batch: Batch, lists: Lists) -> float:
        """The largest relative difference in the outputs, and in the gradient of the sum of their squares."""
        right = self.potential(batch, create_graph=True, **self.asked)
        pairs = [(found, getattr(right, name)) for name, found in step(batch, lists).items()]
        parameters = list(step.parameters.values())
        gradients = []
        for which in range(2):
            loss = torch.stack([(pair[which] ** 2).sum() for pair in pairs]).sum()
            found = torch.autograd.grad(loss, parameters, materialize_grads=True)
            gradients.append(torch.cat([part.reshape(-1) for part in found]))
        pairs.append((gradients[0], gradients[1]))
        return float(torch.stack([(a - b).detach().abs().max() / b.detach().abs().max().clamp(min=1e-12) for a, b in pairs]).max())


def _has_compiler() -> bool:
    return BACKEND != "inductor" or any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++", "cl") if name)


def _clock(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
