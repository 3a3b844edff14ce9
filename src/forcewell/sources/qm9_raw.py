"""QM9 as its authors publish it: the XYZ-like files of dsgdb9nsd, and the SDF + CSV that DeepChem made of them."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from forcewell.errors import InputError
from forcewell.sources.sdf import structures

# The 15 numbers behind "gdb INDEX" on the second line, in upstream's order (readme.txt of the collection).
TARGETS = ("a", "b", "c", "mu", "alpha", "homo", "lumo", "gap", "r2", "zpve", "u0", "u298", "h298", "g298", "cv")


@dataclass(frozen=True, slots=True)
class Molecule:
    """index: QM9's, from 1. targets: ``TARGETS`` in the file's units, empty where the file has none."""

    index: int
    numbers: np.ndarray
    positions: np.ndarray
    smiles: str = ""
    targets: tuple[float, ...] = ()


def molecules(path: Path) -> Iterator[Molecule]:
    """Of an .xyz file, a .tar.bz2 or .tar.gz of them, or an .sdf. Raises InputError naming the entry that is not one."""
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    if path.suffix == ".sdf":
        for title, numbers, positions, _ in structures(path):
            yield Molecule(_index(title, path), numbers, positions)
    elif path.suffix == ".xyz":
        yield parse(path.read_text(encoding="utf-8"), str(path))
    else:
        yield from _packed(path)


def _packed(path: Path) -> Iterator[Molecule]:
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                if member.isfile() and member.name.endswith(".xyz") and (stream := archive.extractfile(member)):
                    yield parse(stream.read().decode("utf-8"), f"{path}, {member.name}")
    except (tarfile.TarError, OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a whole tar archive of .xyz files ({' '.join(str(error).split())}); fetch it again") from None


def _index(text: str, where: object) -> int:
    found = re.fullmatch(r"gdb[ _](\d+)", text)
    if not found:
        raise InputError(f"{where}: the entry {text!r} is not named gdb_INDEX")
    return int(found[1])


def _number(text: str) -> float:
    """Mathematica wrote small numbers as ``-5.8*^-6``."""
    return float(text.replace("*^", "e"))


def parse(text: str, where: str) -> Molecule:
    """One file: atom count; ``gdb INDEX`` and 15 numbers; element, x, y, z, charge per atom; frequencies; SMILES; InChI."""
    from ase.data import atomic_numbers

    lines = text.splitlines()
    try:
        atoms = int(lines[0])
        words = lines[1].split()
        rows = [line.split() for line in lines[2 : 2 + atoms]]
        numbers = np.array([atomic_numbers[row[0]] for row in rows])
        positions = np.array([[_number(word) for word in row[1:4]] for row in rows])
        targets = tuple(_number(word) for word in words[2:])
        smiles = lines[3 + atoms].split()[0]
    except (ValueError, IndexError, KeyError) as error:
        raise InputError(f"{where} is not a QM9 file ({error})") from None
    if positions.shape != (atoms, 3) or len(targets) != len(TARGETS):
        raise InputError(f"{where} is not a QM9 file: {len(rows)} of {atoms} atoms, {len(targets)} of {len(TARGETS)} targets")
    return Molecule(_index(" ".join(words[:2]), where), numbers, positions, smiles, targets)
