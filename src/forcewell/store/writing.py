"""Writing a store shard by shard, so that a killed or failed import leaves a store that opens and can be continued."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from forcewell.errors import InputError
from forcewell.fields import FIELDS
from forcewell.store.reading import Store
from forcewell.store.references import reference_fits
from forcewell.store.shards import FORMAT, MANIFEST, UNKNOWN_ENGINE, VERSION, batch_of, manifest_digest, read_manifest, sha256
from forcewell.system import Block

# A shard is as large as all before it, within these bounds: a killed import loses little, and 16 M conformations
# (8.5 GB) still make fewer than 40 shards, which a random batch of 256 has to visit.
SMALLEST_SHARD, LARGEST_SHARD = 8 << 20, 256 << 20  # bytes


class StoreWriter:
    """Appends Blocks to a store. Nothing is in the store before its shard is on disk and named in the manifest.

    path: a folder that does not exist or is empty. settings: what makes the import repeatable, kept in the manifest.
    shard_bytes: a fixed shard size instead of the growing one. Raises InputError where ``path`` is taken.

    A shard goes to a temporary file that is synced and renamed, then the manifest likewise. A full disk raises OSError
    and leaves the store as it was before that shard, without temporary files.
    """

    def __init__(self, path: str | os.PathLike[str], *, settings: Mapping[str, Any] | None = None, shard_bytes: int | None = None) -> None:
        self.path = Path(path)
        # A temporary file is what a kill before the first manifest leaves.
        if self.path.exists() and (not self.path.is_dir() or any(file.suffix != ".tmp" for file in self.path.iterdir())):
            raise InputError(f"{self.path} already exists; choose another name or remove it")
        created = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self.path)
        self._start(shard_bytes)
        self.manifest: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "complete": False,
            "conformations": 0,
            "atoms": 0,
            "consumed": 0,
            "left_out": 0,
            "elements": [],
            "fields": {},
            "properties": {},
            "levels": [],
            "sources": [],
            "engines": list(UNKNOWN_ENGINE),
            "references": {},
            "settings": dict(settings or {}),
            "shards": [],
        }
        try:
            self._write_manifest(self.manifest)
        except OSError:
            self.close()
            if created:
                self.path.rmdir()
            raise

    @classmethod
    def resume(
        cls,
        path: str | os.PathLike[str],
        *,
        settings: Mapping[str, Any] | None = None,
        shard_bytes: int | None = None,
        reopen: bool = False,
    ) -> StoreWriter:
        """Continues a store whose import was interrupted; the source's first ``consumed`` conformations are in it.

        reopen: add to a complete store, too. Raises InputError where the store is complete, damaged, or was begun with other settings.
        """
        store = Store(path)
        store.verify()
        if store.complete and not reopen:
            raise InputError(f"{path} is complete; choose another name or remove it")
        begun = store.manifest["settings"]
        if settings is not None and begun != json.loads(json.dumps(dict(settings))):
            changed = sorted(key for key in begun.keys() | settings.keys() if begun.get(key) != settings.get(key))
            hint = "repeat them to continue, or choose another name"
            raise InputError(f"{path} was begun with other settings ({', '.join(changed)}); {hint}")
        writer = cls.__new__(cls)
        writer.path = Path(path)
        writer._lock = _locked(writer.path)
        writer._start(shard_bytes)
        writer.manifest = read_manifest(writer.path)
        return writer

    def _start(self, shard_bytes: int | None) -> None:
        self._shard_bytes = shard_bytes
        self._waiting: list[Block] = []
        self._waiting_bytes = 0
        self._waiting_consumed = 0
        self._waiting_left_out = 0

    @property
    def consumed(self) -> int:
        """Source conformations whose fate is settled on disk: kept in a shard, or left out before one."""
        return int(self.manifest["consumed"])

    @property
    def conformations(self) -> int:
        """Kept so far, those still waiting for their shard included."""
        return int(self.manifest["conformations"]) + sum(len(block) for block in self._waiting)

    def append(self, block: Block | None, consumed: int | None = None) -> None:
        """Adds a Block (None: nothing was kept) and writes a shard when enough is waiting.

        consumed: how many conformations of the source it stands for, those left out included; default its length.
        """
        if block is not None and len(block):
            self._waiting.append(block)
            self._waiting_bytes += sum(values.nbytes for values in block.arrays.values())
        length = len(block) if block is not None else 0
        self._waiting_consumed += length if consumed is None else consumed
        self._waiting_left_out += 0 if consumed is None else consumed - length
        written = sum(entry["bytes"] for entry in self.manifest["shards"])
        if self._waiting_bytes >= (self._shard_bytes or min(max(written, SMALLEST_SHARD), LARGEST_SHARD)):
            self.flush()

    def flush(self) -> None:
        """Writes what is waiting as one shard. Raises OSError where the disk is full; the store is then as before."""
        manifest = json.loads(json.dumps(self.manifest))
        manifest["consumed"] += self._waiting_consumed
        manifest["left_out"] += self._waiting_left_out
        if not self._waiting:
            return self._commit(manifest)
        batch = batch_of(self._waiting, manifest["levels"], manifest["sources"], manifest.setdefault("engines", list(UNKNOWN_ENGINE)))
        file = self.path / f"shard-{len(manifest['shards']):05d}.arrow"
        _write_shard(file, batch)
        atoms = int(sum(block.counts.sum() for block in self._waiting))
        entry = {"file": file.name, "conformations": batch.num_rows, "atoms": atoms, "bytes": file.stat().st_size, "sha256": sha256(file)}
        manifest["shards"].append(entry)
        manifest["conformations"] += batch.num_rows
        manifest["atoms"] += atoms
        met = {int(z) for block in self._waiting for z in np.unique(block.arrays["numbers"])}
        manifest["elements"] = sorted(met | set(manifest["elements"]))
        carried = set(manifest["fields"]) | {name for block in self._waiting for name in block.arrays}
        manifest["fields"] = {name: FIELDS[name].unit for name in FIELDS if name in carried}
        units = self.manifest["settings"].get("property_units", {})
        manifest["properties"] |= {name: units.get(name, "") for block in self._waiting for name in block.properties}
        try:
            self._commit(manifest)
        except OSError:
            file.unlink(missing_ok=True)
            raise

    def _commit(self, manifest: dict[str, Any]) -> None:
        self._write_manifest(manifest)
        self.manifest = manifest
        self._start(self._shard_bytes)

    def finish(self) -> Store:
        """Writes the rest, fits the reference energies, marks the store complete and opens it."""
        self.flush()
        fits = reference_fits(Store(self.path))
        manifest = json.loads(json.dumps(self.manifest))
        manifest["references"] = {level: fit.as_json() for level, fit in fits.items()}
        manifest["complete"] = True
        self._commit(manifest)
        self.close()
        return Store(self.path)

    def close(self) -> None:
        """Lets another writer continue; what is waiting for its shard is forgotten."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _write_manifest(self, manifest: Mapping[str, Any]) -> None:
        temporary = self.path / f"{MANIFEST}.tmp"
        text = json.dumps({**manifest, "sha256": manifest_digest(manifest)}, indent=1, ensure_ascii=False)
        with _removed_on_error(temporary), open(temporary, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
            os.replace(temporary, self.path / MANIFEST)
        _sync_folder(self.path)


def _locked(folder: Path) -> int | None:
    """Descriptor that keeps other writers out; the system lets go of it when the process dies, however it dies."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InputError(f"{folder} is being written by another process; wait for it, or choose another name") from None
    except OSError:  # a file system without locks
        os.close(descriptor)
        return None
    return descriptor


def _write_shard(file: Path, batch: Any) -> None:
    temporary = file.with_name(file.name + ".tmp")
    with _removed_on_error(temporary), open(temporary, "wb") as stream:
        with pa.ipc.new_file(stream, batch.schema) as sink:
            sink.write_batch(batch)
        stream.flush()
        os.fsync(stream.fileno())
        os.replace(temporary, file)


@contextlib.contextmanager
def _removed_on_error(temporary: Path) -> Any:
    try:
        yield
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    """Makes a rename durable: without it a power cut may bring the old name back."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
