"""Steps in the compiled kernels against the integrators in PyTorch, and simulations that take them."""

from __future__ import annotations

import copy
import json
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import Any

import ase
import ase.build
import numpy as np
import pytest
import torch

from forcewell import compiled, fused, integrators
from forcewell.batch import Batch
from forcewell.checkpoint import load, read_tensors
from forcewell.integrators import MOVING, State
from forcewell.potential import Potential
from forcewell.simulate import simulate
from forcewell.store import open_data
from forcewell.system import System

TIMESTEP, TEMPERATURE, RELAXATION = 0.5, 300.0, 20.0
ENSEMBLES = pytest.mark.parametrize("ensemble", compiled.ENSEMBLES)


@cache
def molecules() -> list[System]:
    """Real molecules of 5 to 20 atoms, together more than go through the kernels at once, and one atom alone."""
    with resources.as_file(resources.files("forcewell.bundled") / "qm7x_hand.npz") as path:
        data = open_data(path)
        return [*(data[row] for row in (3, 501, 777, 1203, 1999)), System.from_atoms(ase.Atoms("O"))]


@cache
def potential(scaled: bool = False) -> Potential:
    """The packaged model, or one with factors for each level of theory and weights that hardly bind anything."""
    if not scaled:
        return load("forcewell-small").eval().requires_grad_(False)
    torch.manual_seed(1)
    config = {"encoder": {"name": "equivariant-transformer", "channels": 32, "layers": 2, "heads": 2, "radial": 16, "levels": 2}}
    table = {"one": np.arange(119) * -30.0, "two": np.arange(119) * -31.0}
    made = Potential({**config, "head": {"level_scale": True, "energy_spread": 0.05}}, levels=("one", "two"), references=table)
    assert made.level_scale is not None
    made.level_scale.data = torch.tensor([0.3, -0.2])
    return made.eval().requires_grad_(False)


def start(model: Potential, ensemble: str, systems: list[System] | None = None) -> State:
    batch = Batch.from_systems(systems or molecules())
    batch.level = torch.arange(len(batch)) % max(len(model.levels), 1)
    chain = 3 if ensemble == "nose-hoover" else 0
    return integrators.init(batch, model, temperature=TEMPERATURE, generator=torch.Generator().manual_seed(7), chain=chain)


def reference(model: Any, ensemble: str, state: State, steps: int) -> None:
    """As ``simulate`` without compiled steps."""
    step = {
        "nve": partial(integrators.verlet_step, timestep=TIMESTEP),
        "langevin": partial(integrators.langevin_step, timestep=TIMESTEP, temperature=TEMPERATURE, friction=1 / RELAXATION),
        "nose-hoover": partial(integrators.nose_hoover_step, timestep=TIMESTEP, temperature=TEMPERATURE, period=RELAXATION),
    }[ensemble]
    for _ in range(steps):
        step(state, model)


def steps_of(model: Potential, ensemble: str) -> compiled.CompiledSteps:
    return compiled.CompiledSteps(model, ensemble, TIMESTEP, TEMPERATURE, RELAXATION)


def difference(one: State, two: State, atoms: Any = slice(None)) -> float:
    """Largest difference of positions (Å), velocities (Å/fs), forces (eV/Å) and of what the model sees (Å)."""
    pairs = [(getattr(one, name), getattr(two, name)) for name in MOVING[:3]] + [(one.batch.positions, two.batch.positions)]
    return max(float((a[atoms] - b[atoms]).abs().max()) for a, b in pairs)


@ENSEMBLES
@pytest.mark.parametrize("scaled", [False, True])
def test_equal_to_the_integrators(ensemble: str, scaled: bool) -> None:
    model = potential(scaled)
    right, fast = start(model, ensemble), start(model, ensemble)
    first, advance = right.positions.clone(), steps_of(model, ensemble)
    assert compiled.possible(model, fast.batch)
    for block in (1, 10, 4, 10, 10, 10, 10, 5):
        reference(model, ensemble, right, block)
        advance(fast, block)
    off, energies = difference(right, fast), float((right.energy - fast.energy).abs().max())
    chains = float((right.chain - fast.chain).abs().max()) if ensemble == "nose-hoover" else 0.0
    print(f"{ensemble}, scaled {scaled}: 60 steps, largest difference {off:.1e}, energies {energies:.1e} eV, chains {chains:.1e}")
    assert max(off, energies, chains) < 1e-13  # 1e-15 to 1e-14 seen
    assert torch.equal(right.generator.get_state(), fast.generator.get_state())
    total = model.total_energy(model(fast.batch), fast.batch)
    assert float((fast.energy - total).abs().max()) < 1e-9 and float(total.min()) < (-1000 if scaled else -10)
    moved = float((right.positions - first).abs().max())
    assert moved > 0.05
    if ensemble == "nose-hoover":
        assert float(right.chain[0].abs().max()) > 0.01


@ENSEMBLES
def test_same_bits_however_many_steps_at_once(ensemble: str) -> None:
    model, found = potential(), []
    for blocks in ([1] * 20, [20], [7, 10, 3]):
        state, advance = start(model, ensemble), steps_of(model, ensemble)
        for block in blocks:
            advance(state, block)
        found.append(state)
    for other in found[1:]:
        assert all(torch.equal(getattr(found[0], name), getattr(other, name)) for name in MOVING)
        assert torch.equal(found[0].generator.get_state(), other.generator.get_state())


