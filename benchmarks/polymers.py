"""Do forces learned on small loops hold on large ones? Fine-tuning on loops of at most 60 atoms, tests on loops of 60 and 180.

Usage: .venv/bin/python benchmarks/polymers.py OUT [--family gamma-butyrolactone] [--size small] [--parts data training ...] [--workers N]

The ET-OREO paper (arXiv 2308.14759, section 4.2) fine-tunes on loops of at most five repeat units and finds that 15-loops are
simulated well. Here: trajectories at 500 K with GFN2-xTB of loops of 1, 3, 4 and 5 units; the packaged forcewell-small fine-tuned on
them, and the same network from random weights; force errors on other trajectories of the 5-loop and on the 15-loop, which
neither model has seen; then 10 ps of Langevin dynamics of the 15-loop with each model, and GFN2 single points of frames of that dynamics.

Every part is resumable; what is finished is not done again. Result: OUT/polymers.json. For γ-butyrolactone about 25 minutes of one quiet
core: 8 for the training and 5-loop data, 8 for the 15-loop's, 3 for the two trainings, 6 for the dynamics.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from forcewell.checkpoint import load_model
from forcewell.config import load_config
from forcewell.engines import engine, labelled
from forcewell.evaluate.errors import evaluate
from forcewell.generate.campaign import Job, run
from forcewell.generate.families import choose_families
from forcewell.generate.molecules_command import campaign_settings
from forcewell.generate.polymers import PolymerSampling, polymer_jobs, polymers_of
from forcewell.generate.ring_opening import open_ring
from forcewell.process import keep_memory
from forcewell.runs import finetune, pretrain
from forcewell.simulate import simulate
from forcewell.store import MemoryData, open_data
from forcewell.system import System

TEMPERATURE = 500.0  # K
PARTS = ("training-data", "test-5", "test-15", "training", "errors", "dynamics")
ARMS = ("forcewell-small", "scratch")
ENCODER = {"name": "equivariant-transformer", "channels": 64, "layers": 3, "heads": 4, "radial": 32}  # as in forcewell-small


@dataclass(frozen=True)
class Size:
    """data: (loops, starts, frames of each start, equilibration in fs) of each data set. What is trained and simulated."""

    data: dict[str, tuple[list[int], int, int, float]]
    spacing: float  # fs
    steps: int  # of 8 frames each
    picoseconds: float
    labels: int  # GFN2 single points along the dynamics


SIZES = {
    "tiny": Size({"training-data": ([1, 2], 1, 4, 0.0), "test-5": ([2], 1, 2, 0.0), "test-15": ([3], 1, 2, 0.0)}, 1.0, 4, 0.01, 2),
    "small": Size(
        {"training-data": ([1, 3, 4, 5], 4, 40, 200.0), "test-5": ([5], 2, 40, 200.0), "test-15": ([15], 1, 20, 150.0)},
        10.0, 2000, 10.0, 20,
    ),
}  # fmt: skip


class Experiment:
    """One family at one size, in the folder ``out``; ``result`` is written after each part."""

    def __init__(self, out: Path, family: str, size: str, workers: int) -> None:
        self.out, self.size, self.workers = out, SIZES[size], workers
        self.family = choose_families(family)[0]
        self.file = out / "polymers.json"
        out.mkdir(parents=True, exist_ok=True)
        begun = {"family": self.family.name, "size": size, "engine": "gfn2", "temperature": TEMPERATURE}
        self.result: dict[str, Any] = json.loads(self.file.read_text()) if self.file.is_file() else begun
        if {key: self.result[key] for key in begun} != begun:
            raise SystemExit(f"{self.file} is of another experiment; choose another OUT")

    def part(self, name: str) -> None:
        """Does one part, unless it is done."""
        if name in self.result:
            return
        began = time.process_time()
        others = {"training": self.train, "errors": self.errors, "dynamics": self.dynamics}
        done = self.sample(name) if name in self.size.data else others[name]()
        self.result[name] = {**done, "cpu_seconds": round(done.get("cpu_seconds", 0.0) + time.process_time() - began, 1)}
        self.file.with_suffix(".part").write_text(json.dumps(self.result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        self.file.with_suffix(".part").rename(self.file)
        print(name, json.dumps(self.result[name], ensure_ascii=False), flush=True)

    def store(self, name: str) -> Path:
        """Where a data set is."""
        return self.out / f"{name}.fw"

    def sample(self, name: str) -> dict[str, Any]:
        """Trajectories from loosely relaxed loops; the data sets differ in their seeds."""
        loops, starts, frames, equilibration = self.size.data[name]
        sampling = PolymerSampling(
            loops=loops, starts=starts, minima=False, dynamics={TEMPERATURE: frames}, spacing=self.size.spacing, equilibration=equilibration
        )
        polymers = polymers_of([open_ring(self.family.smiles)], sampling)
        jobs = [Job("polymer", arguments) for arguments in polymer_jobs(polymers, sampling, PARTS.index(name))]
        settings = campaign_settings(engine("gfn2"), "", "none")
        done = run(jobs, "forcewell.generate.polymers:polymer", self.store(name), settings, workers=self.workers)
        data = open_data(self.store(name))
        forces = np.asarray(data.block(np.arange(len(data))).arrays["forces"])
        atoms = sorted({one.atoms for one in polymers})
        scale = 1000 * float(np.abs(forces).mean())
        return {"frames": done.frames, "failed": done.failed, "atoms": atoms, "mean_force": scale, "cpu_seconds": done.cpu_seconds}

    def train(self) -> dict[str, Any]:
        """The packaged model fine-tuned on the small loops, and the same network from random weights."""
        for arm in ARMS:
            to = self.out / arm
            if (to / "done").is_file():
                continue
            changes = [f"data={self.store('training-data')}", f"training.steps={self.size.steps}", "validation.fraction=0.15"]
            resume = (to / "config.yaml").is_file()
            if arm == "scratch":
                pretrain(load_config("forces", [*changes, f"model.encoder={json.dumps(ENCODER)}"]), to, resume)
            else:
                finetune(load_config("forces", changes), arm, to, resume)
            (to / "done").touch()
        return {"steps": self.size.steps}

    def errors(self) -> dict[str, Any]:
        """Force errors (meV/Å, over components) on trajectories that no model was trained on."""
        found: dict[str, Any] = {}
        for arm in ARMS:
            model = load_model(self.out / arm / "model.safetensors")[0]
            found[arm] = {name: _errors(model, open_data(self.store(name))) for name in ("test-5", "test-15")}
        model = load_model("forcewell-small")[0]
        found["forcewell-small, not fine-tuned"] = {name: _errors(model, open_data(self.store(name))) for name in ("test-5", "test-15")}
        return found

    def dynamics(self) -> dict[str, Any]:
        """Langevin dynamics of the 15-loop with each model from a GFN2 frame; the error on frames of that dynamics."""
        start, maker = open_data(self.store("test-15"))[0], engine("gfn2")
        found: dict[str, Any] = {}
        for arm in ARMS:
            model, place = load_model(self.out / arm / "model.safetensors")[0], self.out / f"dynamics-{arm}"
            every = max(1, round(self.size.picoseconds * 2000 / self.size.labels))
            done = simulate(
                model, start, temperature=TEMPERATURE, time=self.size.picoseconds, out=place, record_every=every,
                resume=(place / "state.safetensors").is_file(),
            )  # fmt: skip
            keys = ("whole", "of", "stability_ps", "temperature_mean", "steps_per_second", "time_ps")
            found[arm] = {key: done.summary[key] for key in keys if key in done.summary}
            # The first frame is the start, which is a test frame already.
            frames = open_data(place / "replica-000.xyz")
            systems = [dataclasses.replace(frames[k], level="", properties={}) for k in range(1, len(frames))]
            labels = [labelled(_bare(system), maker) for system in systems]
            found[arm]["along_dynamics"] = _errors(model, MemoryData.from_systems(labels))
        return found


def _bare(system: System) -> System:
    """Without the model's own energies and forces."""
    arrays = {name: system.arrays[name] for name in ("numbers", "positions", "charge", "spin") if name in system.arrays}
    return dataclasses.replace(system, arrays=arrays)


def _errors(model: Any, data: Any) -> dict[str, Any]:
    found = evaluate(model, data)
    kept = {key: found[key] for key in ("force_mae", "force_rmse", "force_cosine", "energy_mae")}
    return {key: None if value is None else round(float(value), 4) for key, value in kept.items()} | {"frames": len(data)}


def main() -> None:
    """Parses the command line and does the parts one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--family", default="gamma-butyrolactone", help="of the package's 24")
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="in this order; each needs those before it")
    parser.add_argument("--workers", type=int, default=1, help="processes that sample")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    experiment = Experiment(given.out, given.family, given.size, given.workers)
    for name in given.parts:
        experiment.part(name)


if __name__ == "__main__":
    main()
