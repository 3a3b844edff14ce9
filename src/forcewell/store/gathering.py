"""Rows of one data set or of several, gathered from their shards into one Block.

A random batch visits almost every shard, so what counts is the number of NumPy calls per shard and column: indices are
computed once for all shards, every column is written straight into its place, and one pass at the end restores the order.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from forcewell.fields import FIELDS, REQUIRED
from forcewell.store.shards import Shard
from forcewell.system import Block

if TYPE_CHECKING:
    from forcewell.store.reading import Dataset

Piece = tuple[Shard, slice, np.ndarray]


@dataclass(frozen=True, slots=True)
class Gathered:
    """block: n conformations (its ``level``, ``source`` and ``engine`` are left empty). level, source, engine: (n,) index into
    the names of the data set that each row is from; the last two are empty where only the fields were asked for."""

    block: Block
    level: np.ndarray
    source: np.ndarray
    engine: np.ndarray


class Gatherer:
    """Gathers rows of stores or data in memory; a row whose shard lacks a field or property of the others is "not known" there."""

    def __init__(self, datasets: Sequence[Dataset]) -> None:
        self._datasets = datasets
        sizes = [dataset._sizes for dataset in datasets]
        self._starts = np.concatenate([[0], np.cumsum([size for part in sizes for size in part])]).astype(np.int64)
        self._first = self._starts[np.cumsum([0, *map(len, sizes)])]
        self._place = [(dataset, k) for dataset, part in zip(datasets, sizes, strict=True) for k in range(len(part))]
        carried = {name for dataset in datasets for name in dataset.fields} | set(REQUIRED)
        self._fields = {name: field for name, field in FIELDS.items() if name in carried}
        self._properties = list(dict.fromkeys(name for dataset in datasets for name in dataset.properties))

    def __call__(self, rows: np.ndarray, dataset: np.ndarray | int = 0, bare: bool = False) -> Gathered:
        """The conformations ``rows`` (n,) of the data sets ``dataset`` (n,), in that order.

        bare: fields only, neither identifiers nor SMILES nor properties, which cost as much as the numbers.
        """
        wanted = self._first[dataset] + rows
        owner = np.searchsorted(self._starts, wanted, side="right") - 1
        order = np.argsort(owner, kind="stable")
        owner, local = owner[order], (wanted - self._starts[owner])[order]
        borders = [0, *(np.flatnonzero(owner[1:] != owner[:-1]) + 1).tolist(), len(owner)] if len(owner) else [0]
        parts = [slice(start, stop) for start, stop in itertools.pairwise(borders)]
        shards = [dataset._shard(k) for dataset, k in (self._place[owner[part.start]] for part in parts)]
        # Gathered shard by shard, then put into the order asked for: half the time of scattering each column in place.
        back = np.argsort(order) if len(parts) > 1 else None
        return self._collected([(shard, part, local[part]) for shard, part in zip(shards, parts, strict=True)], back, bare, len(rows))

    def _collected(self, pieces: list[Piece], back: np.ndarray | None, bare: bool, rows: int) -> Gathered:
        """Every piece is a shard, where its rows go, and their numbers in it; row k of the result is the ``back[k]``-th of these."""
        first = _filled([(shard.offsets, part, k) for shard, part, k in pieces], rows, np.int64)
        counts = _filled([(shard.offsets, part, k + 1) for shard, part, k in pieces], rows, np.int64) - first
        ends = np.cumsum(counts)
        index = _ranges(first, counts, ends)
        stops = [0, *(int(ends[part.stop - 1]) for _, part, _ in pieces)]
        atoms = [slice(start, stop) for start, stop in itertools.pairwise(stops)]
        by_atom = [(part, index[part]) for part in atoms]
        by_row = [(part, k) for _, part, k in pieces]
        ordered = counts if back is None else counts[back]
        atoms_back = None if back is None else _ranges((ends - counts)[back], ordered, np.cumsum(ordered))

        def column(sources: list[np.ndarray | None], dtype: Any, shape: tuple[int, ...] = (), missing: Any = 0, atom: bool = False) -> Any:
            places = zip(sources, by_atom if atom else by_row, strict=True)
            filled = _filled([(source, part, k) for source, (part, k) in places], len(index) if atom else rows, dtype, shape, missing)
            order = atoms_back if atom else back
            return filled if order is None else filled.take(order, axis=0, mode="clip")

        arrays = {}
        for name, field in self._fields.items():
            sources = [shard.arrays.get(name) for shard, _, _ in pieces]
            arrays[name] = column(sources, field.stored, field.shape, field.missing, field.scope == "atom")
        if all(shard.only_level >= 0 for shard, _, _ in pieces):  # as almost everywhere: nothing to look up row by row
            each = [part.stop - part.start for _, part, _ in pieces]
            level = np.repeat(np.array([shard.only_level for shard, _, _ in pieces], dtype=np.int32), each)
            level = level if back is None else level[back]
        else:
            level = column([shard.level for shard, _, _ in pieces], np.int32)
        if bare:
            return Gathered(Block(ordered, arrays), level, np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int32))
        source = column([shard.source for shard, _, _ in pieces], np.int32)
        engine = column([shard.engine for shard, _, _ in pieces], np.int32)
        names = self._properties
        properties = {name: column([shard.properties.get(name) for shard, _, _ in pieces], np.float64, (), np.nan) for name in names}
        molecule, smiles = (_text(pieces, rows, name, back) for name in ("molecule", "smiles"))
        return Gathered(Block(ordered, arrays, molecule=molecule, smiles=smiles, properties=properties), level, source, engine)


def _ranges(first: np.ndarray, counts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """first[0], first[0] + 1, ... (counts[0] of them), first[1], ... in one array; ends: the sums of the counts so far."""
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(first - (ends - counts), counts) + np.arange(total)


def _filled(
    columns: list[tuple[np.ndarray | None, slice, np.ndarray]], rows: int, dtype: Any, shape: tuple[int, ...] = (), missing: Any = 0
) -> np.ndarray:
    """(rows, *shape) of ``source[indices]`` at each place; ``missing`` where there is no source."""
    filled = np.empty((rows, *shape), dtype=dtype)
    for source, place, indices in columns:
        if source is None:
            filled[place] = missing
        else:
            # The indices come from the shard's own offsets; "raise" would buffer the output and take twice as long.
            source.take(indices, 0, filled[place], "clip")
    return filled


def _text(pieces: list[Piece], rows: int, name: str, back: np.ndarray | None) -> np.ndarray:
    text = np.empty(rows, dtype=object)
    for shard, place, indices in pieces:
        text[place] = shard.strings[name].take(pa.array(indices)).to_numpy(zero_copy_only=False)
    return text if back is None else text[back]
