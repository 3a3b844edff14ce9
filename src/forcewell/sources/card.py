"""What every source shares: its card, and careful reading of .npz files."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from forcewell.errors import InputError, nearest
from forcewell.units import energy_factor, force_factor, length_factor

CHUNK = 8192  # conformations per Block: 20 atoms each make 6 MB, small beside a shard
Paths = Sequence[str | os.PathLike[str]]


@dataclass(frozen=True, slots=True)
class Card:
    """What is known about a data set. Units are those of the files; ``read`` converts to eV, Å.

    options: name -> meaning of what ``read`` accepts. properties: name -> unit of the other labels it yields.
    """

    name: str
    title: str
    licence: str
    citation: str
    level: str
    units: str
    page: str
    files: str
    options: Mapping[str, str] = field(default_factory=dict)
    properties: Mapping[str, str] = field(default_factory=dict)


def load_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All arrays of an .npz file. Raises InputError for a file that is missing, damaged, or holds Python objects."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    arrays: dict[str, np.ndarray] = {}
    key = ""
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not hasattr(archive, "files"):
                raise InputError(f"{path} is a single array (.npy), not an .npz archive")
            for key in archive.files:
                arrays[key] = archive[key]
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise InputError(f"{path} is not a whole .npz file ({error}); fetch it again") from None
    except ValueError as error:
        where = f"the array {key!r} of {path}" if key else str(path)
        reason = "holds pickled Python objects, which can run code; save plain arrays instead" if "ickle" in str(error) else str(error)
        raise InputError(f"{where} cannot be read: {reason}") from None
    return arrays


def pick(arrays: Mapping[str, np.ndarray], path: Any, *names: str) -> np.ndarray:
    """The first of ``names`` that is there. Raises InputError listing what the file has instead."""
    for name in names:
        if name in arrays:
            return arrays[name]
    raise InputError(f"{path} has no array {' or '.join(names)} (it has: {', '.join(arrays)})")


def check_options(card: Card, options: Mapping[str, Any]) -> None:
    """Raises InputError for an option that the source does not have."""
    for key in options:
        if key not in card.options:
            known = f"known: {', '.join(card.options)}" if card.options else "it has none"
            raise InputError(f"source {card.name!r} has no option {key!r}{nearest(key, card.options)} ({known})")


@dataclass(frozen=True, slots=True)
class Factors:
    """Multipliers from a file's units to eV, eV/Å and Å."""

    energy: float
    force: float
    length: float

    @classmethod
    def of(cls, energy: str, force: str, length: str) -> Factors:
        """From unit names such as "kcal/mol", "kcal/mol/Å", "Å". Raises InputError for an unknown one."""
        return cls(energy_factor(energy), force_factor(force), length_factor(length))


def chunks(frames: int, size: int = CHUNK) -> Iterator[slice]:
    """Slices of at most ``size`` rows that cover ``frames``."""
    for start in range(0, frames, size):
        yield slice(start, min(start + size, frames))


def count_conformations(path: Path) -> int | None:
    """How many conformations a file holds, from headers alone (for a progress bar); None where that cannot be told."""
    if path.suffix == ".npz":
        return _rows_of_npz(path)
    if path.suffix not in (".xyz", ".extxyz"):
        return None
    frames = 0
    with open(path, "rb") as stream:
        for line in stream:
            if not line.strip().isdigit():
                return None
            frames += 1
            for _ in range(int(line) + 1):
                next(stream, b"")
    return frames


def _rows_of_npz(path: Path) -> int | None:
    """Rows of the array that counts conformations, read from the .npy headers inside the archive."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        with zipfile.ZipFile(path) as archive:
            for key in ("natoms", "coords", "pos", "positions", "R"):
                if f"{key}.npy" in archive.namelist():
                    with archive.open(f"{key}.npy") as stream:
                        return int(readers[np.lib.format.read_magic(stream)](stream)[0][0])
    except (zipfile.BadZipFile, OSError, ValueError, KeyError, IndexError):
        return None  # reading the file will say what is wrong with it
    return None
