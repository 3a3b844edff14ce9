"""``forcewell generate molecules`` from a file of SMILES to a labelled store."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import refuse, succeed

from forcewell.doctor import check
from forcewell.errors import InputError
from forcewell.generate.molecules_command import frames_at
from forcewell.generate.ring_energies import loops_in
from forcewell.generate.species import without_stereo
from forcewell.store import Store

pytest.importorskip("tblite")
FEW = ("--conformers", 1, "--modes", "600:4", "--dynamics", "500:2", "--equilibration", 5, "--workers", 1)


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "mine.smi"
    file.write_text(text, encoding="utf-8")
    return file


def test_from_smiles_to_a_store(tmp_path: Path) -> None:
    file = written(tmp_path, "C[C@H](O)F chiral\nCC(=O)[O-] acetate\n[CH3] methyl spin=2\nOCC ethanol\n")
    out = succeed("generate", "molecules", "--smiles", file, "--out", tmp_path / "mine.fw", *FEW)
    print(out)
    assert "3 molecules; 1 left out as benchmark molecules" in out and "3 done, 0 failed, 0 left" in out
    store = Store(tmp_path / "mine.fw")
    assert store.complete and len(store) == 21 and check(store, "mine").ok
    smiles, charge, spin = (store.column(name) for name in ("smiles", "charge", "spin"))
    assert set(smiles.tolist()) == {"C[C@H](O)F", "CC(=O)[O-]", "[CH3]"}
    assert (charge == np.where(smiles == "CC(=O)[O-]", -1, 0)).all() and (spin == np.where(smiles == "[CH3]", 2, 1)).all()
    assert set(store.column("molecule").tolist()) == {"CC(O)F", "CC(=O)[O-]", "[CH3]"}
    again = succeed("generate", "molecules", "--smiles", file, "--out", tmp_path / "mine.fw", *FEW)
    assert "21 frames" in again and Store(tmp_path / "mine.fw").fingerprint == store.fingerprint
    assert "another campaign" in refuse("generate", "molecules", "--smiles", file, "--out", tmp_path / "mine.fw", *FEW, "--exclude", "none")


def test_what_cannot_be_used_is_left_out_when_asked(tmp_path: Path) -> None:
    file = written(tmp_path, "CC(\nO\nC[CH2]\n")
    line = refuse("generate", "molecules", "--smiles", file, "--out", tmp_path / "never.fw")
    assert "mine.smi, line 1: 'CC(' is not a SMILES" in line and "1 more like it" in line
    few = ("--conformers", 1, "--modes", "none", "--dynamics", "none", "--workers", 1, "--skip-unusable")
    out = succeed("generate", "molecules", "--smiles", file, "--out", tmp_path / "kept.fw", *few)
    assert "line 1" in out and "line 3" in out and "a radical" in out and "1 done" in out


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("C[N+](C)(C)C", ("--neutralise",), "cannot be neutralised"),
        ("[Og]", ("--exclude", "none"), "no parameters for Og"),
        ("CCO", (), "there is no molecule to sample; 1 are benchmark molecules"),
        ("CC", ("--exclude", "etanol"), "did you mean 'ethanol'"),
        ("CC", ("--engine", "gfn3"), "unknown engine 'gfn3'"),
        ("CC", ("--modes", "300"), "--modes '300': expected TEMPERATURE:FRAMES"),
        ("CC", ("--dynamics", "500:x"), "--dynamics '500:x'"),
        ("CC", ("--timestep", "50"), "timestep: input should be less than or equal to 5"),
        ("CC", ("--conformers", "0"), "conformers: input should be greater than or equal to 1"),
        ("CC", ("--limit", "0"), "--limit is 0; expected 1 or more molecules"),
        ("CC", ("--limit", "-1"), "--limit is -1; expected"),
        ("CC", ("--executor", "foo"), "unknown executor 'foo'"),
        ("CC", ("--spacing", "inf"), "spacing: input should be a finite number"),
        ("CC", ("--no-minima", "--modes", "none", "--dynamics", "none"), "no frame is asked for"),
        ("CC", ("--source", "qm9"), "give either --smiles FILE or --source NAME"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, options: tuple[str, ...], message: str) -> None:
    line = refuse("generate", "molecules", "--smiles", written(tmp_path, text), "--out", tmp_path / "never.fw", *options)
    print(line)
    assert message in line and not (tmp_path / "never.fw").exists()


def test_a_failed_molecule_is_named_with_its_reason(tmp_path: Path) -> None:
    """No bicyclo[3.2.1]octane has its bridge from one side of the ring to the other."""
    file = written(tmp_path, "O\nC1CC[C@@H]2C[C@@H]1CC2\n")
    out = succeed("generate", "molecules", "--smiles", file, "--out", tmp_path / "mine.fw", *FEW)
    print(out)
    assert "1 done, 1 failed" in out and "RDKit cannot embed it in three dimensions (C1C[C@H]2CC[C@H](C1)C2)" in out


def test_nothing_at_all(tmp_path: Path) -> None:
    line = refuse("generate", "molecules", "--smiles", written(tmp_path, "C1#CC1\n"), "--out", tmp_path / "mine.fw", *FEW)
    assert "nothing was made: 1 failed, 0 done; RDKit cannot embed it in three dimensions (C1#CC1)" in line
    succeed("generate", "molecules", "--smiles", written(tmp_path, "O\n"), "--out", tmp_path / "mine.fw", *FEW)
    for words in (
        ("molecules", "--smiles", tmp_path),
        ("card", tmp_path / "mine.smi"),
        ("sample", tmp_path / "mine.fw", "--megabytes", "nan"),
    ):
        line = refuse("generate", *words, *(() if words[0] == "card" else ("--out", tmp_path / "never.npz")))
        print(line)
        assert "is a folder" in line or "is not a Forcewell store" in line or "--megabytes is nan" in line


@pytest.mark.parametrize(
    "words",
    [("molecules", "--source", "qm9", "--heavy-atoms", 3), ("polymers", "--monomer", "C1CO1"), ("molecules", "--source", "rdkit-nci")],
)
def test_without_rdkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple) -> None:
    for module in [name for name in sys.modules if name.partition(".")[0] == "rdkit"] + ["rdkit", "rdkit.Chem"]:
        monkeypatch.setitem(sys.modules, module, None)
    assert "need RDKit: pip install 'forcewell[qm]'" in refuse("generate", *words, "--out", tmp_path / "never.fw")
    with pytest.raises(InputError, match="need RDKit"):
        loops_in(["C1CO1"])
    with pytest.raises(InputError, match="need RDKit"):
        without_stereo("C1CO1")


def test_tables_of_temperatures() -> None:
    assert frames_at("300:20, 1000:5", "--modes") == {300.0: 20, 1000.0: 5} and frames_at("none", "--modes") == {}
    for text in ("-3:4", "300:-1", "300", ":", "nan:3", "inf:3"):
        with pytest.raises(InputError, match="expected TEMPERATURE:FRAMES"):
            frames_at(text, "--modes")
