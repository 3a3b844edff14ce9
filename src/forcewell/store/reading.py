"""Reading conformations by index: from a store on disk, or from blocks in memory, through one interface.

Rows are gathered by offset arithmetic on the flat values: taking rows of nested Arrow lists is 12 times slower.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from forcewell.errors import InputError
from forcewell.fields import ATOM_FIELDS, FIELDS
from forcewell.store.gathering import Gatherer
from forcewell.store.shards import UNKNOWN_ENGINE, Shard, damaged, empty_shard, joined, missing, read_manifest, shard_of, verify
from forcewell.system import Block, System, block_of


class Dataset(Protocol):
    """What a store and data in memory have in common; training, evaluation and splits read through it."""

    levels: list[str]
    sources: list[str]
    engines: list[str]
    elements: list[int]
    fields: list[str]
    _sizes: list[int]  # conformations of each shard; with ``_shard``, what a Gatherer reads by

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> System: ...
    def block(self, indices: Any) -> Block: ...
    def column(self, name: str) -> np.ndarray: ...
    def molecule_codes(self) -> np.ndarray: ...
    def _shard(self, number: int) -> Shard: ...
    @property
    def counts(self) -> np.ndarray: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def properties(self) -> list[str]: ...
    @property
    def isolated_atoms(self) -> dict[str, dict[int, float]]: ...


class Sharded(ABC):
    """Reading from shards, on disk or in memory. Subclasses set ``_sizes``, the lists below, and define ``_shard``."""

    levels: list[str]
    sources: list[str]
    engines: list[str]
    elements: list[int]
    fields: list[str]
    _properties: list[str]
    _sizes: list[int]
    _counts: np.ndarray | None = None
    _gather: Gatherer | None = None

    @abstractmethod
    def _shard(self, number: int) -> Shard: ...
    @property
    @abstractmethod
    def fingerprint(self) -> str: ...

    def __len__(self) -> int:
        return int(sum(self._sizes))

    def __getitem__(self, index: int) -> System:
        if not -len(self) <= index < len(self):
            raise IndexError(f"conformation {index} of {len(self)}")
        return self.block([index % len(self)]).system(0)

    @property
    def properties(self) -> list[str]:
        """Names of the properties; their values are ``column("property:NAME")``."""
        return list(self._properties)

    @property
    def isolated_atoms(self) -> dict[str, dict[int, float]]:
        """Level of theory -> atomic number -> energy in eV of the isolated atom, of a store of data that came with them."""
        return {}

    @property
    def counts(self) -> np.ndarray:
        """(n,) int64 atoms of each conformation."""
        if self._counts is None:
            parts = [np.diff(self._shard(k).offsets) for k in range(len(self._sizes))]
            self._counts = np.concatenate([np.zeros(0, dtype=np.int64), *parts])
        return self._counts

    def column(self, name: str) -> np.ndarray:
        """(n, ...) a whole molecule-scope column: a molecule field (filled with "not known" where a shard lacks it),
        "molecule" or "smiles" (object), "level", "source" or "engine" (index into ``levels``, ``sources``, ``engines``),
        "property:NAME" (NaN where absent). Raises InputError for any other name."""
        parts = [self._column_of(self._shard(k), size, name) for k, size in enumerate(self._sizes)]
        return np.concatenate(parts) if parts else self._column_of(empty_shard(), 0, name)

    def _column_of(self, shard: Shard, size: int, name: str) -> np.ndarray:
        if name in ("level", "source"):
            return getattr(shard, name)
        if name == "engine":
            return np.zeros(size, dtype=np.int32) if shard.engine is None else shard.engine
        if name in ("molecule", "smiles"):
            return shard.strings[name].to_numpy(zero_copy_only=False)
        if name.startswith("property:") and name[9:] in self._properties:
            return shard.properties.get(name[9:], np.full(size, np.nan))
        if name not in FIELDS or name in ATOM_FIELDS:
            known = [field_name for field_name in FIELDS if field_name not in ATOM_FIELDS] + [f"property:{key}" for key in self._properties]
            raise InputError(f"no column {name!r} (known: molecule, smiles, level, source, engine, {', '.join(known)})")
        return shard.arrays[name] if name in shard.arrays else missing(name, size)

    def molecule_codes(self) -> np.ndarray:
        """(n,) integers from 0, in order of first appearance; equal where the molecule identifiers are equal."""
        chunks = [self._shard(k).strings["molecule"] for k in range(len(self._sizes))]
        if not chunks:
            return np.zeros(0, dtype=np.int32)
        encoded = pa.chunked_array(chunks).dictionary_encode()  # one dictionary for all chunks
        return np.concatenate([chunk.indices.to_numpy() for chunk in encoded.chunks])

    def block(self, indices: Any) -> Block:
        """The conformations at ``indices`` (integers in any order, or a mask), copied into a Block.

        ``Block.level``, ``Block.source`` and ``Block.engine`` are "" where the rows differ. Raises InputError for an index out of range.
        """
        wanted = np.asarray(indices)
        wanted = np.flatnonzero(wanted) if wanted.dtype == bool else wanted.astype(np.int64)
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise InputError(f"conformation {wanted.max()} asked for; there are {len(self)}, counted from 0")
        if self._gather is None:
            self._gather = Gatherer([self])
        found = self._gather(wanted)
        found.block.source, found.block.level = _only(found.source, self.sources), _only(found.level, self.levels)
        found.block.engine = _only(found.engine, self.engines)
        return found.block


def _only(codes: np.ndarray, names: Sequence[str]) -> str:
    return names[int(codes[0])] if len(codes) and (codes == codes[0]).all() else ""


class Store(Sharded):
    """A store on disk, opened for reading; an import that was killed opens with the shards it had finished.

    Each shard's SHA-256 is verified at its first access, so a damaged file is found before its numbers are used.
    Raises InputError where ``path`` is no store, the manifest is damaged, or a shard is missing or truncated.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        self._entries: list[dict[str, Any]] = self.manifest["shards"]
        for entry in self._entries:
            file = self.path / entry["file"]
            size = file.stat().st_size if file.is_file() else None
            if size != entry["bytes"]:
                found = "missing" if size is None else f"{size} bytes long, not {entry['bytes']}"
                raise InputError(f"{file} is {found}; import the data again or restore the file")
        self._sizes = [int(entry["conformations"]) for entry in self._entries]
        self.levels, self.sources = list(self.manifest["levels"]), list(self.manifest["sources"])
        self.engines = list(self.manifest.get("engines", UNKNOWN_ENGINE))
        self.elements, self.fields = list(self.manifest["elements"]), list(self.manifest["fields"])
        self._properties = list(self.manifest["properties"])
        self._open: dict[int, Shard] = {}

    def __reduce__(self) -> tuple[Any, ...]:  # memory maps stay behind; a worker process opens its own
        return Store, (self.path,)

    @property
    def isolated_atoms(self) -> dict[str, dict[int, float]]:
        found = self.manifest["settings"].get("isolated_atoms", {})
        return {level: {int(element): energy for element, energy in energies.items()} for level, energies in found.items()}

    @property
    def complete(self) -> bool:
        """False for an import that was interrupted."""
        return bool(self.manifest["complete"])

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the shards' SHA-256 sums: the same data in the same order give the same value."""
        return hashlib.sha256("".join(entry["sha256"] for entry in self._entries).encode()).hexdigest()

    def verify(self) -> None:
        """Reads every shard and compares its SHA-256. Raises InputError naming the first that differs."""
        for entry in self._entries:
            verify(self.path / entry["file"], entry["sha256"])

    def _shard(self, number: int) -> Shard:
        if number not in self._open:
            entry = self._entries[number]
            # Hashed through the map, not from the file: this also enters its pages into the process's page table, without which
            # every first visit costs a fault, in 16 million conformations half of the time of a batch.
            mapped = pa.memory_map(str(self.path / entry["file"])).read_buffer()
            if hashlib.sha256(mapped).hexdigest() != entry["sha256"]:
                raise damaged(self.path / entry["file"])
            self._open[number] = shard_of(pa.ipc.open_file(mapped).get_batch(0))
        return self._open[number]


class MemoryData(Sharded):
    """Blocks held in memory, with the reading interface of a Store."""

    def __init__(self, blocks: Iterable[Block], name: str = "data") -> None:
        blocks = list(blocks)
        if not sum(len(block) for block in blocks):
            raise InputError(f"{name} holds no conformation")
        self.levels, self.sources, self.engines = [], [], list(UNKNOWN_ENGINE)
        block, level, source, engine = joined(blocks, self.levels, self.sources, self.engines)
        strings = {key: pa.array(getattr(block, key), pa.large_string()) for key in ("molecule", "smiles")}
        self._only = Shard(block.offsets, block.arrays, level, source, strings, block.properties, engine=engine)
        self._sizes = [len(block)]
        self.elements = np.unique(block.arrays["numbers"]).tolist()
        self.fields, self._properties = list(block.arrays), list(block.properties)

    @classmethod
    def from_systems(cls, systems: Iterable[System]) -> MemoryData:
        """Of single conformations."""
        return cls([block_of([system]) for system in systems])

    def _shard(self, number: int) -> Shard:
        return self._only

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all arrays."""
        digest = hashlib.sha256(self.counts.tobytes())
        for name, values in self._only.arrays.items():
            digest.update(name.encode() + np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()
