"""``forcewell bench``: how fast a model is on this machine, in molecular dynamics and in training, and beside its peers."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import platform
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch

from forcewell import integrators
from forcewell.batch import Batch
from forcewell.checkpoint import load
from forcewell.display import say
from forcewell.errors import InputError
from forcewell.files import write_bytes
from forcewell.optim import Flat
from forcewell.peers import MODELS, Structure, training_step
from forcewell.potential import Potential
from forcewell.process import check_device
from forcewell.static_batch import has_graphs
from forcewell.step_path import FORCES, StepPath, compiled_gain
from forcewell.stepping import stepper
from forcewell.store import open_data
from forcewell.system import System
from forcewell.units import ns_per_day

TIMESTEP = 0.5  # fs
CALL = 10  # steps at a time, as in simulations
COPIES = (1, 4, 16, 64)  # ethanols in one system: 9, 36, 144 and 576 atoms
REPLICAS = (1, 8, 64, 256)
TRAINED = 32  # molecules in a training step
ROUNDS = 3


def ethanols(count: int, spacing: float = 5.0) -> System:
    """Ethanols (the first frame of revised MD17's) on a cubic grid, turned at random: at 5 Å nearly as dense as the liquid."""
    with resources.as_file(resources.files("forcewell.bundled") / "rmd17_ethanol_train_01.npz") as path:
        molecule = open_data(path)[0]
    positions = molecule.positions - molecule.positions.mean(axis=0)
    side = next(n for n in range(1, count + 1) if n**3 >= count)
    places = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)[:count] * spacing
    rng = np.random.default_rng(0)
    turned = [positions @ np.linalg.qr(rng.normal(size=(3, 3)))[0] + place for place in places]
    return System({"numbers": np.tile(molecule.numbers, count), "positions": np.concatenate(turned)})


def least(functions: dict[str, Callable[[], Any]], device: torch.device, seconds: float) -> dict[str, float]:
    """Milliseconds of one call of each, called in turns, the least of the rounds.

    On a GPU wall time; on the CPU processor time, divided by the number of threads, since other work disturbs that least.
    """
    on_cpu, best = device.type == "cpu", dict.fromkeys(functions, float("inf"))
    clock, share = (time.process_time, torch.get_num_threads()) if on_cpu else (time.perf_counter, 1)
    for function in functions.values():
        function()
    for _ in range(ROUNDS):
        for name, function in functions.items():
            began, calls = clock(), 0
            while calls == 0 or clock() - began < seconds:
                function()
                calls += 1
            if not on_cpu:
                torch.cuda.synchronize(device)
            best[name] = min(best[name], (clock() - began) / calls / share * 1e3)
    return best


