"""A stratified sample of a store in one small file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from forcewell.errors import InputError
from forcewell.files import write_bytes
from forcewell.sources.generated import NAMED
from forcewell.store import Dataset, Store

SPARE = 0.98  # of the limit aimed at: compression differs a little from part to part


def sample_rows(dataset: Dataset, count: int) -> np.ndarray:
    """(count,) rows that hold kinds of frames, and within each kind molecules and temperatures, in the proportions of the whole.

    Every n-th row after sorting by kind, molecule and place: at random, small strata would be missed.
    """
    order = np.lexsort((np.arange(len(dataset)), dataset.molecule_codes(), dataset.column("source")))
    return np.sort(order[np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).astype(np.int64))])


def write_sample(dataset: Dataset, out: Path, limit: int) -> int:
    """Writes the largest sample that takes at most ``limit`` bytes; gives how many conformations that is.

    Positions are rounded to single precision, off by up to 5e-7 Å. Raises InputError where ``out`` exists or nothing fits.
    """
    if out.exists():
        raise InputError(f"{out} already exists; choose another name or remove it")
    if out.suffix != ".npz":
        raise InputError(f"{out}: expected a name that ends in .npz")
    count = min(len(dataset), max(1, limit // 200))
    while True:
        rows, stream = sample_rows(dataset, count), io.BytesIO()
        np.savez_compressed(stream, **_arrays(dataset, rows))
        size = stream.tell()
        if size <= limit:
            break
        if count == 1:
            raise InputError(f"not one conformation fits into {limit} bytes")
        count = max(1, min(count - 1, int(SPARE * count * limit / size)))
    write_bytes(out, stream.getbuffer())
    return len(rows)


def _arrays(dataset: Dataset, rows: np.ndarray) -> dict[str, Any]:
    block = dataset.block(rows)
    columns = {
        "molecule": block.molecule, "smiles": block.smiles,
        "source": np.array(dataset.sources, dtype=object)[dataset.column("source")[rows]],
        "level": np.array(dataset.levels, dtype=object)[dataset.column("level")[rows]],
        "engine": np.array(dataset.engines, dtype=object)[dataset.column("engine")[rows]],
    }  # fmt: skip
    found: dict[str, Any] = {"natoms": block.counts.astype(np.uint16)}
    for name in NAMED:
        names, index = np.unique(np.asarray(columns[name]).astype(str), return_inverse=True)
        found |= {f"names:{name}": names, name: index.reshape(-1).astype(np.uint16)}
    found |= {name: values.astype(np.float32) if name == "positions" else values for name, values in block.arrays.items()}
    return found | {f"property:{name}": values for name, values in block.properties.items()}


def open_generated(path: Path) -> Store:
    """A finished store. Raises InputError for one whose campaign has not finished."""
    store = Store(path)
    if not store.complete:
        raise InputError(f"{path} is not finished; repeat the command that makes it first")
    return store
