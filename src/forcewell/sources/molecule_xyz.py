"""Extended XYZ files of one molecule beside those of its isolated atoms. Used by two sources."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from forcewell.errors import InputError
from forcewell.sources import extxyz
from forcewell.sources.card import Card, Paths
from forcewell.system import Block


def read_molecule(paths: Paths, card: Card) -> Iterator[Block]:
    """Blocks in eV, Å of every frame with more than one atom; the molecule identifier is the card's name."""
    for path in paths:
        for block in extxyz.read([path], level=card.level, equilibrium="no"):
            kept = block.take(block.counts > 1)
            if len(kept):
                kept.source, kept.molecule = card.name, np.full(len(kept), card.name, dtype=object)
                yield kept


def energies_of_atoms(paths: Paths) -> dict[int, float]:
    """Atomic number -> energy in eV from the files whose first frame is one atom. Raises InputError for an atom without energy."""
    found: dict[int, float] = {}
    for path in map(Path, paths):
        with open(path, encoding="utf-8", errors="replace") as stream:  # a damaged file is reported when it is read
            if stream.readline().strip() != "1":
                continue
        for block in extxyz.read([path]):
            for k in range(len(block)):
                system = block.system(k)
                if len(system) != 1 or not np.isfinite(system.get("energy")):
                    raise InputError(f"{path}, frame {k}: expected an isolated atom with its energy")
                found[int(system.numbers[0])] = float(system.get("energy"))
    return found
