"""What the tests of objectives share: tiny models, and a loop that learns one batch by heart."""

from __future__ import annotations

from typing import Any

import torch

from forcewell.batch import Batch
from forcewell.model_building import with_heads
from forcewell.objectives import Noise, Objective, build
from forcewell.potential import Potential

TINY: dict[str, dict[str, Any]] = {
    "equivariant-transformer": {"channels": 16, "layers": 1, "heads": 2, "radial": 16},
    "egnn": {"channels": 16, "layers": 2},
    "schnet": {"channels": 16, "layers": 1, "radial": 16},
    "gemnet-t": {"channels": 16, "layers": 1},
    "se3-transformer": {"channels": 16, "layers": 1, "degrees": 2},
}


def model_for(objectives: tuple[Objective, ...], encoder: str = "equivariant-transformer", **inputs: Any) -> Potential:
    """A fresh tiny potential with the heads that the objectives need, in float64."""
    torch.manual_seed(1)
    settings = {"name": encoder, **TINY[encoder], "elements": 20, **inputs}
    settings["conditions"] = int(any(getattr(objective, "conditioned", False) for objective in objectives))
    settings["given_forces"] = any(getattr(objective, "gives_forces", False) for objective in objectives)
    return Potential({"encoder": settings, "head": with_heads({}, objectives, [])}, levels=["one", "two"]).double()


def outputs(objectives: tuple[Objective, ...]) -> dict[str, bool]:
    """What the potential has to compute."""
    needed = frozenset().union(*(objective.needs for objective in objectives))
    return {name: name in needed for name in ("forces", "noise", "properties")}


def prepared(objectives: tuple[Objective, ...], batch: Batch, noise: Noise) -> Batch:
    for objective in objectives:
        batch = objective.prepare(batch, noise)
    return batch


def learn(
    description: Any, batch: Batch, steps: int, encoder: str = "equivariant-transformer", rate: float = 1e-2, **inputs: Any
) -> tuple[Potential, tuple[Objective, ...]]:
    """A tiny model trained on one batch, the noise new in every step, the rate falling to zero."""
    objectives = build(description)
    model = model_for(objectives, encoder, **inputs)
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    for step in range(steps):
        ready = prepared(objectives, batch, Noise(0, step))
        prediction = model(ready, create_graph=True, **outputs(objectives))
        terms = [objective.loss(prediction, ready) for objective in objectives]
        loss: Any = sum(o.weight * t.total / t.count.clamp(min=1) for o, t in zip(objectives, terms, strict=True))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        for group in optimiser.param_groups:
            group["lr"] = rate * (1 - step / steps)
    return model, objectives


def explained(found: torch.Tensor, target: torch.Tensor) -> float:
    """Share of the target's square that is found: 1 all, 0 as good as zero everywhere."""
    return 1 - float(((found.detach() - target) ** 2).sum() / (target**2).sum())
