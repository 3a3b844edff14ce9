"""The data sets that can be imported: one small module each, with a ``CARD`` and ``read(paths, **options)``.

A module may also have ``count(path)``, the conformations of a file for a progress bar (None where it cannot be told), and
``isolated_atoms(paths)``, reference energies that the files themselves give.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from forcewell.display import say
from forcewell.errors import InputError
from forcewell.sources import (
    acac,
    ani1,
    ani1x,
    asedb,
    aselmdb,
    bpa,
    comp6,
    extxyz,
    generated,
    hdf5,
    iso17,
    md17,
    md17_ccsdt,
    md22,
    moleculenet,
    npz,
    pcqm4mv2,
    pubchemqc_pm6,
    qm7x,
    qm9,
    rmd17,
    s66x8,
    spice,
    transition1x,
)
from forcewell.sources.card import Card, Paths, load_npz
from forcewell.sources.hdf5_groups import first_leaf, open_hdf5
from forcewell.system import Block

__all__ = ["FORMS", "SOURCES", "Card", "Source", "files_of", "layout_of", "load_npz", "refuse_trajectory"]

# What is read as it is, without an import, in messages and helps.
FORMS = "a store, or a file: extended XYZ (.xyz, .extxyz), .npz, HDF5 (.h5, .hdf5) or an ASE database (.db, .aselmdb)"


class Source(Protocol):
    """What a module of this package offers."""

    CARD: Card

    def read(self, paths: Paths, **options: object) -> Iterator[Block]: ...


_MINIMA = (pcqm4mv2, qm9, pubchemqc_pm6)
_DISPLACED = (ani1, ani1x, spice, qm7x, transition1x, comp6, s66x8, generated)
_TRAJECTORIES = (md17, rmd17, md17_ccsdt, md22, iso17, bpa, acac)
_ANY = (extxyz, npz, hdf5, asedb, aselmdb)
SOURCES: dict[str, Source] = {module.CARD.name: module for module in (*_MINIMA, *_DISPLACED, *_TRAJECTORIES, moleculenet, *_ANY)}  # type: ignore[misc]

# The arrays that tell an .npz layout; the first line whose names are all there decides.
_LAYOUTS = (
    ("rmd17", {"nuclear_charges", "coords", "energies", "forces", "old_indices"}),
    ("rmd17", {"z", "pos", "energy", "forces", "md17_index"}),
    ("qm9", {"ids", "natoms", "z", "pos"}),
)
# Names that a user's own file in eV may have as well: upstream's name of the file must speak for it, too.
_COMMON = (
    ({"nuclear_charges", "coords", "energies", "forces"}, {"rmd17": r"rmd17_"}),
    ({"z", "R", "E", "F"}, {"md17": r"md17_|.+_dft\.npz$", "md22": r"md22_", "md17-ccsdt": r".+_ccsd"}),
)
# Or what sGDML's data sets say of themselves.
_SGDML = {"name", "theory", "md5"}
_MD17_MOLECULES = r"aspirin|azobenzene|benzene|ethanol|malonaldehyde|naphthalene|paracetamol|salicylic|toluene|uracil"
# The same for the first group of an HDF5 file that holds data.
_HDF5_LAYOUTS = (
    ("spice", set(spice.NEEDED)),
    ("ani1x", {"coordinates", "atomic_numbers", "wb97x_dz.energy"}),
    ("comp6", set(comp6.NEEDED)),
    ("ani1", set(ani1.NEEDED)),
    ("transition1x", {"positions", transition1x.ENERGY, transition1x.FORCES}),
    ("qm7x", {name.decode() for name in qm7x.ARRAYS}),
)
_SUFFIXES = {".xyz": "extxyz", ".extxyz": "extxyz", ".db": "asedb", ".aselmdb": "aselmdb"}


def refuse_trajectory(path: Path) -> None:
    """Raises InputError for an ASE trajectory, by its name, with the way on."""
    if path.suffix == ".traj":
        raise InputError(f"{path} is an ASE trajectory, which is not read; make it extended XYZ: ase convert {path} {path.stem}.xyz")


def files_of(folder: Path) -> str:
    """The files of a folder that can be read as a shell pattern, such as FOLDER/*.xyz; "" where there is none."""
    found = next(
        (file for file in sorted(folder.iterdir()) if file.suffix in (*_SUFFIXES, ".h5", ".hdf5", ".npz") and file.is_file()), None
    )
    return "" if found is None else f"{folder}/*{found.suffix}"


def layout_of(path: str | os.PathLike[str], options: Collection[str] = ()) -> str:
    """Name of the source that reads this file. Raises InputError where none does, or where a file of common names states another unit.

    options: names of those given for it; where they declare units or names, a file with the common names of MD17 is "npz".
    An .npz or HDF5 file of no known layout is "npz" or "hdf5", whose units are eV, Å unless their options say otherwise.
    """
    path = Path(path)
    if path.suffix in _SUFFIXES:
        return _SUFFIXES[path.suffix]
    if path.suffix in (".h5", ".hdf5"):
        with open_hdf5(path) as file:
            names = first_leaf(file)
        return next((source for source, needed in _HDF5_LAYOUTS if needed <= names), "hdf5")
    if path.suffix != ".npz":
        refuse_trajectory(path)
        raise InputError(
            f"{path} cannot be read as it is; give {FORMS}; data sets of other forms are imported first: forcewell data import"
        )
    arrays = load_npz(path)
    for source, needed in _LAYOUTS:
        if needed <= set(arrays):
            return source
    for needed, file_names in _COMMON:
        if needed <= set(arrays) and not set(options) & set(npz.CARD.options) - {"molecule"}:
            return _assumed(path, arrays, needed, file_names)
    return "npz"


def _assumed(path: Path, arrays: Mapping[str, np.ndarray], needed: Collection[str], file_names: Mapping[str, str]) -> str:
    """The source that a file of common names is taken for, which is said, and more where only those names speak for it. Raises InputError
    where the file names another unit."""
    named = next((source for source, pattern in file_names.items() if re.match(pattern, path.name.lower())), None)
    if named is None and "md17" in file_names and set(arrays) >= _SGDML and re.search(_MD17_MOLECULES, str(arrays["name"]).lower()):
        named = "md17"
    unit, source = str(arrays.get("e_unit", "kcal/mol")), named or next(iter(file_names))
    likely = SOURCES[source].CARD
    other = f"forcewell data import npz {path} --unit energy=eV --out NAME.fw"
    if unit != "kcal/mol":
        names = ", ".join(name for name in arrays if name in needed)
        raise InputError(
            f"{path}: {names} are arrays of {', '.join(file_names)} in kcal/mol and of other files; e_unit is {unit}. Import it: {other}"
        )
    say(
        f"{path}: read as {source} ({likely.units}; {likely.level})"
        + ("" if named else f", for its arrays are called so; if its unit is another: {other}")
    )
    return source
