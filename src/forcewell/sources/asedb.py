"""Any ASE database (SQLite or JSON); a mapping names the keys of its rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from forcewell.errors import InputError
from forcewell.sources.ase_rows import blocks_of_rows
from forcewell.sources.card import Card, Paths, check_options
from forcewell.sources.mapping import OPTIONS, declared
from forcewell.system import Block

OWN = ("numbers", "positions", "cell", "pbc", "energy", "forces", "stress", "charge")
CARD = Card(
    name="asedb",
    title="Any ASE database (.db, .json)",
    licence="as its author states",
    citation="",
    level="option level",
    units="options energy_unit, force_unit, length_unit, stress_unit (default eV, eV/Å, Å, eV/Å³)",
    page="",
    files="*.db (SQLite) or *.json of ase.db; labels from the calculator's results, key-value pairs, or the row's data",
    options=OPTIONS,
)


def read(paths: Paths, **options: Any) -> Iterator[Block]:
    """Blocks in eV, Å, in the order of row ids. The molecule identifier is mapped or the row's own, else formula and bond graph.

    Raises InputError for a file that is no ASE database and for a mapped key that a row lacks.
    """
    check_options(CARD, options)
    mapping = declared(options, unread=("numbers",))
    for path in map(Path, paths):
        yield from blocks_of_rows(rows(path), path, CARD.name, mapping, options)


def count(path: Path) -> int | None:
    """Rows of a database."""
    from ase.db import connect

    return connect(str(path)).count() if _is_database(path) else None


def rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(id, everything the row says) in the order of ids; key-value pairs come before data, and both before results."""
    import sqlite3

    from ase.db import connect

    if not path.is_file():
        raise InputError(f"{path} does not exist")
    if not _is_database(path):
        raise InputError(f"{path} is not an ASE database (.db or .json)")
    identifier = 0
    try:
        for row in connect(str(path)).select(sort="id"):
            identifier = row.id
            own = {name: row[name] for name in OWN if name in row}
            yield identifier, own | dict(row.data or {}) | dict(row.key_value_pairs)
    except (sqlite3.DatabaseError, OSError, ValueError, KeyError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not a whole ASE database (after row {identifier}: {' '.join(str(error).split())})") from None


def _is_database(path: Path) -> bool:
    return path.suffix in (".db", ".json")
