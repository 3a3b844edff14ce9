"""Normal modes of a minimum, and conformations drawn from them at a temperature."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from forcewell.engines import atoms_of
from forcewell.generate.campaign import JobFailure
from forcewell.generate.relaxation import moved, relax
from forcewell.system import System
from forcewell.units import ACCELERATION, thermal_energy

if TYPE_CHECKING:
    from forcewell.engines import Engine

STEP = 0.01  # Å, of the central differences
LABELS = 0.1  # accuracy: at 1.0 forces are off by up to 6e-4 eV/Å, in soft modes as much as tens of 1/cm
LIGHT = 2.99792458e-5  # cm/fs
IMAGINARY = -40.0  # 1/cm: below, no noise of the differences but a direction in which the energy falls
FOLLOWED = 3  # times that an imaginary mode is followed before the molecule is given up
PUSH = 0.2  # Å, of the atom that moves most; twice and three times as far the next times
TIGHT = 0.003  # eV/Å, when following: on top of a methyl group's barrier of a few meV, forces stay below 0.01 all the way down
# 1/cm. Below the first, a mode is no vibration but a rotation of a group, which a straight line cannot follow: dropped.
# Modes between the two move as if they had the second: with a floor of 100, 12 % of frames had a bond stretched to breaking.
SOFT, FLOOR = 80.0, 250.0


@dataclass(frozen=True, slots=True)
class Modes:
    """Normal modes of ``minimum``: frequencies (K,) 1/cm in increasing order, imaginary ones negative; vectors (K, n, 3),
    orthonormal in mass-weighted coordinates. K is 3n - 6, or 3n - 5 for a linear molecule; rigid motion is projected out."""

    minimum: System
    frequencies: np.ndarray
    vectors: np.ndarray


def normal_modes(minimum: System, engine: Engine) -> Modes:
    """By central differences of the forces: 6 n evaluations. Raises EngineFailure where one of them fails."""
    masses = atoms_of(minimum).get_masses()
    weight = np.repeat(1 / np.sqrt(masses), 3)
    hessian = _hessian(minimum, engine) * weight[:, None] * weight
    basis = _vibrations(minimum.positions, masses)
    values, vectors = np.linalg.eigh(basis.T @ hessian @ basis)
    frequencies = np.sign(values) * np.sqrt(np.abs(values) * ACCELERATION) / (2 * math.pi * LIGHT)
    return Modes(minimum, frequencies, (basis @ vectors).T.reshape(len(values), len(minimum), 3))


def resting(minimum: System) -> Modes:
    """No modes at all: a minimum whose vibrations are not known."""
    return Modes(minimum, np.zeros(0), np.zeros((0, len(minimum), 3)))


def _hessian(system: System, engine: Engine) -> np.ndarray:
    """(3n, 3n) eV/Å², symmetric."""
    atoms = engine.atoms(system, LABELS)
    rows = []
    for coordinate in range(3 * len(system)):
        forces = []
        for sign in (1, -1):
            shifted = system.positions.copy()
            shifted.flat[coordinate] += sign * STEP
            atoms.positions = shifted
            forces.append(atoms.get_forces().ravel())
        rows.append((forces[1] - forces[0]) / (2 * STEP))
    hessian = np.array(rows)
    return 0.5 * (hessian + hessian.T)


def _vibrations(positions: np.ndarray, masses: np.ndarray) -> np.ndarray:
    """(3n, K) orthonormal basis of what is neither translation nor rotation, in mass-weighted coordinates."""
    centred = positions - np.average(positions, axis=0, weights=masses)
    root = np.sqrt(masses)[:, None]
    shifts = [(root * axis).ravel() for axis in np.eye(3)]
    turns = [(root * np.cross(axis, centred)).ravel() for axis in np.eye(3)]
    left, sizes, _ = np.linalg.svd(np.array(shifts + turns).T, full_matrices=True)
    return left[:, int((sizes > 1e-4 * sizes.max()).sum()) :]


def settle(system: System, engine: Engine) -> Modes:
    """Relaxes to a true minimum: where a mode is imaginary it is followed downhill and the structure relaxed again.

    Raises JobFailure where a mode stays imaginary after ``FOLLOWED`` times, and as ``relax`` and ``normal_modes`` do.
    """
    minimum = relax(system, engine)
    for attempt in range(FOLLOWED + 1):
        modes = normal_modes(minimum, engine)
        if not len(modes.frequencies) or modes.frequencies[0] > IMAGINARY:
            return modes
        push = modes.vectors[0] / np.sqrt(atoms_of(minimum).get_masses())[:, None]
        push *= (attempt + 1) * PUSH / np.linalg.norm(push, axis=1).max()
        minimum = relax(moved(minimum, minimum.positions + push), engine, TIGHT)
    raise JobFailure(f"still a mode of {modes.frequencies[0]:.0f}i 1/cm after following it {FOLLOWED} times: no minimum found")


def sample_modes(modes: Modes, temperature: float, count: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Positions (n, 3) drawn from the classical Boltzmann distribution of the harmonic modes at ``temperature`` K.

    Modes softer than ``SOFT`` stay at rest; those softer than ``FLOOR`` move as if they had that frequency.
    """
    chosen = modes.frequencies > SOFT
    frequencies = np.maximum(modes.frequencies[chosen], FLOOR)
    angular = 2 * math.pi * LIGHT * frequencies  # 1/fs
    width = np.sqrt(thermal_energy(temperature) * ACCELERATION) / angular  # Å amu^½
    masses = atoms_of(modes.minimum).get_masses()
    amplitudes = generator.normal(size=(count, len(frequencies))) * width
    shifts = np.tensordot(amplitudes, modes.vectors[chosen], axes=1) / np.sqrt(masses)[:, None]
    return list(modes.minimum.positions + shifts)
