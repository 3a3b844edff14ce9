"""COMP6: six benchmarks of off-equilibrium conformations for potentials of H, C, N, O."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from forcewell.sources.card import Card, Paths, check_options, chunks, merged, rows_of
from forcewell.sources.hdf5_groups import atomic_numbers, leaves, open_hdf5, shaped
from forcewell.sources.trajectory_npz import truth
from forcewell.system import Block
from forcewell.units import HARTREE

CARD = Card(
    name="comp6",
    title="COMP6: ANI-MD, DrugBank, GDB7to9, GDB10to13, Tripeptides and S66x8 benchmarks (H, C, N, O)",
    licence="MIT",
    citation="Smith et al., J. Chem. Phys. 148, 241733 (2018), doi:10.1063/1.5023802",
    level="wB97X/6-31G(d)",
    units="Hartree, Hartree/Å, Å; S66x8 keeps gradients under the name forces",
    page="https://github.com/isayev/COMP6",
    files=(
        "ani_md_bench.h5, drugbank_testset.h5, gdb11_07_test500.h5 to gdb13_13_test1000.h5, tripeptide_full.h5, "
        "s66x8_wb97x6-31gd.h5; a group per molecule with species, coordinates, energies, forces"
    ),
    download="the folder COMP6v1 of the repository, e.g. https://raw.githubusercontent.com/isayev/COMP6/master/COMP6v1/s66x8/s66x8_wb97x6-31gd.h5",
    size="0.2 GB",
    conformations="101,352",
    options={"gradients": "yes or no: forces hold gradients; default yes for files named s66x8..., no for the others"},
)
NEEDED = ("species", "coordinates", "energies", "forces")


def read(paths: Paths, **options: Any) -> Iterator[Block]:
    """Blocks in eV, Å; the molecule identifier is ``comp6/FILE/GROUP``. Raises InputError for another layout.

    The sign of S66x8 is changed: along its dimers' separations dE = +F·dR as stored. ``data import`` checks every file.
    """
    check_options(CARD, options)
    for path in map(Path, paths):
        gradients = truth(options.get("gradients", "s66x8" in path.name.lower()))
        yield from merged(_molecules(path, -1.0 if gradients else 1.0))


def count(path: Path) -> int:
    """Conformations of a file, from the shapes alone."""
    with open_hdf5(path) as file:
        return sum(group["energies"].size for _, group in leaves(file, NEEDED))


def _molecules(path: Path, sign: float) -> Iterator[Block]:
    with open_hdf5(path) as file:
        for name, group in leaves(file, NEEDED):
            where, frames = f"{path}, {name}", group["coordinates"].shape[0]
            numbers = atomic_numbers(group["species"][()], where)
            positions = shaped(group, "coordinates", (frames, len(numbers), 3), where)
            forces, energies = shaped(group, "forces", positions.shape, where), shaped(group, "energies", (frames,), where)
            for part in chunks(frames, rows_of(len(numbers))):
                size = part.stop - part.start
                yield Block.shared(
                    numbers,
                    positions[part].astype(np.float64),
                    energy=energies[part].astype(np.float64) * HARTREE,
                    forces=forces[part] * (sign * HARTREE),
                    equilibrium=np.zeros(size),
                    source=CARD.name,
                    level=CARD.level,
                    molecule=np.full(size, f"comp6/{path.stem}/{name.rpartition('/')[2]}", dtype=object),
                )
