"""Time of a training step and of energy + forces for the quickstart's model, CPU and wall milliseconds.

Usage: .venv/bin/python benchmarks/step.py [--threads 1] [--channels 64] [--layers 3] [--keep-memory]
Batches: 8 ethanols (rMD17), 24 QM7-X molecules of different sizes; MD: 1, 8 and 16 ethanols. Median of five rounds.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from importlib import resources

import numpy as np
import torch

from forcewell.batch import Batch
from forcewell.potential import Potential
from forcewell.process import keep_memory
from forcewell.store import open_data


def median(function: Callable[[], object], repeats: int) -> str:
    """Median over five rounds of the CPU and wall time of one call."""
    function()
    cpu, wall = [], []
    for _ in range(5):
        began = time.process_time(), time.perf_counter()
        for _ in range(repeats):
            function()
        cpu.append((time.process_time() - began[0]) / repeats * 1e3)
        wall.append((time.perf_counter() - began[1]) / repeats * 1e3)
    return f"{statistics.median(cpu):8.1f} ms CPU {statistics.median(wall):8.1f} ms wall"


def main() -> None:
    """Builds the model and the batches, and prints one line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--keep-memory", action="store_true", help="as the forcewell program does")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.keep_memory:
        keep_memory()
    torch.manual_seed(0)
    potential = Potential(
        {"encoder": {"name": "equivariant-transformer", "channels": given.channels, "layers": given.layers, "heads": 4, "radial": 32}}
    )
    with resources.as_file(resources.files("forcewell.bundled")) as folder:
        ethanol, mixed = open_data(folder / "rmd17_ethanol_train_01.npz"), open_data(folder / "qm7x_hand.npz")
    rows = np.random.default_rng(0).permutation(len(mixed))[:24]

    def step(batch: Batch) -> None:
        forces = potential(batch, create_graph=True).forces
        ((forces - batch.targets.forces) ** 2).mean().backward()

    for name, batch in (("8 ethanols", Batch.from_block(ethanol.block(range(8)))), ("24 QM7-X", Batch.from_block(mixed.block(rows)))):
        print(f"training step, {name:10s} {median(lambda b=batch: step(b), 3)}", flush=True)
    for count in (1, 8, 16):
        batch = Batch.from_block(ethanol.block(range(count)))
        print(f"energy + forces, {count:2d} ethanols {median(lambda b=batch: potential(b), 10)}", flush=True)


if __name__ == "__main__":
    main()
