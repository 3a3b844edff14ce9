"""Splits that ask for something new: scaffolds, a molecule left out, larger molecules, other elements."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import sys
from collections import defaultdict
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import command, refuse, succeed

from forcewell.errors import InputError
from forcewell.leakage import molecules
from forcewell.scaffolds import packed, scaffolds
from forcewell.split import Split, by_element, by_molecule, by_scaffold, by_size, leave_out, leave_store_out
from forcewell.store import Dataset, MemoryData, open_data
from forcewell.system import Block

BUNDLED = Path(str(files("forcewell"))) / "bundled"
SMILES = Path(__file__).parent / "data" / "moleculenet_smiles.csv"
TENTHS = [0.8, 0.1, 0.1]


def labels(name: str) -> MemoryData:
    """A MoleculeNet set as data without geometries: one placeholder atom each, the SMILES, and no identifiers."""
    with open(SMILES, newline="", encoding="utf-8") as stream:
        smiles = [row["smiles"] for row in csv.DictReader(stream) if row["set"] == name]
    arrays = {"numbers": np.ones(len(smiles), dtype=np.uint8), "positions": np.zeros((len(smiles), 3))}
    return MemoryData([Block(np.ones(len(smiles)), arrays, smiles=np.array(smiles, dtype=object))])


@pytest.fixture(scope="module")
def freesolv() -> MemoryData:
    return labels("FreeSolv")


@pytest.fixture(scope="module")
def qm7x() -> Dataset:
    return open_data(BUNDLED / "qm7x_hand.npz")


def murcko(smiles: str) -> str | None:
    """A second way to the scaffold: the molecule object's, then its SMILES."""
    from rdkit import Chem
    from rdkit.Chem.Scaffolds import MurckoScaffold

    molecule = Chem.MolFromSmiles(smiles)
    if molecule is None:
        return None
    core = MurckoScaffold.GetScaffoldForMol(molecule)
    Chem.RemoveStereochemistry(core)
    return Chem.MolToSmiles(core)


def test_plain_scaffold_split_is_moleculenet_s(freesolv: MemoryData) -> None:
    """The published procedure written out plainly: scaffolds from the largest, train filled first, then validation."""
    sets: dict[str, list[int]] = defaultdict(list)
    for row, smiles in enumerate(freesolv.column("smiles").tolist()):
        sets[str(murcko(smiles))].append(row)
    train: list[int] = []
    validation: list[int] = []
    test: list[int] = []
    n = len(freesolv)
    for rows in sorted(sets.values(), key=lambda rows: (len(rows), rows[0]), reverse=True):
        if len(train) + len(rows) <= 0.8 * n:
            train += rows
        elif len(train) + len(validation) + len(rows) <= 0.9 * n:
            validation += rows
        else:
            test += rows
    split = by_scaffold(freesolv, TENTHS)
    print({name: len(rows) for name, rows in split.parts.items()}, f"of {n}, {len(sets)} scaffolds")
    for name, expected in (("train", train), ("validation", validation), ("test", test)):
        assert split.parts[name].tolist() == sorted(expected), name
    assert split.method == "scaffold" and split.ruled_out(split.leaks(freesolv)) == []


def test_balanced_scaffold_splits_differ_by_seed_and_keep_scaffolds_whole(freesolv: MemoryData) -> None:
    groups = scaffolds(freesolv.column("smiles"))
    largest_ring = np.bincount(groups)[1:].argmax() + 1  # benzene's; 0 is that of chains
    tested, trained = set(), set()
    for seed in range(4):
        split = by_scaffold(freesolv, TENTHS, seed)
        again = by_scaffold(freesolv, TENTHS, seed)
        assert all(np.array_equal(split.parts[name], again.parts[name]) for name in split.parts)
        assert split.ruled_out(split.leaks(freesolv)) == []
        found = {name: set(groups[rows]) for name, rows in split.parts.items()}
        assert sum(map(len, found.values())) == len(set().union(*found.values()))
        sizes = [len(rows) for rows in split.parts.values()]
        assert sum(sizes) == len(freesolv) and abs(sizes[0] - 0.8 * len(freesolv)) < 0.02 * len(freesolv)
        tested |= found["test"]
        trained.add(tuple(split.parts["train"][:50]))
    print(f"{len(tested)} of {groups.max() + 1} scaffolds tested in one of 4 seeds, the largest ring {largest_ring in tested}")
    assert len(trained) == 4
    plain = set(groups[by_scaffold(freesolv, TENTHS).parts["test"]])
    assert len(tested) > len(plain)