@ENSEMBLES
def test_a_replica_that_blows_up_leaves_the_others_alone(ensemble: str) -> None:
    model = potential()
    right, fast = start(model, ensemble), start(model, ensemble)
    broken = right.batch.molecule == 1
    for state in (right, fast):
        state.velocities[broken] *= 1e6
        state.velocities[int(broken.nonzero()[0])] = torch.nan
    advance = steps_of(model, ensemble)
    reference(model, ensemble, right, 10)
    advance(fast, 10)
    off = difference(right, fast, ~broken)
    print(f"{ensemble}: the others differ by {off:.1e}")
    assert off < 1e-13
    # Beyond LONGEST_STEP the model goes on seeing the start, in both.
    assert torch.isfinite(fast.batch.positions).all()
    assert torch.equal(right.batch.positions[broken], fast.batch.positions[broken])
    whole = torch.arange(len(right)) != 1
    right, fast = right.take(whole), fast.take(whole)
    assert len(right.rows) < right.drawn
    reference(model, ensemble, right, 20)
    advance(fast, 20)
    assert difference(right, fast) < 1e-13
    assert torch.equal(right.generator.get_state(), fast.generator.get_state())


def run(folder: Path, **changes: Any) -> dict[str, Any]:
    """A simulation of three molecules, one of them squeezed so that it flies apart."""
    squeezed = ase.build.molecule("CH4")
    squeezed.positions *= 0.4
    systems = [molecules()[0], System.from_atoms(squeezed), molecules()[1]]
    settings = {"temperature": TEMPERATURE, "time": 0.05, "record_every": 20, "relaxation": RELAXATION, "seed": 5, **changes}
    return simulate(potential(), systems, out=folder, replicas=2, **settings).summary


@ENSEMBLES
def test_simulations_break_record_and_resume_to_the_same_bits(ensemble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    whole = compiled.CompiledSteps.__call__
    monkeypatch.setattr(compiled.CompiledSteps, "__call__", lambda self, state, steps: (calls.append(steps), whole(self, state, steps))[1])
    summary = run(tmp_path / "whole", ensemble=ensemble)
    assert sum(calls) == 100 and max(calls) == 10
    run(tmp_path / "parts", ensemble=ensemble, time=0.015)
    run(tmp_path / "parts", ensemble=ensemble, resume=True)
    names = [path.name for path in (tmp_path / "whole").iterdir() if path.suffix == ".xyz"]
    assert len(names) == 6
    for name in names:  # the shorter run has one more frame, its last
        frames = [(tmp_path / folder / name).read_text().split("\n") for folder in ("whole", "parts")]
        assert set(frames[0]) <= set(frames[1])
    one, two = (read_tensors(tmp_path / folder / "state.safetensors", "simulation state") for folder in ("whole", "parts"))
    assert all(torch.equal(one[0][name], two[0][name]) for name in one[0] if name != "counts")
    lasted = [row["censored"] for row in summary["replicas"]]
    assert not all(lasted[2:4]) and all(lasted[:2] + lasted[4:])

    monkeypatch.setattr(compiled, "possible", lambda *_: False)
    plain, before = run(tmp_path / "plain", ensemble=ensemble), len(calls)
    assert len(calls) == before
    assert [row["stability_ps"] for row in plain["replicas"]] == [row["stability_ps"] for row in summary["replicas"]]
    logs = [[json.loads(line) for line in (tmp_path / folder / "log.jsonl").open()] for folder in ("whole", "plain")]
    off = max(
        abs(a - b)
        for one, two in zip(*logs, strict=True)
        for name in ("potential", "kinetic")
        for a, b in zip(one[name], two[name], strict=True)
        if a is not None
    )
    print(f"{ensemble}: energies in the log differ by {off:.1e} eV")
    assert off < 1e-9


def test_what_is_not_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(Potential):
        def forward(self, batch: Batch, **keywords: Any) -> Any:
            return super().forward(batch, **keywords)

    model, batch = potential(), Batch.from_systems(molecules())
    assert compiled.possible(model, batch)
    assert not compiled.possible(Other(model.config), batch)
    assert not compiled.possible(copy.deepcopy(model).double(), batch.to(dtype=torch.float64))
    crystal = Batch.from_systems([System.from_atoms(ase.build.bulk("C", "diamond", 3.57, cubic=True)), *molecules()])
    assert not compiled.possible(model, crystal)
    monkeypatch.setattr(fused, "functions", lambda: None)
    assert not compiled.possible(copy.deepcopy(model), batch)


def test_the_start_of_a_state_is_left_alone() -> None:
    model = potential()
    state = start(model, "nve")
    before = {name: (getattr(state, name), getattr(state, name).clone()) for name in MOVING}
    steps_of(model, "nve")(state, 5)
    assert all(torch.equal(given, kept) for given, kept in before.values())
    assert not torch.equal(state.positions, before["positions"][0])
    assert np.isfinite(state.positions.numpy()).all()
