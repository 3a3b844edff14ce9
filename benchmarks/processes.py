"""The paper model of docs/scaling.md against two processes: predicted and found time of a training step.

    .venv/bin/python benchmarks/processes.py [--size small|full] [--molecules 32] [--steps 30]

Measures one process alone (compute), an all-reduce of as many numbers as the model has parameters (communication), and then two
processes that train together through DistributedDataParallel, each with its own molecules and one thread. Predicted: the sum of the
first two, which leaves out that the one hides behind the other. Wall time, least of the steps: it wants two quiet cores. About a minute.
"""

import argparse
import os
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from forcewell.batch import Batch
from forcewell.bench import ethanols
from forcewell.checkpoint import load
from forcewell.potential import Potential
from forcewell.process import keep_memory


def work(rank: int, world: int, size: str, molecules: int, steps: int, found: dict[str, float]) -> None:
    """One process: the least time of a step and of an all-reduce, in ms."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(29650 + world)}
    torch.set_num_threads(1)
    keep_memory()
    dist.init_process_group("gloo", rank=rank, world_size=world)
    torch.manual_seed(0)
    potential = load("forcewell-small") if size == "small" else Potential({"encoder": {"name": "equivariant-transformer"}})
    potential.train().requires_grad_(True)
    model = DistributedDataParallel(potential) if world > 1 else potential
    optimiser = torch.optim.AdamW(potential.parameters(), lr=1e-9, fused=True)
    batch = Batch.from_systems([ethanols(1)] * molecules)

    def step() -> None:
        forces = model(batch, create_graph=True).forces
        optimiser.zero_grad()
        ((forces**2).mean() + 0.0 * sum(p.sum() for p in potential.parameters())).backward()
        optimiser.step()

    numbers = torch.zeros(sum(p.numel() for p in potential.parameters()))
    for name, function in (("step", step), ("reduce", lambda: dist.all_reduce(numbers))):
        best = float("inf")
        for _ in range(steps + 2):
            dist.barrier()
            began = time.perf_counter()
            function()
            best = min(best, (time.perf_counter() - began) * 1e3)
        if rank == 0:
            found[f"{name} {world}"] = best
    dist.destroy_process_group()


def main() -> None:
    """Prints what was measured, predicted and found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("small", "full"), default="small")
    parser.add_argument("--molecules", type=int, default=32, help="of each process in a step")
    parser.add_argument("--steps", type=int, default=30)
    given = parser.parse_args()
    with mp.Manager() as manager:
        found = manager.dict()
        for world in (1, 2):
            mp.spawn(work, args=(world, given.size, given.molecules, given.steps, found), nprocs=world)
        alone, reduce, together = found["step 1"], found["reduce 2"], found["step 2"]
    predicted = alone + reduce
    print(f"one process {alone:.2f} ms a step; all-reduce {reduce:.2f} ms; predicted for two {predicted:.2f} ms, found {together:.2f} ms")
    print(f"efficiency: predicted {alone / predicted:.2f}, found {alone / together:.2f}")


if __name__ == "__main__":
    main()
