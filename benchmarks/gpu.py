"""The GPU path: first whether it is right, then how fast: MD steps, batches, a large system, and training with forces.

Usage: python benchmarks/gpu.py [--json FILE] [--steps 1000] [--precision float32|tf32|bfloat16] [--tiny]
--tiny: a tiny model on whatever device there is, as a test of this script.
"""

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from step import aspirin, cluster

from forcewell import integrators
from forcewell.batch import Batch
from forcewell.captured import CapturedSteps
from forcewell.potential import Potential
from forcewell.static_batch import StaticBatch, has_graphs
from forcewell.step_path import StepPath
from forcewell.system import System

LANGEVIN: dict[str, Any] = {"timestep": 0.5, "temperature": 300.0, "friction": 0.01}
CALL = 10  # steps between looks, as in simulations
FORCES, GRADIENTS = 1e-5, 1e-4  # largest relative errors of float32 for which anything is measured


def waited(device: torch.device) -> float:
    """The time, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds(function: Callable[[], object], device: torch.device, calls: int) -> float:
    """Median over five rounds of the time of one call, after one round to warm up."""
    rounds = []
    for _ in range(6):
        began = waited(device)
        for _ in range(calls):
            function()
        rounds.append((waited(device) - began) / calls)
    return float(np.median(rounds[1:]))


def errors(potential: Potential, systems: list[System]) -> tuple[float, float]:
    """Largest error of forces and of training gradients, relative to the largest value; float64 PyTorch is right."""
    exact = copy.deepcopy(potential).double()
    exact.precision = "float32"
    batch = Batch.from_systems(systems).to(potential.device)
    towards = torch.randn(batch.positions.shape, generator=torch.Generator().manual_seed(0)).to(potential.device)

    def learn(model: Potential, given: Batch) -> tuple[torch.Tensor, list[torch.Tensor]]:
        forces = model(given, create_graph=True).forces
        assert forces is not None
        ((forces - towards.to(forces)) ** 2).sum().backward()
        return forces.detach().double(), [p.grad.double() for p in model.parameters() if p.grad is not None]

    (right, right_gradients), (found, gradients) = learn(exact, batch.to(dtype=torch.float64)), learn(potential, batch)
    potential.zero_grad()
    # In the lists of static shapes, too, which molecular dynamics has.
    static = StaticBatch.of(batch, potential.cutoff)
    assert static is not None
    moving = potential(static).forces
    assert moving is not None
    pairs = [(a, b) for a, b in zip(gradients, right_gradients, strict=True) if float(b.abs().max()) > 0]
    worst = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    off = max(float((forces.double() - right).abs().max()) for forces in (found, moving))
    return off / float(right.abs().max()), worst


def state(potential: Potential, systems: list[System]) -> integrators.State:
    batch = Batch.from_systems(systems).to(potential.device)
    generator = torch.Generator(device=potential.device).manual_seed(0)
    return integrators.init(batch, potential, temperature=300.0, generator=generator)


def md_step(potential: Potential, systems: list[System], steps: int, captured: bool) -> float:
    """Seconds of a whole Langevin step: neighbours, model, integrator, noise."""
    moving, step = state(potential, systems), partial(integrators.langevin_step, potential=potential, **LANGEVIN)
    if not captured:
        return seconds(lambda: step(moving), potential.device, max(steps // 10, 1))
    many = CapturedSteps(step, potential.cutoff)
    return seconds(lambda: many(moving, CALL), potential.device, max(steps // CALL, 1)) / CALL


def training_step(potential: Potential, systems: list[System], steps: int, captured: bool) -> float | None:
    """Seconds of forces, loss, gradients and AdamW, neighbours included; None where it was to be captured and cannot be."""
    batch = Batch.from_systems(systems).to(potential.device)
    if captured:
        path = potential.step_path = StepPath(potential, {"forces": True, "noise": False, "properties": False}, 10**6)
        potential(batch, create_graph=True)  # which shows its shape
        if not path.decided:
            path.decide(True, path.largest.with_room())
        potential(batch, create_graph=True)  # which captures it, and compares
        if path.shape is None and has_graphs(potential.device):  # its time would be that of the ordinary one
            potential.step_path = None
            return None
    optimiser = torch.optim.AdamW(potential.parameters(), lr=1e-4, fused=potential.device.type == "cuda")

    def step() -> None:
        forces = potential(batch, create_graph=True).forces
        assert forces is not None
        optimiser.zero_grad()
        (forces**2).mean().backward()
        optimiser.step()

    try:
        return seconds(step, potential.device, max(steps // 50, 1))
    finally:
        potential.step_path = None


def peer(systems: list[System], device: torch.device, steps: int) -> float | None:
    """Seconds of energy and forces by torchmd-net's Equivariant Transformer of the same size, eager; None if not installed."""
    try:
        from torchmdnet.models.model import create_model  # type: ignore[import-not-found]
    except ImportError:
        return None
    settings = {
        "model": "equivariant-transformer", "embedding_dimension": 256, "num_layers": 8, "num_heads": 8, "num_rbf": 64,
        "rbf_type": "expnorm", "trainable_rbf": False, "activation": "silu", "attn_activation": "silu", "neighbor_embedding": True,
        "distance_influence": "both", "cutoff_lower": 0.0, "cutoff_upper": 5.0, "max_z": 100, "max_num_neighbors": 64, "aggr": "add",
        "derivative": True, "prior_model": None, "output_model": "Scalar", "reduce_op": "sum", "precision": 32, "atom_filter": -1,
        "check_errors": False, "static_shapes": False, "vector_cutoff": False, "box_vecs": None,
    }  # fmt: skip
    model, batch = create_model(settings).to(device), Batch.from_systems(systems).to(device)
    return seconds(lambda: model(batch.numbers, batch.positions, batch=batch.molecule), device, max(steps // 10, 1))


def main() -> None:
    """Reads the options, builds the model and the molecules, prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--precision", choices=("float32", "tf32", "bfloat16"), default="float32")
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    if not (torch.cuda.is_available() or given.tiny):
        sys.exit("benchmarks/gpu.py: no NVIDIA GPU here (torch.cuda.is_available() is false); --tiny tests the script without one")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    drug = aspirin()
    sizes: dict[str, Any] = {}
    batches, copies, training = (64, 512, 4096), 48, 256
    if given.tiny:
        sizes = {"channels": 16, "layers": 1, "heads": 1, "radial": 16}
        drug = System({"numbers": drug.numbers[:2], "positions": drug.positions[:2]})
        batches, copies, training, given.steps = (1,), 1, 1, 1
    torch.manual_seed(0)
    potential = Potential({"encoder": {"name": "equivariant-transformer", **sizes}}).to(device)
    potential.kernels = lambda batch, forces=True: None  # type: ignore[method-assign]  # those for the CPU, where --tiny runs there
    rows: dict[str, Any] = {"device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu, nothing measured"}
    rows |= {"torch": torch.__version__, "triton": version("triton") if find_spec("triton") else "none", "precision": given.precision}
    print(*(f"{name:44s} {value}" for name, value in rows.items()), sep="\n")
    for name, value in measure(potential, drug, batches, copies, training, given):
        rows[name] = value
        print(f"{name:44s} {value:.4g}" if isinstance(value, float) else f"{name:44s} {value}", flush=True)
        if given.json:  # after each, so that what ends the program takes nothing along
            given.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def measure(
    potential: Potential, drug: System, batches: tuple[int, ...], copies: int, training: int, given: Any
) -> Iterator[tuple[str, object]]:
    """What is right, then what is fast, by name and unit. Ends the program where float32 is not right."""
    crowd = cluster(drug, copies)
    yield "path", potential.path
    off, gradients = errors(potential, [drug, crowd] if copies > 1 else [drug])
    yield "force error, float32", off
    yield "gradient error, float32", gradients
    if off > FORCES or gradients > GRADIENTS:
        sys.exit("benchmarks/gpu.py: not right, so nothing is measured")
    potential.precision = given.precision
    if given.precision != "float32":
        yield f"force error, {given.precision}", errors(potential, [drug])[0]
    still = copy.deepcopy(potential).requires_grad_(False)
    eager, graph = (attempt(lambda c=captured: md_step(still, [drug], given.steps, c) * 1e3) for captured in (False, True))
    yield "MD step, one molecule, ms", graph
    yield "MD step, one molecule, no graph, ms", eager
    theirs = attempt(lambda: peer([drug], potential.device, given.steps))
    if theirs is not None:
        yield "torchmd-net eager, energy and forces, ms", theirs * 1e3 if isinstance(theirs, float) else theirs
        if isinstance(theirs, float) and isinstance(graph, float):
            yield "times torchmd-net", theirs * 1e3 / graph
    for count in batches:
        rate = attempt(lambda n=count: n / md_step(still, [drug] * n, max(given.steps // 10, 1), True))
        yield f"evaluations/s, batch of {count}", rate
    taken = attempt(lambda: md_step(still, [crowd], max(given.steps // 5, 1), True) * 1e6 / len(crowd))
    yield f"MD step, {len(crowd)} atoms, us/atom", taken
    for captured in (True, False):
        name = f"training with forces, batch {training}, {'' if captured else 'no graph, '}molecules/s"
        step = attempt(lambda c=captured: training_step(potential, [drug] * training, given.steps, c))
        yield name, "not captured" if step is None else training / step if isinstance(step, float) else step


def attempt(function: Callable[[], float | None]) -> float | str | None:
    """What it gives, or in words what it failed with: the other rows are measured all the same."""
    try:
        return function()
    except Exception as error:  # of PyTorch, Triton, the driver, or out of memory
        return f"failed: {type(error).__name__}: {[*str(error).strip().splitlines(), ''][0][:200]}"


if __name__ == "__main__":
    main()
