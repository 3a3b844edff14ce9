"""Does the unified objective help, and in which form? Pre-training, fine-tuning to convergence and MD, arm by arm.

Usage: .venv/bin/python benchmarks/evidence.py DATA OUT [--size small] [--arms scratch et-ore ...] [--seeds 0] [--stability]
       .venv/bin/python benchmarks/evidence.py DATA OUT --table

DATA is made by benchmarks/evidence_data.py from two downloads: minima of QM9 without fluorine, conformations of QM7-X, SPICE and S66x8,
and revised MD17. Every part is resumable; what is finished is not done again. One arm takes half an hour to one and a half on one core;
give two processes different arms to use two. Results: OUT/results/ARM-SEED.json.

An arm is a pre-training of a small Equivariant Transformer (64 channels, 3 layers), then, for each benchmark molecule and number of
frames, a fine-tuning on forces with a learning rate chosen by validation frames, and the errors on the 1,000 test frames of the
official split. Compute-matched: each pre-training evaluates as many conformations, displaced copies counted.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from forcewell.checkpoint import load_model
from forcewell.config import load_config
from forcewell.errors import InputError
from forcewell.evaluate.errors import evaluate
from forcewell.importing import import_source
from forcewell.objectives import PRESETS
from forcewell.process import keep_memory
from forcewell.runs import finetune, pretrain
from forcewell.simulate import simulate
from forcewell.split import by_time_block
from forcewell.store import open_data
from forcewell.system import System


@dataclass(frozen=True)
class Size:
    """A model and how long it is trained and simulated."""

    encoder: dict[str, Any]
    evaluations: int  # conformations evaluated in a pre-training, displaced copies counted
    batch: int  # of pre-training
    steps: int  # of fine-tuning, 8 frames each
    picoseconds: float
    replicas: int = 16
    molecules: tuple[str, ...] = ("ethanol", "aspirin")
    rate: float = 2e-3  # of pre-training


NAME = "equivariant-transformer"
SIZES = {
    "tiny": Size({"name": NAME, "channels": 32, "layers": 1, "heads": 2, "radial": 16}, 96, 4, 4, 0.01, 2),
    "small": Size({"name": NAME, "channels": 64, "layers": 3, "heads": 4, "radial": 32}, 160_000, 16, 6000, 20.0),
    # 20 minutes of pre-training and as much of fine-tuning per molecule on one H200, at the 2,000 conformations/s that PyTorch is
    # estimated to reach there.
    "full": Size(
        {"name": NAME, "channels": 256, "layers": 8, "heads": 8, "radial": 64}, 2_400_000, 128, 60_000, 100.0,
        molecules=("ethanol", "aspirin", "naphthalene", "salicylic"),
    ),
}  # fmt: skip
LABELLED = {"qm7x": 7.0, "spice": 2.0, "s66x8": 1.0}
RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
RELATIVES = ("azobenzene", "benzene", "paracetamol", "toluene")
ZERO = {"forces": {}, "zero-force": {}}


def denoising(sigma: float, kappa: float, weight: float = 1.0, **form: Any) -> dict[str, Any]:
    """The unified objective with this form of force denoising."""
    return {**ZERO, "force-denoising": {"sigma": sigma, "kappa": kappa, "weight": weight, **form}}


TOKEN = denoising(0.05, 10.0, 2.0, conditioned=True)

# Objectives, share of samples that are minima, share of the evaluations, what else is labelled: "relatives" of rMD17; or instead
# "corpus", or of what there is SPICE's 464 conformations alone, "scarce"
Arm = tuple[str | dict[str, Any] | None, float, float, str]
ARMS: dict[str, Arm] = {
    "scratch": (None, 0.0, 0.0, ""),
    "et-ore": ({"forces": {}}, 0.0, 1.0, ""),
    "et-ore-label-matched": ({"forces": {}}, 0.0, 1 / 3, ""),
    "et-oreo-faithful": (denoising(0.2, 1.0), 0.5, 1.0, ""),
    "et-oreo-faithful-0.04": (denoising(0.04, 1.0), 0.5, 1.0, ""),
    "token-0.05-10": (TOKEN, 0.5, 1.0, ""),
    "token-0.2-5": (denoising(0.2, 5.0, 1.0, conditioned=True), 0.5, 1.0, ""),
    "token-0.05-10-few": (TOKEN, 0.2, 1.0, ""),
    "kappa-30": (denoising(0.03, 30.0, 1.0), 0.5, 1.0, ""),
    "zero-force": (ZERO, 0.5, 1.0, ""),
    "denoising-only": ({"force-denoising": {"sigma": 0.05, "kappa": 10.0, "weight": 2.0}}, 1.0, 1.0, ""),
    "et-ore-relatives": ({"forces": {}}, 0.0, 1.0, "relatives"),
    "et-ore-long": ({"forces": {}}, 0.0, 3.0, ""),
    "token-0.05-10-long": (TOKEN, 0.5, 3.0, ""),  # as many labelled samples as et-ore
    "token-annealed": (denoising(0.05, 10.0, 2.0, conditioned=True, until=0.7), 0.5, 1.0, ""),
    "own-head": (denoising(0.05, 10.0, 2.0, own_head=True), 0.5, 1.0, ""),
    "harmonic": (denoising(0.05, 1.0, 0.5, target="harmonic"), 0.5, 1.0, ""),
    "modes": (denoising(0.1, 1.0, 1.0, target="harmonic", temperature=300.0), 0.5, 1.0, ""),
    "instead": ({"forces": {}, "force-denoising": {**TOKEN["force-denoising"], "place": "instead"}}, 0.2, 1.0, ""),
    "token-0.05-10-relatives": (TOKEN, 0.5, 1.0, "relatives"),
    "corpus": ({"forces": {}}, 0.0, 1.0, "corpus"),
    "corpus-token": (TOKEN, 0.3, 1.0, "corpus"),
    "corpus-long": ({"forces": {}}, 0.0, 3.0, "corpus"),
    "corpus-token-long": (TOKEN, 0.3, 3.0, "corpus"),
    "et-ore-scarce": ({"forces": {}}, 0.0, 1.0, "scarce"),
    "token-scarce": (TOKEN, 0.5, 1.0, "scarce"),
}


def stores(data: Path, out: Path) -> dict[str, str]:
    """Imports what the pre-trainings need, once; benchmark molecules are left out by bond graph."""
    files = {"qm9": ("qm9", "qm9/qm9_equilibrium.npz"), "qm7x": ("qm7x", "qm7x/qm7x_hand.npz"), "s66x8": ("s66x8", "s66x8/s66x8.npz")}
    paths = {"spice": str(data / "spice/spice_replay500.npz")} | {m: str(data / f"rmd17/{m}_4895.npz") for m in RELATIVES}
    for name, (source, file) in files.items():
        store = out / "data" / f"{name}.fw"
        if not (store / "manifest.json").is_file():
            import_source(source, [data / file], store, exclude="benchmark")
        paths[name] = str(store)
    return paths


def pretraining(described: Arm, seed: int, size: Size, paths: dict[str, str], place: Path) -> Path:
    """The arm's pre-trained model, trained where it is not there yet."""
    objectives, minima, share, more = described
    labelled = {
        "": LABELLED,
        "relatives": LABELLED | dict.fromkeys(RELATIVES, 2.5),
        "corpus": {"corpus": 1.0},
        "scarce": {"spice": 1.0},
    }[more]
    total = sum(labelled.values())
    entries: list[dict[str, Any]] = []
    if minima < 1:
        entries = [{"path": paths[name], "weight": (1 - minima) * weight / total} for name, weight in labelled.items()]
        entries = [entry | ({"level": "wB97M-D3(BJ)/def2-TZVPPD"} if entry["path"] == paths["spice"] else {}) for entry in entries]
    for entry in entries:
        if entry["path"] in (paths[name] for name in RELATIVES if name in labelled):  # one molecule has no other to validate on
            entry["split"] = str(place.parent / "data" / f"{Path(entry['path']).stem}-split.json")
            by_time_block(open_data(Path(entry["path"])), (0.95, 0.05), blocks=20).save(Path(entry["split"]))
    if minima > 0:
        entries.append({"path": paths["qm9"], "weight": minima})
    terms = PRESETS[objectives] if isinstance(objectives, str) else objectives or {}
    copies = minima if "force-denoising" in terms else 0.0
    steps = max(1, round(size.evaluations * share / size.batch / (1 + copies)))
    changes = [
        f"seed={seed}", f"model.encoder={json.dumps(size.encoder)}", f"objectives={json.dumps(objectives)}", f"data={json.dumps(entries)}",
        f"training.steps={steps}", f"training.batch_size={size.batch}", "training.validate_every=1000", "training.save_every=500",
        "validation.maximum=200", f"optimiser.learning_rate={size.rate}", "optimiser.warmup_steps=200", "optimiser.average=0.999",
    ]  # fmt: skip
    return train_or_resume(pretrain, load_config("quickstart", changes), place / "pretraining")


