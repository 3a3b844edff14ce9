"""Conformers to start from: several embeddings, the bad ones and the copies dropped, the best by force field kept."""

from __future__ import annotations

from typing import Any

import numpy as np

from forcewell.conformers import embed
from forcewell.generate.species import Species, bare
from forcewell.system import System
from forcewell.units import KCAL_PER_MOL

TRIES = 4  # embeddings per conformer wanted
# One embedding in ten of some rings is a minimum 150 to 220 kcal/mol above the best; no conformer of one molecule is 25 above.
WORST = 25 * KCAL_PER_MOL
ALIKE = 0.02 * KCAL_PER_MOL, 0.005  # eV, and relative: copies agree in energy and in the principal moments of inertia
ITERATIONS = 2000  # MMFF94 needs as many for 360 atoms
BIGGEST = 400  # atoms; a loop of 15 cyclooctanes has 360 and takes 3 s to embed


def conformers(species: Species, count: int, seed: int, tries: int | None = None) -> list[System]:
    """Up to ``count`` different conformers relaxed by MMFF94 (UFF where it lacks parameters), lowest energy first.

    tries: embeddings to choose from. Fewer than ``count`` come back where the molecule has no more; none where RDKit cannot
    embed it. Each carries charge, spin and formal charges, and the stereo that it obtained as its SMILES.
    """
    molecule = embed(species.smiles, tries or TRIES * count, seed, BIGGEST)
    if molecule is None:
        return []
    energies = _relaxed(molecule)
    lowest = min(energies)
    places = [conformer.GetPositions() for conformer in molecule.GetConformers()]
    kept: list[int] = []
    moments = [_moments(species.numbers, positions) for positions in places]
    for k in np.argsort(energies, kind="stable").tolist():
        if energies[k] - lowest < WORST and not any(alike(energies[k], moments[k], energies[j], moments[j]) for j in kept):
            kept.append(k)
    return [bare(species, places[k]) for k in kept[:count]]


def alike(energy: float, moments: np.ndarray, other_energy: float, other_moments: np.ndarray) -> bool:
    """Whether two relaxed structures of one molecule are copies, mirror images included."""
    return bool(abs(energy - other_energy) < ALIKE[0] and np.allclose(moments, other_moments, rtol=ALIKE[1], atol=1e-3))


def moments_of(system: System) -> np.ndarray:
    """(3,) principal moments of inertia, amu Å², in increasing order."""
    return _moments(system.numbers, system.positions)


def _moments(numbers: np.ndarray, positions: np.ndarray) -> np.ndarray:
    from ase import Atoms

    return np.sort(Atoms(numbers, positions).get_moments_of_inertia())


def _relaxed(molecule: Any) -> list[float]:
    """Force-field energies [eV] of all conformers, which are moved to their minima."""
    from rdkit import rdBase
    from rdkit.Chem import rdForceFieldHelpers

    with rdBase.BlockLogs():
        if rdForceFieldHelpers.MMFFHasAllMoleculeParams(molecule):
            found = rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(molecule, maxIters=ITERATIONS)
        elif rdForceFieldHelpers.UFFHasAllMoleculeParams(molecule):
            found = rdForceFieldHelpers.UFFOptimizeMoleculeConfs(molecule, maxIters=ITERATIONS)
        else:
            found = [(0, 0.0)] * molecule.GetNumConformers()
    return [energy * KCAL_PER_MOL for _, energy in found]
