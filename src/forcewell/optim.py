"""Learning-rate schedules and the exponential moving average of the weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import cos, pi
from typing import Any

import torch
from torch import Tensor, nn


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


class Flat:
    """All parameters of a model as parts of one tensor, so that an optimiser step, a clipping and an average are one call each.

    With a call for each parameter they took 5 of the 18 ms of a small model's training step. To everyone else the parameters
    stay what they are.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters, self.buffers = list(model.parameters()), list(model.buffers())
        self.values = nn.Parameter(torch.cat([parameter.detach().reshape(-1) for parameter in self.parameters]))
        for parameter, part in zip(self.parameters, self.split(self.values.detach()), strict=True):
            parameter.data = part

    def split(self, values: Tensor) -> list[Tensor]:
        """A tensor like ``values`` -> each parameter's part of it, in the parameter's shape."""
        parts = values.split([parameter.numel() for parameter in self.parameters])
        return [part.view(parameter.shape) for part, parameter in zip(parts, self.parameters, strict=True)]

    def gather_gradients(self) -> None:
        """Moves the parameters' gradients into that of ``values``.

        Parameters that forces do not depend on (the last bias) get zeros, so that they decay like all others.
        """
        found = [torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in self.parameters]
        self.values.grad = torch.cat([gradient.reshape(-1) for gradient in found])
        for parameter in self.parameters:
            parameter.grad = None

    def clip(self, longest: float) -> None:
        """Shortens the gradient to ``longest``, as ``clip_grad_norm_`` does, whose norm takes six times as long as a product."""
        gradient = self.values.grad
        assert gradient is not None
        gradient.mul_((longest / (gradient.dot(gradient).sqrt() + 1e-6)).clamp(max=1.0))


class MovingAverage:
    """average <- d average + (1 - d) model after each step, with d = min(decay, (1 + step) / (10 + step)).

    The ramp keeps the random initial weights out of the average of a short run: at a decay of 0.999 they would
    still weigh 5 % after 3,000 steps. Buffers (running statistics) are copied.
    """

    def __init__(self, average: Flat, model: Flat, decay: float) -> None:
        self._average, self._model, self._decay = average, model, decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes the model's weights after update number ``step`` in."""
        self._average.values.lerp_(self._model.values, 1 - min(self._decay, (1 + step) / (10 + step)))
        for ours, theirs in zip(self._average.buffers, self._model.buffers, strict=True):
            ours.copy_(theirs)
