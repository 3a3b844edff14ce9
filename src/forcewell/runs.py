"""Builds pre-training and fine-tuning runs from a configuration, and finishes them. The loop itself is in train.py."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from forcewell.checkpoint import MODEL, find_model, load_model, save_model, training_hashes
from forcewell.config import RunConfig, dump_config, load_config
from forcewell.display import TrainingDisplay, say
from forcewell.doctor.levels import plan
from forcewell.errors import InputError
from forcewell.files import write_bytes
from forcewell.loader import Loader, Source, fixed_batches
from forcewell.model_building import adopt, elements_of, fresh, learns_energies, tell_charges, with_model_of
from forcewell.objectives import Objective
from forcewell.optim import Flat, Schedule
from forcewell.overlap import geometry_hashes, overlap, overlap_lines, sketch, sketch_of
from forcewell.potential import Potential
from forcewell.products import Precision
from forcewell.references import correct
from forcewell.runstate import has_state, identity_of
from forcewell.scales import fit_scales
from forcewell.store import Gatherer
from forcewell.system import Block
from forcewell.train import Trainer, outputs_of, train
from forcewell.training_data import bundled, gather

PRODUCTS: dict[str, Precision] = {"bf16-mixed": "bfloat16", "tf32": "tf32"}  # of matrices, by hardware.precision; float32 otherwise


@dataclass(slots=True)
class Parts:
    """What a run is built from, besides its configuration."""

    potential: Potential
    training: list[Source]
    validation: list[Source]
    objectives: tuple[Objective, ...]
    ancestry: list[dict[str, Any]]
    known: list[np.ndarray]  # sketches of what the ancestors were trained on


def pretrain(config: RunConfig, out: Path, resume: bool = False) -> Path:
    """Trains a fresh model; returns the path of its model file.

    Raises InputError for unusable data or settings, an existing ``out`` without ``resume``, or the reverse.
    """
    fabric = _fabric(config)
    with _claimed(config, out, resume, fabric) as begun:
        objectives, training, validation, levels = gather(
            config, out / "data", exclude=config.exclude or "benchmark", quiet=not fabric.is_global_zero
        )
        potential = fresh(config, objectives, training, validation, levels)
        if fabric.is_global_zero:
            tell_charges(potential, training)
        if learns_energies(objectives):
            _correct(potential, training, quiet=not fabric.is_global_zero, untrained=True)
        if not begun:
            fit_scales(potential, training, config.seed, quiet=not fabric.is_global_zero)
        return _run(config, out, begun, fabric, Parts(potential, training, validation, objectives, [], []))


def fitted(config: RunConfig, out: Path) -> dict[str, float]:
    """Writes the untrained GemNet-T of a pre-training configuration, scale factors fitted to its data, as a model file.

    ``pretrain`` does this by itself. Returns the factors by name. Raises InputError for another encoder, unusable data,
    or an existing ``out``.
    """
    if out.exists():
        raise InputError(f"{out} exists; use another --out")
    if config.model.encoder.name != "gemnet-t":
        raise InputError(f"model.encoder.name is {config.model.encoder.name}: only gemnet-t has scale factors to fit")
    with tempfile.TemporaryDirectory() as folder:
        objectives, training, validation, levels = gather(config, Path(folder), exclude=config.exclude or "benchmark")
        potential = fresh(config, objectives, training, validation, levels)
        factors = fit_scales(potential, training, config.seed)
        save_model(out, potential, **_details(config, Parts(potential, training, validation, objectives, [], [])))
    return factors


def finetune(config: RunConfig, model: str | Path, out: Path, resume: bool = False) -> Path:
    """Continues from a model file on new data; returns the path of the new model file.

    Says which tensors were loaded, which are new and which were dropped, corrects the reference energies of the new
    level of theory and evaluates step 0. Raises InputError as ``pretrain``, and for elements the model never saw.
    """
    fabric = _fabric(config)
    model = find_model(model) if Path(model).is_dir() else model  # a name of the package's stays one, on every machine
    parent, description = load_model(model)
    config = with_model_of(parent, config)
    with _claimed(config, out, resume, fabric) as begun:
        if begun and (old := load_model(out / MODEL)[1]["ancestry"][-1]["model"]) != str(model):
            raise InputError(f"{out} was started from {old}; resume it with the same --from")
        objectives, training, validation, levels = gather(
            config, out / "data", exclude=config.exclude or "none", quiet=not fabric.is_global_zero
        )
        if not config.new_elements:
            try:
                parent.check_elements(np.array(elements_of([*training, *validation])))
            except InputError as error:
                raise InputError(f"{error}; set new_elements=true to train their embeddings from scratch") from None
        potential = adopt(parent, objectives, training, validation, levels, config.seed, quiet=not fabric.is_global_zero)
        known = training_hashes(model)
        if fabric.is_global_zero:
            _tell_overlap(training, known)
            tell_charges(potential, training)
            rows = [(source.name, source.data, source.rows) for source in training]
            for line in plan(rows, parent.references, learns_energies(objectives)):
                say(line)
        _correct(potential, training, quiet=not fabric.is_global_zero)
        ancestry = [
            *description.get("ancestry", []),
            {"model": str(model), "data": description.get("data", []), "training": description.get("training", {})},
        ]
        return _run(config, out, begun, fabric, Parts(potential, training, validation, objectives, ancestry, known))


def _run(config: RunConfig, out: Path, resume: bool, fabric: Any, parts: Parts) -> Path:
    """Trains, then fits the reference energies of every labelled level once more to the best model, unless it learned energies."""
    dtype = torch.float64 if config.hardware.precision == "64-true" else torch.float32
    potential = parts.potential.to(dtype)
    # Not Fabric's own mixed precision, which would round the coordinates, too.
    potential.precision = PRODUCTS.get(config.hardware.precision, "float32")
    settings, optimiser = config.training, config.optimiser
    average = potential
    if optimiser.average is not None:
        average = Potential(potential.config, levels=potential.levels, references=potential.references, elements=potential.elements)
        average.to(fabric.device, dtype).requires_grad_(False).load_state_dict(potential.state_dict())
    if fabric.is_global_zero:
        asked = outputs_of(parts.objectives)
        say(f"{'energies and forces' if asked['forces'] else 'features of atoms'} by {potential.to(fabric.device).path_of(asked)}")
    hashes = [*parts.known, _sketch(parts.training)] if fabric.is_global_zero else []
    details = _details(config, parts)

    def save_best(model: Potential, line: dict[str, Any]) -> None:
        save_model(out / MODEL, model, hashes=hashes, training=line, **details)

    loader = Loader(
        parts.training, settings.batch_size, settings.max_atoms, config.seed, dtype, rank=fabric.global_rank, world=fabric.world_size
    )
    weights = Flat(potential.to(fabric.device))
    adamw = torch.optim.AdamW([weights.values], lr=optimiser.learning_rate, weight_decay=optimiser.weight_decay, fused=True)
    rates = (optimiser.schedule, optimiser.learning_rate, optimiser.warmup_steps, settings.steps)
    plateau = (optimiser.plateau_factor, optimiser.plateau_patience, optimiser.hold_steps)
    with TrainingDisplay(settings.steps, enabled=fabric.is_global_zero) as display:
        trainer = Trainer(
            fabric=fabric,
            potential=potential,
            average=average,
            weights=weights,
            optimiser=adamw,
            objectives=parts.objectives,
            loader=loader,
            validation=fixed_batches(parts.validation, settings.batch_size, settings.max_atoms, dtype),
            schedule=Schedule(*rates, *plateau),
            directory=out,
            seed=config.seed,
            steps=settings.steps,
            validate_every=settings.validate_every,
            log_every=settings.log_every,
            save_every=settings.save_every,
            decay=optimiser.average,
            clip=optimiser.gradient_clip,
            compile=config.hardware.compile,
            save_best=save_best,
            data=identity_of([*parts.training, *parts.validation]),
            report=display.report,
        )
        train(trainer, resume)
    if fabric.is_global_zero:
        best, description = load_model(out / MODEL)
        if not learns_energies(parts.objectives):  # those were learned with the references as they are
            _correct(best, parts.training)
            save_model(out / MODEL, best, hashes=hashes, training=description["training"], **details)
        say(f"best model: {out / MODEL} (step {description['training']['step']})")
    fabric.barrier()
    return out / MODEL


def _correct(potential: Potential, sources: Sequence[Source], quiet: bool = False, untrained: bool = False) -> None:
    for level in dict.fromkeys(level for source in sources for level in source.data.levels):
        correction = correct(potential, [(source.data, source.rows) for source in sources], level, untrained=untrained)
        if correction is not None and not quiet:
            say(str(correction))


def _details(config: RunConfig, parts: Parts) -> dict[str, Any]:
    """Provenance for the model file."""
    data = [
        {"name": source.name, "fingerprint": source.data.fingerprint, "conformations": len(source.rows), "levels": list(source.data.levels)}
        for source in parts.training
    ]
    return {"run": config.model_dump(mode="json"), "data": data, "ancestry": parts.ancestry, "commit": commit()}


def commit() -> str:
    """Git commit of the source tree that this package runs from, or "" for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    done = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _fabric(config: RunConfig) -> Any:
    from lightning_fabric import Fabric
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    hardware = config.hardware
    devices, nodes = hardware.devices, hardware.nodes
    if "TORCHELASTIC_RUN_ID" in os.environ:  # started by torchrun, which decides how many processes there are
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    # Not Apple's GPU: it has no float64, which energies and sums of losses need.
    accelerator = ("cuda" if torch.cuda.is_available() else "cpu") if hardware.accelerator == "auto" else hardware.accelerator
    try:
        fabric = Fabric(
            accelerator=accelerator, devices=devices, num_nodes=nodes,
            strategy="ddp" if devices * nodes > 1 else "auto", precision="64-true" if hardware.precision == "64-true" else "32-true",
        )  # fmt: skip
    except (MisconfigurationException, RuntimeError, ValueError, ImportError) as error:
        raise InputError(f"hardware {hardware.accelerator!r} x {hardware.devices} cannot be used here: {error}") from None
    if hardware.precision == "tf32" and fabric.device.type == "cpu":
        raise InputError("hardware.precision: tf32 is of GPUs; on the CPU there are 32-true, bf16-mixed and 64-true")
    fabric.launch()
    return fabric


