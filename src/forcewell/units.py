"""One unit system, eV, Å, fs, amu and elementary charges; everything else is converted at the doors.

Constants are CODATA 2018 (the set in force when most of the data sets here were published; CODATA 2022 moves
none of them by more than 2e-9 relative). Conversion factors multiply: ``value_in_eV = value * ENERGY["kcal/mol"]``.
"""

import math
from collections.abc import Mapping

from forcewell.errors import InputError, nearest

HARTREE = 27.211386245988  # eV
BOHR = 0.529177210903  # Å
KCAL_PER_MOL = 4184.0 / (6.02214076e23 * 1.602176634e-19)  # eV; 1 eV = 23.06054783 kcal/mol
KJ_PER_MOL = KCAL_PER_MOL / 4.184  # eV
BOLTZMANN = 8.617333262e-5  # eV/K
DALTON = 1.66053906660e-27  # kg
ELECTRONVOLT = 1.602176634e-19  # J

# Newton's law in these units: acceleration [Å/fs²] = force [eV/Å] / mass [amu] * ACCELERATION.
ACCELERATION = ELECTRONVOLT / DALTON * 1e-10  # m²/s² to Å²/fs² is 1e20 / 1e30
# Kinetic energy [eV] = 0.5 * mass [amu] * velocity² [Å²/fs²] / ACCELERATION.

ENERGY = {"eV": 1.0, "meV": 1e-3, "Hartree": HARTREE, "kcal/mol": KCAL_PER_MOL, "kJ/mol": KJ_PER_MOL}
LENGTH = {"Å": 1.0, "angstrom": 1.0, "bohr": BOHR, "nm": 10.0}
# Pa is J/m³, so that 1 eV/Å³ is 160.2 GPa.
PRESSURE = {name: pascal / (ELECTRONVOLT * 1e30) for name, pascal in {"GPa": 1e9, "MPa": 1e6, "Pa": 1.0, "kbar": 1e8, "bar": 1e5}.items()}
# What else units are called, in small letters, where their names are no near misspelling of ours.
OTHER_NAMES = {"ha": "Hartree", "eh": "Hartree", "e_h": "Hartree", "kj": "kJ/mol", "a0": "bohr", "a": "Å", "ang": "angstrom", "kb": "kbar"}


def energy_factor(unit: str) -> float:
    """Factor from an energy unit to eV. Raises InputError for an unknown unit."""
    return _known(unit, ENERGY, "energy")


def length_factor(unit: str) -> float:
    """Factor from a length unit to Å. Raises InputError for an unknown unit."""
    return _known(unit, LENGTH, "length")


def force_factor(unit: str) -> float:
    """Factor from a force unit written ``energy/length`` (``"kcal/mol/Å"``, ``"Hartree/bohr"``) to eV/Å."""
    energy, _, length = unit.rpartition("/")
    return energy_factor(energy) / length_factor(length)


def stress_factor(unit: str) -> float:
    """Factor from a unit of stress, ``"GPa"`` or written ``energy/length^3`` (``"Hartree/bohr^3"``, ``"eV/Å³"``), to eV/Å³."""
    energy, _, volume = unit.rpartition("/")
    length = volume.removesuffix("^3").removesuffix("³")
    if energy and length != volume:
        return energy_factor(energy) / length_factor(length) ** 3
    if unit not in PRESSURE:
        other = OTHER_NAMES.get(unit.lower()) or next((name for name in PRESSURE if name.lower() == unit.lower()), None)
        hint = f"; did you mean {other!r}?" if other in PRESSURE else nearest(unit, [*PRESSURE, "eV/Å³", "Hartree/bohr³"])
        known = f"known: {', '.join(PRESSURE)}, or an energy per volume such as eV/Å³, Hartree/bohr^3"
        raise InputError(f"unknown unit of stress {unit!r}{hint} ({known})")
    return PRESSURE[unit]


def _known(unit: str, table: Mapping[str, float], kind: str) -> float:
    """The unit's factor. Raises InputError, with a suggestion, for an unknown one."""
    if unit not in table:
        other = OTHER_NAMES.get(unit.lower())
        hint = f"; did you mean {other!r}?" if other in table else nearest(unit, table)
        raise InputError(f"unknown {kind} unit {unit!r}{hint} (known: {', '.join(table)})")
    return table[unit]


def thermal_energy(temperature: float) -> float:
    """k_B T in eV for a temperature in K."""
    return BOLTZMANN * temperature


def ns_per_day(steps_per_second: float, timestep: float) -> float:
    """Simulated nanoseconds per day from steps per second and the time step in fs."""
    return steps_per_second * timestep * 1e-6 * 86400.0 if math.isfinite(steps_per_second) else math.nan
