"""PCQM4Mv2: the relaxed structures of 3.4 million molecules of PubChemQC."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from forcewell.errors import InputError
from forcewell.sources.card import CHUNK, Card, Paths, check_options
from forcewell.sources.sdf import count_structures, open_text, structures
from forcewell.system import Block

CARD = Card(
    name="pcqm4mv2",
    title="PCQM4Mv2 minima (22 elements), the training molecules of the OGB challenge",
    licence="CC-BY-4.0",
    citation="Hu et al., arXiv:2103.09430 (2021); Nakata and Shimazaki, J. Chem. Inf. Model. 57, 1300 (2017)",
    level="B3LYP/6-31G*",
    units="Å; gap in eV",
    page="https://ogb.stanford.edu/docs/lsc/pcqm4mv2/",
    files="pcqm4m-v2-train.sdf, also as pcqm4m-v2-train.sdf.tar.gz; read as a stream, without RDKit",
    download="http://ogb-data.stanford.edu/data/lsc/pcqm4m-v2-train.sdf.tar.gz (labels: http://ogb-data.stanford.edu/data/lsc/pcqm4m-v2.zip)",
    size="1.5 GB",
    conformations="3,378,606",
    options={"labels": "pcqm4m-v2's raw/data.csv.gz (idx, smiles, homolumogap); gives SMILES and the property homolumogap"},
    properties={"homolumogap": "eV"},
)
count = count_structures


def read(paths: Paths, **options: Any) -> Iterator[Block]:
    """Blocks in Å with ``equilibrium`` 1, without energies; the identifier is ``pcqm4mv2/INDEX``, the place in the file.

    Every structure is a minimum at the level of the card, so its forces are zero to the optimiser's tolerance. A file
    whose first block has no hydrogen is refused: structures whose hydrogens were stripped are no minima. Raises
    InputError for a damaged entry and for labels that are not in the order of the structures.
    """
    check_options(CARD, options)
    labels = _labels(Path(options["labels"])) if "labels" in options else None
    for path in map(Path, paths):
        found, first = structures(path), 0
        while batch := list(itertools.islice(found, CHUNK)):
            block = _block(batch, first)
            if first == 0 and not (block.arrays["numbers"] == 1).any():
                raise InputError(f"{path} has no hydrogens in its first {len(block)} structures; minima need all of their atoms")
            if labels is not None:
                _label(block, list(itertools.islice(labels, len(batch))), first)
            yield block
            first += len(batch)


def _block(batch: list[tuple[str, np.ndarray, np.ndarray, np.ndarray]], first: int) -> Block:
    charges = np.concatenate([charge for *_, charge in batch])
    counts = np.array([len(numbers) for _, numbers, _, _ in batch])
    fields = {
        "numbers": np.concatenate([numbers for _, numbers, _, _ in batch]),
        "positions": np.concatenate([positions for _, _, positions, _ in batch]),
        "formal_charges": charges,
        "charge": np.add.reduceat(charges, np.concatenate([[0], np.cumsum(counts)[:-1]])),
        "equilibrium": np.ones(len(batch)),
    }
    names = np.array([f"pcqm4mv2/{first + k}" for k in range(len(batch))], dtype=object)
    return Block(counts, fields, source=CARD.name, level=CARD.level, molecule=names)


def _labels(path: Path) -> Iterator[dict[str, str]]:
    with open_text(path) as stream:
        rows = csv.DictReader(stream)
        if not {"idx", "smiles", "homolumogap"} <= set(rows.fieldnames or ()):
            raise InputError(f"label file {path} needs the columns idx, smiles and homolumogap")
        yield from rows


def _label(block: Block, rows: list[dict[str, str]], first: int) -> None:
    try:
        indices = [int(row["idx"]) for row in rows]
        gaps = np.array([float(row["homolumogap"] or "nan") for row in rows])
    except ValueError as error:
        raise InputError(f"labels of structures {first} and on: {error}") from None
    if indices != list(range(first, first + len(block))):
        raise InputError(f"labels are not in the order of the structures: expected idx {first} to {first + len(block) - 1}")
    block.smiles = np.array([row["smiles"] for row in rows], dtype=object)
    block.properties = {"homolumogap": gaps}
