"""Splits: disjoint, leak-free, repeatable, and tied to their data."""

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from forcewell.errors import InputError
from forcewell.split import Split, by_molecule, by_time_block, named_fractions, random
from forcewell.split_command import counted
from forcewell.store import MemoryData, open_data
from forcewell.system import Block

BUNDLED = Path(str(files("forcewell"))) / "bundled"


@pytest.fixture(scope="module")
def qm7x():
    return open_data(BUNDLED / "qm7x_hand.npz")


@pytest.fixture(scope="module")
def ethanol():
    return open_data(BUNDLED / "rmd17_ethanol_train_01.npz")


def test_no_molecule_in_two_parts(qm7x):
    split = by_molecule(qm7x, [0.8, 0.1, 0.1], seed=3)
    molecule = qm7x.column("molecule")
    sets = [set(molecule[rows]) for rows in split.parts.values()]
    assert sum(map(len, sets)) == len(set.union(*sets)) == 200
    assert {name: len(rows) for name, rows in split.parts.items()} == {"train": 1600, "validation": 200, "test": 200}
    assert np.array_equal(np.sort(np.concatenate(list(split.parts.values()))), np.arange(2000))
    again, other = by_molecule(qm7x, [0.8, 0.1, 0.1], seed=3), by_molecule(qm7x, [0.8, 0.1, 0.1], seed=4)
    assert np.array_equal(again.parts["test"], split.parts["test"]) and not np.array_equal(other.parts["test"], split.parts["test"])


@pytest.mark.parametrize("gap", [0, 3])
def test_time_blocks_keep_their_distance(ethanol, gap):
    split = by_time_block(ethanol, {"train": 0.7, "test": 0.3}, blocks=10, gap=gap, seed=1)
    time_order = np.argsort(np.argsort(ethanol.column("property:frame")))
    train, test = (time_order[split.parts[name]] for name in ("train", "test"))
    closest = np.abs(train[:, None] - test).min()
    assert closest == (1 if gap == 0 else 2 * gap + 1)
    borders = 1000 - len(train) - len(test)
    assert borders % (2 * gap or 1) == 0 and (gap > 0 or borders == 0)
    # Stretches of 100 frames, so consecutive in time within a part.
    assert len(test) == pytest.approx(300, abs=6 * 2 * gap)


def test_random_split_and_partial_use(ethanol):
    split = random(ethanol, [0.95, 0.05], seed=0)
    assert (len(split.parts["train"]), len(split.parts["validation"])) == (950, 50)
    assert not set(split.parts["train"]) & set(split.parts["validation"])
    small = random(ethanol, {"train": 0.1}, seed=0)
    assert len(small.parts["train"]) == 100


def test_saved_split_is_checked_against_its_data(qm7x, ethanol, tmp_path):
    path = tmp_path / "split.json"
    split = by_molecule(qm7x, [0.9, 0.1], seed=0)
    split.save(path)
    loaded = Split.load(path, qm7x)
    assert all(np.array_equal(loaded.parts[name], rows) for name, rows in split.parts.items())
    assert (loaded.method, loaded.seed, loaded.settings) == ("molecule", 0, {"fractions": {"train": 0.9, "validation": 0.1}})
    with pytest.raises(InputError, match="made for other data"):
        Split.load(path, ethanol)
    content = json.loads(path.read_text())
    content["parts"]["train"][0] = 10**6
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="outside 0 to 1999"):
        Split.load(path, qm7x)
    path.write_text("{}")
    with pytest.raises(InputError, match="not a split file"):
        Split.load(path, qm7x)
    assert [file.name for file in tmp_path.iterdir()] == ["split.json"]


@pytest.mark.parametrize("fractions", [[0.9, 0.2], [0.5, 0.0], [-0.1, 0.5], [], [0.2] * 4, {"a": float("nan")}])
def test_impossible_fractions(fractions):
    with pytest.raises(InputError):
        named_fractions(fractions)


@pytest.mark.parametrize(
    ("text", "total", "expected"),
    [
        ("9500,500,rest", 20_000, {"train": 9500, "validation": 500, "test": 10_000}),
        ("950,50,rest", 1001, {"train": 950, "validation": 50, "test": 1}),
        ("950,50", 211_762, {"train": 950, "validation": 50}),
        ("950,50", 1000, {"train": 950, "validation": 50}),
        ("train=rest,holdout=7", 99, {"train": 92, "holdout": 7}),
        ("110000,10000,rest", 133_885, {"train": 110_000, "validation": 10_000, "test": 13_885}),
    ],
)
def test_counts_are_met_exactly(text, total, expected):
    data = MemoryData([Block(np.ones(total), {"numbers": np.ones(total, dtype=np.uint8), "positions": np.zeros((total, 3))})])
    split = random(data, counted(text, total), seed=1)
    assert {name: len(rows) for name, rows in split.parts.items()} == expected
    assert len(np.unique(np.concatenate(list(split.parts.values())))) == sum(expected.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("9500,500,rest", "the data have 1000 conformations, too few"),
        ("950,50,rest", "too few"),
        ("0.9,0.1", "whole numbers"),
        ("900,0", "whole numbers"),
        ("900,-5", "whole numbers"),
        ("rest,50,rest", "at most one of them rest"),
        ("1,1,1,rest", "up to three"),
        ("train=1,train=2", "whole numbers"),
        ("", "whole numbers"),
    ],
)
def test_impossible_counts(text, message):
    with pytest.raises(InputError, match=message):
        counted(text, 1000)


def test_empty_parts_are_refused(ethanol, qm7x):
    with pytest.raises(InputError, match="split by time or at random"):
        by_molecule(ethanol, [0.8, 0.2], seed=0)
    with pytest.raises(InputError, match="'validation' would be empty"):
        random(ethanol, [0.5, 0.0001], seed=0)
    with pytest.raises(InputError, match="cannot make 2 parts"):
        by_time_block(ethanol, [0.5, 0.5], blocks=1)
    with pytest.raises(InputError, match="would be empty"):
        by_molecule(qm7x, [0.9, 0.0001], seed=0)
