"""Static shapes: the same neighbours, forces and trajectories as always, and nothing in a step that a CUDA graph cannot hold."""

import contextlib
import copy
import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ase
import ase.build
import numpy as np
import pytest
import torch
from analytic import ETHANOL, WATER
from torch.utils._python_dispatch import TorchDispatchMode

from forcewell import captured, integrators, simulate, stepping
from forcewell import static_batch as module
from forcewell.batch import Batch
from forcewell.captured import CapturedSteps
from forcewell.graph import neighbours
from forcewell.nn import ENCODERS
from forcewell.static_batch import StaticBatch
from forcewell.system import System
from forcewell.testing import small_potential
from forcewell.trajectory import read_log

BATH = {"timestep": 0.5, "temperature": 400.0}
STEPS: dict[str, Callable[..., None]] = {
    "nve": partial(integrators.verlet_step, timestep=0.5),
    "langevin": partial(integrators.langevin_step, **BATH, friction=0.01),
    "nose-hoover": partial(integrators.nose_hoover_step, **BATH, period=20.0),
}


def molecules() -> Batch:
    odd = [ase.Atoms("O"), ase.build.molecule("HCN"), ase.Atoms("HN", [[0, 0, 0], [0, 0, 9]])]
    return Batch.from_systems([WATER, ETHANOL, *map(System.from_atoms, odd)], dtype=torch.float64)


def crystals() -> Batch:
    """Small triclinic cells, periodic along three, two and one axes, atoms drifted many cells away, and a molecule."""
    fractions = [[0, 0, 0], [0.4, 0.1, 0.2], [0.2, 0.6, 0.7], [0.7, 0.5, 0.3]]
    atoms = ase.Atoms("CNOH", cell=[[3.9, 0, 0], [0.6, 3.4, 0], [-0.5, 0.7, 7.1]], scaled_positions=fractions, pbc=True)
    slab, wire = atoms.copy(), atoms.copy()
    slab.pbc, wire.pbc = [True, False, True], [False, True, False]
    wire.cell[0] = wire.cell[2] = 0.0
    atoms.positions[1] += [17, -40, 33] @ atoms.cell.array
    return Batch.from_systems([System.from_atoms(a) for a in (atoms, slab, wire, ase.build.molecule("H2O"))], dtype=torch.float64)


BATCHES = {"molecules": molecules, "crystals": crystals}


def static(batch: Batch, cutoff: float = 5.0) -> StaticBatch:
    made = StaticBatch.of(batch, cutoff)
    assert made is not None
    return made


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("cutoff", [1.7, 5.0])
def test_same_neighbours(kind: str, cutoff: float) -> None:
    batch = BATCHES[kind]()
    fixed = static(batch, cutoff)

    def found(near: Any) -> list[tuple[Any, ...]]:
        there = near.mask > 0
        receiver = torch.arange(len(there))[:, None].expand_as(there)[there]
        rows = zip(receiver.tolist(), near.sender[there].tolist(), near.vectors[there].mul(1e6).round().tolist(), strict=True)
        return sorted((i, j, *vector) for i, j, vector in rows)

    near, usual = neighbours(fixed, cutoff), neighbours(batch, cutoff)
    assert near.mask.shape[1] == fixed.capacity >= usual.mask.shape[1] == int(fixed.most)
    assert found(near) == found(usual)
    assert len(found(usual)) > (5 if cutoff < 2 else 80)
    padded = near.mask == 0
    assert padded.any() and (near.distances[padded] == 2 * cutoff).all()


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("name", ENCODERS)
def test_same_forces(name: str, kind: str) -> None:
    batch = BATCHES[kind]()
    potential = small_potential(name, layers=1, electronic=True, levels=2).double()
    batch.charge = torch.arange(len(batch)) - 1
    right, found = potential(batch), potential(static(batch))
    error = float((right.forces - found.forces).abs().max() / right.forces.abs().max())
    print(f"{name}, {kind}: forces {error:.1e}, energy {float((right.energy - found.energy).abs().max()):.1e} eV")
    assert error < 2e-14
    torch.testing.assert_close(found.energy, right.energy, rtol=1e-12, atol=1e-12)


