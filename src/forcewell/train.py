"""The training loop. It builds nothing: everything it needs comes in a Trainer."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from forcewell.batch import Batch
from forcewell.display import say
from forcewell.errors import InputError
from forcewell.evaluate.errors import EnergyErrors
from forcewell.files import cut
from forcewell.loader import Loader
from forcewell.objectives import DATA, Noise, Objective, noisy, share
from forcewell.optim import Flat, MovingAverage, Schedule
from forcewell.potential import Potential, Prediction
from forcewell.products import products
from forcewell.runstate import load_state, save_state
from forcewell.step_path import Setting, StepPath

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# Validation noise is drawn as if at this step, which no run reaches: the same displaced copies every time.
VALIDATION_STEP = 2**40


@dataclass(slots=True)
class Trainer:
    """All parts of a run, built elsewhere, and how often things happen (in steps)."""

    fabric: Fabric
    potential: Potential
    average: Potential  # moving average of the weights; what is validated and saved
    weights: Flat  # of the potential, on its device
    optimiser: torch.optim.Optimizer  # of ``weights.values``
    objectives: Sequence[Objective]
    loader: Loader
    validation: Sequence[Batch]
    schedule: Schedule
    directory: Path
    seed: int
    steps: int
    validate_every: int
    log_every: int
    save_every: int
    decay: float | None
    clip: float | None
    save_best: Callable[[Potential, dict[str, Any]], None]
    data: list[dict[str, Any]]  # which conformations it trains and validates on (``runstate.identity_of``)
    compile: Setting = "never"
    report: Callable[[int, dict[str, Any]], None] = lambda step, line: None
    step: int = 0
    best: float = float("inf")
    seconds: float = 0.0
    log_bytes: int = 0
    _module: Any = field(default=None)
    _moving: MovingAverage | None = None
    path: StepPath = field(init=False)


def train(run: Trainer, resume: bool = False) -> dict[str, Any]:
    """Runs until ``run.steps``; returns the best validation's line of the log.

    ``resume`` continues from ``directory/state``, with bit-identical results on the CPU at the same thread count.
    Raises InputError when the loss is not finite, after saving the conformations at fault.
    """
    run._module, run.optimiser = run.fabric.setup(run.potential, run.optimiser)  # type: ignore[assignment]
    if run.fabric.world_size == 1:
        run._module = run.potential  # the wrapper would only copy tensors to where they are
    run._moving = None if run.average is run.potential else MovingAverage(Flat(run.average), run.weights, run.decay or 0.0)
    run.path = run.potential.step_path = StepPath(
        run.potential, outputs_of(run.objectives), run.steps, run.compile, quiet=not run.fabric.is_global_zero
    )
    log = run.directory / "log.jsonl"
    if resume:
        load_state(run)
        cut(log, run.log_bytes)
    else:
        if run.fabric.is_global_zero:
            log.write_bytes(b"")  # there may be one of a run that was stopped before its first save
        _validate(run)
    started, offset, since, seen = time.monotonic(), run.seconds, time.monotonic(), 0
    while run.step < run.steps:
        batch = run.loader.next()
        run.path.begin()
        terms, loss = _update(run, batch)
        run.path.end()
        run.step += 1
        seen += len(batch) * run.fabric.world_size
        run.seconds = offset + time.monotonic() - started
        run.report(run.step, {"kind": "step"})
        if run.step % run.log_every == 0 or run.step == run.steps:
            rate = seen / (time.monotonic() - since)
            since, seen = time.monotonic(), 0
            line = {
                "kind": "train",
                "loss": loss,
                "terms": terms,
                "rate": run.schedule.rate(run.step - 1),
                "molecules_per_second": round(rate, 1),
            }
            _log(run, line)
        if run.step % run.validate_every == 0 or run.step == run.steps:
            _validate(run)
        if run.path.due(run.step):
            _choose_path(run)
        if run.step % run.save_every == 0 or run.step == run.steps:
            save_state(run)
    return {"loss": run.best, "seconds": run.seconds}


def _update(run: Trainer, batch: Batch) -> tuple[dict[str, float], float]:
    """One optimiser step; returns the terms of the loss (averaged over all processes) and the loss."""
    for group in run.optimiser.param_groups:
        group["lr"] = run.schedule.rate(run.step)
    prepared = _prepare(run, batch, Noise(run.seed, run.step))
    prediction = run._module(prepared, create_graph=True, **outputs_of(run.objectives))
    weights = [share(objective, run.step / run.steps) for objective in run.objectives]
    loss, terms, value = _loss(run, prediction, prepared, weights)
    if not math.isfinite(value):
        _stop(run, run.potential, prepared)
    _gradients(run, loss)
    if run.clip is not None:
        run.weights.clip(run.clip)
    run.optimiser.step()
    if run._moving is not None:
        run._moving.update(run.step)
    return terms, value


def _choose_path(run: Trainer) -> None:
    """The same for all processes, and saved at once: a run that is resumed goes on as it would have."""
    plans = _from_all(run, run.path.plan(run.step))
    compiled, shape, words = plans[0]
    for _, other, _ in plans:
        shape = shape.together(other)
    run.path.decide(compiled, shape)
    if run.fabric.is_global_zero:
        say(words)
    save_state(run)


def _gradients(run: Trainer, loss: Tensor) -> None:
    """Those of all parameters, averaged over all processes."""
    if run.fabric.world_size > 1:
        # A process whose share lacks a term, and parameters that forces do not depend on, still take part.
        loss = loss * run.fabric.world_size + 0.0 * sum(parameter.sum() for parameter in run.weights.parameters)
    with products(run.potential.precision):
        run.fabric.backward(loss)
    run.weights.gather_gradients()


def outputs_of(objectives: Sequence[Objective]) -> dict[str, bool]:
    """What the potential must compute: without forces no second-order graph is built."""
    needed = frozenset().union(*(objective.needs for objective in objectives))
    return {name: name in needed for name in ("forces", "noise", "properties")}


def _prepare(run: Trainer, batch: Batch, noise: Noise) -> Batch:
    """On the device, labels in the network's own terms, and with what the objectives add."""
    batch = batch.to(run.fabric.device)
    targets = batch.targets
    if not noise.training or any("energy" in objective.needs for objective in run.objectives):
        targets.energy = targets.energy - run.potential.reference_energy(batch)
    if targets.properties.shape[1]:
        described = run.potential.config["head"]["properties"]
        targets.properties = (targets.properties - targets.properties.new_tensor(described["mean"])) / targets.properties.new_tensor(
            described["spread"]
        )
    for objective in run.objectives:
        batch = objective.prepare(batch, noise)
    normaliser = run.potential.noise_normaliser
    reader: Any = next((objective for objective in run.objectives if "noise" in objective.needs), None)
    if normaliser is not None and reader is not None:
        atoms = noisy(batch, reader)
        found = batch.targets.noise_target
        if noise.training:
            moments = run.fabric.all_reduce(normaliser.moments(found[atoms]), reduce_op="sum")
            normaliser.observe(moments)  # type: ignore[arg-type]
        batch.targets.noise_target = torch.where(atoms[:, None], normaliser(found), found)
    return batch


