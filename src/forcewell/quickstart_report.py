"""The quickstart's results, gathered for the report."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import torch
from ase import Atoms
from pydantic import BaseModel, ConfigDict

from forcewell import __version__
from forcewell.config import RunConfig
from forcewell.evaluate.distances import EDGES, density, distance_error, histogram
from forcewell.objectives import PRESETS
from forcewell.runs import commit
from forcewell.store import Dataset, Store

ROLES = {
    "qm9": "pre-training: minima (zero force, force denoising)",
    "qm7x": "pre-training: forces off equilibrium",
    "corpus": "pre-training: forces off equilibrium, and zero force and force denoising at its minima",
    "ethanol": "fine-tuning: 950 frames to train on, 50 to validate on",
    "ethanol-test": "test: held-out frames; reference for bonds and h(r)",
}
LICENCES = {"qm9": "CC0", "qm7x": "CC BY 4.0", "corpus": "Apache-2.0", "ethanol": "CC0", "ethanol-test": "CC0"}
SHOWN_FRAMES = 100  # of one replica, in the page's 3D view
ARMS = {"scratch": "from scratch", "et-oreo": "pre-trained (et-oreo)"}


class Plan(BaseModel):
    """What a quickstart does; kept in its folder, so that its processes and a later continuation agree.

    Molecular dynamics of both models is at 500 K, as in the MD17 trajectories and the papers' stability test.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    pretraining: RunConfig
    finetuning: RunConfig  # also of the model from scratch
    temperature: float = 500.0  # K
    timestep: float = 0.5  # fs
    replicas: int = 8
    langevin_ps: float = 2.0
    nve_ps: float = 0.4