def peak_memory(device: torch.device) -> float:
    """MB that this process has held at most since ``forget_peak`` (on a GPU: that it keeps reserved of its memory)."""
    if device.type == "cuda":  # what replayed graphs use was allocated when they were captured, and stays reserved
        return torch.cuda.memory_reserved(device) / 1e6
    status = Path("/proc/self/status")
    if status.is_file():
        return next(float(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def forget_peak(device: torch.device) -> None:
    """Lets ``peak_memory`` begin anew, where the system can (CUDA, Linux)."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif Path("/proc/self/clear_refs").is_file():
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def _memory(step: Callable[[], Any], device: torch.device) -> float:
    """MB held at most in a step, the program and its model included."""
    if device.type == "cuda":
        step()  # captures, and compares with the ordinary way, which needs more
    forget_peak(device)
    step()
    return round(peak_memory(device), 1)


def _moving(potential: Potential, batch: Batch) -> Callable[[], None]:
    """``CALL`` steps of Langevin dynamics from rest, taken as ``simulate`` takes them; the molecules are put back in time, for weights
    that hold nothing together."""
    batch = batch.to(potential.device)
    generator = torch.Generator(device=potential.device).manual_seed(0)
    state = integrators.init(batch, potential, temperature=1.0, generator=generator)
    advance, _ = stepper(potential, batch, "langevin", timestep=TIMESTEP, temperature=1.0, relaxation=100.0, steps=CALL, quiet=True)
    advance(state, 1)  # takes the state over
    start = batch.positions.double()

    def step() -> None:
        state.positions.copy_(start)
        state.velocities.zero_()
        state.batch.positions.copy_(start)
        advance(state, CALL)

    return step


def _training(potential: Potential, batch: Batch) -> Callable[[], None]:
    """A training step on forces: gradients, clipping and AdamW."""
    weights = Flat(potential.train())
    optimiser = torch.optim.AdamW([weights.values], lr=1e-9, fused=True)
    batch = batch.to(potential.device)
    path = potential.step_path = StepPath(potential, FORCES, steps=10**6)
    potential(batch, create_graph=True)  # shows its shape
    captured = has_graphs(potential.device)  # what is compiled on a CPU takes minutes, and is named instead
    path.decide(captured, path.largest.with_room())

    def step() -> None:
        forces = potential(batch, create_graph=True).forces
        assert forces is not None
        (forces**2).mean().backward()
        weights.gather_gradients()
        weights.clip(1.0)
        optimiser.step()

    return step


Peers = dict[str, tuple[Any, float, Any]]


def _peers(wanted: bool) -> Peers:
    """Models of the peers that are installed in this environment."""
    found = {}
    for name, (package, build) in MODELS.items():
        if wanted and importlib.util.find_spec(package) is not None:
            try:
                found[name] = build()
            except Exception as error:  # whatever another package does must not end this
                say(f"{name} is installed but does not run here: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
    return found


def measure(potential: Potential, seconds: float = 0.3, peers: bool = True) -> dict[str, Any]:
    """Figures of a potential on its device: what ``bench`` prints, as numbers.

    "molecular_dynamics": rows with atoms, replicas, ms per step, ns/day (of all replicas together) and the peers' ms for energy and forces;
    "training": molecules per second; memory in MB. seconds: length of each measurement.
    """
    if potential.elements and not {1, 6, 8} <= set(potential.elements):
        raise InputError("bench runs ethanol, and the model was never trained on all of its elements (H, C, O)")
    device, others = potential.device, _peers(peers and potential.device.type == "cpu")
    result: dict[str, Any] = {
        "path": potential.path,
        "parameters": sum(p.numel() for p in potential.parameters()),
        "cutoff": potential.cutoff,
        "threads": torch.get_num_threads(),
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "peers": {name: sum(p.numel() for p in model.parameters()) for name, (model, _, _) in others.items()},
        "molecular_dynamics": [],
    }
    frozen = potential.eval().requires_grad_(False)
    for copies, replicas in [*((c, 1) for c in COPIES), *((1, r) for r in REPLICAS[1:])]:
        result["molecular_dynamics"].append(_dynamics(frozen, [ethanols(copies)] * replicas, others, seconds))
    result["training"] = _trained(potential.requires_grad_(True), others, seconds)
    return result


def _flat(batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return batch.numbers.numpy(), batch.positions.double().numpy(), batch.counts.numpy()


def _dynamics(frozen: Potential, systems: list[System], others: Peers, seconds: float) -> dict[str, Any]:
    """One row: systems of one size."""
    batch = Batch.from_systems(systems, dtype=frozen.dtype)
    moved = batch.to(frozen.device)
    functions: dict[str, Callable[[], Any]] = {"step": _moving(frozen, batch), "energy_forces": lambda: frozen(moved)}
    for name, (model, cutoff, call) in others.items():
        model.eval()
        functions[name] = partial(call, Structure(*_flat(batch), cutoff))
    memory = _memory(functions["step"], frozen.device)
    times = least(functions, frozen.device, seconds)
    row: dict[str, Any] = {"atoms": len(systems[0]), "replicas": len(systems), "ms_per_step": times.pop("step") / CALL}
    row["ns_per_day"] = ns_per_day(1e3 / row["ms_per_step"], TIMESTEP) * len(systems)
    return row | {"ms_energy_forces": times.pop("energy_forces"), "memory_mb": memory, "peers_ms": times}


def _trained(potential: Potential, others: Peers, seconds: float) -> dict[str, Any]:
    """Training steps on a batch of ethanols."""
    batch = Batch.from_systems([ethanols(1)] * TRAINED, dtype=potential.dtype)
    functions = {"step": _training(potential, batch)}
    for name, (model, cutoff, call) in others.items():
        optimiser = torch.optim.AdamW(model.train().parameters(), lr=1e-9)
        functions[name] = partial(training_step, call, Structure(*_flat(batch), cutoff), optimiser)
    memory = _memory(functions["step"], potential.device)
    times = least(functions, potential.device, seconds)
    ms = times.pop("step")
    row = {"molecules": TRAINED, "atoms": 9, "ms_per_step": ms, "molecules_per_second": TRAINED / ms * 1e3}
    return row | {"memory_mb": memory, "peers_ms": times}


def bench(model: str, device: str, threads: int | None, json_file: Path | None) -> None:
    """Loads a model, measures, prints and writes. Raises InputError for a device or a number of threads that is not there."""
    potential = load(model)
    if threads is not None:
        if threads < 1:
            raise InputError(f"--threads is {threads}; it must be positive")
        torch.set_num_threads(threads)
    potential.to(check_device(device))
    say(f"{model}: {sum(p.numel() for p in potential.parameters()):,} parameters, cutoff {potential.cutoff:g} Å; {potential.path}")
    if (gain := compiled_gain(potential)) is not None:
        say(f"long simulations and trainings compile this model (not measured here): about {gain[0]:.1f} and {gain[1]:.1f} times as fast")
    say(f"{torch.get_num_threads()} thread(s); least time of {ROUNDS} rounds in turns (on the CPU processor time)")
    found = measure(potential)
    say("ethanols, steps of 0.5 fs         ms/step  energy + forces    ns/day   memory MB")
    for row in found["molecular_dynamics"]:
        size = f"{row['atoms']:5d} atoms x {row['replicas']:4d} replica{'s' if row['replicas'] > 1 else ''}"
        say(f"{size:30s} {row['ms_per_step']:10.3f} {row['ms_energy_forces']:16.3f} {row['ns_per_day']:9.3g} {row['memory_mb']:11.0f}")
        for name, ms in row["peers_ms"].items():
            say(f"   {name:16s} {ms:10.2f} ms for energy + forces, {ms / row['ms_energy_forces']:.2f} x this model's")
    trained = found["training"]
    rate = f"{trained['molecules_per_second']:.0f} molecules/s"
    say(f"training on forces, {TRAINED} ethanols a step: {trained['ms_per_step']:.2f} ms, {rate}, memory {trained['memory_mb']:.0f} MB")
    for name, ms in trained["peers_ms"].items():
        say(f"   {name:16s} {ms:10.2f} ms with energies and forces, {ms / trained['ms_per_step']:.2f} x this model's")
    if json_file is not None:
        write_bytes(json_file, (json.dumps({"model": model, **found}, indent=1) + "\n").encode())
