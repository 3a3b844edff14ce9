"""Periodic conformations: atoms on top of images, by the check of a Block and by brute force."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest

from forcewell.errors import InputError
from forcewell.system import OVERLAP, Block

SHIFTS = np.array(list(itertools.product(range(-4, 5), repeat=3)))


def closest(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> float:
    """Å: the smallest distance of an atom (A, 3) to another or to an image, over all shifts up to 4."""
    vectors = positions[:, None, None] - positions[None, :, None] + SHIFTS[(SHIFTS[:, ~pbc] == 0).all(axis=1)] @ cell
    distances = np.sort(np.linalg.norm(vectors, axis=-1), axis=None)
    return float(distances[len(positions)]) if distances.size > len(positions) else np.inf  # after the atoms' own zeros


def crystal(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A cell of 0.2 to 6 Å, some of them skewed, with up to five atoms, the last of which may be near an image of the first."""
    size, pbc = 10 ** rng.uniform(-0.7, 0.8), rng.random(3) < 0.7
    cell = np.diag(rng.uniform(0.7, 1.5, size=3)) + rng.uniform(0, 0.9) * np.tril(rng.uniform(-1, 1, size=(3, 3)), -1)
    cell = size * cell @ np.linalg.qr(rng.normal(size=(3, 3)))[0]
    positions = rng.uniform(0, 1, size=(rng.integers(1, 6 if size > 1 else 3), 3)) @ cell
    if len(positions) > 1 and rng.random() < 0.7:
        step = rng.normal(size=3)
        positions[-1] = positions[0] + (rng.integers(-2, 3, 3) * pbc) @ cell + step * rng.uniform(0.1, 0.4) / np.linalg.norm(step)
    return positions, cell, pbc


def test_atoms_on_top_of_images() -> None:
    """Random cells, small, skewed and periodic along some vectors, each by itself and those that are right all together."""
    rng, kept, bad = np.random.default_rng(3), [], 0
    for _ in range(150):
        positions, cell, pbc = crystal(rng)
        nearest = closest(positions, cell, pbc)
        arrays = {"numbers": np.ones(len(positions)), "positions": positions, "cell": cell[None], "pbc": pbc[None]}
        block = Block(np.array([len(positions)]), arrays)
        if nearest < OVERLAP:
            bad += 1
            with pytest.raises(InputError, match=r"conformation 0 has .*on top of"):
                block.validate()
        else:
            block.validate()
            kept.append(block)
    print(f"{bad} of 150 have atoms on top of each other")
    assert 30 < bad < 120
    names = ("numbers", "positions", "cell", "pbc")
    counts = np.concatenate([block.counts for block in kept])
    Block(counts, {name: np.concatenate([block.arrays[name] for block in kept]) for name in names}).validate()


def test_the_conformation_is_named() -> None:
    """A wrong cell or image after right ones, and before another wrong one."""
    cells, pbc = np.tile(np.eye(3) * 5.0, (4, 1, 1)), np.ones((4, 3), dtype=bool)
    pbc[1] = False
    positions = np.tile([[0.0, 0.0, 0.0], [2.0, 2.0, 2.0]], (4, 1))

    def block() -> Block:
        return Block(np.full(4, 2), {"numbers": np.ones(8), "positions": positions.copy(), "cell": cells.copy(), "pbc": pbc})

    block().validate()
    positions[5] = positions[7] = [4.9, 5.0, 10.0]
    with pytest.raises(InputError, match="conformation 12 has an atom on top of another or of its periodic image"):
        block().validate(10)
    cells[3, 1] = np.nan
    with pytest.raises(InputError, match="conformation 3 is periodic, so its cell needs finite, independent lattice vectors"):
        block().validate()


@pytest.mark.parametrize("pbc", [(True, True, True), (False, True, True)])
def test_large_crystals(pbc: tuple[bool, bool, bool]) -> None:
    """More atoms than all pairs are tried of: an atom on an image of another across a border, periodic or not."""
    grid = np.stack(np.meshgrid(*[np.arange(11)] * 3, indexing="ij"), axis=-1).reshape(-1, 3) * 2.0
    block = Block(np.array([1331]), {"numbers": np.ones(1331), "positions": grid, "cell": np.eye(3)[None] * 22.0, "pbc": [pbc]})
    block.validate()
    block.arrays["positions"][-1] = [22.1, 0.0, 22.0]
    if pbc[0]:
        with pytest.raises(InputError, match="on top of another or of its periodic image"):
            block.validate()
    else:
        block.validate()


def test_crystals_are_judged_without_a_neighbour_list() -> None:
    """Loading one loads PyTorch, and a cutoff of 0.25 Å cost 14 ms a frame: both together were most of an import's time."""
    program = (
        "import sys, numpy as np; from forcewell.system import Block; "
        "arrays = dict(numbers=[29], positions=np.zeros((1, 3)), cell=np.eye(3)[None] * 2.5, pbc=[[True, True, False]]); "
        "Block(np.array([1]), arrays).validate(); print([name for name in ('vesin', 'torch') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "[]"
