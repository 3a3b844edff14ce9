"""Rows of ASE databases as conformations, whatever the back end. Used by three sources."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from forcewell.errors import InputError
from forcewell.fields import FIELDS
from forcewell.sources.card import CHUNK, CHUNK_ATOMS
from forcewell.sources.extxyz import blocks_of
from forcewell.sources.mapping import Declared
from forcewell.sources.trajectory_npz import truth
from forcewell.system import Block, System

SHAPES = {"energy": (), "charge": (), "spin": (), "equilibrium": ()}


def blocks_of_rows(
    rows: Iterable[tuple[Any, Mapping[str, Any]]], path: object, source: str, mapping: Declared, options: Mapping[str, Any]
) -> Iterator[Block]:
    """Blocks in eV, Å of (row identifier, everything the row says) with bounded memory. A mapped name must be in every row.

    Raises InputError naming the row that cannot be used.
    """
    waiting: list[System] = []
    atoms = 0
    for identifier, values in rows:
        waiting.append(system_of(values, f"{path}, row {identifier}", source, mapping, options))
        atoms += len(waiting[-1])
        if len(waiting) == CHUNK or atoms >= CHUNK_ATOMS:
            yield from blocks_of(waiting)
            waiting, atoms = [], 0
    if waiting:
        yield from blocks_of(waiting)


def system_of(values: Mapping[str, Any], where: str, source: str, mapping: Declared, options: Mapping[str, Any]) -> System:
    """One row in eV, Å. The molecule identifier is left empty where neither an option nor the row gives one."""
    numbers = np.asarray(values["numbers"])
    factors, count = mapping.factors, len(numbers)
    scale = {"positions": factors.length, "energy": factors.energy, "forces": factors.force, "stress": factors.stress}
    shapes = {**SHAPES, "positions": (count, 3), "forces": (count, 3)}
    arrays: dict[str, Any] = {"numbers": numbers}
    for field, shape in shapes.items():
        found = _find(values, field, mapping, where)
        if found is not None:
            arrays[field] = _numbers(found, shape, f"{where}: {field}") * (scale.get(field, 1.0) * mapping.sign(field))
    if "positions" not in arrays:
        raise InputError(f"{where} has no positions")
    pbc = np.asarray(values.get("pbc", False))
    if pbc.any():
        arrays |= {"cell": _numbers(values.get("cell"), (3, 3), f"{where}: cell") * factors.length, "pbc": np.broadcast_to(pbc, 3)}
        arrays |= _stress(values, mapping, where, scale["stress"])
    if "equilibrium" in options:
        arrays["equilibrium"] = int(truth(options["equilibrium"]))
    for name in ("charge", "spin", "equilibrium"):
        if name in arrays and float(arrays[name]) != round(float(arrays[name])):
            raise InputError(f"{where}: {name} is {float(arrays[name])}, expected a whole number")
    properties = {
        name: float(_numbers(_find(values, f"property:{name}", mapping, where), (), f"{where}: {key}")) * mapping.sign(f"property:{name}")
        for name, key in mapping.properties.items()
    }
    cast = {name: np.asarray(value).astype(FIELDS[name].stored) for name, value in arrays.items()}
    molecule = str(options.get("molecule", _find(values, "molecule", mapping, where) or ""))
    level = str(options.get("level", ""))
    return System(cast, source, level, molecule, str(_find(values, "smiles", mapping, where) or ""), properties)


def _find(values: Mapping[str, Any], field: str, mapping: Declared, where: str) -> Any:
    key = mapping.key(field, [name for name, value in values.items() if value is not None])
    if key is None and field in mapping.keys:
        raise InputError(f"{where} has no {mapping.keys[field]!r} (it has: {', '.join(map(str, values))})")
    return None if key is None else values[key]


def _stress(values: Mapping[str, Any], mapping: Declared, where: str, factor: float) -> dict[str, np.ndarray]:
    from ase.stress import voigt_6_to_full_3x3_stress

    found = _find(values, "stress", mapping, where)
    if found is None:
        return {}
    array = np.asarray(found, dtype=np.float64)
    if array.size not in (6, 9):
        raise InputError(f"{where}: stress has {array.size} numbers, expected 6 or 9")
    full = array.reshape(3, 3) if array.size == 9 else np.asarray(voigt_6_to_full_3x3_stress(array.reshape(6)))
    return {"stress": full * (factor * mapping.sign("stress"))}


def _numbers(value: Any, shape: tuple[int, ...], where: str) -> np.ndarray:
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{where} is {value!r}, expected numbers") from None
    if array.size != int(np.prod(shape)):
        raise InputError(f"{where} has shape {array.shape}, expected {shape}")
    return array.reshape(shape)
