"""Relaxed scans of rotatable bonds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from forcewell.generate.campaign import JobFailure
from forcewell.generate.relaxation import moved, relax
from forcewell.generate.species import Species, intact
from forcewell.rotors import fragments_of, rotatable
from forcewell.system import System

if TYPE_CHECKING:
    from forcewell.engines import Engine

FORCE = 0.05  # eV/Å: the frames are labelled, so they need not be exact minima along the scan
STEPS = 150


def scan_torsions(
    species: Species, minimum: System, engine: Engine, points: int, rotors: int
) -> tuple[list[tuple[str, float, System]], int]:
    """(dihedral as "i-j-k-l", angle in degrees, conformation) of relaxed scans, unlabelled; and how many points were left out.

    Each of the first ``rotors`` rotatable bonds is turned from its angle in the minimum through 360 degrees in ``points``
    steps; at each, everything but the dihedral is relaxed. Points that cannot be, or in which bonds break, are left out.
    """
    from ase.constraints import FixInternals
    from ase.geometry import get_dihedrals

    fragments = fragments_of(minimum.smiles, species.numbers, minimum.positions)
    found: list[tuple[str, float, System]] = []
    scanned = rotatable(species.numbers, minimum.positions, species.bonds, fragments)[:rotors]
    for origin, end, side in scanned:
        dihedral = [_neighbour(species, origin, end), origin, end, _neighbour(species, end, origin)]
        a, b, c, d = minimum.positions[dihedral]
        first = float(get_dihedrals([b - a], [c - b], [d - c])[0])
        place = minimum.positions
        for k in range(1, points):
            angle = (first + 360 * k / points) % 360
            place = _turned(place, origin, end, side, 360 / points)
            constraint = FixInternals(dihedrals_deg=[[angle, dihedral]])
            try:
                frame = relax(moved(minimum, place), engine, FORCE, STEPS, constraint)
            except (JobFailure, ValueError):  # of ASE, where a linear piece has no dihedral
                continue
            if intact(species.bonds, species.numbers, frame.positions):
                place = frame.positions
                found.append(("-".join(map(str, dihedral)), angle, frame))
    return found, len(scanned) * (points - 1) - len(found)


def _neighbour(species: Species, atom: int, other: int) -> int:
    """The heaviest atom bonded to ``atom`` but ``other``, the first of several."""
    bonded = [j if i == atom else i for i, j in species.bonds.tolist() if atom in (i, j) and other not in (i, j)]
    return max(bonded, key=lambda k: (int(species.numbers[k]), -k))


def _turned(positions: np.ndarray, origin: int, end: int, side: np.ndarray, degrees: float) -> np.ndarray:
    """Positions with the atoms of ``side`` turned about the bond, so that the dihedral grows by ``degrees``."""
    from scipy.spatial.transform import Rotation

    axis = positions[end] - positions[origin]
    turn = Rotation.from_rotvec(np.radians(degrees) * axis / np.linalg.norm(axis))
    result = positions.copy()
    result[side] = turn.apply(positions[side] - positions[end]) + positions[end]
    return result