def results(out: Path, plan: Plan, stores: Mapping[str, Path], seconds: float) -> dict[str, Any]:
    """The dictionary that ``report.write_report`` turns into report.json and report.html."""
    data = {name: Store(path) for name, path in stores.items()}
    frames = _positions(data["ethanol-test"])
    models = {name: _model(out / name, label) for name, label in ARMS.items()}
    floor = distance_error(histogram(frames), frames).floor
    pretraining = _log(out / "pretraining" / "log.jsonl")
    langevin = json.loads((out / "scratch" / "langevin" / "summary.json").read_text())
    return {
        "title": "Forcewell quickstart: does pre-training help on ethanol?",
        "summary": _summary(models),
        "command": "forcewell quickstart",
        "version": __version__,
        "commit": commit(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hardware": _hardware(),
        "seconds": round(seconds, 1),
        "data": [_data_row(name, dataset) for name, dataset in data.items()],
        "settings": _settings(plan),
        "models": models,
        "pretraining": {"curve": [line for line in pretraining if line["kind"] == "train"]},
        "hr": {"r": ((EDGES[1:] + EDGES[:-1]) / 2).tolist(), "reference": density(histogram(frames)).tolist(), "floor": floor},
        "md": {
            "ensemble": "Langevin (NVE for the energy drift)",
            "temperature": plan.temperature,
            "length_ps": plan.langevin_ps,
            "nve_length_ps": plan.nve_ps,
            "replicas": plan.replicas,
            "timestep_fs": plan.timestep,
            "degrees_of_freedom": langevin["replicas"][0]["degrees_of_freedom"],
        },
    }


def _positions(data: Dataset) -> np.ndarray:
    block = data.block(np.arange(len(data)))
    return block.arrays["positions"].reshape(len(block), -1, 3)


def _model(folder: Path, label: str) -> dict[str, Any]:
    """One model's entry; stable keys: force_mae, stability, hr_error, energy_drift."""
    found = json.loads((folder / "results.json").read_text())
    langevin, nve = found["langevin"]["summary"], found["nve"]["summary"]
    lines = [line for line in _log(folder / "log.jsonl") if line["kind"] == "validation"]
    return {
        "label": label,
        **{key: found.get(key) for key in ("force_mae", "force_rmse", "force_cosine", "energy_mae", "per_element", "parity", "parameters")},
        "stability": langevin["stability_ps"],
        "stability_fraction": langevin["whole"] / langevin["of"],
        "hr_error": langevin.get("distances_mae"),
        "energy_drift": nve.get("drift_mev_atom_ps"),
        "temperature_mean": langevin.get("temperature_mean"),
        "steps_per_second": langevin.get("steps_per_second"),
        "steps": lines[-1]["step"],
        "curve": [{"step": line["step"], "force_mae": line.get("force_mae"), "seconds": line["seconds"]} for line in lines],
        "hr": density(_histogram(folder / "langevin")).tolist(),
        "md": _series(found["langevin"]["observables"], "temperature", "potential"),
        "nve": _series(found["nve"]["observables"], "total"),
        "trajectory": _frames(folder / "langevin" / "replica-000.xyz"),
    }


def _histogram(folder: Path) -> np.ndarray:
    counts = np.zeros(len(EDGES) - 1, dtype=np.int64)
    for path in sorted(folder.glob("replica-*.xyz")):
        counts += histogram(np.stack([frame.positions for frame in _read(path)]))
    return counts


def _read(path: Path) -> list[Atoms]:
    frames = ase.io.read(path, index=":")
    return frames if isinstance(frames, list) else [frames]  # type: ignore[return-value]


def _series(observables: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Time and the first replica's temperature or energy (relative to its start), at most 500 points."""
    time = np.asarray(observables["time"], dtype=np.float64)
    kept = np.unique(np.linspace(0, len(time) - 1, min(500, len(time))).astype(int))
    series: dict[str, Any] = {"time": time[kept].tolist()}
    for name in names:
        values = np.asarray(observables[name], dtype=np.float64)[:, 0]
        if name == "temperature":
            series["temperature"] = values[kept].tolist()
        else:
            series["energy"] = (values - values[0])[kept].tolist()
    return series


def _frames(path: Path) -> str:
    """About ``SHOWN_FRAMES`` frames of a trajectory, plain XYZ for the 3D view."""
    frames = _read(path)
    kept = np.unique(np.linspace(0, len(frames) - 1, min(SHOWN_FRAMES, len(frames))).astype(int))
    texts = []
    for frame in (frames[int(k)] for k in kept):
        rows = [
            f"{symbol} {x:.4f} {y:.4f} {z:.4f}" for symbol, (x, y, z) in zip(frame.get_chemical_symbols(), frame.positions, strict=True)
        ]
        texts.append("\n".join([str(len(frame)), "", *rows]))
    return "\n".join(texts) + "\n"


def _log(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _data_row(name: str, data: Dataset) -> dict[str, Any]:
    molecules = len(np.unique(data.molecule_codes()))
    return {
        "name": name,
        "role": ROLES[name],
        "conformations": len(data),
        "molecules": molecules,
        "level": ", ".join(data.levels),
        "licence": LICENCES[name],
    }


def _settings(plan: Plan) -> dict[str, Any]:
    before, after = plan.pretraining, plan.finetuning
    encoder = before.model.encoder
    return {
        "encoder": f"{encoder.name}, {encoder.channels} channels, {encoder.layers} layers, cutoff {encoder.cutoff} Å",
        "pre-training": f"{before.training.steps} steps of {before.training.batch_size} molecules, seed {before.seed}",
        "pre-training objective": f"{before.objectives}: {PRESETS[str(before.objectives)]}",
        "fine-tuning and scratch": f"{after.training.steps} steps of {after.training.batch_size} frames, forces only, seed {after.seed}",
        "learning rates": f"{before.optimiser.learning_rate:g} pre-training, {after.optimiser.learning_rate:g} fine-tuning and scratch",
    }


def _summary(models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    scratch, pretrained = models["scratch"], models["et-oreo"]
    return [
        "Both models saw the same ethanol frames in the same order for the same number of steps; one started from a model "
        "pre-trained on other molecules, the other from random weights.",
        f"Errors are on 1,000 frames of the official test split that no training saw: {scratch['force_mae']:.1f} meV/Å from scratch, "
        f"{pretrained['force_mae']:.1f} meV/Å pre-trained.",
        "One seed and a short budget, far from converged: a demonstration, not evidence.",
    ]


def _hardware() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = f"{torch.cuda.get_device_name()} for training, " if torch.cuda.is_available() else ""
    return f"{gpu}{cores} CPU cores ({platform.machine()}), PyTorch {torch.__version__}, Python {platform.python_version()}"
