"""MD22: trajectories of seven large molecules and complexes, 42 to 370 atoms."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from forcewell.sources import extxyz
from forcewell.sources.card import Card, Paths, check_options
from forcewell.sources.trajectory_npz import molecule_name, read_trajectory
from forcewell.system import Block

CARD = Card(
    name="md22",
    title="MD22: tetrapeptide, DHA, stachyose, DNA base pairs, buckyball catcher, double-walled nanotube (42 to 370 atoms)",
    licence="CC-BY-4.0",
    citation="Chmiela et al., Sci. Adv. 9, eadf0873 (2023), doi:10.1126/sciadv.adf0873",
    level="PBE+MBD",
    units="kcal/mol, kcal/mol/Å, Å",
    page="http://www.sgdml.org/#datasets",
    files="md22_MOLECULE.npz (z, R, E, F) or md22_MOLECULE.xyz (extended XYZ; Energy and forces)",
    download="http://www.quantum-machine.org/gdml/data/npz/md22_AT-AT.npz and so on",
    size="0.1 to 0.4 GB each",
    conformations="223,422",
    options={"molecule": "its name, instead of the file's"},
)
KEYS = {"numbers": ("z",), "positions": ("R",), "energy": ("E",), "forces": ("F",), "frame": ()}


def read(paths: Paths, **options: Any) -> Iterator[Block]:
    """Blocks in eV, Å; the molecule identifier is that of the file name. Raises InputError for files of another layout."""
    check_options(CARD, options)
    for path in map(Path, paths):
        molecule = str(options.get("molecule", molecule_name(path)))
        if path.suffix == ".npz":
            yield from read_trajectory(path, CARD, KEYS, molecule)
        else:
            declared = {"energy_unit": "kcal/mol", "map": "Energy=energy", "equilibrium": "no", "level": CARD.level}
            for block in extxyz.read([path], **declared):
                block.source, block.molecule = CARD.name, np.full(len(block), molecule, dtype=object)
                yield block
