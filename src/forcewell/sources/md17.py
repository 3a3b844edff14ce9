"""MD17: the original ab initio trajectories in the sGDML layout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from forcewell.sources.card import Card, Paths, check_options
from forcewell.sources.trajectory_npz import read_trajectory
from forcewell.system import Block

CARD = Card(
    name="md17",
    title="MD17: ab initio molecular dynamics of small molecules at 500 K, sGDML layout",
    licence="not stated by its authors",
    citation="Chmiela et al., Sci. Adv. 3, e1603015 (2017), doi:10.1126/sciadv.1603015",
    level="PBE+vdW-TS",
    units="kcal/mol, kcal/mol/Å, Å",
    page="http://www.sgdml.org/#datasets",
    files="md17_MOLECULE.npz or MOLECULE_dft.npz (z, R, E, F)",
    download="http://www.quantum-machine.org/gdml/data/npz/md17_ethanol.npz and so on",
    size="30 to 300 MB each",
    conformations="3,611,115 (the eight molecules of the first release)",
    options={"molecule": "its name, instead of the file's"},
)


def read(paths: Paths, **options: Any) -> Iterator[Block]:
    """Blocks in eV, Å; the molecule identifier is the molecule's name. Raises InputError for files of another layout."""
    check_options(CARD, options)
    keys = {"numbers": ("z",), "positions": ("R",), "energy": ("E",), "forces": ("F",), "frame": ()}
    for path in paths:
        yield from read_trajectory(Path(path), CARD, keys, options.get("molecule"))
