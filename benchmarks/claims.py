"""Do the published claims hold at a small, equal budget? Encoders x objectives, noise scales, data efficiency, several molecules at once.

Usage: .venv/bin/python benchmarks/claims.py DATA OUT [--groups encoders ...] [--seeds 0 1] [--molecules ethanol aspirin]
       .venv/bin/python benchmarks/claims.py DATA OUT --plan | --table

DATA and how an arm runs are those of benchmarks/evidence.py: pre-training on multi-molecule data without the benchmark molecules, then
fine-tuning on frames of revised MD17 with a learning rate chosen by validation frames, errors on the 1,000 test frames of the official
split. Here every pre-training evaluates 100,000 conformations (displaced copies counted) and every fine-tuning takes 4,000 steps of 8.
Resumable; what is finished is not done again. Results: OUT/results/ENCODER-OBJECTIVE-SEED.json. One arm of ethanol on one core of a busy
machine: 5 to 12 minutes with the Equivariant Transformer and its compiled kernels, 8 to 18 with SchNet, 16 to 26 with EGNN, and,
estimated from single steps, half an hour with GemNet-T at half the budget.

Published claims, and where their figures come from: denoising lowers every encoder's energy error by 20-30 % (Wang et al.: encoders and
energies), σ = 0.2 Å is best and 1 Å harms (noise-scale), the gain is largest with few data (data-efficiency), the force norm helps
(Gao et al.: force-norm against energy), energies beside forces do not help over several molecules (ET-OREO: several).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evidence import RATES, Arm, Size, best_rate, frames, run_arm, train_or_resume

from forcewell.checkpoint import load_model
from forcewell.config import load_config
from forcewell.errors import InputError
from forcewell.evaluate.errors import evaluate
from forcewell.objectives import PRESETS
from forcewell.process import keep_memory
from forcewell.runs import pretrain
from forcewell.store import open_data

EVALUATIONS, STEPS = 100_000, 4_000
ENCODERS: dict[str, dict[str, Any]] = {
    "et": {"name": "equivariant-transformer", "channels": 64, "layers": 3, "heads": 4, "radial": 32},
    "egnn": {"name": "egnn", "channels": 64, "layers": 3},
    "schnet": {"name": "schnet", "channels": 64, "filters": 64, "layers": 3, "radial": 32},
    "gemnet-t": {"name": "gemnet-t", "channels": 32, "layers": 2},
    "se3-transformer": {"name": "se3-transformer", "channels": 32, "layers": 2, "degrees": 2},
}
SLOW = 0.5  # share of the budget of the last two, scratch included, so that an arm ends within an hour there, too


def wang(sigma: float) -> dict[str, Any]:
    """Wang et al.'s coordinate denoising at another noise."""
    return {"coordinate-denoising": {**PRESETS["wang"]["coordinate-denoising"], "sigma": sigma}}


# As in evidence.py: objectives, share of samples that are minima, share of the evaluations, more data.
OBJECTIVES: dict[str, Arm] = {
    "scratch": (None, 0.0, 0.0, ""),
    "forces": ("et-ore", 0.0, 1.0, ""),
    "unified": ("et-oreo", 0.5, 1.0, ""),
    "wang": ("wang", 0.5, 1.0, ""),
    "force-norm": ("gao", 0.5, 1.0, ""),
    "energy": ("gao-energy", 0.0, 1.0, ""),
    "joint": ("joint", 0.0, 1.0, ""),
    "noisynode": ("noisynode", 1.0, 1.0, ""),
    "frad": ("frad", 1.0, 1.0, ""),
    "dens": (load_config("dens-md17-small").objectives, 0.0, 1.0, ""),
}
SIGMAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
FEW = (48, 190, 475, 950)  # 5, 20, 50 and 100 % of 950 frames


@dataclasses.dataclass(frozen=True)
class Work:
    """One arm of one group: what run_arm needs, and on how many frames it is fine-tuned."""

    encoder: str
    name: str
    arm: Arm
    frames: tuple[int, ...] = (100, 950)
    labels: str = "forces"


