"""Molecular dynamics with the labelling engine, for sampling."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from forcewell.engines import EngineFailure
from forcewell.generate.relaxation import SAMPLING, moved
from forcewell.generate.species import intact
from forcewell.system import System
from forcewell.units import ACCELERATION, thermal_energy

if TYPE_CHECKING:
    from forcewell.engines import Engine

FRICTION = 0.02  # 1/fs: the velocities forget themselves in 50 fs
TIMESTEP = 0.5  # fs
# From a relaxed minimum half of the kinetic energy becomes potential energy within 100 fs; the thermostat gives it back in 50.
EQUILIBRATION = 500.0  # fs


def molecular_dynamics(
    start: System, engine: Engine, temperature: float, *, frames: int, seed: int, bonds: np.ndarray | None = None,
    spacing: float = 10.0, equilibration: float = EQUILIBRATION, timestep: float = TIMESTEP, friction: float = FRICTION,
) -> list[tuple[float, System]]:  # fmt: skip
    """(time in fs since the end of the equilibration, conformation) of up to ``frames`` frames, ``spacing`` fs apart; unlabelled.

    Langevin dynamics by the BAOAB splitting (Leimkuhler and Matthews, Appl. Math. Res. Express 2013, 34), whose configurations
    are distributed exactly as they should be in a harmonic well at any stable timestep. All 3 n degrees of freedom are
    thermostatted and no momentum is removed: the molecule drifts and turns as a free one at ``temperature`` K does, and its inner
    temperature is the one asked for. (A deterministic thermostat of 3 n degrees of freedom on a molecule held at rest
    heats its 3 n - 6 inner ones to T 3n / (3n - 6), for ethanol 642 K at a setting of 500.) Positions are given about the centre.

    bonds (E, 2): where given, the trajectory ends at the first frame in which another bond graph is met, and always where the engine fails.
    Frames of the equilibration are not given. seed: of velocities and noise.
    """
    generator = np.random.default_rng(seed)
    atoms = engine.atoms(start, SAMPLING)
    inverse = ACCELERATION / atoms.get_masses()[:, None]  # Å²/fs²/eV
    spread = np.sqrt(thermal_energy(temperature) * inverse)  # Å/fs
    keep = math.exp(-friction * timestep)
    noise = math.sqrt(1 - keep**2) * spread
    positions, velocities = start.positions.copy(), spread * generator.normal(size=start.positions.shape)
    found: list[tuple[float, System]] = []
    try:
        forces = atoms.get_forces()
    except EngineFailure:
        return found
    before, apart = round(equilibration / timestep), max(1, round(spacing / timestep))
    for step in range(1, before + frames * apart + 1):
        velocities += 0.5 * timestep * inverse * forces
        positions += 0.5 * timestep * velocities
        velocities = keep * velocities + noise * generator.normal(size=positions.shape)
        positions += 0.5 * timestep * velocities
        atoms.positions = positions
        try:
            forces = atoms.get_forces()
        except EngineFailure:  # a molecule that falls apart
            break
        velocities += 0.5 * timestep * inverse * forces
        if step > before and (step - before) % apart == 0:
            if bonds is not None and not intact(bonds, start.numbers, positions):
                break
            found.append(((step - before) * timestep, moved(start, positions - positions.mean(axis=0))))
    return found
