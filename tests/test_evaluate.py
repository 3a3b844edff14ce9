"""``forcewell evaluate``: the figures in its JSON are those of a calculation by hand."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from tiny_runs import MODEL, ethanol, npz, refuse, small_store, succeed

import forcewell as fw
from forcewell.evaluate.errors import evaluate
from forcewell.potential import Potential
from forcewell.store import MemoryData
from forcewell.system import System
from forcewell.units import KCAL_PER_MOL


def by_hand(systems: Sequence[System], energies: np.ndarray, forces: Sequence[np.ndarray]) -> dict[str, float]:
    """Figures from ``Potential.predict``, one molecule at a time, against labels in eV and eV/Å."""
    potential = fw.load(MODEL)
    out = [potential.predict([system]) for system in systems]
    errors = np.concatenate([(o["forces"][0] - f).ravel() for o, f in zip(out, forces, strict=True)])
    groups: dict[tuple[int, ...], list[float]] = defaultdict(list)
    for system, o, energy in zip(systems, out, energies, strict=True):
        groups[tuple(sorted(system.numbers.tolist()))].append(float(o["energy"][0] - energy))
    shifted = np.concatenate([np.array(group) - np.mean(group) for group in groups.values() if len(group) > 1])
    return {
        "force_mae": 1000 * float(np.abs(errors).mean()),
        "force_rmse": 1000 * float(np.sqrt((errors**2).mean())),
        "energy_mae": 1000 * float(np.abs(shifted).mean()),
        "n_conformations": len(systems),
        "n_atoms": sum(len(system) for system in systems),
    }


def compare(found: dict[str, Any], expected: dict[str, float], name: str) -> None:
    worst = max(abs(found[key] / value - 1) for key, value in expected.items())
    print(f"{name}: {', '.join(f'{key} {found[key]:.4g}' for key in expected)}; within {worst:.1e} relative of the hand calculation")
    assert found["n_conformations"] == expected["n_conformations"] and found["n_atoms"] == expected["n_atoms"]
    # Batches sum float32 in another order than single molecules; the energies' 1e-7 of 10 eV is 1e-5 of their error.
    assert worst < 1e-6


def evaluated(data: Path, out: Path) -> dict[str, Any]:
    succeed("evaluate", MODEL, data, "--json", out)
    return json.loads(out.read_text(encoding="utf-8"))


def frames(count: int) -> tuple[list[System], np.ndarray, np.ndarray]:
    """Bundled ethanol frames in eV and Å, converted here."""
    data = npz("rmd17_ethanol_test_01.npz")
    numbers = data["nuclear_charges"].astype(np.uint8)
    systems = [System({"numbers": numbers, "positions": x.astype(np.float64)}) for x in data["coords"][:count]]
    return systems, data["energies"][:count].astype(np.float64) * KCAL_PER_MOL, data["forces"][:count] * KCAL_PER_MOL


def test_rmd17_file(tmp_path: Path) -> None:
    found = evaluated(ethanol(tmp_path / "rmd17_ethanol.npz", 60), tmp_path / "errors.json")
    assert {"force_mae", "force_rmse", "energy_mae", "n_conformations", "n_atoms"} <= found.keys()
    assert found["n_conformations"] == 60 and found["n_atoms"] == 540 and found["training_overlap"] == 0.0
    compare(found, by_hand(*frames(60)), "ethanol (.npz)")
    assert set(found["per_element"]) == {"H", "C", "O"}
    assert np.average([found["per_element"][s] for s in "HCO"], weights=[6, 2, 1]) == pytest.approx(found["force_mae"])


def test_two_levels_of_theory(tmp_path: Path) -> None:
    """Each conformation at its own: of a model's own energies and forces, half at each level, nothing is wrong."""
    potential = fw.load(MODEL)
    two = Potential(
        potential.config, levels=("A", "B"), references={"A": np.arange(119.0), "B": -np.arange(119.0)}, elements=potential.elements
    )
    systems = []
    for k, system in enumerate(frames(12)[0]):
        level = "AB"[k % 2]
        out = two.predict([system], level=level)
        labels = {"energy": out["energy"][0], "forces": out["forces"][0].astype(np.float64)}
        systems.append(dataclasses.replace(system, arrays={**system.arrays, **labels}, level=level))
    found = evaluate(two, MemoryData.from_systems(systems))
    print(f"total energies {found['energy_total_mae']:.1e} meV, forces {found['force_mae']:.1e} meV/Å")
    assert found["energy_total_mae"] < 0.1 and found["force_mae"] < 0.01 and found["level"] == "A, B"
    two.references["A"] *= -1
    assert evaluate(two, MemoryData.from_systems(systems))["energy_total_mae"] > 1000  # the control


