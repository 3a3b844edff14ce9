"""One unit system, eV, Å, fs, amu and elementary charges; everything else is converted at the doors.

Constants are CODATA 2018 (the set in force when most of the data sets here were published; CODATA 2022 moves
none of them by more than 2e-9 relative). Conversion factors multiply: ``value_in_eV = value * ENERGY["kcal/mol"]``.
"""

import math

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


def energy_factor(unit: str) -> float:
    """Factor from an energy unit to eV. Raises InputError for an unknown unit."""
    if unit not in ENERGY:
        raise InputError(f"unknown energy unit {unit!r}{nearest(unit, ENERGY)} (known: {', '.join(ENERGY)})")
    return ENERGY[unit]


def length_factor(unit: str) -> float:
    """Factor from a length unit to Å. Raises InputError for an unknown unit."""
    if unit not in LENGTH:
        raise InputError(f"unknown length unit {unit!r}{nearest(unit, LENGTH)} (known: {', '.join(LENGTH)})")
    return LENGTH[unit]


def force_factor(unit: str) -> float:
    """Factor from a force unit written ``energy/length`` (``"kcal/mol/Å"``, ``"Hartree/bohr"``) to eV/Å."""
    energy, _, length = unit.rpartition("/")
    return energy_factor(energy) / length_factor(length)


def thermal_energy(temperature: float) -> float:
    """k_B T in eV for a temperature in K."""
    return BOLTZMANN * temperature


def ns_per_day(steps_per_second: float, timestep: float) -> float:
    """Simulated nanoseconds per day from steps per second and the time step in fs."""
    return steps_per_second * timestep * 1e-6 * 86400.0 if math.isfinite(steps_per_second) else math.nan