def _loss(run: Trainer, prediction: Prediction, batch: Batch, weights: Sequence[float]) -> tuple[Tensor, dict[str, float], float]:
    """This process's share of the weighted loss, and each term averaged, and the loss, over all processes."""
    parts = [objective.loss(prediction, batch) for objective in run.objectives]
    sums = torch.stack([torch.stack([part.total.detach().double(), part.count]) for part in parts])
    if run.fabric.world_size > 1:
        sums = run.fabric.all_reduce(sums, reduce_op="sum")
        assert isinstance(sums, Tensor)
    shares, terms, value = [], {}, 0.0
    for objective, part, (total, count), weight in zip(run.objectives, parts, sums.tolist(), weights, strict=True):
        terms[objective.name] = total / max(count, 1.0)
        divisor = max(count, 1.0) if objective.reduction == "mean" else 1.0
        shares.append(weight * part.total / divisor)
        value += total / divisor * weight
    return torch.stack(shares).sum(), terms, value


@torch.no_grad()
def _validate(run: Trainer) -> None:
    """Loss terms, force and energy errors of the averaged weights on the validation batches, all processes sharing them."""
    model = run.average.eval()
    outputs = outputs_of(run.objectives)
    sums = torch.zeros(len(run.objectives) + 1, 2, dtype=torch.float64)
    energies, suspect = EnergyErrors(), None
    for number, batch in enumerate(run.validation):
        if number % run.fabric.world_size != run.fabric.global_rank:
            continue
        prepared = _prepare(run, batch, Noise(run.seed, VALIDATION_STEP, training=False))
        prediction = model(prepared, **outputs)
        for row, objective in enumerate(run.objectives):
            part = objective.loss(prediction, prepared)
            sums[row] += torch.stack([part.total.double(), part.count]).cpu()
        if suspect is None and not bool(torch.isfinite(sums).all()):
            suspect = prepared
        if prediction.forces is not None:
            known = torch.isfinite(prepared.targets.forces).all(dim=1) & (prepared.role == DATA).index_select(0, prepared.molecule)
            error = (prediction.forces[known] - prepared.targets.forces[known]).abs()
            sums[-1] += torch.tensor([float(error.double().sum()), float(error.numel())], dtype=torch.float64)
        energies.add(prepared.take(prepared.role == DATA), (prediction.energy.double() - prepared.targets.energy)[prepared.role == DATA])
    sums = run.fabric.all_reduce(sums.to(run.fabric.device), reduce_op="sum").cpu()  # type: ignore[union-attr]
    if float(sums[:-1, 1].sum()) == 0:
        raise InputError("the validation data carry nothing that the objectives need (labelled forces, or minima); give data that do")
    means = (sums[:, 0] / sums[:, 1].clamp(min=1.0)).tolist()
    terms = {objective.name: mean for objective, mean in zip(run.objectives, means, strict=False)}
    # An objective whose weight ends at zero does not choose the model.
    loss = sum(objective.weight * terms[objective.name] for objective in run.objectives if objective.until is None)
    if not math.isfinite(loss):
        _stop(run, model, suspect)
    line: dict[str, Any] = {"kind": "validation", "loss": loss, "terms": terms, "seconds": round(run.seconds, 2)}
    if float(sums[-1, 1]) > 0:
        line["force_mae"] = means[-1] * 1000  # meV/Å
    trained = any("energy" in objective.needs for objective in run.objectives)
    line |= EnergyErrors.of(_from_all(run, energies)).summary(trained)
    run.schedule.observe(loss, run.step)
    line["best"] = loss < run.best
    _log(run, line)
    if loss < run.best:
        run.best = loss
        if run.fabric.is_global_zero:
            run.save_best(run.average, {"step": run.step, **line})


