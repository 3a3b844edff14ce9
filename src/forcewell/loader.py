"""Batches bounded by molecules and atoms, drawn from several sources by weight, resumable to the sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from forcewell.batch import Batch, concatenate
from forcewell.errors import InputError
from forcewell.rotors import fragments_of
from forcewell.store import Dataset

CHUNK = 4096  # draws of a source decided at once; part of the order of samples, so it never changes


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
    copies: np.ndarray  # (len(data),)
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
    _choices: tuple[int, np.ndarray] | None = None

    def __post_init__(self) -> None:
        if not self.used:
            self.used = [0] * len(self.sources)
        if self.batch_size < self.world:
            raise InputError(f"training.batch_size ({self.batch_size}) is smaller than the number of processes ({self.world})")
        for source in self.sources:
            if len(source.rows) == 0:
                raise InputError(f"{source.name}: no conformations to train on")
            cost = source.data.counts[source.rows] * (1 + source.copies[source.rows])
            if int(cost.max()) > self.max_atoms:
                worst = int(source.rows[np.argmax(cost)])
                raise InputError(
                    f"{source.name}: conformation {worst} takes {int(cost.max())} atoms (copies counted), "
                    f"more than max_atoms = {self.max_atoms}; raise max_atoms"
                )

    def next(self) -> Batch:
        """The next batch, this process's share of it (never empty: every process takes part in every step)."""
        chosen, rows, cost = self._candidates()
        size = max(self.world, int(np.searchsorted(np.cumsum(cost), self.max_atoms, side="right")))
        chosen, rows = chosen[:size], rows[:size]
        self.drawn += size
        for s, count in zip(*np.unique(chosen, return_counts=True), strict=True):
            self.used[int(s)] += int(count)
        return self._batch(chosen[self.rank :: self.world], rows[self.rank :: self.world])

    def state(self) -> dict[str, Any]:
        """Position in the data, for the run's state file."""
        return {"drawn": self.drawn, "used": list(self.used)}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of ``state``."""
        self.drawn, self.used = int(state["drawn"]), [int(count) for count in state["used"]]

    def _candidates(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Source, row and cost in atoms of the next ``batch_size`` samples."""
        chosen = np.array([self._source(self.drawn + k) for k in range(self.batch_size)])
        rows = np.empty(self.batch_size, dtype=np.int64)
        cost = np.empty(self.batch_size, dtype=np.int64)
        for s, source in enumerate(self.sources):
            mine = np.flatnonzero(chosen == s)
            rows[mine] = [self._row(s, self.used[s] + k) for k in range(len(mine))]
            cost[mine] = source.data.counts[rows[mine]] * (1 + source.copies[rows[mine]])
        return chosen, rows, cost

    def _source(self, draw: int) -> int:
        chunk, place = divmod(draw, CHUNK)
        if self._choices is None or self._choices[0] != chunk:
            weights = np.array([source.weight for source in self.sources], dtype=np.float64)
            generator = np.random.Generator(np.random.Philox(key=[self.seed, 1], counter=[0, chunk, 0, 0]))
            self._choices = (chunk, generator.choice(len(weights), size=CHUNK, p=weights / weights.sum()))
        return int(self._choices[1][place])

    def _row(self, s: int, use: int) -> int:
        rows = self.sources[s].rows
        epoch, place = divmod(use, len(rows))
        if self._orders.get(s, (-1, rows))[0] != epoch:
            generator = np.random.Generator(np.random.Philox(key=[self.seed, 2], counter=[0, epoch, s, 0]))
            self._orders[s] = (epoch, generator.permutation(len(rows)).astype(np.int32))
        return int(rows[self._orders[s][1][place]])

    def _batch(self, chosen: np.ndarray, rows: np.ndarray) -> Batch:
        parts = [batch_of(self.sources[s], s, rows[chosen == s], self.dtype) for s in range(len(self.sources)) if (chosen == s).any()]
        return concatenate(parts)


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
    levels = source.levels[source.data.column("level")[rows]]
    batch = Batch.from_block(source.data.block(rows), dtype=dtype, level=levels, source=number, index=rows)
    return completed(batch, {number: source})


def fixed_batches(sources: Sequence[Source], batch_size: int, max_atoms: int, dtype: torch.dtype) -> list[Batch]:
    """All rows of the sources once, in order, in batches bounded by molecules and atoms (for validation)."""
    batches = []
    for number, source in enumerate(sources):
        cost = source.data.counts[source.rows] * (1 + source.copies[source.rows])
        start = 0
        while start < len(source.rows):
            size = int(np.searchsorted(np.cumsum(cost[start : start + batch_size]), max_atoms, side="right"))
            stop = start + max(1, size)
            batches.append(batch_of(source, number, source.rows[start:stop], dtype))
            start = stop
    return batches
