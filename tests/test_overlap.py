"""Geometry hashes: the same conformation is recognised however it is written, another one is not, and overlaps are right."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
import pytest

from forcewell.overlap import KEPT, geometry_hashes, overlap, sketch
from forcewell.store import open_data
from forcewell.system import Block, System, block_of


def moved(block: Block, positions: np.ndarray) -> Block:
    copy = block.take(np.arange(len(block)))
    copy.arrays["positions"] = positions
    return copy


def turned(block: Block, seed: int) -> Block:
    """Every conformation in an orientation and place of its own."""
    rng = np.random.default_rng(seed)
    parts = []
    for points in np.split(block.arrays["positions"], block.offsets[1:-1]):
        rotation, _ = np.linalg.qr(rng.standard_normal((3, 3)))
        parts.append(points @ rotation.T + rng.uniform(-20, 20, 3))
    return moved(block, np.concatenate(parts))


@pytest.fixture(scope="module", params=["minima", "labelled", "ethanol"])
def block(request: pytest.FixtureRequest) -> Block:
    found = request.getfixturevalue(request.param)
    return found["train"].take(np.arange(300)) if request.param == "ethanol" else found


def test_conformations_have_hashes_of_their_own(block: Block) -> None:
    hashes = geometry_hashes(block)
    assert hashes.dtype == np.uint64 and hashes.shape == (len(block),)
    assert len(np.unique(hashes)) == len(block)


def test_a_turned_or_mirrored_conformation_is_the_same(block: Block) -> None:
    hashes = geometry_hashes(block)
    for seed in range(3):
        assert np.array_equal(geometry_hashes(turned(block, seed)), hashes)
    assert np.array_equal(geometry_hashes(moved(block, block.arrays["positions"] * [1, 1, -1])), hashes)


def test_the_order_of_atoms_and_conformations_does_not_matter(block: Block) -> None:
    hashes, rng = geometry_hashes(block), np.random.default_rng(0)
    shuffled = []
    for k in range(len(block)):
        order = rng.permutation(block.counts[k])
        system = block.system(k)
        shuffled.append(System({"numbers": system.numbers[order], "positions": system.positions[order]}))
    assert np.array_equal(geometry_hashes(block_of(shuffled)), hashes)
    order = rng.permutation(len(block))
    assert np.array_equal(geometry_hashes(block.take(order)), hashes[order])


def test_a_conformation_survives_being_written_as_text(block: Block, tmp_path: Path) -> None:
    """Extended XYZ has eight decimals, float32 seven digits. A sum close to the edge of a step of 1e-4 may then
    fall on its other side: a few per mille of the conformations are missed, more in float32."""
    hashes = geometry_hashes(block)
    ase.io.write(tmp_path / "frames.xyz", [block.system(k).to_atoms() for k in range(len(block))], format="extxyz")
    data = open_data(tmp_path / "frames.xyz")
    text = float((geometry_hashes(data.block(np.arange(len(data)))) == hashes).mean())
    single = float((geometry_hashes(moved(block, block.arrays["positions"].astype(np.float32).astype(np.float64))) == hashes).mean())
    print(f"of {len(block)} conformations, recognised from extended XYZ: {text:.4f}, from float32: {single:.4f}")
    assert text >= 0.98 and single >= 0.95


@pytest.mark.parametrize("distance", [1e-2, 1e-3])
def test_a_small_move_is_another_conformation(block: Block, distance: float) -> None:
    hashes, rng = geometry_hashes(block), np.random.default_rng(1)
    atom = block.offsets[:-1] + rng.integers(0, block.counts)
    direction = rng.standard_normal((len(block), 3))
    positions = block.arrays["positions"].copy()
    positions[atom] += distance * direction / np.linalg.norm(direction, axis=1, keepdims=True)
    same = int((geometry_hashes(moved(block, positions)) == hashes).sum())
    print(f"one atom moved by {distance} Å: {same} of {len(block)} hashes stay")
    assert same <= (0 if distance == 1e-2 else 0.02 * len(block))


def test_another_element_is_another_molecule(block: Block) -> None:
    copy = block.take(np.arange(len(block)))
    copy.arrays["numbers"][copy.offsets[:-1]] += 1
    assert not np.isin(geometry_hashes(copy), geometry_hashes(block)).any()


def test_atoms_and_nothing() -> None:
    atoms = block_of([System({"numbers": np.array([z]), "positions": np.ones((1, 3))}) for z in (1, 8, 8)])
    hashes = geometry_hashes(atoms)
    assert hashes[1] == hashes[2] != hashes[0]
    assert overlap(hashes[:0], hashes) == 0.0 and overlap(hashes, hashes[:0]) is None  # no sketch says nothing


def test_overlap_of_the_official_split(ethanol: dict[str, Block]) -> None:
    train, test = (geometry_hashes(ethanol[part]) for part in ("train", "test"))
    known = sketch(train)
    mixed = np.concatenate([train[:250], test[:750]])
    again = geometry_hashes(turned(ethanol["train"], 5))
    found = [overlap(hashes, known) for hashes in (test, train, mixed, again)]
    print("overlap of rMD17 train with test, train, a quarter of train, train turned:", found)
    assert found == [0.0, 1.0, 0.25, 1.0]


def test_a_sketch_of_a_large_set() -> None:
    """Beyond KEPT hashes the sketch is a sample, which still gives the overlap to about 1 %."""
    rng = np.random.default_rng(0)
    pool = rng.integers(0, 2**64, size=12 * KEPT, dtype=np.uint64)
    known = sketch(pool[: 10 * KEPT])
    assert len(known) == KEPT and np.array_equal(known, np.unique(known))
    found = overlap(pool[8 * KEPT :], known)
    print(f"overlap {found:.4f}, true 0.5")
    assert found == pytest.approx(0.5, abs=0.03)
    assert np.array_equal(sketch(np.concatenate([known, pool[: 10 * KEPT]])), known)  # sketches of sketches
