"""Structures from SMILES, by RDKit's ETKDGv3. Needs the extra "qm"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from forcewell.errors import InputError

LARGEST = 300  # atoms; insulin (827 atoms, in SIDER) takes 25 s per attempt, and fails
ATTEMPTS = 5
SEED = 61_453
GAP = 3.0  # Å between the fragments of a salt; where they really are, a SMILES does not say


def require_rdkit() -> None:
    """Raises InputError where RDKit is not installed."""
    try:
        import rdkit.Chem  # noqa: F401
    except ImportError:
        raise InputError("structures from SMILES need RDKit: pip install 'forcewell[qm]'") from None


@dataclass(frozen=True, slots=True)
class Embedded:
    """numbers, charges (A,), positions (K, A, 3) Å of K conformers, hydrogens last; spin multiplicity; canonical SMILES."""

    numbers: np.ndarray
    charges: np.ndarray
    positions: np.ndarray
    spin: int
    canonical: str


def embed(smiles: str, conformers: int, seed: int, largest: int = LARGEST) -> Any | None:
    """RDKit's molecule with hydrogens (last) and up to ``conformers`` conformers by ETKDGv3, from random coordinates where the
    first way fails; None where both fail, the molecule has more than ``largest`` atoms, or the SMILES is bad."""
    from rdkit import Chem, rdBase
    from rdkit.Chem import rdDistGeom

    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles)
        if molecule is None or not molecule.GetNumAtoms():
            return None
        molecule = Chem.AddHs(molecule)
        if molecule.GetNumAtoms() > largest:
            return None
        parameters = rdDistGeom.ETKDGv3()
        # RDKit multiplies the seed by the conformer's number: with 0 all of them are the same.
        # Beyond 31 bits it would not be taken.
        parameters.randomSeed, parameters.maxIterations = (SEED + seed) % (2**31 - 1), ATTEMPTS
        number = conformers if molecule.GetNumAtoms() > 1 else 1
        if not len(rdDistGeom.EmbedMultipleConfs(molecule, number, parameters)):
            parameters.useRandomCoords = True
            rdDistGeom.EmbedMultipleConfs(molecule, number, parameters)
    return molecule if molecule.GetNumConformers() else None


def embedded(smiles: str, conformers: int, seed: int, largest: int = LARGEST) -> Embedded | None:
    """What ``embed`` finds, without RDKit's types."""
    from rdkit import Chem

    molecule = embed(smiles, conformers, seed, largest)
    if molecule is None:
        return None
    atoms = list(molecule.GetAtoms())
    return Embedded(
        np.array([atom.GetAtomicNum() for atom in atoms]),
        np.array([atom.GetFormalCharge() for atom in atoms]),
        _apart(np.array([conformer.GetPositions() for conformer in molecule.GetConformers()]), Chem.GetMolFrags(molecule)),
        1 + sum(atom.GetNumRadicalElectrons() for atom in atoms),
        Chem.MolToSmiles(Chem.MolFromSmiles(smiles)),
    )


def _apart(positions: np.ndarray, fragments: tuple[tuple[int, ...], ...]) -> np.ndarray:
    """Conformers (K, A, 3) with salts' ions and other fragments side by side: RDKit puts them all around the origin."""
    if len(fragments) < 2:
        return positions
    edge = np.zeros(len(positions))
    for fragment in map(list, fragments):
        x = positions[:, fragment, 0]
        positions[:, fragment, 0] = x + (edge - x.min(axis=1))[:, None]
        edge = positions[:, fragment, 0].max(axis=1) + GAP
    return positions
