"""Structures from SDF files (V2000 and V3000 are told apart; V2000 is read) without a chemistry toolkit. Used by two sources."""

from __future__ import annotations

import contextlib
import gzip
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from forcewell.errors import InputError


@contextlib.contextmanager
def open_text(path: Path) -> Iterator[IO[str]]:
    """A text file, plain, .gz, or the first .sdf of a .tar.gz; read as a stream. Raises InputError where it is missing or damaged."""
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    try:
        if path.name.endswith((".tar.gz", ".tgz")):
            with tarfile.open(path, "r:gz") as archive:
                for member in archive:
                    if member.isfile() and member.name.endswith(".sdf") and (stream := archive.extractfile(member)):
                        yield io.TextIOWrapper(stream, encoding="utf-8")
                        return
            raise InputError(f"{path} holds no .sdf file")
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as stream:
            yield stream
    except (OSError, EOFError, tarfile.TarError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a whole file ({' '.join(str(error).split())}); fetch it again") from None


def structures(path: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """(title, numbers (A,), positions (A, 3) Å, formal charges (A,)) of each entry. Raises InputError naming a bad entry."""
    with open_text(path) as stream:
        entry = 0
        while (lines := _entry(stream)) is not None:
            yield _parsed(lines, f"{path}, entry {entry}")
            entry += 1
        if not entry:
            raise InputError(f"{path} holds no structure")


def count_structures(path: Path) -> int | None:
    """Entries of an uncompressed file; None for a packed one, which would have to be unpacked twice."""
    if path.suffix != ".sdf" or not path.is_file():
        return None
    with open(path, "rb") as stream:
        return sum(chunk.count(b"$$$$") for chunk in iter(lambda: stream.read(1 << 24), b""))


def _entry(stream: IO[str]) -> list[str] | None:
    """The lines up to $$$$, or None at the end; data items are left out."""
    lines: list[str] = []
    structure = True
    for line in stream:
        if line.startswith("$$$$"):
            return lines
        structure = structure and not line.startswith("M  END")
        if structure:
            lines.append(line)
    return lines if any(line.strip() for line in lines) else None


def _parsed(lines: list[str], where: str) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
    from ase.data import atomic_numbers

    try:
        if "V3000" in lines[3]:
            raise InputError(f"{where} is a V3000 entry; write it as V2000")
        atoms = int(lines[3][:3])
        block = lines[4 : 4 + atoms]
        if len(block) != atoms or atoms == 0:
            raise ValueError(f"{len(block)} of {atoms} atoms are there")
        numbers = np.array([atomic_numbers[line[31:34].strip()] for line in block])
        positions = np.array([(float(line[:10]), float(line[10:20]), float(line[20:30])) for line in block])
        charges = np.zeros(atoms, dtype=np.int64)
        for line in lines[4 + atoms :]:
            if line.startswith("M  CHG"):
                words = line.split()[3:]
                for atom, charge in zip(words[::2], words[1::2], strict=True):
                    charges[int(atom) - 1] = int(charge)
    except (ValueError, IndexError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where} is not a whole V2000 structure ({error})") from None
    return lines[0].strip(), numbers, positions, charges
