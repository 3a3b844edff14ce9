"""What a step of molecular dynamics takes above its energy and forces: neighbours, integrator, monitor and record.

Usage: .venv/bin/python benchmarks/md.py [--size small|full] [--rounds 10]
The whole loop of ``forcewell simulate`` (50 steps, a frame at the end, the monitor every 10) in turns with bare energies and
forces of the same molecules, one thread; least CPU time of the rounds, since what else runs on the machine disturbs that least.
About one minute on a quiet core (small), three (full).
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from step import aspirin

from forcewell import simulate
from forcewell.batch import Batch
from forcewell.checkpoint import load
from forcewell.monitor import copies_of
from forcewell.potential import Potential
from forcewell.process import keep_memory

STEPS = 50


def loop(potential: Potential, copies: int, ensemble: str, folder: Path) -> simulate._Run:
    """A simulation that is ready to go on."""
    members = copies_of([aspirin()], copies, None)
    batch = Batch.from_systems([member.system for member in members], dtype=potential.dtype)
    settings = {"ensemble": ensemble, "temperature": 10.0, "timestep": 0.5, "relaxation": 100.0, "seed": 0, "record_every": STEPS}
    run = simulate._Run(potential, members, batch, folder, settings, histograms=False)
    run.begin(resume=False)
    return run


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
    else:  # random weights, so nearly without forces, lest the molecule fly apart
        potential = Potential({"encoder": {"name": "equivariant-transformer"}})
        for parameter in potential.head.parameters():
            parameter.data *= 1e-3
    potential.eval().requires_grad_(False)
    print(f"{potential.path}; {sum(p.numel() for p in potential.parameters()):,} parameters")
    for copies in (1, 16):
        for ensemble in simulate.ENSEMBLES:
            with tempfile.TemporaryDirectory() as place:
                run, best = loop(potential, copies, ensemble, Path(place) / "run"), [float("inf")] * 2
                run.save = lambda: None  # type: ignore[method-assign]  # once a minute in real runs, once in 50 steps here
                for _ in range(given.rounds):
                    began = time.process_time()
                    run.go(run.step + STEPS, progress=False)
                    middle = time.process_time()
                    for _ in range(STEPS):
                        potential(run.state.batch)
                    best = [min(old, new) for old, new in zip(best, (middle - began, time.process_time() - middle), strict=True)]
            step, bare = (1e3 * seconds / STEPS for seconds in best)
            line = f"step {step:8.3f} ms  energy + forces {bare:8.3f} ms  above {step / bare - 1:6.1%}"
            print(f"{copies:3d} x aspirin, {ensemble:12s} {line}", flush=True)


if __name__ == "__main__":
    main()
