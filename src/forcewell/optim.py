"""Learning-rate schedules and the exponential moving average of the weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import cos, pi
from typing import Any

import torch
from torch import nn


@dataclass(slots=True)
class Schedule:
    """Linear warm-up, then constant, cosine to zero after ``hold`` steps, or plateau (times ``factor`` after ``patience``
    validations without improvement, ET-OREO section 3.5: 0.8 and 30). The rate is a function of the step and of ``scale``."""

    kind: str  # "constant" | "cosine" | "plateau"
    peak: float
    warmup: int
    steps: int
    factor: float = 0.8
    patience: int = 30
    hold: int = 0
    scale: float = 1.0
    best: float = float("inf")
    waited: int = 0

    def rate(self, step: int) -> float:
        """Learning rate of the update that takes ``step`` to ``step + 1``; warm-up starts at 1e-7 as in the paper."""
        if step < self.warmup:
            return max(1e-7, self.peak * (step + 1) / self.warmup)
        if self.kind == "cosine":
            start = self.warmup + self.hold
            progress = (step - start) / max(1, self.steps - start)
            return self.peak * 0.5 * (1 + cos(pi * min(1.0, max(0.0, progress))))
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


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """average <- d average + (1 - d) model, with d = min(decay, (1 + step) / (10 + step)).

    The ramp keeps the random initial weights out of the average of a short run: at a decay of 0.999 they would
    still weigh 5 % after 3,000 steps.
    """
    decay = min(decay, (1 + step) / (10 + step))
    for ours, theirs in zip(average.parameters(), model.parameters(), strict=True):
        ours.lerp_(theirs, 1 - decay)
    for ours, theirs in zip(average.buffers(), model.buffers(), strict=True):  # running statistics
        ours.copy_(theirs)
