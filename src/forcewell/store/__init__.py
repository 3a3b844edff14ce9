"""The conformation store, its writer, the same interface in memory, and the one door to data of any kind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from forcewell.bundled import bundled_set
from forcewell.errors import InputError
from forcewell.sources import FORMS, SOURCES, layout_of
from forcewell.store.gathering import Gatherer
from forcewell.store.reading import Dataset, MemoryData, Store
from forcewell.store.references import PerAtom, ReferenceFit, fit_references, reference_fits, references
from forcewell.store.writing import StoreWriter
from forcewell.system import Block

__all__ = [
    "Dataset",
    "Gatherer",
    "MemoryData",
    "PerAtom",
    "ReferenceFit",
    "Store",
    "StoreWriter",
    "fit_references",
    "open_data",
    "reference_fits",
    "references",
]


def open_data(path: str | os.PathLike[str], **options: Any) -> Dataset:
    """A store folder memory-mapped; a file in memory: extended XYZ, .npz, HDF5 (known layouts and generic ones) or an ASE database.

    ``bundled:NAME`` is a data set of the package, whole (a run leaves benchmark molecules out of it).

    options: as of the source's ``read``, e.g. ``energy_unit="kcal/mol"`` for a generic .npz; stores take none.
    Raises InputError where there is nothing at ``path``, it is none of these, it states another unit than its layout has, or its structures
    cannot be (``Block.validate``).
    """
    if str(path).startswith("bundled:"):
        source, files, _ = bundled_set(str(path).removeprefix("bundled:"))
        with resources.as_file(resources.files("forcewell.bundled")) as place:
            blocks = SOURCES[source].read([place / file for file in files], **options)
            return MemoryData(_validated(blocks, Path(path)), name=str(path))
    path = Path(path)
    if path.is_dir():
        if options:
            raise InputError(f"{path} is a store; it takes no option ({', '.join(options)})")
        return Store(path)
    if not path.exists():
        raise InputError(f"{path} does not exist; give {FORMS}")
    return MemoryData(_validated(SOURCES[layout_of(path, options)].read([path], **options), path), name=str(path))


def _validated(blocks: Iterator[Block], path: Path) -> Iterator[Block]:
    seen = 0
    for block in blocks:
        try:
            block.validate(seen)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        seen += len(block)
        yield block
