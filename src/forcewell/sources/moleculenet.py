"""MoleculeNet: the seven sets of measured properties that force-field pre-training is tested on. Needs the extra "qm" (RDKit).

The files hold SMILES, no structures, and a store holds structures: conformers are embedded at import.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forcewell.conformers import LARGEST, embedded, require_rdkit
from forcewell.display import say
from forcewell.errors import InputError
from forcewell.sources.card import Card, Paths, check_options
from forcewell.system import Block

MOLECULES = 32  # per Block, a few seconds of embedding
UNITS = {"expt": "kcal/mol", "measured log solubility in mols per litre": "log10(mol/L)", "exp": "log10", "pIC50": "log10(mol/L)"}


@dataclass(frozen=True, slots=True)
class Layout:
    """smiles: name of the column. targets: names of the label columns; None: every other column."""

    smiles: str
    targets: tuple[str, ...] | None


# The set is told by columns that no other has.
SETS = {
    "bbbp": ("p_np", Layout("smiles", ("p_np",))),
    "bace": ("pIC50", Layout("smiles", ("Class", "pIC50"))),
    "clintox": ("CT_TOX", Layout("smiles", ("FDA_APPROVED", "CT_TOX"))),
    "sider": ("Hepatobiliary disorders", Layout("smiles", None)),
    "esol": ("measured log solubility in mols per litre", Layout("smiles", ("measured log solubility in mols per litre",))),
    "freesolv": ("expt", Layout("smiles", ("expt",))),
    "lipophilicity": ("CMPD_CHEMBLID", Layout("smiles", ("exp",))),
}

CARD = Card(
    name="moleculenet",
    title="MoleculeNet: BBBP, SIDER, ClinTox, BACE (classes), FreeSolv, ESOL, Lipophilicity (numbers); needs pip install 'forcewell[qm]'",
    licence="MIT (the collection of CSV files)",
    citation="Wu et al., Chem. Sci. 9, 513 (2018), doi:10.1039/C7SC02664A",
    level="measured labels; structures by RDKit's ETKDGv3",
    units="as measured; see the properties",
    page="https://moleculenet.org/datasets-1",
    files=(
        "BBBP.csv, sider.csv, clintox.csv, bace.csv, FreeSolv's SAMPL.csv, ESOL's delaney-processed.csv, Lipophilicity.csv; "
        "one set per store, told by its columns"
    ),
    download=(
        "https://github.com/GLambard/Molecules_Dataset_Collection, or "
        "https://deepchemdata.s3-us-west-1.amazonaws.com/datasets/BBBP.csv and so on"
    ),
    size="5 MB",
    conformations="2050, 1427, 1484, 1513, 642, 1128, 4200 molecules",
    options={
        "conformers": "per molecule (default 1)",
        "seed": "of the embedding (default 0)",
        "largest": f"atoms, hydrogens included; larger molecules (peptides of SIDER) stay out (default {LARGEST})",
    },
    properties=UNITS,
)


def read(paths: Paths, **options: Any) -> Iterator[Block]:
    """Blocks in Å without energies: labels by their column's name (NaN where empty), in the file's units, and the SMILES.

    The molecule identifier is RDKit's canonical SMILES, so that rows of one molecule stay together. Charges, formal
    charges and spin follow from the SMILES. Molecules that RDKit cannot read or embed, or that are too large, stay out and are named.
    Raises InputError for a file of no known set, and where RDKit is missing.
    """
    check_options(CARD, options)
    settings = _whole(options, "conformers", 1, 1), _whole(options, "seed", 0, 0), _whole(options, "largest", LARGEST, 1)
    require_rdkit()
    for path in map(Path, paths):
        failed: list[str] = []
        rows = _rows(path)
        name, layout = _layout(next(rows), path)
        numbered = enumerate(itertools.chain(rows), start=1)
        while batch := list(itertools.islice(numbered, MOLECULES)):
            block = _block(batch, layout, settings, failed, path)
            if block is not None:
                block.source = f"moleculenet/{name}"
                yield block
        if failed:
            names = ", ".join(failed[:5]) + " ..." * (len(failed) > 5)
            say(f"{path}: {len(failed)} molecules that RDKit cannot read or embed, or that are too large, were left out: {names}")


def count(path: Path) -> int:
    """Rows of a file."""
    return sum(1 for _ in _rows(path)) - 1


def _whole(options: Mapping[str, Any], name: str, default: int, least: int) -> int:
    try:
        number = int(options.get(name, default))
    except ValueError:
        number = least - 1
    if number < least:
        raise InputError(f"option {name} is {options[name]!r}, expected a whole number of at least {least}")
    return number


def _rows(path: Path) -> Iterator[dict[str, str]]:
    """The header as a row of its own names, then the rows."""
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            yield dict.fromkeys(reader.fieldnames or (), "")
            yield from reader
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a CSV file ({error})") from None


def _layout(header: Mapping[str, str], path: Path) -> tuple[str, Layout]:
    for name, (column, layout) in SETS.items():
        if column in header and layout.smiles in header:
            return name, layout if layout.targets else Layout(layout.smiles, tuple(key for key in header if key != layout.smiles))
    raise InputError(
        f"{path} is none of the seven sets ({', '.join(SETS)}); its columns are {', '.join(list(header)[:8])}. "
        "Labels of your own need structures, in extended XYZ say: forcewell data import extxyz FILE.xyz --map KEY=property:NAME "
        "--out NAME.fw; objectives={property: {names: [NAME]}} trains on them"
    )


def _block(
    batch: list[tuple[int, dict[str, str]]], layout: Layout, settings: tuple[int, int, int], failed: list[str], path: Path
) -> Block | None:
    """Conformers of a batch of rows; None where none of them could be embedded. Names of failures are appended."""
    targets = layout.targets or ()
    positions, molecules, rows = [], [], []
    for number, row in batch:
        smiles = row[layout.smiles] or ""
        found = embedded(smiles.strip(), *settings)
        if found is None:
            failed.append(f"row {number} {smiles}")
            continue
        molecules += [found] * len(found.positions)
        positions += list(found.positions)
        rows += [(number, row)] * len(found.positions)
    if not rows:
        return None
    fields = {
        "numbers": np.concatenate([one.numbers for one in molecules]),
        "positions": np.concatenate(positions),
        "formal_charges": np.concatenate([one.charges for one in molecules]),
        "charge": np.array([one.charges.sum() for one in molecules]),
        "spin": np.array([one.spin for one in molecules]),
        "equilibrium": np.full(len(rows), -1),
    }
    return Block(
        np.array([len(one.numbers) for one in molecules]),
        fields,
        molecule=np.array([one.canonical for one in molecules], dtype=object),
        smiles=np.array([(row[layout.smiles] or "").strip() for _, row in rows], dtype=object),
        properties={key: np.array([_label(row[key], f"{path}, row {number}, {key}") for number, row in rows]) for key in targets},
    )


def _label(text: str | None, where: str) -> float:
    try:
        return float(text) if text else float("nan")
    except ValueError:
        raise InputError(f"{where} is {text!r}, expected a number") from None
