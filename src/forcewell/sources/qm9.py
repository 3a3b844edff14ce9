"""QM9: relaxed structures of small organic molecules, each a minimum at its own level, with up to 19 properties."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from forcewell.errors import InputError
from forcewell.sources.card import CHUNK, Card, Paths, check_options, chunks, count_conformations, load_npz, pick
from forcewell.sources.qm9_raw import TARGETS, Molecule, molecules
from forcewell.sources.sdf import count_structures
from forcewell.system import Block
from forcewell.units import HARTREE, KCAL_PER_MOL

# Orbital and thermochemical energies come in Hartree and leave in eV; u0 is the potential energy plus zero-point energy.
HARTREE_COLUMNS = ("homo", "lumo", "gap", "zpve", "u0", "u298", "h298", "g298")
KCAL_COLUMNS = ("u0_atom", "u298_atom", "h298_atom", "g298_atom")  # atomisation energies, in the CSV only
OTHER_COLUMNS = {"mu": "D", "alpha": "bohr³", "r2": "bohr²", "cv": "cal/mol/K", "a": "GHz", "b": "GHz", "c": "GHz"}
FACTORS = {**dict.fromkeys(HARTREE_COLUMNS, HARTREE), **dict.fromkeys(KCAL_COLUMNS, KCAL_PER_MOL), **dict.fromkeys(OTHER_COLUMNS, 1.0)}

CARD = Card(
    name="qm9",
    title="QM9 minima (H, C, N, O, F) with 15 properties, 19 with the CSV",
    licence="CC0-1.0",
    citation="Ramakrishnan et al., Sci. Data 1, 140022 (2014), doi:10.1038/sdata.2014.22",
    level="B3LYP/6-31G(2df,p)",
    units="Å; labels in Hartree, D, bohr³, bohr², cal/mol/K, GHz; the CSV's atomisation energies in kcal/mol",
    page="https://doi.org/10.6084/m9.figshare.c.978904",
    files=(
        "dsgdb9nsd.xyz.tar.bz2 as it comes or its dsgdb9nsd_*.xyz; gdb9.sdf with labels=gdb9.sdf.csv; "
        "or an .npz with ids, natoms, z, pos (atoms of all molecules one after another), as in the package"
    ),
    download=(
        "https://ndownloader.figshare.com/files/3195389 (uncharacterized.txt: files/3195404), or "
        "https://deepchemdata.s3-us-west-1.amazonaws.com/datasets/gdb9.tar.gz"
    ),
    size="86 MB",
    conformations="133,885",
    options={
        "labels": "CSV with idx (or mol_id), smiles and properties, for .npz and .sdf; only its molecules carry labels",
        "leave_out": "uncharacterized.txt: the 3,054 molecules whose geometry no longer fits their SMILES stay out",
    },
    properties={**dict.fromkeys((*HARTREE_COLUMNS, *KCAL_COLUMNS), "eV"), **OTHER_COLUMNS},
)
Labels = tuple[dict[int, int], list[str], dict[str, np.ndarray]]


def read(paths: Paths, **options: Any) -> Iterator[Block]:
    """Blocks in Å with ``equilibrium`` 1; the molecule identifier is ``qm9/ID``. Properties in the card's units.

    The total energy is filled from labels: u0 - zpve, the electronic energy. Raises InputError for another layout.
    """
    check_options(CARD, options)
    labels = read_labels(Path(options["labels"])) if "labels" in options else None
    unwanted = _uncharacterized(Path(options["leave_out"])) if "leave_out" in options else np.zeros(0)
    flat = [Path(path) for path in paths if Path(path).suffix == ".npz"]
    raw = [Path(path) for path in paths if Path(path).suffix != ".npz"]
    for ids, block in itertools.chain(*map(_flat, flat), _raw(itertools.chain.from_iterable(map(molecules, raw)))):
        if labels is not None:
            _label(block, ids, *labels)
        if {"u0", "zpve"} <= block.properties.keys():
            block.arrays["energy"] = block.properties["u0"] - block.properties["zpve"]
        kept = ~np.isin(ids, unwanted)
        if kept.any():
            yield block if kept.all() else block.take(kept)


def count(path: Path) -> int | None:
    """Molecules in a file; None for the packed archive."""
    return count_structures(path) if path.suffix == ".sdf" else 1 if path.suffix == ".xyz" else count_conformations(path)


def _flat(path: Path) -> Iterator[tuple[np.ndarray, Block]]:
    """(QM9 indices, Block) of the .npz layout."""
    arrays = load_npz(path)
    identifiers, counts = pick(arrays, path, "ids"), pick(arrays, path, "natoms").astype(np.int64)
    numbers, positions = pick(arrays, path, "z"), pick(arrays, path, "pos")
    if len(identifiers) != len(counts) or len(numbers) != counts.sum() or positions.shape != (len(numbers), 3):
        raise InputError(f"{path}: natoms adds up to {counts.sum()} atoms, z has {len(numbers)}, pos {positions.shape}")
    offsets = np.concatenate([[0], np.cumsum(counts)])
    for part in chunks(len(counts)):
        atoms = slice(offsets[part.start], offsets[part.stop])
        yield identifiers[part], _block(identifiers[part], counts[part], numbers[atoms], positions[atoms])


def _raw(found: Iterable[Molecule]) -> Iterator[tuple[np.ndarray, Block]]:
    """(QM9 indices, Block) of upstream's files, with the targets that they hold."""
    found = iter(found)
    while batch := list(itertools.islice(found, CHUNK)):
        ids, counts = np.array([one.index for one in batch]), np.array([len(one.numbers) for one in batch])
        block = _block(ids, counts, np.concatenate([one.numbers for one in batch]), np.concatenate([one.positions for one in batch]))
        block.smiles = np.array([one.smiles for one in batch], dtype=object)
        if batch[0].targets:
            columns = np.array([one.targets for one in batch]).T
            block.properties = {name: column * FACTORS[name] for name, column in zip(TARGETS, columns, strict=True)}
        yield ids, block


