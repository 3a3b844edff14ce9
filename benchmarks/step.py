"""Energy + forces and training steps of the Equivariant Transformer: compiled kernels beside PyTorch, in turns in one process.

Usage: .venv/bin/python benchmarks/step.py [--threads 1] [--size small|full] [--rounds 5]
Sizes: small is the quickstart's (64 channels, 3 layers, 4 heads, 32 radial functions), full the published 6.9 M parameters.
Batches: aspirin, 16 aspirins, a cluster of 18 aspirins (energy + forces); 16 QM7-X molecules of different sizes (training step).
CPU milliseconds, the least of the rounds: what else runs on the machine disturbs that least.
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


def least(functions: list[Callable[[], object]], rounds: int) -> list[float]:
    """Least CPU time of one call of each function, in ms, called in turns."""
    best = [float("inf")] * len(functions)
    for function in functions:
        function()
    for _ in range(rounds):
        for k, function in enumerate(functions):
            began, calls = time.process_time(), 0
            while time.process_time() - began < 0.2:
                function()
                calls += 1
            best[k] = min(best[k], (time.process_time() - began) / calls * 1e3)
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


def main() -> None:
    """Builds the model and the batches, and prints one line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", choices=("small", "full"), default="small")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_memory()
    torch.manual_seed(0)
    sizes = {"channels": 64, "layers": 3, "heads": 4, "radial": 32} if given.size == "small" else {}
    compiled = Potential({"encoder": {"name": "equivariant-transformer", **sizes}})
    plain = copy.deepcopy(compiled)
    plain._kernels = lambda batch: None  # type: ignore[method-assign]
    with resources.as_file(resources.files("forcewell.bundled")) as folder:
        mixed = open_data(folder / "qm7x_hand.npz")
    rows = np.random.default_rng(0).permutation(len(mixed))[:16]
    drug = aspirin()
    training = Batch.from_block(mixed.block(rows))

    def step(potential: Potential) -> None:
        forces = potential(training, create_graph=True).forces
        assert forces is not None
        ((forces - training.targets.forces) ** 2).mean().backward()

    print(f"{compiled.path}; {sum(p.numel() for p in compiled.parameters()):,} parameters; {given.threads} thread(s)")
    print("                                     compiled     PyTorch   ratio")
    for name, systems in (("aspirin", [drug]), ("16 aspirins", [drug] * 16), ("378 atoms", [cluster(drug, 18)])):
        batch = Batch.from_systems(systems)
        with torch.no_grad():
            fast, slow = least([lambda b=batch: compiled(b), lambda b=batch: plain(b)], given.rounds)
        print(f"energy + forces, {name:14s} {fast:10.2f} ms {slow:8.1f} ms {slow / fast:6.1f} x", flush=True)
    fast, slow = least([lambda: step(compiled), lambda: step(plain)], given.rounds)
    print(f"training step, 16 QM7-X        {fast:10.2f} ms {slow:8.1f} ms {slow / fast:6.1f} x   {16e3 / fast:.0f} molecules/s")


if __name__ == "__main__":
    main()