def works(group: str) -> Iterator[Work]:
    """The arms of a group, those that others are compared with first."""
    trio = ("et", "egnn", "schnet")
    if group == "encoders":
        for objective in ("scratch", "wang", "forces", "unified", "force-norm"):
            yield from (Work(encoder, objective, OBJECTIVES[objective]) for encoder in trio)
    elif group == "energies":
        for objective in ("scratch", "wang"):
            yield from (Work(encoder, objective, OBJECTIVES[objective], labels="energies") for encoder in trio)
    elif group == "objectives":
        yield from (Work("et", objective, OBJECTIVES[objective]) for objective in ("energy", "joint", "dens", "noisynode", "frad"))
    elif group == "noise-scale":
        yield from (Work("et", "wang" if s == 0.2 else f"wang-{s}", (wang(s), 0.5, 1.0, "")) for s in SIGMAS)
    elif group == "data-efficiency":
        yield from (Work("et", objective, OBJECTIVES[objective], (100, *FEW)) for objective in ("scratch", "wang"))
    elif group == "more-encoders":
        for encoder in ("gemnet-t", "se3-transformer"):
            yield from (Work(encoder, objective, OBJECTIVES[objective]) for objective in ("scratch", "wang", "forces"))


GROUPS = ("encoders", "noise-scale", "data-efficiency", "objectives", "several", "energies", "more-encoders")


def size_of(encoder: str, tiny: bool) -> Size:
    """The budget, one for all arms of an encoder."""
    share = SLOW if encoder in ("gemnet-t", "se3-transformer") else 1.0
    if tiny:
        small = {"channels": 16, "layers": 1} | ({"degrees": 2, "divisor": 2, "heads": 2} if encoder == "se3-transformer" else {})
        return Size(ENCODERS[encoder] | small, 48, 4, 4, 0.0)
    return Size(ENCODERS[encoder], round(EVALUATIONS * share), 16, round(STEPS * share), 0.0, rate=1e-3)


MOLECULES = ("ethanol", "aspirin", "naphthalene", "salicylic")


def several(objectives: str, seed: int, size: Size, given: argparse.Namespace) -> None:
    """From scratch on 300 frames of each of four molecules at once, then the errors on the test frames of each."""
    file = given.out / "results" / f"several-{objectives}-{seed}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    entries = [{"path": str(frames(given.data, given.out, molecule, 300)[0])} for molecule in MOLECULES]
    result: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {"arm": f"several-{objectives}", "seed": seed, "rows": []}

    def validation(rate: float) -> float:
        known = next((row for row in result["rows"] if row["rate"] == rate), None)
        if known is None:
            changes = [
                f"seed={seed}", f"model.encoder={json.dumps(size.encoder)}", f"objectives={objectives}", f"data={json.dumps(entries)}",
                "validation.fraction=0.1", f"optimiser.learning_rate={rate}", f"training.steps={2 * size.steps}",
            ]  # fmt: skip
            to = given.out / f"several-{objectives}-{seed}" / f"{rate:g}"
            model = load_model(train_or_resume(pretrain, load_config("forces", changes), to))[0]
            lines = [json.loads(line) for line in (to / "log.jsonl").read_text().splitlines()]
            known = {"rate": rate, "validation": min(line["force_mae"] for line in lines if line["kind"] == "validation")}
            for molecule in MOLECULES:
                errors = evaluate(model, open_data(given.data / f"rmd17/rmd17_{molecule}_test_01.npz"))
                known[molecule] = {"force_mae": errors["force_mae"], "energy_mae": errors["energy_mae"]}
            result["rows"].append(known)
            file.with_suffix(".part").write_text(json.dumps(result, indent=1) + "\n")
            file.with_suffix(".part").rename(file)
        return known["validation"]

    best_rate(validation, 2e-3)


Errors = dict[tuple[str, int, str], list[float]]  # by molecule, frames and labels: one for each seed, in meV/Å or meV


