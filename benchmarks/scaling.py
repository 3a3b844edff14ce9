"""Time and memory against atoms, replicas, batch size and threads, as numbers and as plots.

    .venv/bin/python benchmarks/scaling.py [--model forcewell-small] [--out docs/scaling] [--largest 20000] [--only atoms threads]

Each point is a process of its own, so that its peak memory is its own, and is kept in OUT/scaling.json at once: the same command goes
on where it was stopped. Least of three rounds: CPU time, and for several threads wall time, which wants a quiet machine. With the
packaged model three minutes on two quiet cores with AVX-512, 20 on busy ones with AVX2. Plots: OUT/atoms.svg, replicas.svg,
batch.svg, threads.svg.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ATOMS = (9, 36, 144, 576, 2304, 9216, 20000)
REPLICAS = (1, 4, 16, 64, 256, 1024, 4096)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
THREADED = ((1, 64), (64, 1))  # ethanols in one system, replicas


def points(largest: int) -> dict[str, list[dict[str, Any]]]:
    """What is measured: kind of plot -> settings of each point."""
    return {
        "atoms": [{"copies": round(n / 9), "replicas": 1} for n in ATOMS if n <= largest],
        "replicas": [{"copies": 1, "replicas": n} for n in REPLICAS if 9 * n <= 2 * largest],
        "batch": [{"copies": 1, "replicas": n, "train": True} for n in BATCHES],
        "threads": [{"copies": copies, "replicas": replicas, "threads": t} for copies, replicas in THREADED for t in (1, 2)],
    }


def point(model: str, copies: int, replicas: int, train: bool = False, threads: int = 1) -> dict[str, float]:
    """Milliseconds of a step (of dynamics, or of training) and peak memory in MB above that of the loaded program."""
    import torch

    from forcewell import bench
    from forcewell.batch import Batch
    from forcewell.checkpoint import load
    from forcewell.process import keep_memory

    keep_memory()
    torch.set_num_threads(threads)
    potential, device = load(model), torch.device("cpu")
    batch = Batch.from_systems([bench.ethanols(copies)] * replicas)
    bench.forget_peak(device)
    before, steps = bench.peak_memory(device), 1 if train else bench.CALL
    step: Callable[[], None] = bench._training(potential, batch) if train else bench._moving(potential.requires_grad_(False), batch)
    step()
    clock, best = (time.process_time if threads == 1 else time.perf_counter), float("inf")
    for _ in range(3):
        began, calls = clock(), 0
        while calls == 0 or clock() - began < 0.3:
            step()
            calls += 1
        best = min(best, (clock() - began) / calls / steps * 1e3)
    return {"ms": best, "memory_mb": bench.peak_memory(device) - before}


def plot(kind: str, rows: list[dict[str, Any]], path: Path) -> None:
    """Time and memory on logarithmic scales."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "forcewell"  # the same file for the same numbers
    import matplotlib.pyplot as plt

    label = {"atoms": "atoms", "replicas": "replicas of ethanol", "batch": "ethanols in a training step"}[kind]
    x = [9 * row["copies"] if kind == "atoms" else row["replicas"] for row in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.8), layout="constrained")
    for axes, key, name in ((left, "ms", "ms per step"), (right, "memory_mb", "peak memory, MB")):
        axes.loglog(x, [max(row[key], 0.1) for row in rows], "o-", color="#1f5fa8", markersize=4)
        axes.set(xlabel=label, ylabel=name)
        axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def plot_threads(kind: str, rows: list[dict[str, Any]], path: Path) -> None:
    """Times as fast as with one thread."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "forcewell"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(3.5, 2.8), layout="constrained")
    most = max(row[kind] for row in rows)
    axes.plot([1, most], [1, most], ":", color="grey", label="ideal")
    for (copies, replicas), colour in zip(THREADED, ("#1f5fa8", "#a8431f"), strict=True):
        mine = sorted((row[kind], row["ms"]) for row in rows if (row["copies"], row["replicas"]) == (copies, replicas))
        label = f"{replicas} replicas of ethanol" if copies == 1 else f"one system of {9 * copies} atoms"
        axes.plot([count for count, _ in mine], [mine[0][1] / ms for _, ms in mine], "o-", color=colour, markersize=4, label=label)
    axes.set(xlabel="threads", ylabel="times as fast", xticks=range(1, most + 1))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Measures what is missing, then draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="forcewell-small")
    parser.add_argument("--out", type=Path, default=Path("docs/scaling"))
    parser.add_argument("--largest", type=int, default=20_000, help="most atoms in one system")
    parser.add_argument("--only", nargs="+", default=["atoms", "replicas", "batch", "threads"])
    parser.add_argument("--point", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.point:
        print("RESULT " + json.dumps(point(given.model, **json.loads(given.point))))
        return
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / "scaling.json"
    rows: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []
    for kind, settings in points(given.largest).items():
        for wanted in settings if kind in given.only else []:
            if any(row["kind"] == kind and row["model"] == given.model and wanted.items() <= row.items() for row in rows):
                continue
            words = [sys.executable, __file__, "--model", given.model, "--point", json.dumps(wanted)]
            variables = {**os.environ, "OMP_NUM_THREADS": str(wanted.get("threads", 1))}
            done = subprocess.run(words, capture_output=True, text=True, env=variables)
            if done.returncode:
                raise SystemExit(f"{kind} {wanted}: {done.stderr.strip().splitlines()[-1]}")
            result = json.loads(done.stdout.split("RESULT ")[1])
            rows.append({"kind": kind, "model": given.model, **wanted, **result})
            print(f"{kind:9s} {wanted}  {result['ms']:10.2f} ms  {result['memory_mb']:8.0f} MB", flush=True)
            file.write_text(json.dumps(rows, indent=1) + "\n")
        mine = [row for row in rows if row["kind"] == kind and row["model"] == given.model]
        if mine:
            draw = plot_threads if kind == "threads" else plot
            draw(kind, sorted(mine, key=lambda row: (row["copies"], row["replicas"])), given.out / f"{kind}.svg")


if __name__ == "__main__":
    main()
