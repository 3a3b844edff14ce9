"""Structures from SMILES, by RDKit's ETKDGv3. Needs the extra "qm"."""

from __future__ import annotations

import numpy as np

from forcewell.errors import InputError
from forcewell.system import System

ATTEMPTS = 5  # of embedding; then once more from random coordinates, which succeeds with most cages and large rings
SEED = 61_453
LARGEST = 300  # atoms; larger molecules take minutes, and mostly fail


def embed(smiles: str, conformers: int = 1, seed: int = 0) -> list[System]:
    """Conformers of a molecule in Å, hydrogens last, with charge, formal charges and spin; none where RDKit cannot read the
    SMILES, cannot embed it, or the molecule has more than 300 atoms.

    The same SMILES and seed give the same structures. Raises InputError where RDKit is not installed.
    """
    try:
        from rdkit import Chem, rdBase
        from rdkit.Chem import rdDistGeom
    except ImportError:
        raise InputError("structures from SMILES need RDKit: pip install 'forcewell[qm]'") from None
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles)
        if molecule is None or not molecule.GetNumAtoms():
            return []
        molecule = Chem.AddHs(molecule)
        if molecule.GetNumAtoms() > LARGEST:
            return []
        parameters = rdDistGeom.ETKDGv3()
        # RDKit multiplies the seed by the conformer's number: with 0 all of them are the same.
        parameters.randomSeed, parameters.maxIterations = SEED + seed, ATTEMPTS
        if not len(rdDistGeom.EmbedMultipleConfs(molecule, conformers, parameters)):
            parameters.useRandomCoords = True
            rdDistGeom.EmbedMultipleConfs(molecule, conformers, parameters)
    atoms = list(molecule.GetAtoms())
    charges = np.array([atom.GetFormalCharge() for atom in atoms], dtype=np.int8)
    fields = {
        "numbers": np.array([atom.GetAtomicNum() for atom in atoms], dtype=np.uint8),
        "formal_charges": charges,
        "charge": np.int8(charges.sum()),
        "spin": np.uint8(1 + sum(atom.GetNumRadicalElectrons() for atom in atoms)),
    }
    return [System({**fields, "positions": conformer.GetPositions()}, smiles=smiles) for conformer in molecule.GetConformers()]
