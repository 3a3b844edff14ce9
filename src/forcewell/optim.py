"""Learning-rate schedules and the exponential moving average of the weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import cos, pi
from typing import Any

import torch
from torch import nn


@dataclass(slots=True)
class Schedule:
    """Linear warm-up, then constant, cosine to zero, or plateau (times ``factor`` after ``patience`` validations
    without improvement, ET-OREO section 3.5: 0.8 and 30). The rate is a function of the step and of ``scale``."""

    kind: str  # "constant" | "cosine" | "plateau"
    peak: float
    warmup: int
    steps: int
    factor: float = 0.8
    patience: int = 30
    scale: float = 1.0
    best: float = float("inf")
    waited: int = 0

    def rate(self, step: int) -> float:
        """Learning rate of the update that takes ``step`` to ``step + 1``; warm-up starts at 1e-7 as in the paper."""
        if step < self.warmup:
            return max(1e-7, self.peak * (step + 1) / self.warmup)
        if self.kind == "cosine":
            progress = (step - self.warmup) / max(1, self.steps - self.warmup)
            return self.peak * 0.5 * (1 + cos(pi * min(1.0, progress)))
        return self.peak * self.scale

    def observe(self, validation_loss: float, step: int) -> None:
        """Tells the plateau schedule of a validation; during warm-up nothing is counted."""
        if validation_loss < self.best:
            self.best, self.waited = validation_loss, 0
        elif self.kind == "plateau" and step >= self.warmup:
            self.waited += 1
            if self.waited > self.patience:
                self.scale, self.waited = self.scale * self.factor, 0

    def state(self) -> dict[str, Any]:
        """What changes during a run, for the run's state file."""
        return {name: value for name, value in asdict(self).items() if name in ("scale", "best", "waited")}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of ``state``."""
        self.scale, self.best, self.waited = float(state["scale"]), float(state["best"]), int(state["waited"])


class MovingAverage:
    """average <- d average + (1 - d) model after each step, with d = min(decay, (1 + step) / (10 + step)).

    The ramp keeps the random initial weights out of the average of a short run: at a decay of 0.999 they would
    still weigh 5 % after 3,000 steps. Buffers (running statistics) are copied.
    """

    def __init__(self, average: nn.Module, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._parameters = [list(module.parameters()) for module in (average, model)]
        self._buffers = list(zip(average.buffers(), model.buffers(), strict=True))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes the model's weights after update number ``step`` in."""
        ours, theirs = self._parameters
        torch._foreach_lerp_(ours, theirs, 1 - min(self._decay, (1 + step) / (10 + step)))
        for buffer, current in self._buffers:
            buffer.copy_(current)
