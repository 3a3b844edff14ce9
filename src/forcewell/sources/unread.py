"""Labels that a file seems to hold under names that nobody reads: what is said where energies or forces are missing."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from forcewell.sources import asedb, extxyz, hdf5, npz
from forcewell.sources.card import load_npz
from forcewell.sources.hdf5_groups import leaves, open_hdf5
from forcewell.sources.mapping import USUAL, Declared, declared

# How names of labels look; where several could be meant, these are.
_LOOKS = {"energy": r"ener|epot|etot|(^|_)e($|_)", "forces": r"forc|grad|(^|_)f($|_)"}
_SAID = {"energy": "energies", "forces": "forces"}
# Of a known meaning that is no label's.
_OTHERS = {"free_energy", "momenta", "velocities", "initial_charges", "initial_magmoms", "magmoms", "magmom", "charges", "time"}
_XYZ_KEYS = {*extxyz.ENERGY_KEYS, *extxyz.FORCES_KEYS, *extxyz.STRESS_KEYS, "numbers", "positions"}
_USUAL_KEYS = {name for names in USUAL.values() for name in names}


def unread_labels(source: str, path: Path, options: Mapping[str, Any]) -> dict[str, str]:
    """Names that are not read in a file's first conformation or group, and which label each could be by its shape.

    {name: "energy"} for one number per conformation, "forces" for three per atom. Empty for sources without a mapping.
    """
    readers = {extxyz.CARD.name: _of_xyz, npz.CARD.name: _of_npz, hdf5.CARD.name: _of_hdf5, asedb.CARD.name: _of_row}
    if source not in readers:
        return {}
    mapping = declared(options)
    read = {*mapping.keys.values(), *_OTHERS, *(_XYZ_KEYS if source == extxyz.CARD.name else _USUAL_KEYS)}
    values, frames, shape = readers[source](path, mapping)
    found = {}
    for name, value in values.items():
        if name in read or getattr(value, "dtype", np.dtype(type(value))).kind != "f":
            continue
        if np.size(value) == frames:
            found[str(name)] = "energy"
        elif np.shape(value) == shape:
            found[str(name)] = "forces"
    return found


def missing_labels(source: str, path: Path, fields: Collection[str], options: Mapping[str, Any], needed: bool = True) -> str:
    """One line on energies or forces that were not found, with the names that could be them; "" where there is nothing to say.

    fields: those that were read. needed: whether data without either are worth a line where no name looks like one.
    """
    absent = [field for field in _LOOKS if field not in fields]
    found = unread_labels(source, path, options) if absent else {}
    likely: dict[str, str] = {}
    for field in absent:
        fitting = [name for name, kind in found.items() if kind == field]
        named = [name for name in fitting if re.search(_LOOKS[field], name.lower())]
        if named or (len(fitting) == 1 and len(absent) == 2):
            likely[field] = (named or fitting)[0]
    if not likely and not (needed and len(absent) == 2):
        return ""
    said = " and ".join(f"no {_SAID[field]}" for field in absent if field in likely or len(absent) == 2) + " were found"
    listed = [name for name, kind in found.items() if kind in absent]
    if listed:
        said += f"; unread keys: {', '.join(listed)}"
    maps = [f"--map {name}={'-' if 'grad' in name.lower() else ''}{field}" for field, name in likely.items()]
    return f"{said}; name them by {' '.join(maps)}" if maps else said


def _of_xyz(path: Path, mapping: Declared) -> tuple[dict[str, Any], int, tuple[int, ...]]:
    atoms = next(extxyz.frames(path))
    results = atoms.calc.results if atoms.calc is not None else {}
    return {**atoms.info, **atoms.arrays, **results}, 1, (len(atoms), 3)


def _of_npz(path: Path, mapping: Declared) -> tuple[dict[str, Any], int, tuple[int, ...]]:
    arrays = load_npz(path)
    positions = arrays[mapping.key("positions", arrays) or ""]
    return dict(arrays), len(arrays.get("natoms", positions)), positions.shape


def _of_hdf5(path: Path, mapping: Declared) -> tuple[dict[str, Any], int, tuple[int, ...]]:
    with open_hdf5(path) as file:
        for key in mapping.names("positions"):
            for _, group in leaves(file, [key]):
                shape = group[key].shape
                return {name: group[name][()] for name in group if hasattr(group[name], "shape")}, 1 if len(shape) == 2 else shape[0], shape
    return {}, 0, ()


def _of_row(path: Path, mapping: Declared) -> tuple[dict[str, Any], int, tuple[int, ...]]:
    _, values = next(asedb.rows(path))
    return dict(values), 1, (len(values["numbers"]), 3)