def train_or_resume(train: Any, config: Any, to: Path) -> Path:
    """Trains, or goes on where it was stopped, or does nothing where it is done."""
    if (to / "done").is_file():
        return to / "model.safetensors"
    model = train(config, to, (to / "config.yaml").is_file())
    (to / "done").touch()
    return model


def frames(data: Path, out: Path, molecule: str, count: int) -> tuple[Path, Path]:
    """Files of ``count`` training frames and of the 50 validation frames, from the 1,000 of the official split's training part."""
    with np.load(data / f"rmd17/rmd17_{molecule}_train_01.npz") as whole:
        arrays = dict(whole)
    order = np.random.default_rng(0).permutation(1000)
    made = []
    for name, rows in ((f"{molecule}-{count}.npz", order[50 : 50 + count]), (f"{molecule}-validation.npz", order[:50])):
        path = out / "data" / name
        if not path.is_file():
            per_frame = {key: value[rows] if len(value) == 1000 else value for key, value in arrays.items()}
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path.with_suffix(".part.npz"), **per_frame)
            path.with_suffix(".part.npz").rename(path)
        made.append(path)
    return made[0], made[1]


def finetuning(
    model: Path | None, size: Size, data: Path, out: Path, place: Path, molecule: str, count: int, rate: float, seed: int,
    labels: str = "forces",
) -> dict[str, Any]:  # fmt: skip
    """Trains on forces (or energies) to convergence and gives the errors on the test frames, with the validation curve."""
    steps = size.steps
    training, validation = frames(data, out, molecule, count)
    changes = [
        f"seed={seed}", f"data={training}", f"validation.path={validation}", f"optimiser.learning_rate={rate}", f"training.steps={steps}",
        "hardware.compile=always",  # where there are no kernels; after the first of many alike it takes seconds
    ]  # fmt: skip
    to = place / f"{molecule}-{count}-{rate:g}-{steps}"
    if labels == "energies":
        changes.append("objectives={energy: {}}")
        to = to.with_name(f"{to.name}-energies")
    judged = "energy_mae" if labels == "energies" else "force_mae"
    began = time.perf_counter()
    if model is None:
        config = load_config("forces", [*changes, f"model.encoder={json.dumps(size.encoder)}"])
        trained = train_or_resume(pretrain, config, to)
    else:
        trained = train_or_resume(lambda c, t, r: finetune(c, model, t, r), load_config("forces", changes), to)
    lines = [json.loads(line) for line in (to / "log.jsonl").read_text().splitlines()]
    curve = [(line["step"], round(line[judged], 2)) for line in lines if line["kind"] == "validation"]
    errors = evaluate(load_model(trained)[0], open_data(data / f"rmd17/rmd17_{molecule}_test_01.npz"))
    return {
        "molecule": molecule, "frames": count, "rate": rate, "steps": steps, "seed": seed, "labels": labels,
        "validation": min(mae for _, mae in curve), "force_mae": errors["force_mae"], "energy_mae": errors["energy_mae"],
        "curve": curve[:: max(1, len(curve) // 12)], "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip


def stability(size: Size, data: Path, place: Path, row: dict[str, Any]) -> dict[str, Any]:
    """Langevin MD at 500 K from the first test frame: how many replicas stay whole, how long, and h(r)."""
    molecule = row["molecule"]
    model = load_model(place / f"{molecule}-{row['frames']}-{row['rate']:g}-{row['steps']}" / "model.safetensors")[0]
    test = open_data(data / f"rmd17/rmd17_{molecule}_test_01.npz")
    start: System = test[0]
    to = place / f"md-{molecule}-{row['frames']}"
    result = simulate(
        model, start, temperature=500.0, time=size.picoseconds, ensemble="langevin", replicas=size.replicas, relaxation=1000.0, out=to,
        reference=test.block(np.arange(len(test))), resume=to.exists(),
    )  # fmt: skip
    keys = ("whole", "of", "stability_ps", "distances_mae", "distances_floor", "temperature_mean", "steps_per_second", "time_ps")
    return {key: result.summary[key] for key in keys if key in result.summary}


def best_rate(error: Callable[[float], float], first: float, highest: float = RATES[-1]) -> float:
    """The learning rate of the least validation error, climbing from ``first`` both ways until it gets no better."""
    rates = [rate for rate in RATES if rate <= highest]
    best = rates.index(min(first, rates[-1]))
    for direction in (1, -1):
        while 0 <= best + direction < len(rates) and error(rates[best + direction]) < error(rates[best]):
            best += direction
    return rates[best]


def run_arm(arm: str, described: Arm, seed: int, size: Size, given: argparse.Namespace, labels: str = "forces") -> None:
    """Everything of one arm, written to its result file as it comes. labels: what is fine-tuned on, forces or energies."""
    out, place = given.out, given.out / f"{arm}-{seed}"
    file = out / "results" / f"{arm}-{seed}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {"arm": arm, "seed": seed, "rows": []}

    def save() -> None:
        file.with_suffix(".part").write_text(json.dumps(result, indent=1) + "\n")
        file.with_suffix(".part").rename(file)

    model = None
    if described[0] is not None:
        began = time.perf_counter()
        model = pretraining(described, seed, size, stores(given.data, out) | {"corpus": str(given.corpus)}, place)
        if "pretraining" not in result:
            lines = [json.loads(line) for line in (model.parent / "log.jsonl").read_text().splitlines()]
            last = [line for line in lines if line["kind"] == "validation"][-1]
            result["pretraining"] = {"steps": last["step"], "terms": last["terms"], "force_mae": last.get("force_mae")}
            result["pretraining"]["seconds"] = round(time.perf_counter() - began, 1)
            save()

    def tune(molecule: str, count: int, rate: float) -> dict[str, Any]:
        wanted = {"molecule": molecule, "frames": count, "rate": rate, "steps": size.steps, "labels": labels}
        if wanted in result.get("diverged", []):
            return {"validation": float("inf")}
        for row in result["rows"]:
            if {"labels": "forces"} | {key: row[key] for key in wanted if key in row} == wanted:
                return row
        try:
            result["rows"].append(finetuning(model, size, given.data, out, place, molecule, count, rate, seed, labels))
        except InputError as error:
            if "the loss is not finite" not in str(error):
                raise
            result.setdefault("diverged", []).append(wanted)  # a learning rate too high
        save()
        return tune(molecule, count, rate)

    first = out / "results" / f"{arm}-0.json"
    known = json.loads(first.read_text()) if given.rates_of_first and seed != 0 and first.is_file() else {"rows": []}
    for molecule in given.molecules or size.molecules:
        best = 2e-3
        for count in given.frames:
            if chosen := best_row(known, molecule, count, size.steps, labels):
                best = chosen["rate"]
            else:
                # Begun at the rate chosen for another molecule or number of frames, a search takes two or three runs instead of four.
                places = [(other, count) for other in SIZES["full"].molecules] + [(molecule, other) for other in (950, 300, 100)]
                others = (best_row(result, *place, size.steps, labels) for place in places if place != (molecule, count))
                best = next((row["rate"] for row in others if row), best)
                best = best_rate(
                    lambda rate, molecule=molecule, count=count: tune(molecule, count, rate)["validation"], best, given.highest_rate
                )
            row = tune(molecule, count, best)
            if given.stability and count in (100, 950) and "md" not in row:
                row["md"] = stability(size, given.data, place, row)
                save()


def table(out: Path) -> None:
    """Test errors of all arms, the best learning rate of each by validation; fine-tunings of other lengths in lines of their own."""
    for file in sorted((out / "results").glob("*.json")):
        result = json.loads(file.read_text())
        for steps in sorted({row["steps"] for row in result["rows"]}):
            cells = []
            for molecule in SIZES["full"].molecules:
                for count in (50, 100, 300, 950):
                    row = best_row(result, molecule, count, steps)
                    cells.append(f"{row['force_mae']:6.1f}" if row else "     -")
            print(f"{result['arm']:26s} {result['seed']} {steps:6d} steps  " + " ".join(cells))


def best_row(result: dict[str, Any], molecule: str, count: int, steps: int, labels: str = "forces") -> dict[str, Any] | None:
    """The fine-tuning on these labels that validation prefers."""
    wanted = (molecule, count, steps, labels)
    rows = [row for row in result["rows"] if (row["molecule"], row["frames"], row["steps"], row.get("labels", "forces")) == wanted]
    return min(rows, key=lambda row: row["validation"], default=None)


def main() -> None:
    """Parses the command line and runs the arms one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--molecules", nargs="+", help="of rMD17; those of the size by default")
    parser.add_argument("--frames", nargs="+", type=int, default=[100, 950, 50, 300], help="of training")
    parser.add_argument("--steps", type=int, help="of fine-tuning, other than the size's: are the runs converged?")
    parser.add_argument("--highest-rate", type=float, choices=RATES, default=RATES[-1], help="that a search of the learning rate tries")
    parser.add_argument("--corpus", default="bundled:corpus", help="the store that `forcewell generate` makes, for the arms named after it")
    parser.add_argument("--stability", action="store_true", help="MD with the models of 100 and 950 frames")
    parser.add_argument("--rates-of-first", action="store_true", help="other seeds take the learning rates that seed 0's validation chose")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    torch.set_flush_denormal(True)  # a network that a high learning rate has killed computes with them, four times as slowly
    if given.table:
        return table(given.out)
    size = dataclasses.replace(SIZES[given.size], steps=given.steps or SIZES[given.size].steps)
    for seed in given.seeds:
        for arm in given.arms:
            try:
                run_arm(arm, ARMS[arm], seed, size, given)
            except InputError as error:
                raise SystemExit(f"{arm}: {error}") from None


if __name__ == "__main__":
    main()