def _log(run: Trainer, line: dict[str, Any]) -> None:
    """Appends one line to the log and tells the progress display."""
    line = {"step": run.step, **line}
    if run.fabric.is_global_zero:
        with open(run.directory / "log.jsonl", "ab") as file:
            file.write((json.dumps(line) + "\n").encode())
            run.log_bytes = file.tell()
    run.report(run.step, line)


def _stop(run: Trainer, model: Potential, batch: Batch | None) -> None:
    """Names and saves the conformations whose forces or labels spoil the loss (all, if none does alone).

    Every process comes here with its own part of the batch; together they give one message.
    """
    guilty = None if batch is None else batch.take(_spoiled(model, batch))
    if not any(_from_all(run, 0 if guilty is None else len(guilty))):
        guilty = batch
    where, names = "", []
    if guilty is not None and len(guilty):
        sources = [run.loader.sources[s].name for s in guilty.source.tolist()]
        names = [f"{name} #{index}" for name, index in zip(sources, guilty.index.tolist(), strict=True)]
        rank = f"-process-{run.fabric.global_rank}" if run.fabric.world_size > 1 else ""
        path = run.directory / f"nonfinite-step-{run.step}{rank}.xyz"
        _write_frames(path, guilty, names)
        where = str(path)
    found = _from_all(run, (names, where))
    names, places = [name for part, _ in found for name in part], ", ".join(place for _, place in found if place)
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    raise InputError(
        f"step {run.step}: the loss is not finite; conformations: {shown}; saved to {places}; "
        "check them (forcewell data check) or lower optimiser.learning_rate"
    )


def _spoiled(model: Potential, batch: Batch) -> Tensor:
    """(M,) mask of conformations with energies, forces, positions or squared errors that are not finite."""
    found, labels = model(batch), batch.targets.forces
    forces = found.forces
    assert forces is not None
    # A label of 1e20 eV/Å is finite, but its square is not.
    finite = torch.isfinite(forces) & torch.isfinite(batch.positions) & (torch.isnan(labels) | torch.isfinite((forces - labels) ** 2))
    energy = torch.isfinite(found.energy) & ~torch.isinf(batch.targets.energy) & ~torch.isinf(batch.targets.properties).any(dim=1)
    return (torch.zeros(len(batch), device=finite.device).index_add(0, batch.molecule, (~finite.all(dim=1)).float()) > 0) | ~energy


def _from_all(run: Trainer, value: Any) -> list[Any]:
    """The value that each process gives, in the order of their ranks."""
    values = [value] * run.fabric.world_size
    if run.fabric.world_size > 1:
        torch.distributed.all_gather_object(values, value)
    return values


def _write_frames(path: Path, batch: Batch, samples: Sequence[str]) -> None:
    import ase
    import ase.io

    positions, numbers = batch.positions.detach().cpu().double().numpy(), batch.numbers.cpu().numpy()
    offsets = batch.offsets.tolist()
    frames = [
        ase.Atoms(
            numbers[offsets[m] : offsets[m + 1]],
            positions[offsets[m] : offsets[m + 1]],
            info={"sample": sample, "role": int(batch.role[m])},
        )
        for m, sample in enumerate(samples)
    ]
    ase.io.write(path, frames, format="extxyz")