@contextlib.contextmanager
def _claimed(config: RunConfig, out: Path, resume: bool, fabric: Any) -> Iterator[bool]:
    """The run folder with its bundled data; gives whether there is a state to continue from.

    A mistake in the settings or the data that shows before the first line of the log leaves no trace of the run.
    """
    existed, file = out.exists(), out / "config.yaml"
    begun = _claim(config, out, resume, fabric)
    try:
        _unpack(config, out, fabric)
        yield begun
    except BaseException:
        if fabric.is_global_zero and not begun and not (out / "log.jsonl").exists():
            file.unlink(missing_ok=True)
            if not existed:
                shutil.rmtree(out, ignore_errors=True)
        raise


def _changed(before: Any, now: Any, key: str = "") -> Iterator[str]:
    """Each setting that differs, with what it was and is."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in dict.fromkeys([*before, *now]):
            yield from _changed(before.get(name), now.get(name), f"{key}.{name}".lstrip("."))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for number, pair in enumerate(zip(before, now, strict=True)):
            yield from _changed(*pair, f"{key}.{number}")
    elif before != now and key != "hardware.compile" and not _same_file(key, before, now):  # results hold without graphs, too
        yield f"{key} was {before!r} and is {now!r}"


def _same_file(key: str, before: Any, now: Any) -> bool:
    """Whether two settings name one file in different words."""
    named = key.endswith((".path", ".split")) and isinstance(before, str) and isinstance(now, str)
    return named and Path(before).resolve() == Path(now).resolve()


def _claim(config: RunConfig, out: Path, resume: bool, fabric: Any) -> bool:
    """Makes the run folder, or checks that it is the run to be resumed; False where nothing of it was saved yet."""
    file, text = out / "config.yaml", dump_config(config)

    def claim() -> None:
        if out.exists() and not out.is_dir():
            raise InputError(f"{out} is a file; --out takes a folder")
        if resume:
            if not file.is_file():
                raise InputError(f"{out} is not a run (no config.yaml); start without --resume")
            # Settings that the version which began the run did not have yet are at their defaults in both.
            kept = dump_config(load_config(str(file)))
            if told := list(_changed(yaml.safe_load(kept), yaml.safe_load(text))):
                more = f", and {len(told) - 3} more" if len(told) > 3 else ""
                raise InputError(
                    f"{out} was started with other settings: {', '.join(told[:3])}{more}; resume with the same ones "
                    f"({file}, given as the configuration, holds them), or use another --out"
                )
            if has_state(out):
                _has_best(out)
        elif file.exists():
            raise InputError(f"{out} already holds a run; add --resume to continue it, or use another --out")
        else:
            out.mkdir(parents=True, exist_ok=True)
            write_bytes(file, text.encode())

    _first(fabric, claim)
    begun = resume and has_state(out)
    if resume and not begun and fabric.is_global_zero:
        say(f"{out} was stopped before its first save; starting it from the beginning")
    return begun


def _has_best(out: Path) -> None:
    """Raises InputError where the best model so far is gone or damaged: a state has the last weights alone, and none may be better."""
    if not (out / MODEL).is_file():
        raise InputError(f"{out} has a state, but not {MODEL}, its best model so far; put that back to resume, or use another --out")
    load_model(out / MODEL)


def _first(fabric: Any, work: Callable[[], None]) -> None:
    """Does ``work`` in process 0 while the others wait; a mistake that it finds ends all of them."""
    problem = ""
    if fabric.is_global_zero:
        try:
            work()
        except (InputError, OSError) as error:
            problem = str(error)
    problem = fabric.broadcast(problem)
    if problem:
        raise InputError(problem)


def _unpack(config: RunConfig, out: Path, fabric: Any) -> None:
    """Imports bundled data once, before the other processes open them."""
    paths = [entry.path for entry in config.data] + [config.validation.path or ""]

    def unpack() -> None:
        for path in paths:
            if path.startswith("bundled:"):
                bundled(path.removeprefix("bundled:"), out / "data")

    _first(fabric, unpack)


def _sketch(training: Sequence[Source]) -> np.ndarray:
    """Of the geometries of a run; not joined with its ancestors', of which millions would leave few hashes of a small run."""
    return sketch(np.concatenate([sketch_of(_blocks(source)) for source in training]))


def _blocks(source: Source) -> Iterator[Block]:
    """The source's rows, 8,192 at a time."""
    gather = Gatherer([source.data])
    for start in range(0, len(source.rows), 8192):
        yield gather(source.rows[start : start + 8192], bare=True).block


def _tell_overlap(training: Sequence[Source], known: Sequence[np.ndarray]) -> None:
    for source in training:
        hashes = np.concatenate([geometry_hashes(block) for block in _blocks(source)])
        for line in overlap_lines([overlap(hashes, stage) for stage in known]):
            say(f"{source.name}: {line}")
