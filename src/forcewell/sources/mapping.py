"""A declared mapping: which array or key of a user's file is which field, with which sign and in which unit."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forcewell.errors import InputError, nearest
from forcewell.sources.card import Factors

# Names that need no mapping: the field's own comes first.
USUAL = {
    "numbers": ("numbers", "atomic_numbers", "z", "Z", "nuclear_charges", "species", "elements", "symbols"),
    "positions": ("positions", "pos", "coordinates", "coords", "conformations", "R", "xyz"),
    "energy": ("energy", "energies", "E", "total_energy"),
    "forces": ("forces", "force", "F", "atomic_forces"),
    "stress": ("stress",),
    "charge": ("charge", "total_charge"),
    "spin": ("spin", "spin_multiplicity", "multiplicity"),
    "equilibrium": ("equilibrium",),
    "smiles": ("smiles",),
    "molecule": ("molecule", "mol", "molecule_id", "mol_id"),
}
UNIT_OPTIONS = {"energy": "energy_unit", "forces": "force_unit", "positions": "length_unit", "stress": "stress_unit"}
OPTIONS = {
    "energy_unit": "of energies: eV, meV, Hartree, kcal/mol, kJ/mol (default eV)",
    "force_unit": "of forces: eV/Å, Hartree/bohr, kcal/mol/Å ...; default energy_unit/length_unit",
    "length_unit": "of coordinates: Å, bohr, nm (default Å)",
    "stress_unit": "of stress: eV/Å³, Hartree/bohr³, GPa, kbar ...; default energy_unit per cube of force_unit's length",
    "level": "level of theory, e.g. wB97M-D3BJ/def2-TZVPPD",
    "equilibrium": "yes or no: all conformations are minima, or none is",
    "molecule": "one name for the molecule of all conformations",
    "map": "key=field,...: the file's names for fields; -forces for gradients; property:NAME for any other number (also --map)",
    "property_units": "NAME=unit,...: units of mapped properties, kept as they are (also --unit property:NAME=unit)",
}
# Of sources that cannot give stress.
OPTIONS_WITHOUT_STRESS = {name: meaning for name, meaning in OPTIONS.items() if name != "stress_unit"}


@dataclass(frozen=True, slots=True)
class Declared:
    """keys: field -> its name in the file, where one is declared. signs: fields whose sign is to be changed."""

    keys: Mapping[str, str]
    negative: frozenset[str]
    factors: Factors

    def names(self, field: str) -> tuple[str, ...]:
        """The names to look for, in order: the declared one alone, else the usual ones."""
        return (self.keys[field],) if field in self.keys else USUAL.get(field, (field,))

    def key(self, field: str, available: Collection[str]) -> str | None:
        """Which of the names ``available`` is the field's; None where none is. Those not declared may differ by capitals."""
        if field in self.keys:
            return self.keys[field] if self.keys[field] in available else None
        return first_of(self.names(field), available)

    def sign(self, field: str) -> float:
        return -1.0 if field in self.negative else 1.0

    @property
    def properties(self) -> dict[str, str]:
        """Property name -> its name in the file."""
        return {field[9:]: key for field, key in self.keys.items() if field.startswith("property:")}


def first_of(names: Sequence[str], available: Collection[str]) -> str | None:
    """The first of ``names`` that is there, else the only one there that differs from one of them by capitals alone."""
    exact = next((name for name in names if name in available), None)
    if exact is not None:
        return exact
    words = {name.lower() for name in names if len(name) > 1}  # single letters mean one thing in capitals and another without
    alike = [name for name in available if str(name).lower() in words]
    return alike[0] if len(alike) == 1 else None


def declared(options: Mapping[str, Any], unread: Sequence[str] = ()) -> Declared:
    """From a source's options (see ``OPTIONS``). Raises InputError for an unknown field or unit, and for a field that the
    source cannot take from a mapping (``unread``)."""
    keys: dict[str, str] = {}
    negative = set()
    for key, target in comma_separated(str(options.get("map", "")), "map").items():
        field = target.removeprefix("-")
        if field not in USUAL and not field.startswith("property:"):
            known = ", ".join([*USUAL, "property:NAME"])
            raise InputError(f"map {key}={target}: no field {field!r}{nearest(field, USUAL)} (known: {known})")
        if field in unread:
            raise InputError(f"map {key}={target}: files of this form cannot give {field} by another name")
        if target != field:
            negative.add(field)
        keys[field] = key
    energy, force, length = _units(options)
    return Declared(keys, frozenset(negative), Factors.of(energy, force, length, stress_unit(options)))


def _units(options: Mapping[str, Any]) -> tuple[str, str, str]:
    """Names of the units of energies, forces and coordinates."""
    energy, length = str(options.get("energy_unit", "eV")), str(options.get("length_unit", "Å"))
    return energy, str(options.get("force_unit", f"{energy}/{length}")), length


def stress_unit(options: Mapping[str, Any]) -> str:
    """The unit that stress is taken to be in: the declared one, else the energy's per cube of the length that forces are per."""
    energy, force, _ = _units(options)
    return str(options.get("stress_unit", f"{energy}/{force.rpartition('/')[2]}³"))


def comma_separated(text: str, option: str) -> dict[str, str]:
    """``a=b,c=d`` as a dict; keys may hold commas in no case, values neither. Raises InputError for another form."""
    found = {}
    for word in filter(None, (word.strip() for word in text.split(","))):
        key, equals, value = word.rpartition("=")
        if not equals or not key or not value:
            raise InputError(f"{option} {word!r} is not of the form name=value")
        found[key] = value
    return found


def as_options(maps: Sequence[str], units: Sequence[str]) -> dict[str, str]:
    """The options that ``--map key=field``, ``--map FILE.yaml`` and ``--unit field=unit`` stand for.

    A YAML file holds ``map: {key: field}`` and, if needed, ``unit: {field: unit}`` and ``level``. Raises InputError for
    a file that is not of this form and for a unit of anything but energy, forces, positions, stress or a property.
    """
    mapping, unit, options = {}, {}, {}
    for word in maps:
        if word.endswith((".yaml", ".yml")):
            content = _yaml(Path(word))
            mapping |= content.get("map", {})
            unit |= content.get("unit", {})
            options |= {key: str(content[key]) for key in content if key not in ("map", "unit")}
        else:
            mapping |= comma_separated(word, "map")
    for word in units:
        unit |= comma_separated(word, "unit")
    labels = []
    for field, value in unit.items():
        if field.startswith("property:"):
            labels.append(f"{field[9:]}={value}")
        elif field in UNIT_OPTIONS:
            options[UNIT_OPTIONS[field]] = str(value)
        else:
            raise InputError(
                f"unit {field}={value}: expected energy, forces, positions, stress or property:NAME{nearest(field, UNIT_OPTIONS)}"
            )
    if mapping:
        options["map"] = ",".join(f"{key}={field}" for key, field in mapping.items())
    return options | ({"property_units": ",".join(labels)} if labels else {})


def _yaml(path: Path) -> dict[str, Any]:
    import yaml

    if not path.is_file():
        raise InputError(f"{path} does not exist")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    tables = isinstance(content, dict) and all(isinstance(content.get(key, {}), dict) for key in ("map", "unit"))
    unknown = sorted(set(content) - {"map", "unit", *OPTIONS}) if tables else []
    if not tables or unknown:
        reason = f"unknown key {unknown[0]!r}" if unknown else "expected map: {key: field} and unit: {field: unit}"
        raise InputError(f"{path} is not a mapping: {reason}")
    return content