def read(out: Path) -> dict[str, Errors]:
    """Test errors of each arm, of the learning rate with the least validation error."""
    found: dict[str, Errors] = {}
    for file in sorted((out / "results").glob("*.json")):
        result = json.loads(file.read_text())
        if result["arm"].startswith("several-"):
            best = min(result["rows"], key=lambda row: row["validation"])
            rows = [(m, 300, kind, best[m][f"{key}_mae"]) for m in MOLECULES for kind, key in (("forces", "force"), ("energies", "energy"))]
        else:
            keys = {(row["molecule"], row["frames"], row["labels"]) for row in result["rows"]}
            rows = []
            for key in sorted(keys):
                best = min((row for row in result["rows"] if (row["molecule"], row["frames"], row["labels"]) == key), key=_validation)
                rows.append((*key, best["energy_mae" if key[2] == "energies" else "force_mae"]))
        for molecule, count, labels, error in rows:
            found.setdefault(result["arm"], {}).setdefault((molecule, count, labels), []).append(error)
    return found


def _validation(row: dict[str, Any]) -> float:
    return row["validation"]


def table(out: Path) -> None:
    """Test errors in meV/Å (or meV), averaged over seeds with their range, and against the same encoder from scratch."""
    found = read(out)
    for arm, errors in found.items():
        encoder = next((name for name in ENCODERS if arm.startswith(f"{name}-")), "several-et-ore")
        base = found.get("several-et-ore" if encoder == "several-et-ore" else f"{encoder}-scratch", {})
        for key, values in sorted(errors.items()):
            versus = f"{100 * (np.mean(values) / np.mean(base[key]) - 1):+6.1f} %" if key in base else "       "
            spread = f"{min(values):.1f} to {max(values):.1f}, {len(values)} seeds" if len(values) > 1 else "one seed"
            print(f"{arm:28s} {key[0]:12s} {key[1]:4d} frames, {key[2]:8s} {np.mean(values):7.1f} ({spread})  {versus}")


def plan(given: argparse.Namespace) -> None:
    """What would be done, with the steps that it takes (at least: a learning rate at an end of its range asks for one more)."""
    for group in given.groups:
        for work in works(group):
            size = size_of(work.encoder, given.size == "tiny")
            steps = 0 if work.arm[0] is None else size.evaluations // size.batch
            print(f"{group:16s} {work.encoder}-{work.name}: {steps} + {(2 + len(work.frames)) * size.steps} steps, {work.labels}")


def main() -> None:
    """Parses the command line and runs the arms one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--encoders", nargs="+", choices=list(ENCODERS), default=list(ENCODERS), help="only these of a group")
    parser.add_argument("--objectives", nargs="+", metavar="NAME", help="only these of a group, such as wang-1.0")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--size", choices=("tiny", "small"), default="small")
    parser.add_argument("--molecules", nargs="+", default=["ethanol"], help="of rMD17")
    parser.add_argument("--rates-of-first", action="store_true", help="other seeds take the learning rates that seed 0's validation chose")
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    given.stability, given.corpus = False, None
    torch.set_num_threads(1)
    keep_memory()
    torch.set_flush_denormal(True)  # a network that a high learning rate has killed computes with them, four times as slowly
    if given.table or given.plan:
        return table(given.out) if given.table else plan(given)
    runs: list[tuple[str, Callable[[], None]]] = []
    for seed in given.seeds:
        for group in given.groups:
            for work in works(group):
                if work.encoder in given.encoders and work.name in (given.objectives or [work.name]):
                    runs.append((f"{work.encoder}-{work.name}", _arm(work, seed, given)))
            if group == "several" and "et" in given.encoders:
                size = size_of("et", given.size == "tiny")
                runs += [
                    (f"several-{name}", lambda name=name, seed=seed, size=size: several(name, seed, size, given))
                    for name in ("et-ore", "joint")
                ]
    for name, run in runs:
        try:
            run()
        except InputError as error:
            raise SystemExit(f"{name}: {error}") from None
    return None


def _arm(work: Work, seed: int, given: argparse.Namespace) -> Callable[[], None]:
    mine = argparse.Namespace(**{**vars(given), "frames": list(work.frames), "highest_rate": RATES[-1]})
    return lambda: run_arm(f"{work.encoder}-{work.name}", work.arm, seed, size_of(work.encoder, given.size == "tiny"), mine, work.labels)


if __name__ == "__main__":
    main()
