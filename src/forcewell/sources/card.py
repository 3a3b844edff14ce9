"""What every source shares: its card, and careful reading of .npz files."""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from forcewell.errors import InputError, nearest
from forcewell.fields import FIELDS
from forcewell.system import Block
from forcewell.units import energy_factor, force_factor, length_factor, stress_factor

CHUNK = 8192  # conformations per Block: 20 atoms each make 6 MB, small beside a shard
CHUNK_ATOMS = 500_000  # atoms per Block, 20 MB: what bounds the memory for large molecules
Paths = Sequence[str | os.PathLike[str]]


@dataclass(frozen=True, slots=True)
class Card:
    """What is known about a data set. Units are those of the files; ``read`` converts to eV, Å.

    files: which of upstream's files ``read`` takes, and what is in them. download: where they are; size: of the download;
    conformations: how many it holds upstream. isomers: True where one molecule identifier may stand for several bond
    graphs, so that benchmark molecules are looked for in every conformation. options: name -> meaning of what ``read``
    accepts. properties: name -> unit of the other labels it yields.
    """

    name: str
    title: str
    licence: str
    citation: str
    level: str
    units: str
    page: str
    files: str
    download: str = ""
    size: str = ""
    conformations: str = ""
    isomers: bool = False
    options: Mapping[str, str] = field(default_factory=dict)
    properties: Mapping[str, str] = field(default_factory=dict)


def load_npz(path: str | os.PathLike[str], stream: IO[bytes] | None = None) -> dict[str, np.ndarray]:
    """All arrays of an .npz file, or of a ``stream`` out of it. Raises InputError for a file that is missing, damaged, or
    holds Python objects."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    arrays: dict[str, np.ndarray] = {}
    key = ""
    with open(path, "rb") if stream is None else contextlib.nullcontext() as file:
        # NumPy takes whatever it does not know for a pickle.
        if file is not None and not file.read(6).startswith((b"PK\x03\x04", b"PK\x05\x06", b"\x93NUMPY")):
            raise InputError(f"{path} is not a whole .npz file (it does not begin like one); fetch it again, or name another source")
    try:
        with np.load(path if stream is None else stream, allow_pickle=False) as archive:
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


def positive(value: Any, name: str) -> float:
    """An option that is a number above 0. Raises InputError for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not 0 < number < float("inf"):
        raise InputError(f"option {name} is {value!r}, expected a number above 0")
    return number


@dataclass(frozen=True, slots=True)
class Factors:
    """Multipliers from a file's units to eV, eV/Å, Å and, for stress, eV/Å³."""

    energy: float
    force: float
    length: float
    stress: float

    @classmethod
    def of(cls, energy: str, force: str, length: str, stress: str = "eV/Å³") -> Factors:
        """From unit names such as "kcal/mol", "kcal/mol/Å", "Å", "GPa". Raises InputError for an unknown one."""
        return cls(energy_factor(energy), force_factor(force), length_factor(length), stress_factor(stress))


def rows_of(atoms: int) -> int:
    """Conformations of ``atoms`` atoms each that make one Block."""
    return max(1, min(CHUNK, CHUNK_ATOMS // max(atoms, 1)))


def chunks(frames: int, size: int = CHUNK) -> Iterator[slice]:
    """Slices of at most ``size`` rows that cover ``frames``."""
    for start in range(0, frames, size):
        yield slice(start, min(start + size, frames))


def largest_force(forces: np.ndarray) -> np.ndarray:
    """(F,) the largest norm of an atom's force in (F, A, 3); NaN where a component is."""
    squared = np.einsum("fak,fak->fa", forces, forces)  # ten times faster than a sum over the last, short axis
    return np.sqrt(squared.max(axis=1))


def merged(blocks: Iterable[Block]) -> Iterator[Block]:
    """The same conformations in Blocks of about ``CHUNK`` conformations or ``CHUNK_ATOMS`` atoms.

    Groups of a few conformations would otherwise cost a hundred times more per conformation than whole Blocks do. Only
    neighbours of one source and level are joined; a field or property that one of them lacks is "not known" there.
    """
    waiting: list[Block] = []
    for block in blocks:
        full = sum(map(len, waiting)) >= CHUNK or sum(len(b.arrays["numbers"]) for b in waiting) >= CHUNK_ATOMS
        if waiting and (full or (block.source, block.level) != (waiting[0].source, waiting[0].level)):
            yield _join(waiting)
            waiting = []
        if len(block):
            waiting.append(block)
    if waiting:
        yield _join(waiting)


def _join(blocks: Sequence[Block]) -> Block:
    if len(blocks) == 1:
        return blocks[0]
    arrays = {}
    for name, field_ in FIELDS.items():
        if any(name in block.arrays for block in blocks):
            sizes = [len(block.arrays["numbers"]) if field_.scope == "atom" else len(block) for block in blocks]
            absent = [np.full((size, *field_.shape), field_.missing, dtype=field_.stored) for size in sizes]
            arrays[name] = np.concatenate([block.arrays.get(name, other) for block, other in zip(blocks, absent, strict=True)])
    names = list(dict.fromkeys(name for block in blocks for name in block.properties))
    properties = {name: np.concatenate([block.properties.get(name, np.full(len(block), np.nan)) for block in blocks]) for name in names}
    molecule, smiles = (np.concatenate([getattr(block, name) for block in blocks]) for name in ("molecule", "smiles"))
    counts = np.concatenate([block.counts for block in blocks])
    return Block(counts, arrays, blocks[0].source, blocks[0].level, molecule, smiles, properties)


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
