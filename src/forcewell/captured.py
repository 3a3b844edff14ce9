"""Whole steps of molecular dynamics in one CUDA graph: neighbours, model, integrator and noise, launched at once.

A small molecule's step is some thousand short kernels, and starting them one by one from Python takes many times as long as
they do. A graph needs shapes that never change, hence ``StaticBatch``. The same code runs on the CPU without a graph.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from forcewell.display import say
from forcewell.integrators import MOVING, State
from forcewell.static_batch import StaticBatch, capturing, has_graphs

WARM_UP = 3  # runs before a capture, in which libraries choose and compile their kernels


def capture(function: Callable[[], None], generators: list[torch.Generator], device: torch.device) -> Callable[[], None]:
    """A CUDA graph of ``function``, which works in place on ``device`` and draws from ``generators``; call it to run once more."""
    with capturing(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                function()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        for generator in generators:
            graph.register_generator_state(generator)
        # In the stream of the warm-up: PyTorch's own for captures belongs to whichever device was captured on first.
        with torch.cuda.graph(graph, stream=stream):
            function()
    return graph.replay


class CapturedSteps:
    """``step`` (one of ``integrators``) of a State, many times over, in static shapes and on CUDA as a graph.

    A State is taken over at its first steps: its tensors are the graph's own from then on. Another State, as when a broken
    replica was taken out, is another capture. Where an atom gets more neighbours than there is room for, the steps since
    the last look are undone, and done again with more room: what comes out does not depend on the room there was.
    """

    def __init__(self, step: Callable[[State], None], cutoff: float) -> None:
        self.step, self.cutoff = step, cutoff
        self.captures = True  # until one fails
        self.state: State | None = None
        self.once: Callable[[], None]

    def __call__(self, state: State, steps: int) -> None:
        """Advances ``state`` in place by ``steps``."""
        if state is not self.state and not self._take(state):
            for _ in range(steps):
                self.step(state)
            return
        before = self._copy(state)
        for _ in range(steps):
            self.once()
        while int(state.batch.most) > state.batch.capacity:  # type: ignore[attr-defined]
            self._restore(state, before)
            self._prepare(state, state.batch.with_room())  # type: ignore[attr-defined]
            for _ in range(steps):
                self.once()

    def _take(self, state: State) -> bool:
        batch = StaticBatch.of(state.batch, self.cutoff)
        if batch is not None:
            self.state = state
            self._prepare(state, batch)
        return batch is not None

    def _prepare(self, state: State, batch: StaticBatch) -> None:
        """Makes ``once``, which advances the state by one step."""
        state.batch = batch

        def once() -> None:
            moved = dataclasses.replace(state, batch=dataclasses.replace(batch))
            self.step(moved)
            for name in MOVING:
                getattr(state, name).copy_(getattr(moved, name))
            batch.positions.copy_(moved.batch.positions)

        self.once = once
        if self.captures and has_graphs(batch.positions.device):
            before = self._copy(state)
            try:
                self.once = capture(once, [state.generator], batch.positions.device)
            except Exception as failure:  # whatever a driver or a library may come to; the steps are the same without a graph
                self.captures = False
                why = [*str(failure).strip().splitlines(), type(failure).__name__][0][:200]
                say(f"molecular dynamics without a CUDA graph: capturing failed ({why})")
                # The old one takes itself for part of a graph from then on.
                state.generator = torch.Generator(device=state.generator.device)
            self._restore(state, before)

    def _copy(self, state: State) -> dict[str, Any]:
        tensors: dict[str, Any] = {name: getattr(state, name).clone() for name in MOVING}
        return tensors | {"seen": state.batch.positions.clone(), "generator": state.generator.get_state()}

    def _restore(self, state: State, before: dict[str, Any]) -> None:
        for name in MOVING:
            getattr(state, name).copy_(before[name])
        seen: Tensor = before["seen"]
        state.batch.positions.copy_(seen)
        state.generator.set_state(before["generator"])
