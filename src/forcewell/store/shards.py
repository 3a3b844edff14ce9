"""The file format of a store: Arrow shards beside a JSON manifest.

``NAME.fw/`` holds ``manifest.json`` and ``shard-00000.arrow`` ... (Arrow IPC files, uncompressed, one record batch each,
one row per conformation, atom fields as large lists). A shard never changes once it is in the manifest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from forcewell.errors import InputError
from forcewell.fields import ATOM_FIELDS, FIELDS
from forcewell.sources import files_of
from forcewell.system import Block

FORMAT, VERSION, MANIFEST = "forcewell-store", 1, "manifest.json"
# The first of a store's engines; shards without the column "engine", as imports write them, are of it.
UNKNOWN_ENGINE = ("",)


@dataclass(slots=True)
class Shard:
    """Columns of n conformations with N atoms: ``arrays`` flat as in a Block, strings as Arrow arrays."""

    offsets: np.ndarray  # (n + 1,) first atom of each conformation
    arrays: dict[str, np.ndarray]  # atom fields (N, ...), molecule fields (n, ...)
    level: np.ndarray  # (n,) index into ``levels``
    source: np.ndarray  # (n,) index into ``sources``
    strings: dict[str, Any]  # "molecule" and "smiles": Arrow string arrays (n,)
    properties: dict[str, np.ndarray] = field(default_factory=dict)
    only_level: int = -1  # the level of all rows, -1 where they differ
    engine: np.ndarray | None = None  # (n,) index into ``engines``; None for 0 throughout

    def __post_init__(self) -> None:
        if len(self.level) and (self.level == self.level[0]).all():
            self.only_level = int(self.level[0])


def missing(name: str, rows: int) -> np.ndarray:
    """(rows, ...) the "not known" value of a field."""
    return np.full((rows, *FIELDS[name].shape), FIELDS[name].missing, dtype=FIELDS[name].stored)


def empty_shard() -> Shard:
    """A shard of no conformations."""
    none = np.zeros(0, dtype=np.int32)
    return Shard(np.zeros(1, dtype=np.int64), {}, none, none, dict.fromkeys(("molecule", "smiles"), pa.array([], pa.large_string())))


def verify(file: Path, expected: str) -> None:
    """Raises InputError where the file's SHA-256 is not ``expected``."""
    if sha256(file) != expected:
        raise damaged(file)


def damaged(file: Path) -> InputError:
    """The error that says so."""
    return InputError(f"{file} is damaged: its SHA-256 is not the one in the manifest; import the data again or restore the file")


def sha256(file: Path) -> str:
    """Hexadecimal digest of a file's bytes."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a store. Raises InputError where there is none or it is damaged."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        files = files_of(folder) if folder.is_dir() else ""
        way_on = f"; give its files, as in {files}, or make a store of them: forcewell data import" if files else ""
        raise InputError(f"{folder} is {'a folder, ' if files else ''}not a Forcewell store: it has no {MANIFEST}{way_on}") from None
    except NotADirectoryError:
        raise InputError(f"{folder} is not a Forcewell store: it has no {MANIFEST}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{folder / MANIFEST} is damaged ({error}); import the data again") from None
    needed = {"shards", "levels", "sources", "elements", "fields", "properties", "complete"}
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or not needed <= manifest.keys():
        raise InputError(f"{folder / MANIFEST} is not a Forcewell manifest")
    if manifest.get("version") != VERSION:
        raise InputError(f"{folder} has store version {manifest.get('version')}; this Forcewell reads version {VERSION}")
    if manifest.pop("sha256", None) != manifest_digest(manifest):
        raise InputError(f"{folder / MANIFEST} is damaged (its SHA-256 does not match); import the data again or restore the file")
    return manifest


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest's content, its own "sha256" left out."""
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def shard_of(batch: Any) -> Shard:
    """NumPy views of a record batch's columns."""
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    offsets = columns["numbers"].offsets.to_numpy()
    arrays, properties = {}, {}
    for name, column in columns.items():
        if name.startswith("property:"):
            properties[name[9:]] = column.to_numpy()
        elif name in FIELDS:
            declared = FIELDS[name]
            flat = column.to_numpy() if pa.types.is_primitive(column.type) else column.values.to_numpy()
            arrays[name] = flat.view(declared.stored).reshape(-1, *declared.shape)
    strings = {name: columns[name] for name in ("molecule", "smiles")}
    engine = columns["engine"].to_numpy() if "engine" in columns else None
    return Shard(offsets, arrays, columns["level"].to_numpy(), columns["source"].to_numpy(), strings, properties, engine=engine)


def batch_of(blocks: Sequence[Block], levels: list[str], sources: list[str], engines: list[str]) -> Any:
    """One record batch of several Blocks; ``levels``, ``sources`` and ``engines`` grow by new names."""
    block, level, source, engine = joined(blocks, levels, sources, engines)
    columns: dict[str, Any] = {}
    for name, values in block.arrays.items():
        flat = np.ascontiguousarray(values).reshape(-1)
        flat = pa.array(flat.view(np.uint8) if flat.dtype == np.bool_ else flat)
        width = int(np.prod(FIELDS[name].shape, dtype=np.int64))
        if name in ATOM_FIELDS:
            columns[name] = pa.LargeListArray.from_arrays(pa.array(block.offsets * width), flat)
        else:
            columns[name] = pa.FixedSizeListArray.from_arrays(flat, width) if FIELDS[name].shape else flat
    columns |= {"level": pa.array(level), "source": pa.array(source)} | ({"engine": pa.array(engine)} if engine.any() else {})
    columns |= {"molecule": pa.array(block.molecule, pa.large_string()), "smiles": pa.array(block.smiles, pa.large_string())}
    columns |= {f"property:{name}": pa.array(values) for name, values in block.properties.items()}
    return pa.record_batch(list(columns.values()), names=list(columns))


def joined(
    blocks: Sequence[Block], levels: list[str], sources: list[str], engines: list[str]
) -> tuple[Block, np.ndarray, np.ndarray, np.ndarray]:
    """The blocks as one, with each row's index into ``levels``, ``sources`` and ``engines``, which grow by new names."""
    sizes, coded = [len(block) for block in blocks], []
    for attribute, names in (("level", levels), ("source", sources), ("engine", engines)):
        mine = [getattr(block, attribute) for block in blocks]
        names += [name for name in dict.fromkeys(mine) if name not in names]
        coded.append(np.repeat(np.array([names.index(name) for name in mine], dtype=np.int32), sizes))
    counts = np.concatenate([block.counts for block in blocks])
    arrays = {}
    for name in FIELDS:
        if any(name in block.arrays for block in blocks):
            rows = [int(block.counts.sum()) if name in ATOM_FIELDS else len(block) for block in blocks]
            arrays[name] = np.concatenate([block.arrays.get(name, missing(name, n)) for block, n in zip(blocks, rows, strict=True)])
    keys = list(dict.fromkeys(key for block in blocks for key in block.properties))
    properties = {key: np.concatenate([block.properties.get(key, np.full(len(block), np.nan)) for block in blocks]) for key in keys}
    molecule, smiles = (np.concatenate([getattr(block, name) for block in blocks]) for name in ("molecule", "smiles"))
    return Block(counts, arrays, molecule=molecule, smiles=smiles, properties=properties), coded[0], coded[1], coded[2]
