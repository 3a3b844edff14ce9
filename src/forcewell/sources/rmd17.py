"""Revised MD17: 100,000 frames each of ten small molecules, recomputed with tight settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from forcewell.sources.card import Card, Paths, check_options
from forcewell.sources.trajectory_npz import read_trajectory, truth
from forcewell.system import Block

CARD = Card(
    name="rmd17",
    title="Revised MD17 (also its older, noisy MD17 labels, which the same files carry)",
    licence="CC0-1.0",
    citation="Christensen and von Lilienfeld, Mach. Learn.: Sci. Technol. 1, 045018 (2020), doi:10.1088/2632-2153/abba6f",
    level="PBE/def2-SVP",
    units="kcal/mol, kcal/mol/Å, Å",
    page="https://doi.org/10.6084/m9.figshare.12672038",
    files="rmd17_MOLECULE.npz (nuclear_charges, coords, energies, forces, old_indices), or z, pos, energy, forces, md17_index",
    download="https://figshare.com/ndownloader/articles/12672038 (rmd17.tar.bz2 inside), or https://github.com/andersx/rmd17-npz",
    size="1 GB",
    conformations="999,988",
    options={"molecule": "its name, instead of the file's", "old_labels": "yes: the original, noisy MD17 energies and forces (PBE+vdW-TS)"},
    properties={"frame": "position in the original MD17 trajectory"},
)
OLD_LEVEL = "PBE+vdW-TS"


def read(paths: Paths, **options: Any) -> Iterator[Block]:
    """Blocks in eV, Å; the molecule identifier is the molecule's name. Raises InputError for files of another layout."""
    check_options(CARD, options)
    old = truth(options.get("old_labels", False))
    keys = {
        "numbers": ("nuclear_charges", "z"),
        "positions": ("coords", "pos"),
        "energy": ("old_energies",) if old else ("energies", "energy"),
        "forces": ("old_forces",) if old else ("forces",),
        "frame": ("old_indices", "md17_index"),
    }
    for path in paths:
        for block in read_trajectory(Path(path), CARD, keys, options.get("molecule")):
            block.level = OLD_LEVEL if old else CARD.level
            yield block
