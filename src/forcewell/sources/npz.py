"""Any labelled .npz file with documented array names; its units are declared by options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from forcewell.bonds import identify
from forcewell.errors import InputError
from forcewell.fields import FIELDS
from forcewell.sources.card import Card, Paths, check_options, chunks, load_npz
from forcewell.sources.mapping import OPTIONS_WITHOUT_STRESS, USUAL, Declared, declared
from forcewell.sources.trajectory_npz import truth
from forcewell.system import Block

CARD = Card(
    name="npz",
    title="Any .npz file with labelled conformations",
    licence="as its author states",
    citation="",
    level="option level",
    units="options energy_unit, force_unit, length_unit (default eV, eV/Å, Å)",
    page="",
    files=(
        "an .npz with z (or numbers) and pos (or positions): shared z (A,) and pos (F, A, 3); padded z (F, A) with 0; or ragged "
        "natoms (F,), z (N,), pos (N, 3). Optional: energy, forces, charge, spin, equilibrium, smiles, mol (or molecule)"
    ),
    options=OPTIONS_WITHOUT_STRESS,
)
SCALARS = ("energy", "charge", "spin", "equilibrium")


def read(paths: Paths, **options: Any) -> Iterator[Block]:
    """Blocks in eV, Å. The molecule identifier is that of the file, else the SMILES, else formula and bond graph.

    Raises InputError for missing arrays, shapes that do not fit together, and unknown units.
    """
    check_options(CARD, options)
    for path in paths:
        yield from read_file(Path(path), CARD.name, options)


def read_file(path: Path, source: str, options: Mapping[str, Any]) -> Iterator[Block]:
    """Blocks of one file; see ``read``."""
    mapping = declared(options, unread=("stress",))
    arrays = _renamed(path, load_npz(path), mapping)
    counts, numbers, atom_arrays = _flat(path, arrays)
    factors, sign = mapping.factors, mapping.sign
    scale = {"positions": factors.length, "forces": factors.force * sign("forces"), "energy": factors.energy * sign("energy")}
    rows = {name: arrays[name].reshape(-1) for name in arrays if name in SCALARS or name.startswith("property:")}
    if "equilibrium" in options:
        rows["equilibrium"] = np.full(len(counts), int(truth(options["equilibrium"])))
    for name, values in rows.items():
        if len(values) != len(counts):
            raise InputError(f"{path}: {name} has {len(values)} values for {len(counts)} conformations")
        if values.dtype.kind not in "biuf":
            raise InputError(f"{path}: {name} holds {values.dtype}, expected numbers")
    offsets = np.concatenate([[0], np.cumsum(counts)])
    texts = {name: arrays[name] for name in ("smiles", "molecule") if name in arrays}
    for part in chunks(len(counts)):
        atoms = slice(offsets[part.start], offsets[part.stop])
        fields: dict[str, np.ndarray] = {"numbers": numbers[atoms]}
        fields |= {name: array[atoms].astype(np.float64) * scale[name] for name, array in atom_arrays.items()}
        fields |= {name: row[part] * scale.get(name, 1) for name, row in rows.items() if name in FIELDS}
        properties = {name[9:]: row[part].astype(np.float64) * mapping.sign(name) for name, row in rows.items() if name not in FIELDS}
        block = Block(counts[part], fields, source=source, level=options.get("level", ""), properties=properties)
        if "smiles" in texts:
            block.smiles = np.array([str(text) for text in texts["smiles"][part]], dtype=object)
        block.molecule = _names(block, texts.get("molecule", texts.get("smiles")), part, options)
        yield block


def _names(block: Block, given: np.ndarray | None, part: slice, options: Mapping[str, Any]) -> np.ndarray:
    if "molecule" in options:
        return np.full(len(block), str(options["molecule"]), dtype=object)
    if given is None:
        return identify(block)
    return np.array([str(name) for name in given[part]], dtype=object)


def _renamed(path: Path, arrays: Mapping[str, np.ndarray], mapping: Declared) -> dict[str, np.ndarray]:
    """The arrays under the names of their fields. Raises InputError where a mapping names an array that is not there."""
    found = {}
    for field in (*USUAL, *(f"property:{name}" for name in mapping.properties)):
        names = mapping.names(field)
        if field in mapping.keys and names[0] not in arrays:
            raise InputError(f"{path} has no array {names[0]!r} (it has: {', '.join(arrays)})")
        key = mapping.key(field, arrays)
        if key is not None:
            found[field] = arrays[key]
    for field in ("numbers", "positions"):
        if field not in found:
            has = f"{path} has no array {' or '.join(mapping.names(field))} (it has: {', '.join(arrays)})"
            raise InputError(f"{has}; map one: --map NAME={field}")
    return found | ({"natoms": arrays["natoms"]} if "natoms" in arrays else {})


def _flat(path: Path, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """counts (F,), numbers (N,) and {"positions", "forces"} (N, 3) from any of the three layouts."""
    numbers, positions = arrays["numbers"], arrays["positions"]
    found = {"positions": positions} | ({"forces": arrays["forces"]} if "forces" in arrays else {})
    if numbers.dtype.kind not in "iu":
        raise InputError(f"{path}: z holds {numbers.dtype}, expected atomic numbers")
    for name, values in found.items():
        if values.shape != positions.shape or values.shape[-1:] != FIELDS[name].shape or values.dtype.kind != "f":
            raise InputError(f"{path}: {name} is {values.dtype} of shape {values.shape}, pos {positions.shape}; expected floats (..., 3)")
    if "natoms" in arrays:
        counts = arrays["natoms"].astype(np.int64)
        if numbers.shape != (counts.sum(),) or positions.shape[:-1] != numbers.shape:
            raise InputError(f"{path}: natoms adds up to {counts.sum()} atoms, z has shape {numbers.shape}, pos {positions.shape}")
        return counts, numbers, found
    if positions.ndim != 3 or positions.shape[:-1] not in (numbers.shape, (len(positions), *numbers.shape)):
        raise InputError(f"{path}: z {numbers.shape} and pos {positions.shape} are neither shared, padded nor ragged (with natoms)")
    padded = np.broadcast_to(numbers, positions.shape[:2])
    real = padded != 0
    return real.sum(axis=1), padded[real], {name: values[real] for name, values in found.items()}
