"""QM9: relaxed structures of small organic molecules, each a minimum at its own level."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from forcewell.errors import InputError
from forcewell.sources.card import Card, Paths, check_options, chunks, load_npz, pick
from forcewell.system import Block
from forcewell.units import HARTREE

# Orbital and thermochemical energies come in Hartree and leave in eV; u0 is the potential energy plus zero-point energy.
HARTREE_COLUMNS = ("homo", "lumo", "gap", "zpve", "u0", "u298", "h298", "g298")
OTHER_COLUMNS = {"mu": "D", "alpha": "bohr³", "r2": "bohr²", "cv": "cal/mol/K", "a": "GHz", "b": "GHz", "c": "GHz"}

CARD = Card(
    name="qm9",
    title="QM9 minima (H, C, N, O, F), with properties where a label file is given",
    licence="CC0-1.0",
    citation="Ramakrishnan et al., Sci. Data 1, 140022 (2014), doi:10.1038/sdata.2014.22",
    level="B3LYP/6-31G(2df,p)",
    units="Å; labels in Hartree, D, bohr³, bohr², cal/mol/K",
    page="https://doi.org/10.6084/m9.figshare.c.978904",
    files="an .npz with ids, natoms, z, pos (atoms of all molecules one after another); as in the package (upstream's archive is not read)",
    options={"labels": "CSV with idx, smiles and properties; only its molecules carry labels"},
    properties={**dict.fromkeys(HARTREE_COLUMNS, "eV"), **OTHER_COLUMNS},
)


def read(paths: Paths, **options: Any) -> Iterator[Block]:
    """Blocks in Å with ``equilibrium`` 1; the molecule identifier is ``qm9/ID``. Properties in the card's units.

    The total energy is filled from labels: u0 - zpve, the electronic energy. Raises InputError for another layout.
    """
    check_options(CARD, options)
    labels = read_labels(Path(options["labels"])) if "labels" in options else None
    for path in paths:
        arrays = load_npz(path)
        identifiers, counts = pick(arrays, path, "ids"), pick(arrays, path, "natoms").astype(np.int64)
        numbers, positions = pick(arrays, path, "z"), pick(arrays, path, "pos")
        if len(identifiers) != len(counts) or len(numbers) != counts.sum() or positions.shape != (len(numbers), 3):
            raise InputError(f"{path}: natoms adds up to {counts.sum()} atoms, z has {len(numbers)}, pos {positions.shape}")
        offsets = np.concatenate([[0], np.cumsum(counts)])
        for part in chunks(len(counts)):
            atoms = slice(offsets[part.start], offsets[part.stop])
            ids = identifiers[part]
            block = Block(
                counts[part],
                {"numbers": numbers[atoms], "positions": positions[atoms], "equilibrium": np.ones(len(ids))},
                source=CARD.name,
                level=CARD.level,
                molecule=np.array([f"qm9/{i}" for i in ids], dtype=object),
            )
            if labels is not None:
                _label(block, ids, *labels)
            yield block


def read_labels(path: Path) -> tuple[dict[int, int], list[str], dict[str, np.ndarray]]:
    """A label file: row by QM9 index, SMILES, and properties (rows,) in the card's units. Raises InputError if unusable."""
    if not path.is_file():
        raise InputError(f"label file {path} does not exist")
    with open(path, newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    if not rows or "idx" not in rows[0]:
        raise InputError(f"label file {path} needs a header with the column idx (and smiles, {', '.join(HARTREE_COLUMNS)} ...)")
    factors = {**dict.fromkeys(HARTREE_COLUMNS, HARTREE), **dict.fromkeys(OTHER_COLUMNS, 1.0)}
    try:
        found = {int(row["idx"]): k for k, row in enumerate(rows)}
        properties = {name: np.array([float(row[name]) for row in rows]) * factors[name] for name in rows[0] if name in factors}
    except (TypeError, ValueError) as error:
        raise InputError(f"label file {path}: {error}") from None
    return found, [row.get("smiles") or "" for row in rows], properties


def _label(block: Block, ids: np.ndarray, found: dict[int, int], smiles: list[str], properties: dict[str, np.ndarray]) -> None:
    rows = np.array([found.get(int(i), -1) for i in ids])
    known = rows >= 0
    block.smiles = np.array([smiles[row] if row >= 0 else "" for row in rows], dtype=object)
    block.properties = {name: np.where(known, values[rows], np.nan) for name, values in properties.items()}
    if {"u0", "zpve"} <= properties.keys():
        block.arrays["energy"] = block.properties["u0"] - block.properties["zpve"]
