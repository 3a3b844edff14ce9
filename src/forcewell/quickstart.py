"""The main job on real data in minutes: pre-train, fine-tune, train from scratch, simulate, judge, report.

Pre-training uses all cores. Then two arms run side by side as processes of their own, each on half of them: the
pre-trained model fine-tuned, and the same model from random weights with the same budget. Small models scale badly
over threads (1.4 times on two), so two processes finish sooner than one after the other.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from forcewell import runs
from forcewell.checkpoint import load_model
from forcewell.config import RunConfig, load_config
from forcewell.display import CONSOLE, say
from forcewell.errors import InputError
from forcewell.files import write_bytes
from forcewell.process import end_with_parent, keep_memory
from forcewell.quickstart_report import ARMS, ROLES, Plan, results
from forcewell.report import write_report
from forcewell.training_data import bundled


def run(out: Path, plan: Plan | None = None) -> None:
    """Everything, into ``out``; started again after a kill it continues where it was.

    Leaves report.html, report.json, pretraining/, scratch/ and et-oreo/ (each with model.safetensors and its MD).
    Raises InputError where ``out`` holds a quickstart of another plan.
    """
    if (out / "report.html").is_file():
        say(f"{out / 'report.html'} is there already; delete {out} to run the quickstart anew")
        return
    began = time.monotonic()
    plan = plan or Plan(pretraining=_local(load_config("quickstart"), out), finetuning=_local(load_config("quickstart-finetune"), out))
    _claim(out, plan)
    say("1/4  importing the real data in the package")
    stores = {name: bundled(name, out / "data") for name in ROLES}
    say("2/4  pre-training on minima and off-equilibrium molecules (no ethanol)")
    _stage(out / "pretraining", lambda folder, resume: runs.pretrain(plan.pretraining, folder, resume))
    say("3/4  fine-tuning on ethanol and training from scratch, side by side; then molecular dynamics with both")
    _run_arms(out, plan)
    say("4/4  report")
    _report(out, plan, stores, time.monotonic() - began)


def _claim(out: Path, plan: Plan) -> None:
    file, text = out / "plan.json", plan.model_dump_json(indent=1)
    if file.is_file() and file.read_text(encoding="utf-8") != text:
        raise InputError(f"{out} holds a quickstart of another version or plan; delete it or use another --out")
    write_bytes(file, text.encode())


def _local(config: RunConfig, out: Path) -> RunConfig:
    """The recipe with its bundled data read from ``out/data``."""
    data = [entry.model_copy(update={"path": str(out / "data" / f"{entry.path.removeprefix('bundled:')}.fw")}) for entry in config.data]
    return config.model_copy(update={"data": data})


def _stage(folder: Path, start: Any) -> None:
    """Runs a stage, continuing it where it was begun; a stage killed before its first state starts again."""
    begun = (folder / "state").is_dir()
    if folder.exists() and not begun:
        shutil.rmtree(folder)
    start(folder, begun)


def arm(name: str, out: Path) -> None:
    """One arm: training, errors on the test frames, MD. Writes ``out/NAME/results.json``."""
    from forcewell.evaluate.errors import evaluate, thinned
    from forcewell.simulate import simulate
    from forcewell.store import Store

    keep_memory()
    folder = out / name
    plan = Plan.model_validate_json((out / "plan.json").read_text(encoding="utf-8"))
    config = plan.finetuning
    if name == "scratch":
        config = config.model_copy(update={"model": plan.pretraining.model})
        _stage(folder, lambda place, resume: runs.pretrain(config, place, resume))
    else:
        _stage(folder, lambda place, resume: runs.finetune(config, out / "pretraining" / runs.MODEL, place, resume))
    potential, description = load_model(folder / runs.MODEL)
    test = Store(out / "data" / "ethanol-test.fw")
    result = thinned(evaluate(potential, test))
    reference = test.block(np.arange(len(test)))
    common: dict[str, Any] = {"temperature": plan.temperature, "timestep": plan.timestep, "replicas": plan.replicas, "reference": reference}
    for ensemble, length, every in (("langevin", plan.langevin_ps, 20), ("nve", plan.nve_ps, 10)):
        place = folder / ensemble
        begun = (place / "state.safetensors").exists()
        if place.exists() and not begun:
            shutil.rmtree(place)  # killed before its first save
        start = reference.system(0)
        done = simulate(potential, start, time=length, ensemble=ensemble, record_every=every, out=place, resume=begun, **common)
        result[ensemble] = {
            "summary": done.summary,
            "observables": {key: np.asarray(value).tolist() for key, value in done.observables.items()},
        }
    result["training"] = description["training"]
    result["parameters"] = sum(p.numel() for p in potential.parameters())
    write_bytes(folder / "results.json", json.dumps(result).encode())


def _run_arms(out: Path, plan: Plan) -> None:
    """Both arms as processes, with a progress bar for each."""
    threads = max(1, len(os.sched_getaffinity(0)) // 2) if hasattr(os, "sched_getaffinity") else 1
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    waiting = {name: out / f"{name}.log" for name in ARMS if not (out / name / "results.json").is_file()}
    children = {}
    for name, log in waiting.items():
        with open(log, "wb") as file:
            command = [sys.executable, "-m", "forcewell.quickstart", name, str(out)]
            children[name] = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    try:
        failed = _watch(out, plan, children)
    finally:
        for child in children.values():
            child.terminate()
            child.wait()
    for name in failed:
        lines = waiting[name].read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise InputError(f"the arm {name!r} stopped: {lines[-1] if lines else 'no message'}; see {waiting[name]}")


def _watch(out: Path, plan: Plan, children: Mapping[str, subprocess.Popen[bytes]]) -> list[str]:
    """Shows how far the arms are until all have ended or one has failed; returns the names of those that failed."""
    columns = (
        TextColumn("{task.description:24s}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:3.0f} %  {task.fields[status]:44s}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    begun: dict[str, tuple[float, float]] = {}  # when and where each arm's MD was first seen
    told = time.monotonic()
    with Progress(*columns, console=CONSOLE, disable=not CONSOLE.is_terminal) as progress:
        tasks = {name: progress.add_task(ARMS[name], total=1.0, status="") for name in children}
        while any(child.poll() is None for child in children.values()) and not any(child.poll() for child in children.values()):
            for name, task in tasks.items():
                done, moved, status = _progress(out / name, plan)
                if moved:
                    since, first = begun.setdefault(name, (time.monotonic(), moved))
                    status += f", {(moved - first) / max(1e-9, time.monotonic() - since):.0f} steps/s"
                progress.update(task, completed=done, status=status)
                if not CONSOLE.is_terminal and time.monotonic() - told > 30:
                    say(f"{ARMS[name]}: {100 * done:.0f} %, {status}")
            told = time.monotonic() if time.monotonic() - told > 30 else told
            time.sleep(0.5)
    return [name for name, child in children.items() if child.poll()]


def _progress(folder: Path, plan: Plan) -> tuple[float, float, str]:
    """Fraction done of an arm, its MD steps and what it is at, from the logs it writes (training 60 %, MD the rest)."""
    steps = plan.finetuning.training.steps
    moves = (plan.langevin_ps + plan.nve_ps) * 1000 / plan.timestep
    trained, line = _last(folder / "log.jsonl")
    moved = _last(folder / "langevin" / "log.jsonl")[0] + _last(folder / "nve" / "log.jsonl")[0]
    if moved:
        return 0.6 + 0.4 * moved / moves, moved, f"MD, {moved:.0f} of {moves:.0f} steps"
    speed = f", {line['molecules_per_second']:.0f} molecules/s" if "molecules_per_second" in line else ""
    return 0.6 * trained / steps, 0.0, f"training, {trained:.0f} of {steps} steps{speed}"


def _last(log: Path) -> tuple[float, dict[str, Any]]:
    """Step and contents of the last complete line of a log."""
    if not log.is_file():
        return 0.0, {}
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - 8192))
        lines = file.read().split(b"\n")[:-1]
    for text in reversed(lines):
        try:
            line = json.loads(text)
        except ValueError:
            continue
        return float(line.get("step", 0)), line
    return 0.0, {}


def _report(out: Path, plan: Plan, stores: Mapping[str, Path], seconds: float) -> None:
    write_report(results(out, plan, stores, seconds), out)
    say(f"wrote {out / 'report.html'} and {out / 'report.json'} ({seconds / 60:.1f} minutes)")


if __name__ == "__main__":
    end_with_parent()
    try:
        arm(sys.argv[1], Path(sys.argv[2]))
    except InputError as error:
        sys.exit(f"error: {error}")
