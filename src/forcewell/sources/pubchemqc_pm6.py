"""PubChemQC-PM6: PubChem's molecules relaxed with PM6, as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from forcewell.errors import InputError
from forcewell.sources.card import CHUNK, Card, Paths, check_options
from forcewell.system import Block

BUFFER = 1 << 22  # characters read at a time; a record has 10,000 to 100,000
# JSON key -> property; orbital energies of the alpha spin, in eV as cclib writes them.
PROPERTIES = {"energy-alpha-homo": "homo", "energy-alpha-lumo": "lumo", "energy-alpha-gap": "gap"}

CARD = Card(
    name="pubchemqc-pm6",
    title="PubChemQC-PM6: 221 million relaxed states of the molecules of PubChem (semi-empirical)",
    licence="CC-BY-4.0",
    citation="Nakata et al., J. Chem. Inf. Model. 60, 5891 (2020), doi:10.1021/acs.jcim.0c00740",
    level="PM6",
    units="eV, Å",
    page="https://huggingface.co/datasets/molssiai-hub/pubchemqc-pm6",
    files=(
        "CID-CID.json: a JSON array of records with cid, state, atomic-numbers, coordinates, total-energy, charge, multiplicity; "
        "read as a stream"
    ),
    download="data/pm6opt_chon300nosalt/train/*.json of the page (H, C, N, O, below 300 g/mol: the smallest part), or another subset",
    size="239 GB in 87 files (CHON300noSALT), 8.4 TB in all",
    conformations="17,309,040 (CHON300noSALT), 221,190,415 in all",
    options={"states": "which electronic states: S0 (default: neutral or as in PubChem), or several: S0,T0,D0,Q0; all for every one"},
    properties=dict.fromkeys(PROPERTIES.values(), "eV"),
)


def read(paths: Paths, **options: Any) -> Iterator[Block]:
    """Blocks in eV, Å with ``equilibrium`` 1 at the level of the card; the molecule identifier is ``pubchem/CID``.

    Energies are PM6 total energies, whose zero is not that of ab initio ones. Raises InputError naming a record that
    lacks what it needs.
    """
    check_options(CARD, options)
    wanted = {state.strip() for state in str(options.get("states", "S0")).split(",")}
    for path in map(Path, paths):
        batch: list[dict[str, Any]] = []
        for number, record in enumerate(records(path)):
            if "all" in wanted or record.get("state", "S0") in wanted:
                batch.append(_picked(record, f"{path}, record {number}"))
            if len(batch) == CHUNK:
                yield _block(batch)
                batch = []
        if batch:
            yield _block(batch)


def count(path: Path) -> None:
    """Not known before the file is read."""


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON array, one after another, in memory one buffer at a time. Raises InputError where it breaks off."""
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    decoder, buffer, found, step = json.JSONDecoder(), "", 0, BUFFER
    with open(path, encoding="utf-8") as stream:
        if stream.read(1).strip() != "[":
            raise InputError(f"{path} is not a JSON array of records")
        while chunk := stream.read(step):
            buffer, place = buffer + chunk, 0
            while (place := _start(buffer, place)) < len(buffer) and buffer[place] != "]":
                try:
                    record, place = decoder.raw_decode(buffer, place)
                except json.JSONDecodeError:
                    break  # the record goes on behind the buffer
                if not isinstance(record, dict):
                    raise InputError(f"{path}, record {found} is not a JSON object")
                yield record
                found += 1
            buffer = buffer[place:]
            step = max(BUFFER, len(buffer))  # a record longer than the buffer is not tried again and again
    if buffer.strip() != "]":
        raise InputError(f"{path} breaks off or is damaged after record {found}; fetch it again")


def _start(buffer: str, place: int) -> int:
    """The next place behind blanks and commas."""
    while place < len(buffer) and buffer[place] in " \t\r\n,":
        place += 1
    return place


def _picked(record: dict[str, Any], where: str) -> dict[str, Any]:
    try:
        numbers = np.array(record["atomic-numbers"], dtype=np.int64)
        picked = {
            "numbers": numbers,
            "positions": np.array(record["coordinates"], dtype=np.float64).reshape(len(numbers), 3),
            "energy": float(record["total-energy"]),
            "charge": round(float(record.get("charge", 0))),
            "spin": int(record.get("multiplicity", 1)),
            "molecule": f"pubchem/{record['cid']}",
            "smiles": str(record.get("pubchem-isomeric-smiles") or ""),
        }
        values = {name: record.get(key) for key, name in PROPERTIES.items()}
        return picked | {name: float("nan") if value is None else float(value) for name, value in values.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where} cannot be used ({type(error).__name__}: {error})") from None


def _block(batch: list[dict[str, Any]]) -> Block:
    fields = {name: np.concatenate([one[name] for one in batch]) for name in ("numbers", "positions")}
    fields |= {name: np.array([one[name] for one in batch]) for name in ("energy", "charge", "spin")}
    return Block(
        np.array([len(one["numbers"]) for one in batch]),
        fields | {"equilibrium": np.ones(len(batch))},
        source=CARD.name,
        level=CARD.level,
        molecule=np.array([one["molecule"] for one in batch], dtype=object),
        smiles=np.array([one["smiles"] for one in batch], dtype=object),
        properties={name: np.array([one[name] for one in batch]) for name in PROPERTIES.values()},
    )
