"""The loader: weights, epochs, bounds, resuming, and processes that share one global batch."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch

from forcewell.errors import InputError
from forcewell.loader import CHUNK, Loader, Source, fixed_batches
from forcewell.store import MemoryData
from forcewell.system import Block

Sample = tuple[int, int]  # source and row


def source(name: str, block: Block, weight: float = 1.0, copies: int = 0, rows: np.ndarray | None = None) -> Source:
    data = MemoryData([block], name=name)
    chosen = np.arange(len(data)) if rows is None else rows
    return Source(name, data, chosen, weight, np.full(len(data), copies), np.arange(len(data.levels)))


@pytest.fixture
def sources(minima: Block, labelled: Block) -> list[Source]:
    """QM9 minima, each with a copy, on some of their rows, and labelled conformations."""
    return [source("minima", minima, 3.0, copies=1, rows=np.arange(3, 40)), source("labelled", labelled, 1.0)]


def samples(loader: Loader, batches: int) -> list[list[Sample]]:
    found = []
    for _ in range(batches):
        batch = loader.next()
        found.append(list(zip(batch.source.tolist(), batch.index.tolist(), strict=True)))
    return found


def test_sources_are_drawn_by_weight(sources: list[Source]) -> None:
    draws = Counter(s for batch in samples(Loader(sources, 16, 10_000, seed=0), 600) for s, _ in batch)
    share = draws[0] / sum(draws.values())
    print(f"{sum(draws.values())} draws: {share:.4f} of the first source, 0.75 expected")
    assert sum(draws.values()) == 9600 > 2 * CHUNK
    assert abs(share - 0.75) < 5 * (0.75 * 0.25 / 9600) ** 0.5
    for s in sources:
        s.weight *= 1e-3  # only the ratio counts
    assert Counter(s for batch in samples(Loader(sources, 16, 10_000, seed=0), 600) for s, _ in batch) == draws


def test_every_epoch_is_a_permutation(sources: list[Source]) -> None:
    for seed in (0, 1):
        drawn = [sample for batch in samples(Loader(sources, 7, 10_000, seed), 100) for sample in batch]
        for number, s in enumerate(sources):
            sequence, size = [row for owner, row in drawn if owner == number], len(s.rows)
            epochs = [sequence[k : k + size] for k in range(0, len(sequence) - size + 1, size)]
            assert len(epochs) >= 2
            assert all(sorted(epoch) == s.rows.tolist() for epoch in epochs)
            assert epochs[0] != epochs[1] and epochs[0] != s.rows.tolist()
            print(f"seed {seed}, source {number}: {len(epochs)} epochs of {size} rows")
    first, other = (samples(Loader(sources, 7, 10_000, seed), 5) for seed in (0, 1))
    assert first != other


def cost(sources: list[Source], batch: list[Sample]) -> int:
    return sum(int(sources[s].data.counts[row] * (1 + sources[s].copies[row])) for s, row in batch)


def test_atoms_are_bounded_with_copies_counted(sources: list[Source]) -> None:
    bounded, unbounded = samples(Loader(sources, 16, 150, seed=0), 300), samples(Loader(sources, 16, 10_000, seed=0), 200)
    costs = [cost(sources, batch) for batch in bounded]
    print(f"max_atoms 150: {min(costs)} to {max(costs)} atoms in {min(map(len, bounded))} to {max(map(len, bounded))} conformations")
    assert max(costs) <= 150 < max(cost(sources, batch) for batch in unbounded)
    assert max(costs) > 140 and min(map(len, bounded)) >= 1 and len(set(map(len, bounded))) > 3
    # A batch that was cut short loses nothing: what did not fit comes next.
    drawn = [sample for batch in bounded for sample in batch]
    free = [sample for batch in unbounded for sample in batch]
    for number in range(2):
        a, b = ([row for s, row in sequence if s == number] for sequence in (drawn, free))
        short = min(len(a), len(b))
        assert short > 100 and a[:short] == b[:short]


def test_resuming_gives_the_same_sequence(sources: list[Source]) -> None:
    whole = Loader(sources, 9, 200, seed=4)
    expected = samples(whole, 60)
    for stop in (1, 13, 47):  # inside the first epoch and inside later ones
        first = Loader(sources, 9, 200, seed=4)
        samples(first, stop)
        state = first.state()
        second = Loader(sources, 9, 200, seed=4)
        second.restore({"drawn": state["drawn"], "used": list(state["used"])})
        assert samples(second, 60 - stop) == expected[stop:]
        assert second.state() == whole.state()
    assert state["drawn"] == sum(state["used"]) == sum(map(len, expected[:47]))


@pytest.mark.parametrize("max_atoms", [10_000, 160])
def test_processes_share_the_global_batch(sources: list[Source], max_atoms: int) -> None:
    alone = samples(Loader(sources, 12, max_atoms, seed=2), 40)
    for world in (2, 3):
        ranks = [samples(Loader(sources, 12, max_atoms, seed=2, rank=rank, world=world), 40) for rank in range(world)]
        for step, batch in enumerate(alone):
            shares = [rank[step] for rank in ranks]
            assert Counter(sample for share in shares for sample in share) == Counter(batch)
            assert all(shares) and max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_batch_holds_the_right_conformations(sources: list[Source], minima: Block, labelled: Block) -> None:
    batch = Loader(sources, 12, 10_000, seed=3, dtype=torch.float64).next()
    assert set(batch.source.tolist()) == {0, 1}
    for m, (s, row) in enumerate(zip(batch.source.tolist(), batch.index.tolist(), strict=True)):
        atoms, expected = batch.molecule == m, (minima, labelled)[s].system(row)
        assert np.array_equal(batch.numbers[atoms], expected.numbers)
        assert np.array_equal(batch.positions[atoms], expected.positions)
        assert int(batch.targets.equilibrium[m]) == (1 if s == 0 else int(expected.get("equilibrium")))
        assert np.array_equal(batch.targets.forces[atoms], expected.get("forces").astype(np.float64), equal_nan=True)


def test_levels_of_theory_get_the_numbers_of_the_run(minima: Block, labelled: Block) -> None:
    both = dataclasses.replace(labelled.take([0, 1]), level="A"), dataclasses.replace(labelled.take([2, 3]), level="B")
    data = MemoryData(both, name="mixed")
    mixed = Source("mixed", data, np.arange(4), 1.0, np.zeros(4, dtype=int), np.array([5, 2]))
    (batch,) = fixed_batches([mixed], 8, 1000, torch.float32)
    assert batch.level.tolist() == [5, 5, 2, 2]


def test_a_molecule_too_large_is_named(sources: list[Source]) -> None:
    largest = max(sources[0].rows, key=lambda row: sources[0].data.counts[row])
    atoms = 2 * int(sources[0].data.counts[largest])
    expected = rf"minima: conformation {largest} takes {atoms} atoms \(copies counted\), more than max_atoms = 30; raise max_atoms"
    with pytest.raises(InputError, match=expected) as caught:
        Loader(sources, 4, 30, seed=0)
    print(caught.value)
    Loader(sources, 4, max(atoms, 23), seed=0)  # just enough


def test_impossible_loaders(sources: list[Source], minima: Block) -> None:
    with pytest.raises(InputError, match=r"training.batch_size \(2\) is smaller than the number of processes \(3\)"):
        Loader(sources, 2, 1000, seed=0, world=3)
    with pytest.raises(InputError, match="none: no conformations to train on"):
        Loader([source("none", minima, rows=np.arange(0))], 2, 1000, seed=0)


@pytest.mark.parametrize("max_atoms", [10_000, 100, 60])
def test_fixed_batches_cover_all_rows_once(sources: list[Source], max_atoms: int) -> None:
    batches = fixed_batches(sources, 16, max_atoms, torch.float32)
    found = [sample for batch in batches for sample in zip(batch.source.tolist(), batch.index.tolist(), strict=True)]
    assert found == [(s, int(row)) for s, part in enumerate(sources) for row in part.rows]
    costs = [cost(sources, list(zip(batch.source.tolist(), batch.index.tolist(), strict=True))) for batch in batches]
    print(f"max_atoms {max_atoms}: {len(batches)} batches of up to {max(costs)} atoms and {max(map(len, batches))} conformations")
    assert max(map(len, batches)) <= 16 and max(costs) <= max_atoms
