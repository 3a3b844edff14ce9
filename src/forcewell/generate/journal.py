"""What a campaign keeps on disk: its store, a journal, and finished jobs that wait for their turn.

A finished job is two files, written aside and renamed: its frames, ``jobs/KEY.arrow``, then ``jobs/KEY.json``, which counts.
They are removed when the store's manifest has been written that names the shard with the frames and the length of the journal
with the job's line. Whatever a kill leaves beyond that length, or of jobs that are in the journal, is dropped.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from forcewell.errors import InputError
from forcewell.fields import PROVENANCE
from forcewell.files import write_bytes
from forcewell.generate.executors import Result
from forcewell.store import StoreWriter
from forcewell.store.reading import Sharded
from forcewell.store.shards import MANIFEST, Shard, batch_of, read_manifest, shard_of
from forcewell.store.writing import LARGEST_SHARD
from forcewell.system import Block, System, block_of

JOURNAL, JOBS = "journal.jsonl", "jobs"
# A shard as large as all before it, from 64 kB up: at any time half of what is finished can be read, and 40 MB are 11 shards.
SMALLEST = 1 << 16  # bytes


class Asked(Protocol):
    """A job, as far as the journal needs it."""

    @property
    def kind(self) -> str: ...
    @property
    def arguments(self) -> dict[str, Any]: ...


class Journal:
    """A campaign's folder, open for one process; others are kept out by the store's lock.

    lines: by the job's key, the last line about each job whose fate is settled in the store. cpu_seconds: of all finished jobs and tries.
    begun: what this call is the first to put there, in the order in which it can be removed.
    """

    def __init__(self, writer: StoreWriter, begun: Sequence[str] = ()) -> None:
        self.path, self._writer, self._begun = writer.path, writer, begun
        self.lines: dict[str, dict[str, Any]] = {}
        self.cpu_seconds = 0.0
        self._tried: Counter[str] = Counter()
        self._unflushed: list[str] = []
        self._bytes = 0
        file, length = self.path / JOURNAL, int(writer.manifest.setdefault("journal", 0))
        self._stream = open(file, "ab")  # noqa: SIM115 (open as long as the journal)
        self._stream.truncate(length)
        self._stream.seek(length)
        for text in file.read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            self.lines[line["key"]], self._tried[line["key"]] = line, line["try"]
            self.cpu_seconds += line["cpu_seconds"]
        (self.path / JOBS).mkdir(exist_ok=True)
        self._waiting = {entry["key"]: entry for entry in self._left_waiting()}
        self.cpu_seconds += sum(entry["cpu_seconds"] for entry in self._waiting.values())

    @classmethod
    def open(cls, path: Path, settings: Mapping[str, Any]) -> Journal:
        """Begins a campaign, or goes on with the one in ``path``. Raises InputError where that has other settings or is none."""
        if not (path / MANIFEST).is_file():
            begun = [MANIFEST, JOURNAL, JOBS, *([] if path.exists() else ["."])]
            return cls(StoreWriter(path, settings={"campaign": settings, "property_units": PROVENANCE}, shard_bytes=1 << 62), begun)
        there = read_manifest(path)["settings"].get("campaign")
        if there is None:
            raise InputError(f"{path} is a store that no campaign made; choose another --out")
        if there != settings:
            differing = sorted(key for key in there.keys() | settings.keys() if there.get(key) != settings.get(key))
            told = "; ".join(f"{key}: {_short(there.get(key))} there, {_short(settings.get(key))} here" for key in differing)
            raise InputError(f"{path} holds another campaign ({told}); repeat its settings to continue it, or choose another --out")
        return cls(StoreWriter.resume(path, shard_bytes=1 << 62, reopen=True))

    @property
    def complete(self) -> bool:
        """Whether the store is finished, with reference energies, and nothing was added since."""
        return bool(self._writer.manifest["complete"])

    @property
    def finished(self) -> dict[str, dict[str, Any]]:
        """By key, what is known of every finished job, in the store already or not."""
        return self.lines | self._waiting

    def check(self, jobs: Mapping[str, Asked]) -> None:
        """Raises InputError where the folder holds frames of a job that is not among ``jobs``, by key."""
        strange = [line for key, line in self.finished.items() if line["frames"] and key not in jobs]
        if strange:
            example = f"{strange[0]['kind']} {_short(strange[0]['arguments'])}"
            raise InputError(
                f"{self.path} holds another campaign: {len(strange)} of its jobs are not asked for here (such as {example}); "
                "repeat its settings to continue it, or choose another --out"
            )

    def waits(self, key: str) -> bool:
        """Whether a job is finished and not yet in the store."""
        return key in self._waiting

    def keep(self, key: str, job: Asked, result: Result) -> None:
        """Writes a finished job to disk; from now on it is never repeated."""
        entry = {"key": key, "kind": job.kind, "arguments": job.arguments, "status": "failed" if result.reason else "done"}
        entry |= {"reason": result.reason} if result.reason else {}
        entry |= {"frames": len(result.frames), "cpu_seconds": round(result.cpu_seconds, 3), "try": self._tried[key] + 1}
        entry |= {"left_out": result.left_out} if result.left_out else {}
        if result.frames:
            names: dict[str, list[str]] = {"levels": [], "sources": [], "engines": [""]}
            batch = batch_of(_blocks(result.frames), names["levels"], names["sources"], names["engines"])
            sink = pa.BufferOutputStream()
            with pa.ipc.new_file(sink, batch.schema.with_metadata({"names": json.dumps(names)})) as file:
                file.write_batch(batch.replace_schema_metadata({"names": json.dumps(names)}))
            write_bytes(self._file(key, "arrow"), sink.getvalue())
        write_bytes(self._file(key, "json"), json.dumps(entry, ensure_ascii=False).encode())
        self._waiting[key] = entry
        self.cpu_seconds += entry["cpu_seconds"]

    def settle(self, key: str) -> None:
        """Puts a waiting job's frames into the store and its line into the journal, together."""
        entry = self._waiting.pop(key)
        for block in _Waiting(self._file(key, "arrow")).blocks() if entry["frames"] else []:
            self._writer.append(block)
            self._bytes += sum(values.nbytes for values in block.arrays.values())
        self._writer.append(None, consumed=sum(map(len, entry.get("left_out", {}).values())))
        self._stream.write((json.dumps(entry, ensure_ascii=False) + "\n").encode())
        self.lines[key], self._tried[key] = entry, entry["try"]
        self._unflushed.append(key)
        written = sum(shard["bytes"] for shard in self._writer.manifest["shards"])
        if self._bytes >= min(max(written, SMALLEST), LARGEST_SHARD):
            self._flush()

    def finish(self) -> None:
        """Everything settled goes to disk, and the store is complete. Without a single frame it stays an unfinished one."""
        self._flush()
        if self._writer.manifest["conformations"]:
            self._writer.finish()

    def discard(self) -> None:
        """Removes the folder where this call began it and no job has finished; what was there before stays."""
        for name in () if self.finished else self._begun:
            place = self.path / name
            place.rmdir() if place.is_dir() else place.unlink()

    def close(self) -> None:
        """Lets another process go on."""
        self._stream.close()
        self._writer.close()

    def _flush(self) -> None:
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._writer.manifest |= {"journal": self._stream.tell(), "complete": False, "references": {}}
        self._writer.flush()
        for key in self._unflushed:
            for suffix in ("json", "arrow"):  # in this order: frames without their entry are nothing
                self._file(key, suffix).unlink(missing_ok=True)
        self._unflushed, self._bytes = [], 0

    def _left_waiting(self) -> list[dict[str, Any]]:
        """The finished jobs that a process before left; what is in the journal already, or half written, is removed."""
        found = []
        for file in sorted((self.path / JOBS).glob("*.json")):
            entry = json.loads(file.read_text(encoding="utf-8"))
            if entry["try"] == self._tried[entry["key"]] + 1:
                found.append(entry)
        kept = {self._file(entry["key"], suffix) for entry in found for suffix in ("json", "arrow")}
        for file in set((self.path / JOBS).iterdir()) - kept:
            file.unlink()
        return found

    def _file(self, key: str, suffix: str) -> Path:
        return self.path / JOBS / f"{key}.{suffix}"


