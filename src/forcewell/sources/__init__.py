"""The data sets that can be imported: one small module each, with a ``CARD`` and ``read(paths, **options)``.

A module may also have ``count(path)``, the conformations of a file for a progress bar (None where it cannot be told), and
``isolated_atoms(paths)``, reference energies that the files themselves give.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

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

__all__ = ["SOURCES", "Card", "Source", "layout_of", "load_npz"]


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
    ("rmd17", {"nuclear_charges", "coords", "energies", "forces"}),
    ("rmd17", {"z", "pos", "energy", "forces", "md17_index"}),
    ("md17", {"z", "R", "E", "F"}),
    ("qm9", {"ids", "natoms", "z", "pos"}),
)
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


def layout_of(path: str | os.PathLike[str]) -> str:
    """Name of the source that reads this file. Raises InputError where none does.

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
        raise InputError(
            f"{path} is not a store, an extended XYZ file (.xyz, .extxyz), an .npz, HDF5 (.h5, .hdf5) or ASE file (.db, .aselmdb); "
            "data sets of other forms are imported first: forcewell data import"
        )
    names = set(load_npz(path))
    return next((source for source, needed in _LAYOUTS if needed <= names), "npz")
