"""Part of a store that Forcewell generated, in one small file, as ``forcewell generate sample`` writes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from forcewell.errors import InputError
from forcewell.fields import ATOM_FIELDS, FIELDS, PROVENANCE
from forcewell.sources.card import CHUNK, Card, Paths, check_options, load_npz
from forcewell.system import Block

NAMED = ("molecule", "smiles", "source", "level", "engine")  # kept as indices into "names:..."

CARD = Card(
    name="generated",
    title="A stratified sample of a store made by forcewell generate (in the package: of the corpus)",
    licence="Apache-2.0",
    citation="",
    level="that of its frames; in the package GFN2-xTB",
    units="eV, eV/Å, Å",
    page="",
    files="an .npz that forcewell generate sample wrote",
    properties=PROVENANCE,
)


def read(paths: Paths, **options: Any) -> Iterator[Block]:
    """Blocks in eV, Å, with source (what kind of frame), level, engine and provenance as in the store that was sampled.

    Raises InputError for a file of another layout.
    """
    check_options(CARD, options)
    for path in map(Path, paths):
        arrays = load_npz(path)
        missing = {"natoms", *NAMED, *(f"names:{name}" for name in NAMED), "numbers", "positions"} - arrays.keys()
        if missing:
            raise InputError(f"{path} is no sample that forcewell generate sample wrote: it has no array {min(missing)!r}")
        yield from _blocks(arrays)


def _blocks(arrays: dict[str, np.ndarray]) -> Iterator[Block]:
    """Consecutive rows of one source, level and engine."""
    counts = arrays["natoms"].astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    kinds = np.stack([arrays[name] for name in ("source", "level", "engine")], axis=1)
    starts = np.flatnonzero(np.concatenate([[True], (kinds[1:] != kinds[:-1]).any(axis=1)]))
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(counts)], strict=True):
        for first in range(start, stop, CHUNK):
            rows = slice(first, min(first + CHUNK, stop))
            atoms = slice(offsets[rows.start], offsets[rows.stop])
            names = {name: arrays[f"names:{name}"][arrays[name][rows]].astype(object) for name in NAMED}
            yield Block(
                counts[rows],
                {name: arrays[name][atoms if name in ATOM_FIELDS else rows] for name in FIELDS if name in arrays},
                source=str(names["source"][0]),
                level=str(names["level"][0]),
                molecule=names["molecule"],
                smiles=names["smiles"],
                properties={key[9:]: arrays[key][rows].astype(np.float64) for key in arrays if key.startswith("property:")},
                engine=str(names["engine"][0]),
            )
