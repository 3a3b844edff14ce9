"""Energy + forces and training steps of the Equivariant Transformer: compiled kernels beside PyTorch, in turns in one process.

Usage: .venv/bin/python benchmarks/step.py [--size small|full] [--rounds 5] [--threads 2 | --precision bfloat16]
Sizes: small is the quickstart's (64 channels, 3 layers, 4 heads, 32 radial functions), full the published 6.9 M parameters.
Batches: aspirin, 16 aspirins, a cluster of 18 aspirins (energy + forces); 16 QM7-X molecules of different sizes (training
steps: on forces, and on noise by a head of its own).
CPU milliseconds, the least of the rounds: what else runs on the machine disturbs that least.
--threads: energy + forces of one system of 21 to 1,995 atoms with one and with so many threads, wall time, for a machine on which nothing
else runs. --precision bfloat16: the compiled kernels with weights in bfloat16 beside those in float32, and how far forces are apart.
"""

import argparse
import copy
import math
import time
from collections.abc import Callable
from importlib import resources

import numpy as np
import torch

from forcewell.batch import Batch
from forcewell.potential import Potential
from forcewell.process import keep_memory
from forcewell.store import open_data
from forcewell.system import System

Clock = Callable[[], float]


def least(functions: list[Callable[[], object]], rounds: int, clock: Clock = time.process_time) -> list[float]:
    """Least time of one call of each function, in ms, called in turns."""
    best = [float("inf")] * len(functions)
    for function in functions:
        function()
    for _ in range(rounds):
        for k, function in enumerate(functions):
            began, calls = clock(), 0
            while clock() - began < 0.2:
                function()
                calls += 1
            best[k] = min(best[k], (clock() - began) / calls * 1e3)
    return best


def aspirin() -> System:
    """A conformer by RDKit."""
    from rdkit import Chem
    from rdkit.Chem import AllChem

    molecule = Chem.AddHs(Chem.MolFromSmiles("CC(=O)Oc1ccccc1C(=O)O"))
    AllChem.EmbedMolecule(molecule, randomSeed=1)
    numbers = np.array([atom.GetAtomicNum() for atom in molecule.GetAtoms()])
    return System({"numbers": numbers, "positions": molecule.GetConformer().GetPositions()})


def cluster(molecule: System, count: int) -> System:
    """So many copies, turned at random, 7 Å apart on a grid, as one system: about as dense as a liquid."""
    rng = np.random.default_rng(0)
    side = math.ceil(count ** (1 / 3))
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)[:count] * 7.0
    turns = [np.linalg.qr(rng.normal(size=(3, 3)))[0] for _ in range(count)]
    centred = molecule.positions - molecule.positions.mean(0)
    return System(
        {
            "numbers": np.tile(molecule.numbers, count),
            "positions": np.concatenate([centred @ t + g for t, g in zip(turns, grid, strict=True)]),
        }
    )


def on_threads(potential: Potential, threads: int, rounds: int) -> None:
    """Wall time of one system on one and on several threads."""

    def run(batch: Batch, count: int) -> None:
        torch.set_num_threads(count)
        potential(batch)

    drug = aspirin()
    print(f"energy + forces, wall time          1 thread   {threads} threads   ratio")
    for copies in (1, 5, 17, 95):
        batch = Batch.from_systems([cluster(drug, copies)])
        one, several = least([lambda b=batch: run(b, 1), lambda b=batch: run(b, threads)], rounds, time.perf_counter)
        print(f"one system of {len(batch.numbers):4d} atoms        {one:13.2f} ms {several:8.2f} ms {one / several:6.2f}", flush=True)


def in_bfloat16(potential: Potential, batches: dict[str, Batch], rounds: int) -> None:
    """CPU time with weights in float32 and in bfloat16, and forces."""
    rough = copy.deepcopy(potential)
    rough.precision = "bfloat16"
    print(f"{rough.path}\n                                      float32    bfloat16   ratio   forces apart: RMS, largest")
    for name, batch in batches.items():
        right, found = potential(batch).forces, rough(batch).forces
        assert right is not None and found is not None
        off = found - right
        exact, fast = least([lambda b=batch: potential(b), lambda b=batch: rough(b)], rounds)
        apart = f"{float(off.norm() / right.norm()):.1e} {float(off.abs().max() / right.abs().max()):.1e}"
        print(f"energy + forces, {name:14s} {exact:10.2f} ms {fast:8.2f} ms {exact / fast:6.2f}   {apart}", flush=True)


def main() -> None:
    """Builds the model and the batches, and prints one line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", choices=("small", "full"), default="small")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    torch.manual_seed(0)
    sizes = {"channels": 64, "layers": 3, "heads": 4, "radial": 32} if given.size == "small" else {}
    compiled = Potential({"encoder": {"name": "equivariant-transformer", **sizes}, "head": {"noise": True}})
    plain = copy.deepcopy(compiled)
    plain.kernels = lambda batch, forces=True: None  # type: ignore[method-assign]
    with resources.as_file(resources.files("forcewell.bundled")) as folder:
        mixed = open_data(folder / "qm7x_hand.npz")
    rows = np.random.default_rng(0).permutation(len(mixed))[:16]
    drug = aspirin()
    training = Batch.from_block(mixed.block(rows))

    def step(potential: Potential) -> None:
        forces = potential(training, create_graph=True).forces
        assert forces is not None
        ((forces - training.targets.forces) ** 2).mean().backward()

    def denoise(potential: Potential) -> None:
        noise = potential(training, forces=False, noise=True).noise
        assert noise is not None
        ((noise - training.targets.forces) ** 2).mean().backward()  # any vectors do

    print(f"{compiled.path}; {sum(p.numel() for p in compiled.parameters()):,} parameters")
    systems = {"aspirin": [drug], "16 aspirins": [drug] * 16, "378 atoms": [cluster(drug, 18)]}
    batches = {name: Batch.from_systems(members) for name, members in systems.items()}
    if given.threads > 1:
        return on_threads(compiled.requires_grad_(False), given.threads, given.rounds)
    if given.precision == "bfloat16":
        return in_bfloat16(compiled.requires_grad_(False), batches, given.rounds)
    print("                                     compiled     PyTorch   ratio")
    for name, batch in batches.items():
        with torch.no_grad():
            fast, slow = least([lambda b=batch: compiled(b), lambda b=batch: plain(b)], given.rounds)
        print(f"energy + forces, {name:14s} {fast:10.2f} ms {slow:8.1f} ms {slow / fast:6.1f} x", flush=True)
    for name, train in (("training step on forces", step), ("training step on noise", denoise)):
        fast, slow = least([lambda f=train: f(compiled), lambda f=train: f(plain)], given.rounds)
        print(f"{name:30s} {fast:10.2f} ms {slow:8.1f} ms {slow / fast:6.1f} x   {16e3 / fast:.0f} molecules/s", flush=True)


if __name__ == "__main__":
    main()
