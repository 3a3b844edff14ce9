"""Molecular dynamics through compiled energies and forces, for encoders without kernels: same numbers, chosen once, resumed to the bit.

Graphs run as traced (see test_traced.py); what the code generator makes of them is compared with the ordinary way in every run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from analytic import WATER
from tiny_runs import killed_at

import forcewell.potential as potential_module
import forcewell.simulate as simulate_module
from forcewell import step_path, traced
from forcewell.batch import Batch
from forcewell.potential import Potential, Prediction
from forcewell.simulate import simulate
from forcewell.step_path import FORCES, Gain, StepPath
from forcewell.system import System
from forcewell.testing import batch_of, small_potential
from forcewell.traced import CompiledStep, Shape, complete, lists_of

METHANOL_PAIR = ("methanol", "water", "methanol")


class Doubled(Potential):
    """A user's own: its forward would work on what the compiled one made of it already."""

    def forward(self, *arguments: Any, **keywords: Any) -> Prediction:
        found = super().forward(*arguments, **keywords)
        return Prediction(2 * found.energy, 2 * found.forces)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Compiling always pays, graphs run as traced; the atoms of every batch that went through one."""
    seen: list[int] = []
    call = CompiledStep.__call__

    def counted(self: CompiledStep, batch: Batch, *more: Any) -> dict[str, torch.Tensor]:
        seen.append(len(batch.numbers))
        return call(self, batch, *more)

    monkeypatch.setattr(traced, "BACKEND", None)
    monkeypatch.setattr(step_path, "DYNAMICS_GAINS", {"schnet": Gain(1e9, 0.0, 0.0)})
    monkeypatch.setattr(CompiledStep, "__call__", counted)
    return seen


@pytest.mark.parametrize("name", ["equivariant-transformer", "schnet", "egnn", "se3-transformer", "gemnet-t"])
def test_energies_and_forces_of_replicas(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One trace for moved atoms, and for what is left when a replica is gone; parameters without gradients, as in a simulation."""
    monkeypatch.setattr(traced, "BACKEND", None)
    potential = small_potential(name, layers=1).double().eval().requires_grad_(False)
    batch = batch_of(*METHANOL_PAIR).to(dtype=torch.float64)
    shape = lists_of(batch, potential.cutoff).shape.for_replicas(complete(batch))
    step = CompiledStep(potential, shape, FORCES, training=False)
    moved = batch.to()
    moved.positions = batch.positions + 0.1 * torch.randn(batch.positions.shape, generator=torch.Generator().manual_seed(0)).double()
    worst = 0.0
    for case in (batch, moved, batch_of("methanol", "water").to(dtype=torch.float64)):
        lists = lists_of(case, potential.cutoff)
        assert shape.holds(lists.shape)
        found, right = step(case, lists), potential(case)
        assert not found["forces"].requires_grad and found["energy"].shape == right.energy.shape
        worst = max(worst, *(float((found[part] - getattr(right, part)).abs().max()) for part in ("energy", "forces")))
    print(f"{name}: {worst:.1e} eV or eV/Å")
    assert worst < 1e-12


def run(folder: Path, start: System = WATER, time: float = 0.06, **changes: Any) -> None:
    """A simulation of two replicas by a small SchNet."""
    torch.manual_seed(3)
    potential = small_potential("schnet", layers=1)
    with torch.no_grad():  # as good as no forces: what holds nothing together still moves slowly
        [*potential.head.parameters()][-2].mul_(1e-3)
    settings = {"temperature": 1.0, "timestep": 0.5, "record_every": 20, "replicas": 2, "seed": 1, "progress": True}
    simulate(potential, start, time=time, out=folder, **{**settings, **changes})


def recorded(folder: Path) -> dict[str, np.ndarray]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {key: np.array([line[key] for line in lines]) for key in ("step", "potential", "kinetic")}


