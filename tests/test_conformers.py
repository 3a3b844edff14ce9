"""Structures from SMILES: the molecule that was asked for, the same every time, labels kept, failures named."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from tiny_runs import refuse, succeed

from forcewell.bonds import graph_hashes
from forcewell.conformers import embedded
from forcewell.store import StoreWriter, open_data
from forcewell.system import System, block_of


def structure(smiles: str) -> System:
    found = embedded(smiles, 1, 0)
    assert found is not None
    return System({"numbers": found.numbers.astype(np.uint8), "positions": found.positions[0]})


def test_the_largest_seed_is_taken() -> None:
    one, other = embedded("CCO", 1, 2**31 - 1), embedded("CCO", 1, 5)
    assert one is not None and other is not None and not np.allclose(one.positions, other.positions)


def test_embedded_structures_are_the_molecule() -> None:
    found = embedded("C[NH2+]CC([O-])=O", 2, seed=0)
    assert found is not None
    assert found.charges.sum() == 0 and found.charges.min() == -1 and found.spin == 1
    assert len(found.numbers) == 13 and np.abs(found.positions[0] - found.positions[1]).max() > 0.1  # also with seed 0
    again = embedded("C[NH2+]CC([O-])=O", 2, seed=0)
    assert again is not None and np.array_equal(found.positions, again.positions)
    systems = [System({"numbers": found.numbers.astype(np.uint8), "positions": one}) for one in found.positions]
    assert len(set(graph_hashes(block_of(systems)).tolist())) == 1  # bonds perceived from either structure are the same
    radical = embedded("C[CH2]", 1, 0)
    assert radical is not None and radical.spin == 2
    assert embedded("not a molecule", 1, 0) is None and embedded("", 1, 0) is None


def test_command(tmp_path: Path) -> None:
    """Energies and properties stay with the molecule, forces and ``equilibrium`` go, wrong SMILES are named."""
    systems = []
    for name, smiles, stated in (("a", "CC=O", "CC=O"), ("a", "CC=O", "CC=O"), ("b", "CCN", "NCC"), ("c", "CCN", "CCCC")):
        one = structure(smiles)
        fields = {**one.arrays, "energy": np.float64(-10.0 - len(systems)), "forces": np.zeros((len(one), 3)), "equilibrium": np.int8(1)}
        systems.append(System(fields, "mine", "PM6", name, stated, {"homo": -6.0 - len(systems)}))
    bare = [dataclasses.replace(system, smiles="") for system in systems]
    for name, chosen in (("known", systems), ("wrong", systems[3:]), ("bare", bare)):
        writer = StoreWriter(tmp_path / f"{name}.fw")
        writer.append(block_of(chosen))
        writer.finish()
    line = refuse("data", "conformers", tmp_path / "bare.fw", "--out", tmp_path / "made.fw")
    assert "has no SMILES" in line and not (tmp_path / "made.fw").exists()
    line = refuse("data", "conformers", tmp_path / "wrong.fw", "--out", tmp_path / "made.fw")
    assert "none of its 1 molecules is left" in line and "CCCC" in line and not (tmp_path / "made.fw").exists()
    out = succeed("data", "conformers", tmp_path / "known.fw", "--out", tmp_path / "made.fw", "--count", "2")
    assert "4 conformations of 2 molecules" in out and "other atoms than the structure: CCCC" in out
    made = open_data(tmp_path / "made.fw")
    assert made.levels == ["PM6"] and (made.column("equilibrium") == -1).all() and np.isnan(made[0].get("forces")).all()
    assert made.column("molecule").tolist() == ["a", "a", "b", "b"]
    assert made.column("energy").tolist() == [-10.0, -10.0, -12.0, -12.0]
    assert made.column("property:homo").tolist() == [-6.0, -6.0, -8.0, -8.0]
    assert np.abs(made[0].positions - made[1].positions).max() > 0.01
    assert "already exists" in refuse("data", "conformers", tmp_path / "known.fw", "--out", tmp_path / "made.fw")
