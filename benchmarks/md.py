"""What a step of molecular dynamics takes above its energy and forces: neighbours, integrator, monitor and record.

Usage: .venv/bin/python benchmarks/md.py [--size small|full] [--rounds 10]
The whole loop of ``forcewell simulate`` (50 steps, a frame at the end, the monitor every 10) in turns with bare energies and
forces of the same molecules, both by calling the potential (from Python, as another program would) and by the compiled function
alone, called with addresses that were found beforehand; one thread; least CPU time of the rounds, since what else runs on the
machine disturbs that least. About one minute on a quiet core (small), three (full).
"""

import argparse
import ctypes
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from step import aspirin

from forcewell import simulate
from forcewell.batch import Batch
from forcewell.checkpoint import load
from forcewell.fused import Molecules
from forcewell.monitor import copies_of
from forcewell.potential import Potential
from forcewell.process import keep_memory

STEPS = 50


def loop(potential: Potential, copies: int, ensemble: str, folder: Path) -> simulate._Run:
    """A simulation that is ready to go on."""
    members = copies_of([aspirin()], copies, None)
    batch = Batch.from_systems([member.system for member in members], dtype=potential.dtype)
    settings = {"ensemble": ensemble, "temperature": 0.1, "timestep": 0.5, "relaxation": 100.0, "seed": 0, "record_every": STEPS}
    run = simulate._Run(potential, members, batch, folder, settings, histograms=False)
    run.begin(resume=False, steps=STEPS, progress=False)
    return run


def cpu(function: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    began = time.process_time()
    function()
    return time.process_time() - began


def kernels(potential: Potential, batch: Batch) -> Callable[[], object]:
    """Energies and forces of ``batch`` by the compiled function alone, without a tensor made or asked for."""
    found = potential.kernels(batch)
    assert found is not None
    found.load()
    N, long = len(batch.numbers), ctypes.c_long
    tensors = [batch.offsets, batch.positions.double(), *found.embeddings(batch), torch.empty(N), torch.empty(N, 3)]
    places = [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
    molecules = Molecules(len(batch), *places[:4])  # the rest is null: no vectors, pairs to be searched

    def run(keep: list[torch.Tensor] = tensors) -> None:
        found.functions.forcewell_run(found.handle, ctypes.byref(molecules), long(1), long(0), *places[4:], ctypes.byref(long(0)))

    return run


def measure(run: simulate._Run, rounds: int) -> list[float]:
    """Least CPU ms of a step of the whole loop, of the potential called, and of the kernels alone."""
    batch, alone = run.state.batch, kernels(run.potential, run.state.batch)
    run.save = lambda: None  # type: ignore[method-assign]  # once a minute in real runs, once in 50 steps here
    best = [float("inf")] * 4
    for _ in range(rounds):
        taken = [
            cpu(lambda: run.go(run.step + STEPS, progress=False)),
            cpu(lambda: [run.potential(batch) for _ in range(STEPS)]),
            cpu(lambda: [alone() for _ in range(STEPS)]),
            cpu(lambda: run.go(run.step, progress=False)),
        ]
        best = [min(pair) for pair in zip(best, taken, strict=True)]
    loop, bare, least, beginning = (1e3 * seconds / STEPS for seconds in best)
    return [loop - beginning, bare, least]  # a loop's beginning, its progress bar, comes once in a run


def main() -> None:
    """One line for each ensemble and number of replicas."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("small", "full"), default="small")
    parser.add_argument("--rounds", type=int, default=10)
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    torch.manual_seed(0)
    if given.size == "small":
        potential = load("forcewell-small")
    else:  # random weights, so nearly without forces and motion, lest the molecule fly apart (at 10 K it did after 150 steps)
        potential = Potential({"encoder": {"name": "equivariant-transformer"}})
        for parameter in potential.head.parameters():
            parameter.data *= 1e-3
    potential.eval().requires_grad_(False)
    print(f"{potential.path}; {sum(p.numel() for p in potential.parameters()):,} parameters")
    for copies in (1, 16):
        for ensemble in simulate.ENSEMBLES:
            with tempfile.TemporaryDirectory() as place:
                run = loop(potential, copies, ensemble, Path(place) / "run")
                step, bare, least = measure(run, given.rounds)
            above = f"above {step / bare - 1:6.1%}  kernels alone {least:8.3f} ms  above {step / least - 1:6.1%}"
            print(f"{copies:3d} x aspirin, {ensemble:12s} step {step:8.3f} ms  energy + forces {bare:8.3f} ms  {above}", flush=True)


if __name__ == "__main__":
    main()