def test_smiles_that_cannot_be_read_are_in_no_part() -> None:
    data = labels("BBBP")
    unreadable = [row for row, smiles in enumerate(data.column("smiles").tolist()) if murcko(smiles) is None]
    split = by_scaffold(data, TENTHS)
    print(f"{len(unreadable)} of {len(data)} SMILES cannot be read")
    assert len(unreadable) >= 3 and split.settings["left_out"] == len(unreadable)
    assert np.array_equal(np.setdiff1d(np.arange(len(data)), np.concatenate(list(split.parts.values()))), unreadable)


def test_packing_leaves_the_rest_unused() -> None:
    part = packed(np.repeat(np.arange(100), 3), {"train": 0.5, "test": 0.2}, seed=1)
    assert [int((part == k).sum()) for k in (-1, 0, 1)] == [90, 150, 60]


def test_scaffolds_need_rdkit_and_smiles(freesolv: MemoryData, qm7x: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no conformation has a SMILES"):
        by_scaffold(qm7x, TENTHS)
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(InputError, match=r"need RDKit; install it with: pip install 'forcewell\[qm\]'"):
        by_scaffold(freesolv, TENTHS)


def test_one_molecule_is_left_out(qm7x: Dataset) -> None:
    names = qm7x.column("molecule")
    split = leave_out(qm7x, names[42], validation=0.25, seed=5, per_molecule=8, tested=6)
    assert set(names[split.parts["test"]]) == {names[42]} and len(split.parts["test"]) == 6
    rest = np.concatenate([split.parts["train"], split.parts["validation"]])
    number = np.unique(molecules(qm7x)[rest], return_counts=True)[1]
    print(f"{len(number)} molecules trained on, {set(number)} frames of each")
    assert names[42] not in names[rest] and 195 < len(number) < 200 and set(number) == {8}
    assert len(split.parts["validation"]) == len(number) * 2
    assert split.ruled_out(split.leaks(qm7x)) == []
    assert {leak.kind for leak in split.leaks(qm7x)} == {"identifier"}  # train and validation share molecules, as they should
    with pytest.raises(InputError, match="no molecule 'aspirin'"):
        leave_out(qm7x, "aspirin")


def test_one_store_of_several_is_left_out(tmp_path: Path) -> None:
    """Train on some of the molecules, test on another, as files that training reads."""
    stores = {"ethanol": BUNDLED / "rmd17_ethanol_train_01.npz", "water": Path(__file__).parent / "data" / "water_mp2_200.npz"}
    datasets = {name: open_data(path) for name, path in stores.items()}
    splits = leave_store_out(datasets, "water", per_molecule=500, tested=50)
    assert {name: {part: len(rows) for part, rows in split.parts.items()} for name, split in splits.items()} == {
        "ethanol": {"train": 450, "validation": 50},
        "water": {"test": 50},
    }
    with pytest.raises(InputError, match="have a molecule in common"):
        leave_store_out({**datasets, "again": open_data(BUNDLED / "rmd17_ethanol_test_01.npz")}, "again")
    done = command("data", "split", *stores.values(), "--method", "leave-one-out", "--out", tmp_path)
    assert done.code == 0, done.err
    written = sorted(file.name for file in tmp_path.iterdir())
    assert len(written) == 4 and all(name.endswith(".json") for name in written)
    left = "rmd17_ethanol_train_01"
    assert set(Split.load(tmp_path / f"{left}-leave-one-out-{left}.json", datasets["ethanol"]).parts) == {"test"}


def test_by_size_and_by_element(qm7x: Dataset) -> None:
    split = by_size(qm7x, largest=18, validation=0.2, seed=1)
    assert qm7x.counts[split.parts["test"]].min() == 19
    assert max(qm7x.counts[split.parts[name]].max() for name in ("train", "validation")) == 18
    assert split.ruled_out(split.leaks(qm7x)) == []
    split = by_element(qm7x, [16, 17], validation=0.1)
    elements = {name: set(qm7x.block(rows).arrays["numbers"].tolist()) for name, rows in split.parts.items()}
    print(elements)
    assert not (elements["train"] | elements["validation"]) & {16, 17} and {16, 17} <= elements["test"]
    assert all({16, 17} & set(qm7x[int(row)].numbers.tolist()) for row in split.parts["test"])
    with pytest.raises(InputError, match="no conformation would be tested on with element"):
        by_element(qm7x, [79])
    with pytest.raises(InputError, match="every conformation would be tested on with size"):
        by_size(qm7x, 1)


def test_every_method_from_the_command_line(tmp_path: Path) -> None:
    file = BUNDLED / "qm7x_hand.npz"
    methods = ("molecule", "time", "random", "size --largest 18", "element --elements S,Cl", "leave-one-out --leave qm7x/0")
    for words in (*methods, "random --counts 1600,200,rest"):
        name, out = open_data(file).column("molecule")[0], tmp_path / f"{words}.json"
        done = command("data", "split", file, "--method", *words.replace("qm7x/0", name).split(), "--out", out)
        assert done.code == 0, done.err
        content = json.loads(out.read_text())
        assert content["method"] == words.split()[0] and content["seed"] == 0 and set(content["parts"]) == {"train", "validation", "test"}
        Split.load(out, open_data(file))
    for words, message in {
        "scaffold": "no conformation has a SMILES",
        "size": "needs --largest",
        "element --elements Xx": "needs --elements with symbols",
        "leave-one-out": "would write 200 files",
        "random --fractions a": "numbers separated by commas",
        "random --fractions 0.5": "makes 1 part(s) of 0.5 in all; give two or more that add up to 1",
        "random --fractions 1": "makes 1 part(s) of 1 in all",
        "random --fractions 0.8,0.1": "makes 2 part(s) of 0.9 in all",
        "random --fractions train=0.8,holdout=0.3": "makes 2 part(s) of 1.1 in all",
        "random --fractions nan,0.5": "of nan in all",
        "time --counts 9,1": "--counts is for --method random",
    }.items():
        done = command("data", "split", file, "--method", *words.split(), "--out", tmp_path / "never.json")
        assert done.code == 2 and message in done.err, done.err
    assert not (tmp_path / "never.json").exists()


def test_another_split_is_never_replaced(tmp_path: Path) -> None:
    """The same again is fine; other content is refused before anything is written, unless --out names another file."""
    words = ("data", "split", shutil.copy(BUNDLED / "qm7x_hand.npz", tmp_path / "data.npz"), "--method", "random")
    succeed(*words)
    before = (tmp_path / "split-random.json").read_bytes()
    succeed(*words)
    said = refuse(*words, "--fractions", "0.5,0.5")
    assert "split-random.json already exists and is not this split; name another with --out" in said
    assert (tmp_path / "split-random.json").read_bytes() == before
    succeed(*words, "--fractions", "0.5,0.5", "--out", tmp_path / "half.json")
    assert {len(rows) for rows in json.loads((tmp_path / "half.json").read_text())["parts"].values()} == {1000}
    assert "already exists" in refuse(*words, "--out", tmp_path)  # a folder


def test_identifiers_of_one_molecule_stay_together(minima: Block, ethanol: dict[str, Block]) -> None:
    """Frames under names of their own, or none: the bond graph still tells that they are of one molecule."""
    alone = dataclasses.replace(minima, source="", level="")
    for kind in ("own", "none"):
        frames = ethanol["train"].take(np.arange(60))
        frames.molecule = np.array([f"frame-{k}" if kind == "own" else "" for k in range(60)], dtype=object)
        data = MemoryData([alone, frames])
        assert len(np.unique(molecules(data)[-60:])) == 1
        split = by_molecule(data, TENTHS, seed=0)
        assert split.ruled_out(split.leaks(data)) == []
        holding = [name for name, rows in split.parts.items() if (rows >= len(alone)).any()]
        assert len(holding) == 1
