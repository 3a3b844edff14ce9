"""ASE databases in LMDB, as fairchem writes them (OMol25 and others). Needs the extra "lmdb"."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forcewell.errors import InputError
from forcewell.sources.ase_rows import blocks_of_rows
from forcewell.sources.card import Card, Paths, check_options
from forcewell.sources.mapping import OPTIONS, declared
from forcewell.system import Block

if TYPE_CHECKING:
    import lmdb

CARD = Card(
    name="aselmdb",
    title="ASE databases in LMDB (fairchem; OMol25, OC20, OMat24 ...); needs pip install 'forcewell[lmdb]'",
    licence="of the data set; OMol25: CC-BY-4.0",
    citation="of the data set; OMol25: Levine et al., arXiv:2505.08762 (2025)",
    level="option level; OMol25: wB97M-V/def2-TZVPD",
    units="eV, eV/Å, Å (options for others)",
    page="https://huggingface.co/facebook/OMol25",
    files="*.aselmdb: keys 1 ... nextid - 1, each zlib-compressed JSON of an ase.db row; charge and spin from the row's data",
    download="from the page, after accepting its terms",
    size="OMol25: 4M subset 20 GB, all 3 TB",
    conformations="OMol25: 101,666,280 (training)",
    options=OPTIONS,
)


def read(paths: Paths, **options: Any) -> Iterator[Block]:
    """Blocks in eV, Å, in the order of row ids. The molecule identifier is mapped or the row's own, else formula and bond graph.

    Plain JSON is decoded, nothing is executed. Raises InputError for a file of another layout, and where lmdb is missing.
    """
    check_options(CARD, options)
    mapping = declared(options, unread=("numbers",))
    for path in map(Path, paths):
        yield from blocks_of_rows(_rows(path), path, CARD.name, mapping, options)


def count(path: Path) -> int:
    """Rows of a file, by its own account."""
    with _open(path) as environment, environment.begin() as transaction:
        return int(_decoded(transaction.get(b"nextid"), path) or 1) - 1 - len(_decoded(transaction.get(b"deleted_ids"), path) or ())


def _open(path: Path) -> lmdb.Environment:
    try:
        import lmdb
    except ImportError:
        raise InputError("reading .aselmdb files needs the package lmdb: pip install 'forcewell[lmdb]'") from None
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    try:
        return lmdb.open(str(path), subdir=False, readonly=True, lock=False, readahead=True)
    except lmdb.Error as error:
        raise InputError(f"{path} is not an LMDB file ({error})") from None


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(id, everything the row says) of rows that were not deleted."""
    with _open(path) as environment, environment.begin() as transaction:
        following = _decoded(transaction.get(b"nextid"), path)
        if not isinstance(following, int):
            raise InputError(f"{path} has no key nextid; it is not a file of ase-db-backends or fairchem")
        deleted = set(_decoded(transaction.get(b"deleted_ids"), path) or ())
        for identifier in range(1, following):
            if identifier in deleted:
                continue
            row = _decoded(transaction.get(str(identifier).encode("ascii")), path)
            if not isinstance(row, dict) or "numbers" not in row or "positions" not in row:
                raise InputError(f"{path}, row {identifier} is missing or is not an atoms row")
            extra = {**(row.get("data") or {}), **(row.get("key_value_pairs") or {})}
            yield identifier, {key: value for key, value in row.items() if key not in ("data", "key_value_pairs")} | extra


def _decoded(value: bytes | None, path: Path) -> Any:
    """JSON out of zlib, or out of plain bytes as older files have it; ASE's arrays become NumPy's. None for None."""
    if value is None:
        return None
    try:
        plain = zlib.decompress(value) if value[:1] == b"\x78" else value
        return json.loads(plain, object_hook=_array)
    except (zlib.error, json.JSONDecodeError, UnicodeDecodeError, TypeError, ValueError) as error:
        reason = f"{path} holds a row that is not zlib-compressed JSON ({error})"
        raise InputError(f"{reason}; rows pickled by other programs are not read") from None


def _array(item: dict[str, Any]) -> Any:
    """ASE writes {"__ndarray__": [shape, dtype, flat values]}; other objects of its own are left as they are."""
    import numpy as np

    if set(item) == {"__ndarray__"}:
        shape, dtype, values = item["__ndarray__"]
        if dtype not in ("float64", "float32", "int64", "int32", "bool", "uint8", "int8", "int16"):
            raise ValueError(f"array of {dtype}")
        return np.array(values, dtype=dtype).reshape(shape)
    return item
