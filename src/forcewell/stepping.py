"""What takes the steps of molecular dynamics on this device, for this model: the choice that simulations and measurements share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from forcewell import captured, compiled, integrators
from forcewell.batch import Batch
from forcewell.integrators import State
from forcewell.potential import Potential
from forcewell.static_batch import has_graphs
from forcewell.step_path import FORCES, StepPath


def stepper(
    potential: Any, batch: Batch, ensemble: str, *, timestep: float, temperature: float, relaxation: float, steps: int, quiet: bool
) -> tuple[Callable[[State, int], None], StepPath | None]:
    """Advances a State in place by so many steps of ``ensemble`` (units as in ``simulate``), and who may compile its forces on the way.

    One call of the compiled kernels for many steps; a CUDA graph of one step; else PyTorch's operations, energies and forces of which
    are compiled in a run of many ``steps``.
    """
    bath = {"timestep": timestep, "temperature": temperature}
    if compiled.possible(potential, batch):
        return compiled.CompiledSteps(potential, ensemble, relaxation=relaxation, **bath), None
    step = {
        "nve": partial(integrators.verlet_step, potential=potential, timestep=timestep),
        "langevin": partial(integrators.langevin_step, potential=potential, friction=1.0 / relaxation, **bath),
        "nose-hoover": partial(integrators.nose_hoover_step, potential=potential, period=relaxation, **bath),
    }[ensemble]
    path = None
    if isinstance(potential, Potential):
        if has_graphs(potential.device) and potential.encoder.capturable:
            return captured.CapturedSteps(step, potential.cutoff), None
        if not has_graphs(potential.device) and not bool(batch.pbc.any()):
            path = potential.step_path = StepPath(potential, FORCES, steps, quiet=quiet, training=False)
    return partial(_repeat, step, path), path


def _repeat(step: Callable[[State], None], path: StepPath | None, state: State, steps: int) -> None:
    for _ in range(steps):
        if path is not None:
            path.begin()
        step(state)
        if path is not None:
            path.end()
