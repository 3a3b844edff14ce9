"""Extended XYZ files of any origin: the keys of ASE and MACE, and ORCA's comment lines, need no mapping."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from forcewell.bonds import identify
from forcewell.charge_spin import charge_and_spin
from forcewell.errors import InputError
from forcewell.fields import FIELDS
from forcewell.sources.card import Card, Factors, Paths, check_options
from forcewell.sources.mapping import OPTIONS, Declared, declared, first_of
from forcewell.sources.trajectory_npz import truth
from forcewell.system import Block, System, block_of, initial_of
from forcewell.units import HARTREE

if TYPE_CHECKING:
    import ase

FRAMES = 1024  # per Block

# The first key that a frame has is taken. MACE's REF_ keys come before ASE's, which may hold another calculator's results;
# "energy", "forces" and "stress" are found by ASE itself.
ENERGY_KEYS = ("REF_energy", "energy", "dft_energy", "MACE_energy")
FORCES_KEYS = ("REF_forces", "forces", "force", "dft_forces", "MACE_forces")
# A virial is -volume * stress, in the unit of energies, to all that write one: QUIP, MACE, GPUMD, DeePMD.
STRESS_KEYS = ("REF_stress", "REF_virials", "REF_virial", "stress", "MACE_stress", "virials", "virial")
MOLECULE_KEYS = ("molecule", "molecule_id", "mol_id", "mol")

CARD = Card(
    name="extxyz",
    title="Any extended XYZ file (ASE, MACE, ORCA)",
    licence="as its author states",
    citation="",
    level="option level, or the key level of each frame",
    units="options energy_unit, force_unit, length_unit, stress_unit (default eV, eV/Å, Å, eV/Å³; "
    "ORCA's comment-line energies are Hartree)",
    page="",
    files=f"*.xyz or *.extxyz; energies as {', '.join(ENERGY_KEYS)}, forces as {', '.join(FORCES_KEYS)}, "
    f"stress as {', '.join(STRESS_KEYS)}; charge as charge, total_charge, net_charge or the sum of initial_charges; "
    "multiplicity as multiplicity, spin_multiplicity, mult, spin, total_spin, of initial_magmoms",
    options=OPTIONS,
)


def read(paths: Paths, **options: Any) -> Iterator[Block]:
    """Blocks in eV, Å. The molecule identifier is a frame's own (see ``MOLECULE_KEYS``), else formula and bond graph.

    Raises InputError, naming the frame, for a damaged file, and for a key asked for that no frame has.
    """
    check_options(CARD, options)
    mapping = declared(options, unread=("numbers", "positions"))
    for path in paths:
        waiting: list[System] = []
        for number, atoms in enumerate(frames(Path(path))):
            waiting.append(_system(atoms, f"{path}, frame {number}", mapping, options))
            if len(waiting) == FRAMES:
                yield from blocks_of(waiting)
                waiting = []
        if waiting:
            yield from blocks_of(waiting)


def frames(path: Path) -> Iterator[ase.Atoms]:
    """The frames of a file as ASE reads them. Raises InputError, naming the frame, for a damaged file."""
    from ase.io import iread

    if not path.is_file():
        raise InputError(f"{path} does not exist")
    number = 0
    try:
        for atoms in iread(path, index=":", format="extxyz"):
            yield atoms
            number += 1
    except (OSError, ValueError, KeyError, IndexError, UnicodeDecodeError) as error:
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}, frame {number}: not a whole extended XYZ frame ({reason})") from None
    if not number:
        raise InputError(f"{path} holds no frame")


def _system(atoms: ase.Atoms, where: str, mapping: Declared, options: Mapping[str, Any]) -> System:
    """One frame in eV, Å with every label that is found."""
    results, factors = atoms.calc.results if atoms.calc is not None else {}, mapping.factors
    scalars, per_atom = {**atoms.info, **results}, {**atoms.arrays, **results}
    arrays: dict[str, Any] = {"numbers": atoms.numbers, "positions": atoms.positions * factors.length}
    if atoms.pbc.any():
        arrays |= {"cell": np.asarray(atoms.cell) * factors.length, "pbc": atoms.pbc}
    energy = _first(scalars, ENERGY_KEYS, mapping.keys.get("energy"), where)
    if energy is not None:
        arrays["energy"] = _number(energy, where, "energy") * factors.energy * mapping.sign("energy")
    elif (hartree := _orca_energy(atoms.info)) is not None:
        arrays["energy"] = hartree * HARTREE
    forces = _first(per_atom, FORCES_KEYS, mapping.keys.get("forces"), where)
    if forces is not None:
        arrays["forces"] = mapping.sign("forces") * factors.force * _shaped(forces, (len(atoms), 3), where, "forces")
    stress = _first(scalars, STRESS_KEYS, mapping.keys.get("stress"), where)
    if stress is not None and atoms.pbc.any():
        key = mapping.keys.get("stress") or first_of(STRESS_KEYS, scalars) or ""
        arrays["stress"] = mapping.sign("stress") * _full_stress(stress, where) * _stress_factor(key, atoms, factors)
    asked = {name: mapping.keys[name] for name in ("charge", "spin") if name in mapping.keys}
    for key in asked.values():
        _first(atoms.info, (), key, where)
    arrays |= charge_and_spin(atoms.info, *initial_of(atoms), where, asked)
    if (value := _first(atoms.info, ("equilibrium",), mapping.keys.get("equilibrium"), where)) is not None:
        arrays["equilibrium"] = _whole(value, where, "equilibrium")
    if "equilibrium" in options:
        arrays["equilibrium"] = int(truth(options["equilibrium"]))
    cast = {name: np.asarray(value).astype(FIELDS[name].stored) for name, value in arrays.items()}
    molecule = str(options.get("molecule", _first(atoms.info, MOLECULE_KEYS, mapping.keys.get("molecule"), where) or ""))
    smiles = str(_first(atoms.info, ("smiles",), mapping.keys.get("smiles"), where) or "")
    found = {name: _number(_first(scalars, (), key, where), where, key) for name, key in mapping.properties.items()}
    properties = {name: value * mapping.sign(f"property:{name}") for name, value in found.items()}
    level = str(options.get("level", atoms.info.get("level", "")))
    return System(cast, CARD.name, level, molecule, smiles, properties)


def _first(found: Mapping[str, Any], keys: Sequence[str], asked: str | None, where: str) -> Any:
    if asked is not None:
        if asked not in found:
            raise InputError(f"{where} has no key {asked!r} (it has: {', '.join(map(str, found))})")
        return found[asked]
    key = first_of(keys, found)
    return None if key is None else found[key]


def _orca_energy(info: Mapping[str, Any]) -> float | None:
    """Hartree from a comment such as ``Coordinates from ORCA-job NAME E -40.518``, whose words ASE keeps as bare keys."""
    words = [str(key) for key in info]
    if not any(word.startswith("ORCA") for word in words) or "E" not in words[:-1]:
        return None
    try:
        return float(words[words.index("E") + 1])
    except ValueError:
        return None


def _number(value: Any, where: str, name: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InputError(f"{where}: {name} is {value!r}, expected a number") from None


def _whole(value: Any, where: str, name: str) -> int:
    number = int(value) if isinstance(value, (bool, np.bool_)) else _number(value, where, name)
    limits = np.iinfo(FIELDS[name].stored)
    if number != round(number) or not limits.min <= number <= limits.max:
        raise InputError(f"{where}: {name} is {value!r}, expected a whole number")
    return round(number)


def _shaped(value: Any, shape: tuple[int, ...], where: str, name: str) -> np.ndarray:
    array = np.asarray(value)
    if array.shape != shape or array.dtype.kind not in "if":
        raise InputError(f"{where}: {name} has shape {array.shape}, expected {shape} numbers")
    return array.astype(np.float64)


def _stress_factor(key: str, atoms: ase.Atoms, factors: Factors) -> float:
    """To eV/Å³ from the file's unit, of stress, or of energy for a virial; NaN ("not known") for a virial in a cell without volume."""
    if "virial" not in key.lower() or "stress" in key.lower():
        return factors.stress
    return -factors.energy / (atoms.cell.volume * factors.length**3) if atoms.cell.volume else np.nan


def _full_stress(value: Any, where: str) -> np.ndarray:
    """(3, 3) from nine numbers, or six in Voigt order xx, yy, zz, yz, xz, xy."""
    array = np.asarray(value, dtype=np.float64)
    if array.size == 6:
        from ase.stress import voigt_6_to_full_3x3_stress

        return np.asarray(voigt_6_to_full_3x3_stress(array.reshape(6)))
    if array.size != 9:
        raise InputError(f"{where}: stress has {array.size} numbers, expected 6 or 9")
    return array.reshape(3, 3)


def blocks_of(systems: list[System]) -> Iterator[Block]:
    """Consecutive frames of one level as one Block each, since a Block has a single level."""
    start = 0
    for end in range(1, len(systems) + 1):
        if end == len(systems) or systems[end].level != systems[start].level:
            block = block_of(systems[start:end])
            assert block.molecule is not None
            nameless = np.flatnonzero(block.molecule == "")
            if len(nameless):
                block.molecule[nameless] = identify(block.take(nameless))
            yield block
            start = end