def _block(ids: np.ndarray, counts: np.ndarray, numbers: np.ndarray, positions: np.ndarray) -> Block:
    names = np.array([f"qm9/{i}" for i in ids], dtype=object)
    fields = {"numbers": numbers, "positions": positions, "equilibrium": np.ones(len(ids))}
    return Block(counts, fields, source=CARD.name, level=CARD.level, molecule=names)


def read_labels(path: Path) -> Labels:
    """A label file: row by QM9 index, SMILES, and properties (rows,) in the card's units. Raises InputError if unusable."""
    if not path.is_file():
        raise InputError(f"label file {path} does not exist")
    with open(path, newline="", encoding="utf-8") as stream:
        rows = [{key.lower(): value for key, value in row.items() if key} for row in csv.DictReader(stream)]
    if not rows or not {"idx", "mol_id"} & rows[0].keys():
        raise InputError(f"label file {path} needs a header with the column idx or mol_id (and smiles, {', '.join(HARTREE_COLUMNS)} ...)")
    try:
        found = {int(row["idx"] if "idx" in row else row["mol_id"].removeprefix("gdb_")): k for k, row in enumerate(rows)}
        properties = {name: np.array([float(row[name]) for row in rows]) * FACTORS[name] for name in rows[0] if name in FACTORS}
    except (TypeError, ValueError) as error:
        raise InputError(f"label file {path}: {error}") from None
    return found, [row.get("smiles") or "" for row in rows], properties


def _label(block: Block, ids: np.ndarray, found: dict[int, int], smiles: list[str], properties: dict[str, np.ndarray]) -> None:
    rows = np.array([found.get(int(i), -1) for i in ids])
    known = rows >= 0
    block.smiles = np.array([smiles[row] if row >= 0 else "" for row in rows], dtype=object)
    block.properties = {name: np.where(known, values[rows], np.nan) for name, values in properties.items()}


def _uncharacterized(path: Path) -> np.ndarray:
    """QM9 indices: the first word of every line that begins with a number."""
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    words = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    return np.array([int(word[0]) for word in words if word and word[0].isdigit()], dtype=np.int64)
