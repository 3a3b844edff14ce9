"""Whole simulations: breaking, recording, resuming to the same bits, refusing bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
import pytest
import torch
from analytic import ETHANOL, WATER, MorseNetwork
from ase.constraints import FixAtoms

import forcewell.simulate as module
from forcewell import simulate_command
from forcewell.checkpoint import read_tensors, write_tensors
from forcewell.errors import InputError
from forcewell.evaluate.distances import density, histogram
from forcewell.evaluate.stability import bonds
from forcewell.integrators import State
from forcewell.monitor import copies_of
from forcewell.simulate import simulate
from forcewell.system import Block, System


def short(**changes: Any) -> dict[str, Any]:
    """Settings of a run of 200 steps with 11 frames."""
    return {"temperature": 400.0, "time": 0.1, "record_every": 20, "seed": 5, **changes}


def files(folder: Path) -> dict[str, bytes]:
    """What must be the same to the last bit (the summary holds the speed)."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name not in ("summary.json", "state.safetensors")}


def state_of(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    return read_tensors(folder / "state.safetensors", "state")


def frames_in(path: Path) -> list[ase.Atoms]:
    return ase.io.read(path, index=":")  # type: ignore[return-value]


class Killed(RuntimeError):
    pass


class Mortal(MorseNetwork):
    """Dies at a given call."""

    calls, last = 0, 10**9

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        type(self).calls += 1
        if type(self).calls > type(self).last:
            raise Killed
        return super().forward(*arguments, **keywords)


@pytest.mark.parametrize("ensemble", ["nve", "langevin", "nose-hoover"])
def test_killed_and_resumed_is_the_same_to_the_bit(ensemble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keywords = short(ensemble=ensemble, replicas=3, relaxation=20.0)
    # Ethanol is weak: replicas of it break before the kill and after it.
    depths = (5.0, 0.12 if ensemble == "nose-hoover" else 0.1)
    simulate(MorseNetwork(depths=depths), [WATER, ETHANOL], out=tmp_path / "whole", **keywords)
    monkeypatch.setattr(module, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(Mortal, "calls", 0)
    monkeypatch.setattr(Mortal, "last", 128)  # between two records: the trajectory is ahead of the state
    with pytest.raises(Killed):
        simulate(Mortal(depths=depths), [WATER, ETHANOL], out=tmp_path / "killed", **keywords)
    facts = state_of(tmp_path / "killed")[1]
    assert facts["step"] == 120
    broken = sum(entry is not None for entry in facts["broke"])
    with (tmp_path / "killed" / "replica-000.xyz").open("a") as file:
        file.write("3\nhalf a fra")
    resumed = simulate(MorseNetwork(depths=depths), [WATER, ETHANOL], out=tmp_path / "killed", resume=True, **keywords)
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    one, two = (state_of(tmp_path / name) for name in ("whole", "killed"))
    assert one[1] == two[1]
    assert all(torch.equal(one[0][name], two[0][name]) for name in one[0])
    assert resumed.summary["steps"] == 200
    assert 0 < broken < 6 - resumed.summary["whole"]
    assert one[1]["step"] == 200


def test_a_replica_breaks_and_the_others_go_on(tmp_path: Path) -> None:
    result = simulate(MorseNetwork(depths=(5.0, 0.02)), [WATER, ETHANOL], out=tmp_path / "run", replicas=2, **short())
    rows = result.summary["replicas"]
    assert [row["censored"] for row in rows] == [True, True, False, False]
    assert [row["stability_ps"] for row in rows[:2]] == [0.1, 0.1]
    assert result.summary["whole"] == 2
    assert result.summary["stability_ps"] == pytest.approx(np.mean([row["stability_ps"] for row in rows]))
    pairs = bonds(ETHANOL.numbers, ETHANOL.positions)[0]
    lengths = np.linalg.norm(ETHANOL.positions[pairs[:, 0]] - ETHANOL.positions[pairs[:, 1]], axis=1)
    for row in rows[2:]:
        broke = row["broke"]
        assert broke["reason"] == "bond"
        frames = frames_in(tmp_path / "run" / row["trajectory"])
        assert frames[-1].info["time"] == broke["time_ps"] == row["stability_ps"]
        i, j = broke["atoms"]
        reference = lengths[pairs.tolist().index([i, j])]
        assert abs(frames[-1].get_distance(i, j) - reference) == pytest.approx(broke["deviation"], abs=1e-6)
        assert broke["deviation"] > 0.5
        assert broke["elements"] == "-".join(frames[-1][k].symbol for k in (i, j))
        for frame in frames[:-1]:
            assert all(abs(frame.get_distance(*pair) - length) < 0.5 for pair, length in zip(pairs, lengths, strict=True))
    seen = result.observables
    assert np.isnan(seen["temperature"][-1, 2:]).all()
    assert np.isfinite(seen["temperature"][:, :2]).all()


def test_values_that_are_not_finite_break_one_replica_only(tmp_path: Path) -> None:
    class Poison(MorseNetwork):
        calls = 0

        def forward(self, batch: Any, **keywords: Any) -> Any:
            out = super().forward(batch, **keywords)
            assert torch.isfinite(batch.positions).all()  # the model never sees what blew up
            type(self).calls += 1
            if type(self).calls > 23 and len(batch) == 2 and out.forces is not None:
                out.forces[batch.molecule == 0] = torch.nan
            return out

    result = simulate(Poison(), [WATER, ETHANOL], out=tmp_path / "run", **short())
    water, ethanol = result.summary["replicas"]
    assert water["broke"]["reason"] == "not finite"
    assert water["broke"]["step"] == 30
    assert ethanol["censored"]
    assert "nan" not in (tmp_path / "run" / "replica-000.xyz").read_text()


def test_observables_and_trajectory(tmp_path: Path) -> None:
    result = simulate(MorseNetwork(), ETHANOL, out=tmp_path / "run", ensemble="nve", **short())
    frames, seen = frames_in(tmp_path / "run" / "replica-000.xyz"), result.observables
    assert len(frames) == len(seen["time"]) == 11
    potential = MorseNetwork()
    for frame, energy in zip(frames, seen["potential"][:, 0], strict=True):
        from forcewell.ase_calculator import calculator

        assert frame.get_potential_energy() == pytest.approx(energy, abs=1e-7)
        stored = frame.get_forces()
        frame.calc = calculator(potential)
        assert frame.get_potential_energy() == pytest.approx(energy, abs=1e-5)
        assert np.abs(frame.get_forces() - stored).max() < 1e-5
    assert np.allclose(seen["total"], seen["potential"] + seen["kinetic"])
    row = result.summary["replicas"][0]
    assert row["degrees_of_freedom"] == 24
    assert abs(row["deviation_mev_atom"]) < 2.0
    assert np.ptp(seen["kinetic"]) > 20 * np.ptp(seen["total"])
    assert row["drift_mev_atom_ps"] == pytest.approx(np.polyfit(seen["time"], seen["total"][:, 0] * 1000 / 9, 1)[0], rel=1e-6)
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == result.summary


def test_reference_gives_bond_lengths_and_distances(tmp_path: Path) -> None:
    first = simulate(MorseNetwork(), ETHANOL, out=tmp_path / "first", **short())
    assert "distances_mae" not in first.summary
    frames = np.array([frame.positions for frame in frames_in(tmp_path / "first" / "replica-000.xyz")])
    block = Block.shared(ETHANOL.numbers, frames)
    second = simulate(MorseNetwork(), ETHANOL, out=tmp_path / "second", reference=block, **short())
    assert second.summary["distances_mae"] < 1e-3  # the same run; only the 8th decimal of the text differs
    halves = [density(histogram(part)) for part in (frames[:5], frames[5:])]
    assert second.summary["distances_floor"] == pytest.approx(10 * np.abs(halves[0] - halves[1]).mean())
    stretched = Block.shared(ETHANOL.numbers, 1.6 * frames)
    third = simulate(MorseNetwork(), ETHANOL, out=tmp_path / "third", reference=stretched, **short())
    assert third.summary["replicas"][0]["broke"]["time_ps"] == 0.0
    with pytest.raises(InputError, match="no frame with the 3 atoms"):
        simulate(MorseNetwork(), WATER, out=tmp_path / "fourth", reference=block, **short())


def test_extending_a_finished_run(tmp_path: Path) -> None:
    simulate(MorseNetwork(), WATER, out=tmp_path / "long", **short())
    simulate(MorseNetwork(), WATER, out=tmp_path / "short", **short(time=0.05))
    extended = simulate(MorseNetwork(), WATER, out=tmp_path / "short", resume=True, **short())
    assert files(tmp_path / "short") == files(tmp_path / "long")
    again = simulate(MorseNetwork(), WATER, out=tmp_path / "short", resume=True, **short())
    assert "steps_per_second" not in again.summary
    assert again.summary["stability_ps"] == extended.summary["stability_ps"] == 0.1


def test_resume_refuses_another_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run is not a simulation \(no state.safetensors\); start without --resume"):
        simulate(MorseNetwork(), WATER, out=tmp_path / "run", resume=True, **short())
    simulate(MorseNetwork(), WATER, out=tmp_path / "run", **short())
    with pytest.raises(InputError, match="already exists"):
        simulate(MorseNetwork(), WATER, out=tmp_path / "run", **short())
    with pytest.raises(InputError, match=r"another temperature \(400.0 there, 300.0 now\)"):
        simulate(MorseNetwork(), WATER, out=tmp_path / "run", resume=True, **short(temperature=300.0))
    with pytest.raises(InputError, match="another model;"):
        simulate(MorseNetwork(depths=(4.0, 4.0)), WATER, out=tmp_path / "run", resume=True, **short())
    with pytest.raises(InputError, match="another structure;"):
        simulate(MorseNetwork(), ETHANOL, out=tmp_path / "run", resume=True, **short())
    (tmp_path / "run" / "replica-000.xyz").write_text("3\n")
    with pytest.raises(InputError, match="shorter than the state file says"):
        simulate(MorseNetwork(), WATER, out=tmp_path / "run", resume=True, **short())


def test_damaged_state_is_refused(tmp_path: Path) -> None:
    simulate(MorseNetwork(), WATER, out=tmp_path / "run", **short())
    path = tmp_path / "run" / "state.safetensors"
    whole = path.read_bytes()
    for content, message in ((whole[:-1] + bytes([whole[-1] ^ 1]), "SHA-256"), (whole[:50], "not a readable"), (None, "does not exist")):
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            simulate(MorseNetwork(), WATER, out=tmp_path / "run", resume=True, **short())
    write_tensors(path, {"a": torch.zeros(1)}, {"kind": "run state"})
    with pytest.raises(InputError, match="not the state of a simulation"):
        simulate(MorseNetwork(), WATER, out=tmp_path / "run", resume=True, **short())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ensemble": "langevn"}, "did you mean 'langevin'"),
        ({"temperature": -1.0}, "temperature is -1.0 K"),
        ({"temperature": float("nan")}, "temperature is nan K"),
        ({"temperature": float("inf")}, "temperature is inf K; it must be positive and finite"),
        ({"time": float("inf")}, "time is inf; it must be positive and finite"),
        ({"time": 0.0}, "time is 0.0"),
        ({"time": 1e-5}, "less than one time step"),
        ({"timestep": 0.0}, "timestep is 0.0"),
        ({"replicas": 0}, "replicas is 0"),
    ],
)
def test_impossible_settings(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        simulate(MorseNetwork(), WATER, out=tmp_path / "run", **short(**change))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_impossible_structures(tmp_path: Path) -> None:
    for atoms, message in (
        (ase.Atoms("Cl2", [[0, 0, 0], [0, 0, 2.0]]), "never saw"),
        (ase.Atoms("H2O", [[0, 0, 0], [0, 0, 0.1], [1, 0, 0]]), "on top of each other"),
        (ase.Atoms("H2O", [[0, 0, 0], [0, 0, np.nan], [1, 0, 0]]), "NaN"),
    ):
        with pytest.raises(InputError, match=message):
            simulate(MorseNetwork(), atoms, out=tmp_path / "run", **short())
        assert not (tmp_path / "run").exists()


def test_what_a_simulation_would_pass_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Constraints and heavy hydrogen are refused, in Python and from a file; momenta are told of; standard masses are fine."""
    held, heavy, usual, moving = (WATER.to_atoms() for _ in range(4))
    held.set_constraint(FixAtoms([0]))
    heavy.set_masses([15.999, 2.014, 1.008])
    usual.set_masses([16.0, 1.008, 1.01])
    moving.set_velocities(np.full((3, 3), 0.01))
    for atoms, message in (
        (held, r"has constraints \(FixAtoms\)"),
        (heavy, r"atom 1 \(H\) has the mass 2.014, and simulations take the standard 1.008 amu"),
    ):
        path = tmp_path / "start.traj"
        atoms.write(path)
        with pytest.raises(InputError, match=message):
            simulate(MorseNetwork(), atoms, out=tmp_path / "run", **short())
        with pytest.raises(InputError, match=f"start.traj: {message}"):
            simulate_command.read_structure(path)
        assert not (tmp_path / "run").exists() and not capsys.readouterr().out
    for atoms, said in ((usual, ""), (moving, "its momenta are not used; the velocities of a simulation are drawn anew")):
        atoms.write(tmp_path / "start.traj")
        assert np.array_equal(simulate_command.read_structure(tmp_path / "start.traj").positions, atoms.positions)
        printed = capsys.readouterr().out
        assert said in printed and bool(printed) == bool(said)


def test_command_reads_structures(tmp_path: Path) -> None:
    path = tmp_path / "water.xyz"
    WATER.to_atoms().write(path)
    system = simulate_command.read_structure(path, charge=-1, spin=2)
    assert np.allclose(system.positions, WATER.positions)
    assert (int(system.get("charge")), int(system.get("spin"))) == (-1, 2)
    archive = tmp_path / "frames.npz"
    np.savez(archive, nuclear_charges=WATER.numbers, coords=np.stack([WATER.positions, 2 * WATER.positions]))
    assert np.array_equal(simulate_command.read_structure(archive).positions, WATER.positions)
    for name, content, message in (
        ("absent.xyz", None, "no such file"),
        ("bad.xyz", "not a structure", "ASE cannot read it"),
        ("bad.npz", "not an archive", "not a readable .npz"),
        ("overlap.xyz", "2\n\nH 0 0 0\nH 0 0 0.01\n", "on top of each other"),
    ):
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=message) as caught:
            simulate_command.read_structure(tmp_path / name)
        assert "\n" not in str(caught.value)
    for device in ("gpu", "meta"):
        with pytest.raises(InputError, match=f"device '{device}' cannot be used"):
            simulate_command.check_device(device)


def test_no_bond_through_an_open_axis() -> None:
    """Two carbons of one layer, 5 Å apart, are 1.3 Å from each other's image above, which is not there."""
    for periodic, watched in ((True, 1), (False, 0)):
        atoms = ase.Atoms("C2", [[0, 0, 0], [0, 0, 5.0]], cell=[9, 9, 6.3], pbc=[True, True, periodic])
        assert len(copies_of([System.from_atoms(atoms)], 1, None)[0].pairs) == watched


def test_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from forcewell import checkpoint

    monkeypatch.setattr(checkpoint, "load", lambda path: MorseNetwork(depths=(0.05, 5.0)))
    WATER.to_atoms().write(tmp_path / "water.xyz")
    simulate_command.simulate(Path("model"), tmp_path / "water.xyz", temperature=500.0, time=0.1, replicas=2, out=tmp_path / "md")
    printed = capsys.readouterr().out
    assert "6 degrees of freedom" in printed
    assert "broke at" in printed
    assert "bond O-H of atoms 0 and" in printed and "that is long" not in printed
    simulate_command.simulate(Path("model"), tmp_path / "water.xyz", temperature=1.0, time=0.01, timestep=2.5, out=tmp_path / "long")
    assert "in steps of 2.5 fs (warning: that is long" in capsys.readouterr().out
    with pytest.raises(InputError, match="add --resume"):
        simulate_command.simulate(Path("model"), tmp_path / "water.xyz", temperature=500.0, time=0.1, out=tmp_path / "md")
    for change, message in (
        ({"temperature": float("nan")}, "temperature is nan K"),
        ({"replicas": 0}, "replicas is 0"),
        ({"time": -1.0}, "time is -1.0"),
        ({"timestep": 0.0}, "timestep is 0.0"),
        ({"level": "hf"}, "not in tuple"),  # the analytic model's own words
        ({"resume": True}, r"new is not a simulation \(no state.safetensors\); start without --resume"),
    ):
        wrong: dict[str, Any] = {"temperature": 500.0, "time": 0.1, "out": tmp_path / "new", **change}
        with pytest.raises(ValueError, match=message):
            simulate_command.simulate(Path("model"), tmp_path / "water.xyz", **wrong)
        assert not capsys.readouterr().out, "announced before it was checked"


def test_the_model_is_left_alone(tmp_path: Path) -> None:
    potential = MorseNetwork().train()
    simulate(potential, [System(dict(WATER.arrays))], out=tmp_path / "run", **short())
    assert potential.training
    assert potential.depth.requires_grad
    assert State.__slots__  # a state takes no stray attributes
