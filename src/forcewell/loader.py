"""Batches bounded by molecules and atoms, drawn from several sources by weight, resumable to the sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from forcewell.batch import Batch
from forcewell.errors import InputError
from forcewell.rotors import fragments_of
from forcewell.store import Dataset, Gatherer

CHUNK = 4096  # draws of a source decided at once; part of the order of samples, so it never changes
ROWS = 1 << 20  # conformations whose cost is checked at once
AHEAD = 2048  # samples read together: 1 MB of 17-atom molecules


@dataclass(slots=True)
class Source:
    """One data set in training: its usable rows, sampling weight and, per row, the copies that objectives append.

    levels: for each of the data set's levels of theory, its index in the potential's list. properties: (len(data), P) those
    that the run learns. rotors: whether an objective turns rotatable bonds, which a SMILES tells best.
    """

    name: str
    data: Dataset
    rows: np.ndarray
    weight: float
    copies: np.ndarray  # (len(data),) integers, of any width
    levels: np.ndarray
    properties: np.ndarray | None = None
    rotors: bool = False


@dataclass(slots=True)
class Loader:
    """An endless sequence of batches.

    Sample k of the run comes from a source drawn by weight (a function of seed and k) and is the next one of that
    source's own shuffled epoch (a function of seed, source and epoch): each source is seen completely before any
    sample of it repeats. The global batch holds up to ``batch_size`` conformations and ``max_atoms`` atoms, copies
    counted (but at least one conformation per process); of its samples, process ``rank`` of ``world`` takes every
    world-th. So two processes see together
    exactly what one would see. The state is one counter, and one per source.
    """

    sources: Sequence[Source]
    batch_size: int
    max_atoms: int
    seed: int
    dtype: torch.dtype = torch.float32
    rank: int = 0
    world: int = 1
    drawn: int = 0
    used: list[int] = field(default_factory=list)
    _orders: dict[int, tuple[int, np.ndarray]] = field(default_factory=dict)
    _choices: tuple[tuple[int, int], np.ndarray] | None = None
    _ready: Iterator[tuple[Batch, tuple[int, list[int]]]] = field(default_factory=lambda: iter(()))
    _gather: Gatherer = field(init=False)
    _levels: np.ndarray = field(init=False)
    _first_level: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        if not self.used:
            self.used = [0] * len(self.sources)
        if self.batch_size < self.world:
            raise InputError(f"training.batch_size ({self.batch_size}) is smaller than the number of processes ({self.world})")
        for source in self.sources:
            if len(source.rows) == 0:
                raise InputError(f"{source.name}: no conformations to train on")
            for start in range(0, len(source.rows), ROWS):
                cost = _cost(source, source.rows[start : start + ROWS])
                if int(cost.max()) > self.max_atoms:
                    worst = int(source.rows[start + np.argmax(cost)])
                    raise InputError(
                        f"{source.name}: conformation {worst} takes {int(cost.max())} atoms (copies counted), "
                        f"more than max_atoms = {self.max_atoms}; raise max_atoms"
                    )
        self._gather = Gatherer([source.data for source in self.sources])
        levels = [source.levels for source in self.sources]
        self._levels = np.concatenate(levels)
        self._first_level = np.cumsum([0, *map(len, levels)])

    def next(self) -> Batch:
        """The next batch, this process's share of it (never empty: every process takes part in every step)."""
        ready = next(self._ready, None)
        if ready is None:
            self._ready = self._ahead()
            ready = next(self._ready)
        batch, (self.drawn, self.used) = ready
        return batch

    def _ahead(self) -> Iterator[tuple[Batch, tuple[int, list[int]]]]:
        """Some batches, each with the position in the data after it; read together, since a shard costs as much for one row as for ten.

        Each is made when it is asked for: a short run of small batches would else spend four fifths of its time on those it never uses.
        """
        before, samples, after = (self.drawn, self.used), [], []
        for _ in range(max(1, AHEAD // self.batch_size)):
            chosen, rows, cost = self._candidates()
            size = self._advance(chosen, cost)
            mine = np.stack([chosen[:size], rows[:size]])[:, self.rank :: self.world]
            samples.append(mine[:, np.argsort(mine[0], kind="stable")])
            after.append((self.drawn, self.used))
        self.drawn, self.used = before
        return zip(self._batches(samples), after, strict=True)

    def _advance(self, chosen: np.ndarray, cost: np.ndarray) -> int:
        """How many of the candidates fit into the batch; they count as used."""
        size = max(self.world, int(np.searchsorted(np.cumsum(cost), self.max_atoms, side="right")))
        self.drawn += size
        taken = np.bincount(chosen[:size], minlength=len(self.used)).tolist()
        self.used = [before + count for before, count in zip(self.used, taken, strict=True)]
        return size

    def state(self) -> dict[str, Any]:
        """Position in the data, for the run's state file."""
        return {"drawn": self.drawn, "used": list(self.used)}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of ``state``."""
        self.drawn, self.used = int(state["drawn"]), [int(count) for count in state["used"]]
        self._ready = iter(())

    def _candidates(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Source, row and cost in atoms of the next ``batch_size`` samples."""
        chosen = self._chosen()
        by_source = np.argsort(chosen, kind="stable")
        borders = np.searchsorted(chosen[by_source], np.arange(len(self.sources) + 1)).tolist()
        rows = np.empty((2, self.batch_size), dtype=np.int64)  # and their cost
        for s, source in enumerate(self.sources):
            part = slice(borders[s], borders[s + 1])
            if part.start < part.stop:
                rows[0, part] = self._rows(s, part.stop - part.start)
                rows[1, part] = _cost(source, rows[0, part])
        ordered = np.empty_like(rows)
        ordered[:, by_source] = rows
        return chosen, ordered[0], ordered[1]

    def _chosen(self) -> np.ndarray:
        """(batch_size,) sources of the next draws."""
        first, last = self.drawn // CHUNK, (self.drawn + self.batch_size - 1) // CHUNK
        if self._choices is None or self._choices[0] != (first, last):
            weights = np.array([source.weight for source in self.sources], dtype=np.float64)
            chunks = []
            for chunk in range(first, last + 1):
                generator = np.random.Generator(np.random.Philox(key=[self.seed, 1], counter=[0, chunk, 0, 0]))
                chunks.append(generator.choice(len(weights), size=CHUNK, p=weights / weights.sum()))
            self._choices = ((first, last), np.concatenate(chunks))
        start = self.drawn - first * CHUNK
        return self._choices[1][start : start + self.batch_size]

    def _rows(self, s: int, number: int) -> np.ndarray:
        """The next ``number`` rows of a source: the rest of its epoch, then of the one after it."""
        rows, use, parts = self.sources[s].rows, self.used[s], []
        while number > 0:
            epoch, place = divmod(use, len(rows))
            parts.append(rows[self._order(s, epoch)[place : place + number]])
            use, number = use + len(parts[-1]), number - len(parts[-1])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _order(self, s: int, epoch: int) -> np.ndarray:
        if self._orders.get(s, (-1, None))[0] != epoch:
            generator = np.random.Generator(np.random.Philox(key=[self.seed, 2], counter=[0, epoch, s, 0]))
            # Four bytes for each conformation are what the loader needs of memory; shuffling draws as ``permutation`` does.
            self._orders[s] = (epoch, np.arange(len(self.sources[s].rows), dtype=np.int32))
            generator.shuffle(self._orders[s][1])
        return self._orders[s][1]

    def _batches(self, samples: Sequence[np.ndarray]) -> Iterator[Batch]:
        """One batch for each (2, n) array of sources and rows."""
        chosen, rows = np.concatenate(samples, axis=1)
        found = self._gather(rows, chosen, bare=True)
        level = self._levels[self._first_level[chosen] + found.level]
        whole = Batch.from_block(found.block, dtype=self.dtype, level=level, source=chosen, index=rows)
        offsets, start, sources = found.block.offsets.tolist(), 0, dict(enumerate(self.sources))
        for part in samples:
            stop = start + part.shape[1]
            yield completed(whole.part(slice(start, stop), slice(offsets[start], offsets[stop])), sources)
            start = stop


def _cost(source: Source, rows: np.ndarray) -> np.ndarray:
    """(len(rows),) atoms of conformations, those of their copies included."""
    return source.data.counts[rows] * (1 + source.copies[rows].astype(np.int64))


def completed(batch: Batch, sources: Mapping[int, Source]) -> Batch:
    """The batch with the properties of its samples, and the pieces between their rotatable bonds by their SMILES, where
    objectives want them. Sources by their number in the run."""
    wanted = [source.properties for source in sources.values() if source.properties is not None]
    if wanted:
        columns = np.full((len(batch), wanted[0].shape[1]), np.nan)
        for number, source in sources.items():
            rows = np.flatnonzero(batch.source.numpy() == number)
            if source.properties is not None:
                columns[rows] = source.properties[batch.index.numpy()[rows]]
        batch.targets.properties = torch.from_numpy(columns)
    offsets = batch.offsets.tolist()
    for number, source in sources.items():
        if source.rotors:
            rows = np.flatnonzero(batch.source.numpy() == number)
            block = source.data.block(batch.index.numpy()[rows])
            for k, row in enumerate(rows.tolist()):
                system = block.system(k)
                pieces = fragments_of(system.smiles, system.numbers, system.positions)
                if pieces is not None:
                    batch.fragment[offsets[row] : offsets[row + 1]] = torch.from_numpy(pieces)
    return batch


def batch_of(source: Source, number: int, rows: np.ndarray, dtype: torch.dtype) -> Batch:
    """The rows of a source as a batch; ``number`` is the source's index in the run."""
    found = Gatherer([source.data])(rows, bare=True)
    batch = Batch.from_block(found.block, dtype=dtype, level=source.levels[found.level], source=number, index=rows)
    return completed(batch, {number: source})


def fixed_batches(sources: Sequence[Source], batch_size: int, max_atoms: int, dtype: torch.dtype) -> list[Batch]:
    """All rows of the sources once, in order, in batches bounded by molecules and atoms (for validation)."""
    batches = []
    for number, source in enumerate(sources):
        cost = _cost(source, source.rows)
        start = 0
        while start < len(source.rows):
            size = int(np.searchsorted(np.cumsum(cost[start : start + batch_size]), max_atoms, side="right"))
            stop = start + max(1, size)
            batches.append(batch_of(source, number, source.rows[start:stop], dtype))
            start = stop
    return batches