def test_a_level_that_the_model_does_not_know(tmp_path: Path) -> None:
    """It is said, and total energies, which lie thousands of eV apart, are not compared; nor are those of a level not stated."""
    data = ethanol(tmp_path / "e.npz", 10)
    out = succeed("evaluate", MODEL, data, "--json", tmp_path / "errors.json")
    found = json.loads((tmp_path / "errors.json").read_text(encoding="utf-8"))
    assert f"level of theory: PBE/def2-SVP, which the model does not know; evaluated at {found['level']}\n" in out
    assert found["unknown_levels"] == ["PBE/def2-SVP"] and "own references" not in out and found["energy_mae"] > 0
    assert found["energy_total_mae"] is None and found["energy_total_rmse"] is None
    potential, named = fw.load(MODEL), frames(4)
    bare = [dataclasses.replace(s, arrays={**s.arrays, "energy": np.float64(e)}) for s, e in zip(named[0], named[1], strict=False)]
    unstated, last = MemoryData.from_systems(bare), potential.levels[-1]
    potential.references[last] = np.full(119, -1.0)
    assert evaluate(potential, unstated)["energy_total_mae"] is None
    assert evaluate(potential, unstated, level=last)["energy_total_mae"] > 1000
    potential.references[last] = np.zeros(119)
    assert evaluate(potential, unstated, level=last)["energy_total_mae"] is None


def test_one_frame_has_nothing_to_compare(tmp_path: Path) -> None:
    out = succeed("evaluate", MODEL, ethanol(tmp_path / "one.npz", 1))
    assert "energy_mae      one frame per composition: nothing to compare" in out and "no labels" not in out


def test_qm7x_store(tmp_path: Path) -> None:
    """Several molecules of one composition; labels in the file's own eV."""
    store = fw.Store(small_store(tmp_path, "qm7x", 80))
    systems = [store[k] for k in range(len(store))]
    data = npz("qm7x_hand.npz")
    sizes = [len(system) for system in systems]
    forces = [data["forces"][k][: sizes[k]] for k in range(len(store))]
    for k, system in enumerate(systems):  # nothing of the labels was changed by the import
        assert (data["z"][k] != 0).sum() == sizes[k] and np.abs(system.arrays["forces"] - forces[k]).max() < 1e-6
    found = evaluated(tmp_path / "qm7x.fw", tmp_path / "errors.json")
    compare(found, by_hand(systems, data["energy"][:80].astype(np.float64), forces), "QM7-X (store)")
    assert found["level"] == "PBE0+MBD"
    assert found["training_overlap"] > 0.8  # the museum's model has met them


def test_extended_xyz_written_by_ase(tmp_path: Path) -> None:
    from ase.calculators.singlepoint import SinglePointCalculator

    systems, energies, forces = frames(30)
    written = []
    for system, energy, force in zip(systems, energies, forces, strict=True):
        atoms = system.to_atoms()
        atoms.calc = SinglePointCalculator(atoms, energy=float(energy), forces=force)
        written.append(atoms)
    ase.io.write(tmp_path / "frames.xyz", written, format="extxyz")
    compare(evaluated(tmp_path / "frames.xyz", tmp_path / "errors.json"), by_hand(systems, energies, forces), "extended XYZ")


