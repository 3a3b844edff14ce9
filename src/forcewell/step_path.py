"""Which way the steps of a run take: PyTorch's operations one by one, or a graph of a fixed shape (traced.py).

On the CPU, for encoders without kernels of their own, a graph is compiled in runs long enough to win the compilation back: the first
steps go the ordinary way and show shapes and times, then the choice is made once, said in one line, and belongs to the run's saved state.
Batches that do not fit the shape go the ordinary way, so each run compiles once.

On a GPU training steps are captured: starting some thousand kernels one by one takes longer than they do. To capture takes seconds, so a
batch that fits into no shape gets one of its own, up to ``BUCKETS`` of them. (Molecular dynamics has graphs of its own there: captured.py.)
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch

from forcewell.batch import Batch
from forcewell.display import say
from forcewell.graph import ListedBatch
from forcewell.potential import Potential, Prediction
from forcewell.static_batch import has_graphs
from forcewell.traced import CompiledStep, Lists, Shape, complete, differences, has_compiler, lists_of

Setting = Literal["auto", "always", "never"]
FORCES = {"forces": True, "noise": False, "properties": False}  # asked of a potential in each step of molecular dynamics
LOOK = 20  # ordinary steps whose shapes and times decide
FIRST = 5  # of them are not timed: libraries warm up
BUCKETS = 8  # shapes that are captured on a GPU at most; each keeps its activations' memory
# Relative differences between the two paths, above which the compiled one is not used: of energies and forces (rounding in float32 gives
# 1e-7 to 2e-6), and of gradients of a loss, which sum over all pairs (1e-6 to 1e-5).
TOLERANCES = 1e-5, 1e-4
# How much more where matrix products are coarser: padded rows can make a library choose another way to sum, and one flip of the last bit.
COARSER = {"float32": 1.0, "tf32": 100.0, "bfloat16": 3000.0}


class Gain(NamedTuple):
    """What was measured of an encoder (docs/speed.md): speed-up of a step, and CPU seconds of compiling it."""

    speed: float
    seconds: float
    seconds_per_layer: float
    alone: float | None = None  # speed-up with fewer than ``FEW`` pairs, where starting each operation takes the most time


# Measured at the sizes of the small recipes, on x86-64 with AVX-512, by benchmarks/encoders.py with one layer and with two or three.
GAINS = {
    "equivariant-transformer": Gain(1.6, 63.0, 21.0),  # where its kernels were not built
    "egnn": Gain(1.57, 35.0, 19.0),
    "schnet": Gain(1.45, 44.0, 6.0),
    "se3-transformer": Gain(1.45, 30.0, 64.0),
    "gemnet-t": Gain(1.59, 96.0, 39.0),
}
# The same of energy and forces only (--forces), with sixteen aspirins and with one.
DYNAMICS_GAINS = {
    "equivariant-transformer": Gain(1.64, 27.0, 9.0, 2.35),
    "egnn": Gain(1.0, 21.0, 7.0, 1.51),
    "schnet": Gain(1.42, 26.0, 2.0, 1.6),
    "se3-transformer": Gain(1.22, 23.0, 27.0, 2.67),
    "gemnet-t": Gain(1.55, 62.0, 9.0, 3.23),
}
FEW = 1000  # directed pairs; an aspirin has 304 within 5 Å


def compiled_gain(potential: Potential) -> tuple[float, float] | None:
    """How many times as fast long simulations (of one small molecule) and trainings of a model are on this CPU, compiled as measured
    elsewhere; None for a model with kernels, on a GPU, or without a C++ compiler."""
    name, on_cpu = str(potential.config["encoder"]["name"]), potential.device.type == "cpu"
    if not on_cpu or potential.path.startswith("compiled") or not has_compiler() or name not in GAINS:
        return None
    return DYNAMICS_GAINS[name].alone or DYNAMICS_GAINS[name].speed, GAINS[name].speed


@dataclass(slots=True)
class StepPath:
    """How the steps of a training (or, with ``training`` False, of molecular dynamics) are computed.

    It looks at the first ones, decides once, and is part of the run's state. A potential whose ``step_path`` this is asks it for every
    prediction with (training) or without a graph for gradients.
    """

    potential: Potential
    asked: dict[str, bool]
    steps: int
    setting: Setting = "auto"
    quiet: bool = False  # another process tells the user, or nobody is to be told
    training: bool = True
    largest: Shape = field(default_factory=Shape)  # seen
    complete: Shape = field(default_factory=Shape)  # as large as it can become while the same atoms move
    decided: bool = False
    shape: Shape | None = None  # of the compiled step, where there is one; of the first captured one
    times: list[tuple[float, float]] = field(default_factory=list)  # wall and CPU seconds of steps
    _made: list[CompiledStep] = field(default_factory=list)
    _busy: bool = False
    _outgrown: bool = False  # and said so
    _began: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        self.decided = self.steps <= LOOK or not self._possible()

    def _possible(self) -> bool:
        potential = self.potential
        if self.setting == "never" or type(potential).forward is not Potential.forward:
            return False
        if has_graphs(potential.device):
            return potential.encoder.capturable
        usual = potential.device.type == "cpu" and potential.dtype == torch.float32 and potential.precision == "float32"
        has_kernels = potential.path_of(self.asked).startswith("compiled")
        return usual and (self._gain() is not None or self.setting == "always") and not has_kernels

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
        what, room = self._words(), self.largest.with_room() if self.training else self.largest.for_replicas(self.complete)
        timed = sorted(self.times[FIRST:] or self.times)
        wall, cpu = timed[len(timed) // 2]
        left = (self.steps - step) * wall
        known = self._gain()
        gain = known or Gain(1.0, 0.0, 0.0)
        speed = gain.alone if gain.alone and self.largest.edges < FEW else gain.speed
        layers = len(getattr(self.potential.encoder, "layers", None) or getattr(self.potential.encoder, "blocks", []))
        # Where other programs take a part of the processor, they take it of the compilation, too.
        cost = (gain.seconds + layers * gain.seconds_per_layer) * max(1.0, wall / max(cpu, 1e-9))
        saved = left * (1 - 1 / speed)
        facts = "the gain of this encoder was not measured"
        if known is not None:
            facts = f"{speed:.1f} times as fast, compiling takes about {_clock(cost)} and would save {_clock(saved)} of {_clock(left)}"
        if not has_compiler():
            return False, self.largest, f"{what} by PyTorch: no C++ compiler for compiled ones ({facts})"
        if self.setting == "always" or saved > cost:
            return True, room, f"{what} will be compiled: {facts}"
        return False, self.largest, f"{what} by PyTorch: compiled ones: {facts}"

    def decide(self, compiled: bool, shape: Shape) -> None:
        """Takes a plan."""
        self.decided, self.shape = True, shape if compiled else None

    def _gain(self) -> Gain | None:
        return (GAINS if self.training else DYNAMICS_GAINS).get(str(self.potential.config["encoder"]["name"]))

    def _words(self) -> str:
        return "training steps" if self.training else "energies and forces"

    def state(self) -> dict[str, Any]:
        """For the run's state file."""
        shapes = {"shape": self.shape and list(self.shape), "largest": list(self.largest), "complete": list(self.complete)}
        return {"decided": self.decided, "steps": self.steps, **shapes}

    def restore(self, state: dict[str, Any] | None) -> None:
        """The inverse of ``state``; None is a run of a version that did not have this, and goes on as it did."""
        state = state or {"decided": True, "shape": None, "largest": [0] * 4}
        self.decided, self.largest = bool(state["decided"]), Shape(*state["largest"])
        self.complete = Shape(*state.get("complete", self.complete))
        self.shape = Shape(*state["shape"]) if state["shape"] else None
        if self.setting == "never":  # also where it was not, before a graph failed
            self.decided, self.shape = True, None
        # A simulation that is extended may be long enough now.
        if self.shape is None and self.steps > state.get("steps", self.steps) and self._possible():
            self.decided = False

    def __call__(self, batch: Batch, asked: Mapping[str, bool], create_graph: bool) -> Prediction | None:
        """The prediction, or None for the ordinary way."""
        if self._busy or create_graph is not self.training or isinstance(batch, ListedBatch) or (self.decided and self.shape is None):
            return None
        if bool(batch.pbc.any()) or not len(batch.numbers):
            return None
        lists = lists_of(batch, self.potential.cutoff)
        if not self.decided:
            self.largest, self.complete = self.largest.together(lists.shape), self.complete.together(complete(batch))
            return None
        if self.shape is None or dict(asked) != self.asked:
            return None
        step = next((made for made in self._made if made.shape.holds(lists.shape)), None) or self._prepare(batch, lists)
        return None if step is None else Prediction(**step(batch, lists))

    def _shape_for(self, lists: Lists) -> Shape | None:
        """Of a step to be made for these lists; None where they go the ordinary way."""
        captured = has_graphs(self.potential.device)
        if self.shape is None:
            return None
        fits = self.shape.holds(lists.shape)
        if not fits and not self.training and not self._outgrown:  # in training now and then a batch is larger, here it stays so
            self._outgrown = True
            self._say(f"{self._words()} by PyTorch while the atoms have more neighbours than was compiled for")
        if len(self._made) >= (BUCKETS if captured else 1):
            return None
        if fits:
            return self.shape
        return lists.shape.with_room() if captured else None

    def _prepare(self, batch: Batch, lists: Lists) -> CompiledStep | None:
        """Compiles or captures, and compares with the ordinary way; where that fails, the rest of the run goes the ordinary way."""
        shape, captured = self._shape_for(lists), has_graphs(self.potential.device)
        if shape is None:
            return None
        began, step = time.monotonic(), CompiledStep(self.potential, shape, self.asked, self.training)
        problem = "" if captured or has_compiler() else "no C++ compiler"
        self._busy = True
        try:
            errors = (float("inf"),) * 2 if problem else differences(step, batch, lists)
        except Exception as failure:  # whatever a compiler may come to
            failed = "capturing failed" if captured else "compiling failed"
            errors, problem = (float("inf"),) * 2, f"{failed} ({[*str(failure).strip().splitlines(), type(failure).__name__][0][:200]})"
            if captured:  # which can leave PyTorch's allocator in the middle of it
                problem += "; should the run end with an error of CUDA, resume it with hardware.compile=never"
        finally:
            self._busy = False
        found = f"{errors[0]:.0e} in forces" + (f", {errors[1]:.0e} in gradients" if self.training else "")
        scale = COARSER[self.potential.precision]
        if not all(error <= allowed * scale for error, allowed in zip(errors, TOLERANCES, strict=True)):  # nor if one is no number
            self.shape = None
            self._made.clear()
            self._say(f"{self._words()} by PyTorch: {problem or f'compiled ones differ by {found}'}; results may differ in the last bits")
            return None
        self._made.append(step)
        how = f"{'captured' if captured else 'compiled'} in {_clock(time.monotonic() - began)}"
        self._say(f"{self._words()} {how}; difference {found}")
        return step

    def _say(self, words: str) -> None:
        if not self.quiet:
            say(words)


def _clock(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
