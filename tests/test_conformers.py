"""Structures from SMILES: the molecule that was asked for, the same every time, labels kept, failures named."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import refuse, small_store, succeed

from forcewell.bonds import graph_hashes
from forcewell.conformers import embed
from forcewell.store import open_data
from forcewell.system import block_of


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
    """QM9 minima: energies and properties stay with the molecule, forces and ``equilibrium`` go, wrong SMILES are named."""
    small_store(tmp_path, "qm9", 4)
    line = refuse("data", "conformers", tmp_path / "qm9.fw", "--out", tmp_path / "none.fw")
    assert "has no SMILES" in line and not (tmp_path / "none.fw").exists()
    data = np.load(str(files("forcewell") / "bundled" / "qm9_minima_4002.npz"))
    ids = data["ids"][:4]
    from forcewell.rotors import fragments_of

    store = open_data(tmp_path / "qm9.fw")
    smiles = ["CCO", "C" * 30, "", ""]
    formulas = [sorted(store[k].numbers.tolist()) for k in range(4)]
    for candidate in ("O=CC=O", "CC(C)=O", "C1CC1", "CCO", "C#CC#N", "CCC", "CO", "C=O", "CC#N", "NC=O", "CC=O", "COC"):
        made = embed(candidate)[0]
        for k in (0, 2, 3):
            if sorted(made.numbers.tolist()) == formulas[k] and fragments_of(candidate, store[k].numbers, store[k].positions) is not None:
                smiles[k] = candidate
    known = [k for k in (0, 2, 3) if smiles[k] and sorted(embed(smiles[k])[0].numbers.tolist()) == formulas[k]]
    print(f"SMILES {smiles}, right for {known}")
    assert known
    rows = "".join(f"{i},{text},{-0.2 - 0.01 * k},-10.0,0.05\n" for k, (i, text) in enumerate(zip(ids, smiles, strict=True)))
    (tmp_path / "labels.csv").write_text("idx,smiles,homo,u0,zpve\n" + rows)
    succeed("data", "import", "qm9", tmp_path / "qm9.npz", "--out", tmp_path / "l.fw", "--option", f"labels={tmp_path / 'labels.csv'}")
    out = succeed("data", "conformers", tmp_path / "l.fw", "--out", tmp_path / "made.fw", "--count", "2")
    before, after = open_data(tmp_path / "l.fw"), open_data(tmp_path / "made.fw")
    assert "other atoms than the structure" in out and "CCCCCCCCC" in out
    assert len(after) == 2 * len(known) and (after.column("equilibrium") == -1).all() and "forces" not in after.fields
    assert after.levels == before.levels
    for k, row in enumerate(np.repeat(known, 2)):
        assert after[k].properties == pytest.approx(before[int(row)].properties)
        assert float(after[k].get("energy")) == float(before[int(row)].get("energy"))
        assert after[k].molecule == before[int(row)].molecule