def test_one_part_of_a_split(tmp_path: Path) -> None:
    """The part's conformations and no others, by labels and energies of their own; a part that is not there is refused."""
    data, split = ethanol(tmp_path / "rmd17_ethanol.npz", 60), tmp_path / "split.json"
    succeed("data", "split", data, "--method", "time", "--out", split)
    rows = json.loads(split.read_text())["parts"]["test"]
    assert 0 < len(rows) < 20
    succeed("evaluate", MODEL, data, "--split", split, "--json", tmp_path / "errors.json")
    systems, energies, forces = frames(60)
    wanted = by_hand([systems[k] for k in rows], energies[rows], [forces[k] for k in rows])
    compare(json.loads((tmp_path / "errors.json").read_text()), wanted, "test part")
    assert "has no part 'tset' (it has: train, validation, test)" in refuse("evaluate", MODEL, data, "--split", split, "--part", "tset")


def test_partly_labelled_data(tmp_path: Path) -> None:
    """Atoms without a force and frames without an energy are left out of the means, not counted as zero."""
    data = npz("rmd17_ethanol_test_01.npz")
    forces, energies = data["forces"][:20].astype(np.float64), data["energies"][:20].astype(np.float64)
    forces[:, 3:], energies[10:] = np.nan, np.nan
    found = evaluated(ethanol(tmp_path / "partly.npz", 20, forces=forces, energies=energies), tmp_path / "errors.json")
    systems, labels, known = frames(20)
    predicted = fw.load(MODEL).predict(systems)
    expected = 1000 * float(np.mean([np.abs(p[:3] - k[:3]) for p, k in zip(predicted["forces"], known, strict=True)]))
    error = predicted["energy"][:10] - labels[:10]
    expected_energy = 1000 * float(np.abs(error - error.mean()).mean())
    print(f"force_mae {found['force_mae']:.4f} and {expected:.4f}, energy_mae {found['energy_mae']:.4f} and {expected_energy:.4f}")
    assert found["force_mae"] == pytest.approx(expected, rel=1e-4)
    assert found["energy_mae"] == pytest.approx(expected_energy, rel=1e-4)


def test_no_labels_are_no_zeros(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "bare.xyz", [system.to_atoms() for system in frames(3)[0]], format="extxyz")
    found = evaluated(tmp_path / "bare.xyz", tmp_path / "errors.json")
    assert found["force_mae"] is None and found["energy_mae"] is None and found["n_conformations"] == 3
    assert "no labels to compare with" in succeed("evaluate", MODEL, tmp_path / "bare.xyz")


def test_labels_that_are_not_what_they_seem(tmp_path: Path) -> None:
    """Forces in another unit, labels under other names, and charges that the model does not see are each told."""
    data = npz("rmd17_ethanol_test_01.npz")
    weak = ethanol(tmp_path / "weak.npz", 60, forces=data["forces"][:60].astype(np.float64) / 51.4)
    assert re.search(
        "warning: .*weak.npz: forces along bonds .* data import with --unit or --map mends it", succeed("evaluate", MODEL, weak)
    )
    atoms = [system.to_atoms() for system in frames(3)[0]]
    for one in atoms:
        one.arrays["my_forces"] = np.zeros((9, 3))
        one.info["charge"] = 1
    ase.io.write(tmp_path / "mine.xyz", atoms, format="extxyz")
    said = succeed("evaluate", MODEL, tmp_path / "mine.xyz")
    assert "--map my_forces=forces" in said and "forcewell data import extxyz" in said
    assert "3 of 3 conformations are charged or not singlets, which this model does not see" in said


def test_forces_do_not_depend_on_the_level(tmp_path: Path) -> None:
    data = ethanol(tmp_path / "e.npz", 10)
    results = []
    for level in fw.load(MODEL).levels:
        succeed("evaluate", MODEL, data, "--level", level, "--json", tmp_path / "errors.json")
        results.append(json.loads((tmp_path / "errors.json").read_text(encoding="utf-8")))
    assert results[0]["force_mae"] == results[1]["force_mae"] and results[0]["level"] != results[1]["level"]


def test_bundled_data_by_name() -> None:
    """In Python and for commands, not in runs alone."""
    data = fw.open_data("bundled:ethanol-test")
    assert len(data) == 1000 and data.counts.max() == 9
    assert "1000 conformations" in succeed("evaluate", MODEL, "bundled:ethanol-test")
    assert "did you mean 'ethanol'" in refuse("evaluate", MODEL, "bundled:ethanl")
