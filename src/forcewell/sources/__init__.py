"""The data sets that can be imported: one small module each, with a ``CARD`` and ``read(paths, **options)``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from forcewell.errors import InputError
from forcewell.sources import ani1, ani1x, extxyz, md17, npz, qm7x, qm9, rmd17, s66x8
from forcewell.sources.card import Card, Paths, load_npz
from forcewell.system import Block

__all__ = ["SOURCES", "Card", "Source", "layout_of", "load_npz"]


class Source(Protocol):
    """What a module of this package offers."""

    CARD: Card

    def read(self, paths: Paths, **options: object) -> Iterator[Block]: ...


SOURCES: dict[str, Source] = {
    "rmd17": rmd17,
    "md17": md17,
    "qm9": qm9,
    "qm7x": qm7x,
    "s66x8": s66x8,
    "ani1": ani1,
    "ani1x": ani1x,
    "extxyz": extxyz,
    "npz": npz,
}  # type: ignore[dict-item]

# The arrays that tell an .npz layout; the first line whose names are all there decides.
_LAYOUTS = (
    ("rmd17", {"nuclear_charges", "coords", "energies", "forces"}),
    ("rmd17", {"z", "pos", "energy", "forces", "md17_index"}),
    ("md17", {"z", "R", "E", "F"}),
    ("qm9", {"ids", "natoms", "z", "pos"}),
)


def layout_of(path: str | os.PathLike[str]) -> str:
    """Name of the source that reads this file. Raises InputError where none does.

    An .npz of no known layout is "npz", whose units are eV, Å unless its options say otherwise.
    """
    path = Path(path)
    if path.suffix in (".xyz", ".extxyz"):
        return "extxyz"
    if path.suffix != ".npz":
        raise InputError(f"{path} is not a store, an extended XYZ file (.xyz, .extxyz) or an .npz file")
    names = set(load_npz(path))
    return next((source for source, needed in _LAYOUTS if needed <= names), "npz")
