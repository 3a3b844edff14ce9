"""ANI-1x: five million conformations chosen by active learning, with energies and forces."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from forcewell.errors import InputError, nearest
from forcewell.sources.card import Card, Paths, check_options, chunks, largest_force, merged, positive, rows_of
from forcewell.sources.hdf5_groups import leaves, open_hdf5, shaped
from forcewell.sources.trajectory_npz import truth
from forcewell.system import Block
from forcewell.units import HARTREE

EQUILIBRIUM_FORCE = 0.05  # eV/Å; optimisers stop at about 0.02, thermal conformations at 300 K have 1 to 3
# label -> (level of theory, data set of energies, data set of forces)
LABELS = {
    "wb97x_dz": ("wB97X/6-31G(d)", "wb97x_dz.energy", "wb97x_dz.forces"),
    "wb97x_tz": ("wB97X/def2-TZVPP", "wb97x_tz.energy", "wb97x_tz.forces"),
    "ccsd(t)_cbs": ("CCSD(T)*/CBS", "ccsd(t)_cbs.energy", None),
}
CARD = Card(
    name="ani1x",
    title="ANI-1x and ANI-1ccx: conformations of organic molecules (H, C, N, O) chosen by active learning",
    licence="CC0-1.0",
    citation="Smith et al., Sci. Data 7, 134 (2020), doi:10.1038/s41597-020-0473-z",
    level="wB97X/6-31G(d)",
    units="Hartree, Hartree/Å, Å",
    page="https://doi.org/10.6084/m9.figshare.c.4712477",
    files="ani1x-release.h5; a group per formula (isomers share it) with atomic_numbers, coordinates and labels, NaN where absent",
    download="https://springernature.figshare.com/ndownloader/files/18112775",
    size="5.6 GB",
    conformations="4,956,005",
    isomers=True,
    options={
        "label": "wb97x_dz (default), wb97x_tz or ccsd(t)_cbs (the ANI-1ccx subset; energies only)",
        "all": "yes: also rows without forces; default only rows with energy and forces (with ccsd(t)_cbs: with energy)",
        "equilibrium_force": f"eV/Å; a row whose largest force is below it counts as a minimum (default {EQUILIBRIUM_FORCE})",
    },
)
NEEDED = ("coordinates", "atomic_numbers")


def read(paths: Paths, **options: Any) -> Iterator[Block]:
    """Blocks in eV, Å; the molecule identifier is ``ani1x/FORMULA``, since upstream does not tell isomers apart.

    A row is a minimum (``equilibrium`` 1) where the largest norm of an atom's force is below ``equilibrium_force``, not a
    minimum (0) where it is not, unknown (-1) without forces: the data do not say which rows were relaxed. Raises
    InputError for another layout and an unknown label.
    """
    check_options(CARD, options)
    label = str(options.get("label", "wb97x_dz"))
    if label not in LABELS:
        raise InputError(f"unknown label {label!r}{nearest(label, LABELS)} (known: {', '.join(LABELS)})")
    limit = positive(options.get("equilibrium_force", EQUILIBRIUM_FORCE), "equilibrium_force")
    everything = truth(options.get("all", False))
    for path in paths:
        yield from merged(_formulas(Path(path), label, limit, everything))


def count(path: Path) -> int:
    """Rows of a file, from the shapes alone; those without labels included."""
    with open_hdf5(path) as file:
        return sum(group["coordinates"].shape[0] for _, group in leaves(file, NEEDED))


def _formulas(path: Path, label: str, limit: float, everything: bool) -> Iterator[Block]:
    level, energy_name, forces_name = LABELS[label]
    with open_hdf5(path) as file:
        for name, group in leaves(file, NEEDED):
            where, numbers, frames = f"{path}, {name}", group["atomic_numbers"][()], group["coordinates"].shape[0]
            shape = (frames, len(numbers), 3)
            positions, energies = shaped(group, "coordinates", shape, where), shaped(group, energy_name, (frames,), where)
            forces = shaped(group, forces_name, shape, where) if forces_name else None
            for part in chunks(frames, rows_of(len(numbers))):
                fields = {"energy": energies[part].astype(np.float64) * HARTREE}
                keep = np.isfinite(fields["energy"])
                equilibrium = np.full(len(keep), -1)
                if forces is not None:
                    fields["forces"] = forces[part] * HARTREE
                    largest = largest_force(fields["forces"])
                    known = np.isfinite(largest)
                    equilibrium = np.where(known, largest < limit, -1)
                    keep &= known | everything
                if not keep.any():
                    continue
                size, rows = int(keep.sum()), slice(None) if keep.all() else keep
                yield Block.shared(
                    numbers,
                    positions[part][rows].astype(np.float64),
                    equilibrium=equilibrium[rows],
                    source=CARD.name,
                    level=level,
                    molecule=np.full(size, f"ani1x/{name}", dtype=object),
                    **{key: values[rows] for key, values in fields.items()},
                )
