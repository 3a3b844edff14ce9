"""The 24 families of ring-opening polymers that ship with the package."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import yaml

from forcewell.errors import InputError, nearest

CLASSES = ("cycloalkanes", "lactones", "ethers", "others")


@dataclass(frozen=True, slots=True)
class Family:
    """name: as on the command line. title: as chemists write it. kind: of ``CLASSES``. smiles: of the monomer.

    paper: whether Table 3 of the ET-OREO paper names it; the others are this package's choice.
    """

    name: str
    title: str
    kind: str
    smiles: str
    paper: bool


@lru_cache
def families() -> dict[str, Family]:
    """All families by name, class by class."""
    text = (resources.files("forcewell.generate") / "families.yaml").read_text(encoding="utf-8")
    entries = yaml.safe_load(text).items()
    return {name: Family(name, e["title"], e["class"], e["smiles"], e.get("paper", False)) for name, e in entries}


def choose_families(names: str) -> list[Family]:
    """Families by names or classes separated by commas; "all" for the 24. Raises InputError for what is neither."""
    known, found = families(), dict[str, Family]()
    for name in (part.strip() for part in names.split(",")):
        matching = [one for one in known.values() if name in ("all", one.name, one.title, one.kind)]
        if not matching:
            choices = [*known, *CLASSES, "all"]
            raise InputError(f"unknown family {name!r}{nearest(name, choices)} (known: {', '.join(choices)})")
        found |= {one.name: one for one in matching}
    return list(found.values())