class _Waiting(Sharded):
    """The frames of one finished job."""

    def __init__(self, file: Path) -> None:
        batch = pa.ipc.open_file(pa.memory_map(str(file))).get_batch(0)
        names = json.loads(batch.schema.metadata[b"names"])
        self.levels, self.sources, self.engines = names["levels"], names["sources"], names["engines"]
        self._only = shard_of(batch)
        self._sizes, self.elements = [batch.num_rows], []
        self.fields, self._properties = list(self._only.arrays), list(self._only.properties)

    def _shard(self, number: int) -> Shard:
        return self._only

    @property
    def fingerprint(self) -> str:
        raise NotImplementedError  # never compared

    def blocks(self) -> list[Block]:
        """Consecutive frames of the same level, source and engine as one Block each."""
        codes = np.stack([self.column(name) for name in ("level", "source", "engine")], axis=1)
        starts = np.flatnonzero(np.concatenate([[True], (codes[1:] != codes[:-1]).any(axis=1)]))
        return [self.block(rows) for rows in np.split(np.arange(len(self)), starts[1:])]


def _blocks(frames: Sequence[System]) -> list[Block]:
    groups = groupby(frames, key=lambda frame: (frame.level, frame.source, frame.engine))
    return [block_of(list(group)) for _, group in groups]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
