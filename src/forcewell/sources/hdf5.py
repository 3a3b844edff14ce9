"""Any HDF5 file whose groups hold conformations of one composition each; a mapping names what is what."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from forcewell.bonds import identify
from forcewell.errors import InputError
from forcewell.sources.card import Card, Paths, check_options, chunks, merged, rows_of
from forcewell.sources.hdf5_groups import atomic_numbers, leaves, open_hdf5, shaped, text
from forcewell.sources.mapped_smiles import ordered_atoms
from forcewell.sources.mapping import OPTIONS_WITHOUT_STRESS, Declared, declared
from forcewell.sources.trajectory_npz import truth
from forcewell.system import Block

CARD = Card(
    name="hdf5",
    title="Any HDF5 file with a group per molecule (or one group in all)",
    licence="as its author states",
    citation="",
    level="option level",
    units="options energy_unit, force_unit, length_unit (default eV, eV/Å, Å)",
    page="",
    files=(
        "groups at any depth with positions (F, A, 3) and numbers (A,), as atomic numbers or element symbols; optional: energy (F,), "
        "forces (F, A, 3), charge, spin, smiles, molecule"
    ),
    options={
        **OPTIONS_WITHOUT_STRESS,
        "smiles": "JSON file of group name -> mapped SMILES, for files without elements (byteff2): they follow from it",
    },
)
SCALARS = ("energy", "charge", "spin", "equilibrium")


def read(paths: Paths, **options: Any) -> Iterator[Block]:
    """Blocks in eV, Å. The molecule identifier is mapped or, in a file of many groups, the group's path; else formula and
    bond graph. Raises InputError for missing arrays, shapes that do not fit together, and unknown fields and units."""
    check_options(CARD, options)
    mapping = declared(options, unread=("stress",))
    smiles = _smiles(Path(options["smiles"])) if "smiles" in options else {}
    for path in map(Path, paths):
        yield from merged(_groups(path, mapping, options, smiles))


def _smiles(path: Path) -> dict[str, str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise InputError(f"{path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object of group name -> mapped SMILES")
    return {str(key): str(value) for key, value in content.items()}


def _groups(path: Path, mapping: Declared, options: Mapping[str, Any], smiles: Mapping[str, str]) -> Iterator[Block]:
    found = False
    with open_hdf5(path) as file:
        key = next((name for name in mapping.names("positions") if any(leaves(file, [name]))), "")
        for name, group in leaves(file, [key]) if key else ():
            found = True
            where = f"{path}, {name}" if name else str(path)
            yield from _group(group, key, name, where, mapping, options, smiles)
    if not found:
        raise InputError(f"{path} has no group with {' or '.join(mapping.names('positions'))}; map the name it has: --map NAME=positions")


def _group(
    group: Any, key: str, name: str, where: str, mapping: Declared, options: Mapping[str, Any], smiles: Mapping[str, str]
) -> Iterator[Block]:
    positions = group[key]
    single = positions.ndim == 2  # one conformation (A, 3)
    if positions.shape[-1:] != (3,) or positions.ndim not in (2, 3):
        raise InputError(f"{where}: {key} has shape {positions.shape}, expected (F, A, 3)")
    frames, atoms = (1, positions.shape[0]) if single else positions.shape[:2]
    given = smiles.get(name, smiles.get(name.rpartition("/")[2], _text(group, mapping, "smiles")))
    numbers = _numbers(group, mapping, atoms, given, where)
    arrays = {field: _find(group, mapping, field) for field in ("forces", *SCALARS)}
    properties = {
        name: (shaped(group, given_key, (frames,), where), mapping.sign(f"property:{name}"))
        for name, given_key in mapping.properties.items()
    }
    scale = {"energy": mapping.factors.energy, "forces": mapping.factors.force}
    for part in chunks(frames, rows_of(atoms)):
        size, fields = part.stop - part.start, {}
        for field, found in arrays.items():
            if found is not None:
                values = np.asarray(found[()] if single or found.ndim == 0 else found[part])
                shape = (size, atoms, 3) if field == "forces" else (size,)
                fields[field] = _fit(values, shape, f"{where}, {field}") * (scale.get(field, 1) * mapping.sign(field))
        if "equilibrium" in options:
            fields["equilibrium"] = np.full(size, int(truth(options["equilibrium"])))
        block = Block.shared(
            numbers,
            np.asarray(positions[()] if single else positions[part], dtype=np.float64).reshape(size, atoms, 3) * mapping.factors.length,
            source=CARD.name,
            level=str(options.get("level", "")),
            smiles=np.full(size, given, dtype=object),
            properties={name: np.asarray(values[part], dtype=np.float64) * sign for name, (values, sign) in properties.items()},
            **fields,
        )
        molecule = str(options.get("molecule", _text(group, mapping, "molecule") or name))
        block.molecule = np.full(size, molecule, dtype=object) if molecule else identify(block)
        yield block


def _find(group: Any, mapping: Declared, field: str) -> Any | None:
    """The data set of a field; InputError only where a mapping names one that is not there."""
    key = mapping.key(field, group)
    if key is None and field in mapping.keys:
        raise InputError(f"{group.file.filename}, {group.name} has no {mapping.keys[field]!r} (it has: {', '.join(group)})")
    return None if key is None else group[key]


def _text(group: Any, mapping: Declared, field: str) -> str:
    found = _find(group, mapping, field)
    return "" if found is None else text(found[()])


def _numbers(group: Any, mapping: Declared, atoms: int, smiles: str, where: str) -> np.ndarray:
    found = _find(group, mapping, "numbers")
    if found is None and (ordered := ordered_atoms(smiles)) is not None:
        numbers = ordered[0]
    elif found is None:
        raise InputError(f"{where} has no elements: map them (--map NAME=numbers), or give option smiles=FILE.json with mapped SMILES")
    else:
        numbers = atomic_numbers(found[()], where)
    if numbers.ndim == 2 and (numbers == numbers[:1]).all():
        numbers = numbers[0]
    if numbers.shape != (atoms,):
        raise InputError(f"{where}: elements have shape {numbers.shape}, positions have {atoms} atoms")
    return numbers


def _fit(values: np.ndarray, shape: tuple[int, ...], where: str) -> np.ndarray:
    """The values in this shape; one number stands for all conformations. Raises InputError where it cannot be."""
    if values.size == 1:
        return np.full(shape, float(values.reshape(-1)[0]))
    if values.size != int(np.prod(shape)) or values.dtype.kind not in "biuf":
        raise InputError(f"{where} holds {values.dtype} of shape {values.shape}, expected numbers of shape {shape}")
    return values.reshape(shape).astype(np.float64)