def begin(potential: Any, batch: Batch, chain: int = 3) -> integrators.State:
    generator = torch.Generator().manual_seed(3)
    return integrators.init(batch, potential, temperature=400.0, generator=generator, chain=chain)


@pytest.mark.parametrize("ensemble", STEPS)
def test_same_trajectory_whatever_the_room(ensemble: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for exactly the first neighbours: atoms that come within the cutoff later need more, and steps are done again."""
    monkeypatch.setattr(module, "ROOM", 1.0)
    monkeypatch.setattr(module, "UNIT", 1)
    potential = small_potential("equivariant-transformer", channels=16, layers=1, cutoff=1.6).double()
    batch = Batch.from_systems([ETHANOL, ETHANOL, WATER], dtype=torch.float64)
    usual, fixed = begin(potential, batch), begin(potential, batch)
    step = partial(STEPS[ensemble], potential=potential)
    for state in (usual, fixed):
        state.velocities *= 4.0
    many = CapturedSteps(step, potential.cutoff)
    rooms = [static(batch, potential.cutoff).capacity]
    for _ in range(10):
        for _ in range(7):
            step(usual)
        many(fixed, 7)
        assert isinstance(fixed.batch, StaticBatch)
        rooms.append(fixed.batch.capacity)
    moved = float((usual.positions - batch.positions).abs().max())
    error = {name: float((getattr(usual, name) - getattr(fixed, name)).abs().max()) for name in integrators.MOVING}
    print(f"{ensemble}: moved {moved:.2f} Å, room {rooms[0]} -> {rooms[-1]}, errors {error}")
    assert rooms[-1] > rooms[0] and moved > 0.3
    assert max(error.values()) < 1e-12


def test_a_taken_state_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken replica leaves; and where a molecule is too large for static shapes, steps are the usual ones."""
    potential = small_potential("schnet").double()
    batch = Batch.from_systems([ETHANOL, WATER, ETHANOL], dtype=torch.float64)
    step = partial(STEPS["langevin"], potential=potential)
    results = []
    for largest in (2**26, 8):
        monkeypatch.setattr(module, "MOST_CANDIDATES", largest)
        state, many = begin(potential, batch, chain=0), CapturedSteps(step, potential.cutoff)
        many(state, 5)
        state = state.take(torch.tensor([True, False, True]))
        assert type(state.batch) is Batch
        many(state, 5)
        assert isinstance(state.batch, StaticBatch) == (largest > 8)
        results.append(state.positions)
    assert float((results[0] - results[1]).abs().max()) < 1e-12


def on_meta(thing: Any) -> Any:
    """A copy without values, where reading one is an error, and so is a shape that depends on values."""
    for field in dataclasses.fields(thing):
        value = getattr(thing, field.name)
        if isinstance(value, torch.Tensor):
            setattr(thing, field.name, value.to("meta"))
        elif dataclasses.is_dataclass(value):
            on_meta(value)
    return thing


class Copies(TorchDispatchMode):
    """Copies from the host, for which a GPU waits, too."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default) and result.device.type == "meta":
            self.found += [str(func) for one in args if isinstance(one, torch.Tensor) and one.device.type == "cpu"]
        return result


STEPPED = [*((name, "langevin", {}) for name in ENCODERS), ("schnet", "nve", {}), ("schnet", "nose-hoover", {})]
WHITENED = ("equivariant-transformer", "langevin", {"vector_norm": "whitened"})


@pytest.mark.parametrize(("name", "ensemble", "settings"), [*STEPPED, WHITENED])
def test_a_step_never_waits_for_a_value(name: str, ensemble: str, settings: dict[str, Any]) -> None:
    """On the meta device, as in a CUDA graph, no value can be read and no number of results can depend on one."""
    potential = small_potential(name, layers=1, electronic=True, levels=2, **settings).double()
    for batch in (molecules(), crystals()):
        state = begin(potential, batch)
        many = CapturedSteps(partial(STEPS[ensemble], potential=copy.deepcopy(potential).to("meta")), potential.cutoff)
        assert many._take(state)
        on_meta(state).generator = None  # there is none for this device; noise has a shape all the same
        with Copies() as copies:
            many.once()
        assert state.forces.device.type == "meta" and not copies.found
    with pytest.raises((RuntimeError, NotImplementedError)):  # the control
        many.step(dataclasses.replace(state, batch=on_meta(molecules())))
    with Copies() as copies:
        torch.eye(3).to("meta")
    assert copies.found


def test_capture_warms_up_and_registers_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of calls to torch.cuda, whose real graphs need a GPU."""
    calls: list[Any] = []

    class Graph:
        def register_generator_state(self, generator: torch.Generator) -> None:
            calls.append(generator)

        def replay(self) -> None:
            calls.append("replay")

    class Stream:
        def wait_stream(self, other: Any) -> None:
            calls.append("wait")

    usual = Stream()
    fakes = {
        "Stream": Stream, "current_stream": lambda: usual, "stream": contextlib.nullcontext, "CUDAGraph": Graph,
        "graph": lambda graph, stream: contextlib.nullcontext(), "device": contextlib.nullcontext, "set_stream": calls.append,
    }  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    generator = torch.Generator()
    captured.capture(lambda: calls.append("run"), [generator], torch.device("cuda"))()
    assert calls == ["wait", "run", "run", "run", "wait", generator, "run", usual, "replay"]
    calls.clear()
    with pytest.raises(ZeroDivisionError):
        captured.capture(lambda: calls.append(1 // (5 - len(calls))), [], torch.device("cuda"))
    assert calls[-1] is usual  # whose capture fails, PyTorch leaves in the stream of the capture


def test_simulations_run_captured_on_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The branch for a GPU, with its graphs played by functions: the same files as without."""
    potential = small_potential("equivariant-transformer").double()
    potential.elements = (1, 6, 8)
    keywords: dict[str, Any] = {"temperature": 20.0, "time": 0.02, "record_every": 7, "replicas": 2, "seed": 5}
    simulate.simulate(potential, ETHANOL, out=tmp_path / "usual", **keywords)
    captures = []

    def played(function: Callable[[], None], generators: list[torch.Generator], device: torch.device) -> Callable[[], None]:
        for _ in range(captured.WARM_UP):  # these must leave no trace
            function()
        captures.append(generators)
        return function

    monkeypatch.setattr(captured, "capture", played)
    for place in (captured, stepping):
        monkeypatch.setattr(place, "has_graphs", lambda device: True)
    simulate.simulate(potential, ETHANOL, out=tmp_path / "graph", **keywords)
    usual, graph = (read_log(tmp_path / name / "log.jsonl") for name in ("usual", "graph"))
    assert usual["time"].tolist() == graph["time"].tolist() and len(usual["time"]) == 7
    for name in ("temperature", "total"):
        np.testing.assert_allclose(graph[name], usual[name], rtol=1e-9)
    assert len(captures) == 1 and len(captures[0]) == 1

    spoiled: list[torch.Generator] = []
    usual_step = integrators.langevin_step

    def fails(function: Any, generators: list[torch.Generator], device: torch.device) -> Any:
        played(function, generators, device)
        spoiled.extend(generators)
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    def drawing(state: Any, *given: Any, **keywords: Any) -> None:
        assert all(state.generator is not one for one in spoiled)  # which would refuse to draw outside of its graph
        usual_step(state, *given, **keywords)

    monkeypatch.setattr(integrators, "langevin_step", drawing)
    monkeypatch.setattr(captured, "capture", fails)
    simulate.simulate(potential, ETHANOL, out=tmp_path / "failed", **keywords)
    assert "without a CUDA graph: capturing failed (operation not permitted when stream is capturing)" in capsys.readouterr().out
    assert read_log(tmp_path / "failed" / "log.jsonl")["total"].tolist() == graph["total"].tolist()
