"""Formal charges of atoms from SMILES whose atoms are numbered in the order of the coordinates, as SPICE has them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from forcewell.errors import InputError


def formal_charges(smiles: str, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
    """(N,) int8 formal charge of each atom, in the order of ``numbers`` (N,), the atomic numbers beside the coordinates.

    smiles: every atom, hydrogens included, has a map number from 1 to N, which is its place in ``numbers``. The SMILES'
    own order is another one, and reading it as that of the coordinates gives most atoms a neighbour's charge.

    Raises InputError where RDKit is not installed, the SMILES cannot be read, its map numbers are not 1 ... N, or an
    element differs from ``numbers``.
    """
    try:
        from rdkit import Chem, rdBase
    except ImportError:
        raise InputError("formal charges from SMILES need RDKit: pip install 'forcewell[qm]'") from None
    parameters = Chem.SmilesParserParams()
    parameters.removeHs = False
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles, parameters)
    if molecule is None:
        raise InputError(f"{_short(smiles)}: not a SMILES that RDKit can read")
    atoms = sorted(molecule.GetAtoms(), key=lambda atom: atom.GetAtomMapNum())
    places = [atom.GetAtomMapNum() for atom in atoms]
    if places != list(range(1, len(numbers) + 1)):
        found = f"{sum(place > 0 for place in places)} of its {len(places)} written atoms are numbered"
        raise InputError(f"{_short(smiles)}: expected atoms numbered 1 to {len(numbers)}, hydrogens too, each once; {found}")
    for place, (atom, number) in enumerate(zip(atoms, numbers, strict=True), start=1):
        if atom.GetAtomicNum() != number:
            told = f"atom {place} is {atom.GetSymbol()} in the SMILES, and atomic number {int(number)} beside the coordinates"
            raise InputError(f"{_short(smiles)}: {told}")
    return np.array([atom.GetFormalCharge() for atom in atoms], dtype=np.int8)


def _short(smiles: str) -> str:
    return repr(smiles if len(smiles) <= 60 else smiles[:57] + "...")
