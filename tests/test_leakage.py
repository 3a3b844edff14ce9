"""Leaks between the parts of a split: planted ones are found, and splits without any are silent."""

from __future__ import annotations

import dataclasses
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import command, refuse, settings, write_yaml

from forcewell.errors import InputError
from forcewell.leakage import leaks
from forcewell.split import Split, by_molecule, by_time_block, random
from forcewell.store import Dataset, MemoryData, open_data
from forcewell.system import Block

BUNDLED = Path(str(files("forcewell"))) / "bundled"


@pytest.fixture(scope="module")
def qm7x() -> Dataset:
    return open_data(BUNDLED / "qm7x_hand.npz")


@pytest.fixture(scope="module")
def ethanol() -> Dataset:
    return open_data(BUNDLED / "rmd17_ethanol_train_01.npz")


def found(dataset: Dataset, parts: dict[str, np.ndarray], **options: Any) -> dict[str, int]:
    leak_list = leaks(dataset, parts, **options)
    for leak in leak_list:
        print(leak)
        first, second = leak.rows
        assert first in parts[leak.parts[0]] and second in parts[leak.parts[1]]
    return {leak.kind: leak.number for leak in leak_list}


def test_each_planted_leak_is_named(minima: Block) -> None:
    """Parts of different molecules, and then one thing in common at a time."""
    first, second = np.arange(30), np.arange(30, 60)
    parts, block = {"train": first, "test": second}, minima.take(np.arange(60))
    assert found(MemoryData([block]), parts) == {}  # the control
    assert found(MemoryData([block]), {"train": np.arange(31), "test": second})["row"] == 1

    renamed = block.take(np.arange(60))
    renamed.molecule[40] = renamed.molecule[10]
    assert found(MemoryData([renamed]), parts) == {"identifier": 1}

    copied = block.take(np.concatenate([np.arange(60), [13, 14]]))
    copied.molecule[60:] = ["a copy", "another"]
    more = {"train": first, "test": np.arange(30, 62)}
    assert found(MemoryData([copied]), more) == {"graph": 2, "geometry": 2}
    copied.arrays["positions"][-copied.counts[-1]] += 0.02
    assert found(MemoryData([copied]), more) == {"graph": 2, "geometry": 1}

    written = block.take(np.arange(60))
    written.smiles[:5], written.smiles[30:35] = "OCC", "[CH3:1][CH2:2][OH:3]"
    assert found(MemoryData([written]), parts) == {"smiles": 1}
    written.smiles[30:35] = "CCCO"
    assert found(MemoryData([written]), parts) == {}


def test_frames_that_follow_each_other(ethanol: Dataset) -> None:
    for gap in (0, 5):
        split = by_time_block(ethanol, {"train": 0.7, "test": 0.3}, gap=gap, seed=1)
        number = found(ethanol, split.parts)
        assert ("trajectory" in number) == (gap == 0) and number["identifier"] == 1
        assert split.ruled_out(leaks(ethanol, split.parts)) == []
    scattered = random(ethanol, [0.5, 0.5], seed=0)
    number = found(ethanol, scattered.parts)["trajectory"]
    assert 400 < number < 600  # half of the 999 neighbours
    moved = {"train": split.parts["train"][:-1], "test": np.append(split.parts["test"], split.parts["train"][-1])}
    broken = dataclasses.replace(split, parts={name: np.sort(rows) for name, rows in moved.items()})
    assert [leak.kind for leak in broken.ruled_out(broken.leaks(ethanol))] == ["trajectory"]


def test_generated_trajectories_are_told_apart(ethanol: Dataset) -> None:
    """Two trajectories of one molecule, stored in no order: each is cut in time, and a random split tears neighbours apart."""
    order = np.random.default_rng(3).permutation(200)
    block = ethanol.block(np.arange(200))
    trajectory, time = 7.0 + order % 2, 10.0 * (order // 2)
    mixed = MemoryData([dataclasses.replace(block, properties={"trajectory": trajectory, "time": time})])
    split = by_time_block(mixed, {"train": 0.5, "test": 0.5}, blocks=4, gap=1, seed=0)
    for number in (7.0, 8.0):
        for rows in split.parts.values():
            steps = np.diff(np.sort(time[rows][trajectory[rows] == number]))
            print(number, len(rows), np.unique(steps, return_counts=True))
            assert (steps == 10.0).sum() >= len(steps) - 3  # whole stretches: at most four
    assert "trajectory" not in found(mixed, split.parts)
    assert 80 < found(mixed, random(mixed, [0.5, 0.5], seed=0).parts)["trajectory"] < 120  # half of the 198 neighbours


def test_a_split_is_checked_when_used(qm7x: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    split = by_molecule(qm7x, [0.8, 0.1, 0.1], seed=0)
    split.save(path)
    assert Split.load(path, qm7x).parts.keys() == split.parts.keys()
    content = json.loads(path.read_text())
    row = content["parts"]["test"].pop()
    content["parts"]["train"] = sorted([*content["parts"]["train"], row])
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"train and test: molecules with conformations in both: 1 .*rules out; split again"):
        Split.load(path, qm7x)
    content["accepted_leaks"] = [{"kind": "identifier", "parts": ["train", "test"], "number": 1}]
    path.write_text(json.dumps(content))
    Split.load(path, qm7x)


def test_training_refuses_a_leaking_split(tmp_path: Path) -> None:
    data = BUNDLED / "qm7x_hand.npz"
    by_molecule(open_data(data), [0.8, 0.1, 0.1], seed=0).save(tmp_path / "s.json")
    content = json.loads((tmp_path / "s.json").read_text())
    content["parts"]["validation"].append(content["parts"]["train"][0])
    (tmp_path / "s.json").write_text(json.dumps(content))
    config = write_yaml(tmp_path / "c.yaml", settings({"path": str(data), "split": str(tmp_path / "s.json")}, objectives="et-ore"))
    message = refuse("pretrain", config, "--out", tmp_path / "run")
    print(message)
    assert "train and validation: conformations in both: 1" in message and not (tmp_path / "run").exists()


def test_a_leaking_split_is_not_written(ethanol: Dataset, tmp_path: Path) -> None:
    """70 frames of a trajectory twice: a random split tests on frames that were trained on."""
    twice = ethanol.block(np.concatenate([np.arange(1000), np.arange(70)]))
    np.savez(
        tmp_path / "twice.npz",
        nuclear_charges=twice.arrays["numbers"][:9],
        coords=twice.arrays["positions"].reshape(-1, 9, 3),
        energies=twice.arrays["energy"],
        forces=twice.arrays["forces"].reshape(-1, 9, 3),
        old_indices=np.arange(1070),
    )
    words = ("data", "split", tmp_path / "twice.npz", "--method", "random", "--out", tmp_path / "s.json")
    done = command(*words)
    print(done.err)
    assert done.code == 2 and "geometries in both" in done.err and not (tmp_path / "s.json").exists()
    done = command(*words, "--allow-leaks")
    assert done.code == 0 and "leak, allowed: train and validation: geometries in both" in done.out
    Split.load(tmp_path / "s.json", open_data(tmp_path / "twice.npz"))


def test_a_limit_bounds_what_is_looked_at(qm7x: Dataset) -> None:
    rows = np.arange(2000)
    parts = {"train": rows[rows % 2 == 0], "test": rows[rows % 2 == 1]}
    assert found(qm7x, parts, limit=100) == {"identifier": 200}
