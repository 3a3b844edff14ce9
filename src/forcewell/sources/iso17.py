"""ISO17: molecular dynamics of 129 isomers of C7O2H10."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from forcewell.errors import InputError
from forcewell.sources.ase_rows import blocks_of_rows
from forcewell.sources.asedb import count, rows
from forcewell.sources.card import Card, Paths, check_options
from forcewell.sources.mapping import declared
from forcewell.system import Block

__all__ = ["CARD", "count", "read"]

CARD = Card(
    name="iso17",
    title="ISO17: trajectories at 500 K of 129 isomers of C7O2H10",
    licence="not stated by its authors",
    citation="Schütt et al., NeurIPS 30 (2017), arXiv:1706.08566; Schütt et al., Nat. Commun. 8, 13890 (2017)",
    level="PBE+vdW-TS",
    units="eV, eV/Å, Å",
    page="http://quantum-machine.org/datasets/",
    files=(
        "reference.db, reference_eq.db, test_within.db, test_other.db, test_eq.db (ASE SQLite: total_energy, data.atomic_forces), "
        "with train_ids.txt and validation_ids.txt"
    ),
    download="http://quantum-machine.org/datasets/iso17.tar.gz; unpack it",
    size="0.6 GB packed, 2 GB unpacked",
    conformations="640,855",
    options={"ids": "train_ids.txt or validation_ids.txt: only these rows of reference.db (a row id, from 1, on each line)"},
)
KEYS = {"map": "total_energy=energy,atomic_forces=forces"}


def read(paths: Paths, **options: Any) -> Iterator[Block]:
    """Blocks in eV, Å; the molecule identifier is formula and bond graph, since rows do not name their isomer.

    ``equilibrium`` is 1 in the files named ``..._eq.db``, minima at the level of the card and without forces, else 0.
    Raises InputError for another layout, and for ids that the file does not have.
    """
    check_options(CARD, options)
    wanted = _ids(Path(options["ids"])) if "ids" in options else None
    for path in map(Path, paths):
        minima = path.stem.endswith("_eq")
        given = {**KEYS, "level": CARD.level, "equilibrium": "yes" if minima else "no"}
        if minima:
            given["map"] = "total_energy=energy"
        found = rows(path) if wanted is None else _chosen(path, wanted)
        yield from blocks_of_rows(found, path, CARD.name, declared(given), given)


def _ids(path: Path) -> np.ndarray:
    try:
        return np.unique(np.loadtxt(path, dtype=np.int64, ndmin=1))
    except OSError:
        raise InputError(f"{path} does not exist") from None
    except ValueError as error:
        raise InputError(f"{path} is not a list of row ids ({error})") from None


def _chosen(path: Path, wanted: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
    keep, met = set(wanted.tolist()), 0
    for identifier, values in rows(path):
        if identifier in keep:
            met += 1
            yield identifier, values
    if met != len(keep):
        raise InputError(f"{path} has {met} of the {len(keep)} rows asked for; ids belong to reference.db")