def test_a_simulation_takes_the_compiled_path(tmp_path: Path, calls: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "compiled")
    said = capsys.readouterr().out
    assert len(calls) == 101  # the 100 steps after the choice, and one to compare
    assert "energies and forces will be compiled" in said and "energies and forces compiled in" in said
    step_path.DYNAMICS_GAINS.clear()
    run(tmp_path / "plain")
    assert len(calls) == 101 and "compiled" not in capsys.readouterr().out
    ours, plain = recorded(tmp_path / "compiled"), recorded(tmp_path / "plain")
    off = max(float(np.abs(ours[key] - plain[key]).max()) for key in ("potential", "kinetic"))
    print(f"energies within {off:.1e} eV after 120 steps")
    assert np.array_equal(ours["step"], plain["step"]) and off < 1e-4


@pytest.mark.parametrize("stop", [15, 45])
def test_a_resumed_simulation_takes_the_same_path(stop: int, tmp_path: Path, calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, killed before the choice and after it."""
    run(tmp_path / "whole")
    monkeypatch.setattr(simulate_module, "SAVE_SECONDS", 0.0)
    with killed_at(stop):
        run(tmp_path / "killed")
    run(tmp_path / "killed", resume=True)
    for name in ("log.jsonl", "replica-000.xyz", "replica-001.xyz"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


def test_an_extended_simulation_chooses_anew(tmp_path: Path, calls: list[int]) -> None:
    """Too short for anything at first; what was made then stays."""
    run(tmp_path / "run", time=0.01)
    assert not calls
    first = (tmp_path / "run" / "replica-000.xyz").read_bytes()
    run(tmp_path / "run", resume=True)
    assert len(calls) >= 90 and (tmp_path / "run" / "replica-000.xyz").read_bytes().startswith(first)


def test_one_molecule_gains_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_path, "DYNAMICS_GAINS", {"schnet": Gain(1.0, 10.0, 5.0, 2.0)})
    chosen = []
    for edges in (300, 5000):
        path = StepPath(small_potential("schnet", layers=2), FORCES, 10_000, training=False)
        path.times, path.largest, path.complete = [(0.01, 0.01)] * 20, Shape(21, 1, 18, edges), Shape(21, 1, 20, 420)
        chosen.append(path.plan(20))
        print(chosen[-1])
    assert chosen[0][:2] == (True, Shape(22, 2, 20, 376)) and not chosen[1][0]


def test_what_never_compiles(tmp_path: Path, calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels, float64, short runs and periodic cells; without kernels the Equivariant Transformer would."""
    monkeypatch.setitem(step_path.DYNAMICS_GAINS, "equivariant-transformer", Gain(1e9, 0.0, 0.0))
    transformer = small_potential("equivariant-transformer")
    never = [StepPath(transformer, FORCES, 10**6, training=False), StepPath(small_potential("schnet").double(), FORCES, 10**6)]
    never.append(StepPath(small_potential("schnet"), FORCES, 20, training=False))
    never.append(StepPath(Doubled(small_potential("schnet").config), FORCES, 10**6, training=False))
    assert all(path.decided and path.shape is None for path in never)
    monkeypatch.setattr(potential_module, "instructions", lambda *_, **__: 0)
    assert not StepPath(transformer, FORCES, 10**6, training=False).decided
    run(tmp_path / "periodic", System({**WATER.arrays, "cell": 12.0 * np.eye(3), "pbc": np.ones(3, dtype=bool)}))
    assert not calls


def test_atoms_that_outgrow_the_shape_go_the_ordinary_way_and_it_is_said(calls: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    path = StepPath(small_potential("schnet", layers=1).double().eval().requires_grad_(False), FORCES, 1000, training=False)
    batch = batch_of("methanol")
    shape = lists_of(batch, path.potential.cutoff).shape
    path.decide(True, Shape(shape.atoms + 1, shape.molecules + 1, shape.neighbours, shape.edges - 2))
    assert path(batch, FORCES, False) is None and path(batch, FORCES, False) is None and not calls
    assert capsys.readouterr().out == "energies and forces by PyTorch while the atoms have more neighbours than was compiled for\n"
    assert path(batch_of("water"), FORCES, False) is not None and len(calls) == 2  # one to compare
