"""Structures from SMILES: the molecule that was asked for, the same every time, labels kept, failures named."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from tiny_runs import refuse, succeed

from forcewell.bonds import graph_hashes
from forcewell.conformers import embed
from forcewell.store import StoreWriter, open_data
from forcewell.system import System, block_of


def test_embedded_structures_are_the_molecule() -> None:
    first, second = embed("C[NH2+]CC([O-])=O", 2, seed=3)
    assert first.get("charge") == 0 and sorted(first.get("formal_charges").tolist())[0] == -1 and first.get("spin") == 1
    assert len(first) == 13 and np.abs(first.positions - second.positions).max() > 0.1
    again = embed("C[NH2+]CC([O-])=O", 2, seed=3)
    assert np.array_equal(first.positions, again[0].positions)
    assert len(set(graph_hashes(block_of([first, second])).tolist())) == 1  # bonds perceived from either structure are the same
    assert embed("C[CH2]")[0].get("spin") == 2
    assert embed("not a molecule") == [] and embed("") == []


def test_command(tmp_path: Path) -> None:
    """Energies and properties stay with the molecule, forces and ``equilibrium`` go, wrong SMILES are named."""
    systems = []
    for name, smiles, stated in (("a", "CC=O", "CC=O"), ("a", "CC=O", "CC=O"), ("b", "CCN", "NCC"), ("c", "CCN", "CCCC")):
        one = embed(smiles)[0]
        fields = {**one.arrays, "energy": np.float64(-10.0 - len(systems)), "forces": np.zeros((len(one), 3)), "equilibrium": np.int8(1)}
        systems.append(System(fields, "mine", "PM6", name, stated, {"homo": -6.0 - len(systems)}))
    for name, chosen in (("known", systems), ("bare", [dataclasses.replace(system, smiles="") for system in systems])):
        writer = StoreWriter(tmp_path / f"{name}.fw")
        writer.append(block_of(chosen))
        writer.finish()
    line = refuse("data", "conformers", tmp_path / "bare.fw", "--out", tmp_path / "made.fw")
    assert "has no SMILES" in line and not (tmp_path / "made.fw").exists()
    out = succeed("data", "conformers", tmp_path / "known.fw", "--out", tmp_path / "made.fw", "--count", "2")
    assert "4 conformations of 2 molecules" in out and "other atoms than the structure: CCCC" in out
    made = open_data(tmp_path / "made.fw")
    assert made.levels == ["PM6"] and (made.column("equilibrium") == -1).all() and np.isnan(made[0].get("forces")).all()
    assert made.column("molecule").tolist() == ["a", "a", "b", "b"]
    assert made.column("energy").tolist() == [-10.0, -10.0, -12.0, -12.0]
    assert made.column("property:homo").tolist() == [-6.0, -6.0, -8.0, -8.0]
    assert np.abs(made[0].positions - made[1].positions).max() > 0.01
    assert "already exists" in refuse("data", "conformers", tmp_path / "known.fw", "--out", tmp_path / "made.fw")
