"""Relaxation to a minimum with the labelling engine."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from forcewell.engines import EngineFailure
from forcewell.generate.campaign import JobFailure
from forcewell.system import System

if TYPE_CHECKING:
    from forcewell.engines import Engine

FORCE = 0.01  # eV/Å, the largest left on any atom: half of what optimisers usually stop at
STEPS = 1000  # BFGS takes 30 to 100 for 12 to 22 atoms
SAMPLING = 1.0  # accuracy of the calculator while a molecule moves: its forces are off by up to 6e-4 eV/Å


def moved(system: System, positions: np.ndarray) -> System:
    """The same molecule elsewhere; what was known of the old place alone (labels, ``equilibrium``, properties) is forgotten."""
    known = ("numbers", "formal_charges", "charge", "spin")
    arrays = {name: system.arrays[name] for name in known if name in system.arrays}
    return dataclasses.replace(system, arrays={**arrays, "positions": np.array(positions, dtype=np.float64)}, properties={})


def relax(system: System, engine: Engine, force: float = FORCE, steps: int = STEPS, constraint: Any = None) -> System:
    """The structure moved until no force is larger than ``force`` eV/Å; without labels.

    constraint: of ASE, e.g. fixed dihedrals. Raises JobFailure where that takes more than ``steps`` or the engine fails.
    """
    from ase.optimize import BFGS

    atoms = engine.atoms(system, SAMPLING)
    atoms.set_constraint(constraint)
    try:
        done = len(atoms) < 2 or BFGS(atoms, logfile=None).run(fmax=force, steps=steps)
    except EngineFailure as failure:
        raise JobFailure(f"relaxation failed: {failure}") from None
    if not done:
        raise JobFailure(f"relaxation did not reach {force} eV/Å in {steps} steps")
    return moved(system, atoms.positions)
