"""Bemis-Murcko scaffolds, and how whole groups of molecules are packed into parts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from forcewell.errors import InputError


def scaffolds(smiles: np.ndarray) -> np.ndarray:
    """(n,) integers, equal for equal Bemis-Murcko scaffolds (rings and the chains between them, without stereochemistry).

    Molecules without a ring share the empty scaffold. -1: no SMILES, or none that RDKit can read. Numbered by first
    appearance. G. W. Bemis and M. A. Murcko, J. Med. Chem. 39, 2887 (1996). Raises InputError where RDKit is not installed.
    """
    try:
        from rdkit import Chem, RDLogger
        from rdkit.Chem.Scaffolds import MurckoScaffold
    except ImportError:
        raise InputError("scaffold splits need RDKit; install it with: pip install 'forcewell[qm]'") from None
    RDLogger.DisableLog("rdApp.*")  # type: ignore[attr-defined]  # what cannot be read is counted by the caller
    unique, first, inverse = np.unique(smiles.astype(str), return_index=True, return_inverse=True)
    numbers: dict[str, int] = {}
    of_smiles = np.full(len(unique), -1)
    for k in np.argsort(first):  # in order of appearance
        molecule = Chem.MolFromSmiles(str(unique[k])) if unique[k] else None
        if molecule is None:
            continue
        for atom in molecule.GetAtoms():  # of mapped SMILES: a scaffold has no atom numbers
            atom.SetAtomMapNum(0)
        scaffold = MurckoScaffold.MurckoScaffoldSmiles(mol=Chem.RemoveHs(molecule), includeChirality=False)
        of_smiles[k] = numbers.setdefault(scaffold, len(numbers))
    return of_smiles[inverse]


def packed(groups: np.ndarray, fractions: Mapping[str, float], seed: int | None = None) -> np.ndarray:
    """(n,) number of the part of each row, whole groups together; -1 where ``groups`` is -1.

    seed None: the plain, deterministic order, largest group first (of equal ones the one that appears last), as MoleculeNet
    has it (Wu et al., Chem. Sci. 9, 513 (2018)). Else the randomised balanced form: groups of more than half of the
    smallest part in random order first, then the others in random order, so that large scaffolds are not always trained on and
    rare ones always tested. Each group goes to the first part in which it still fits, or to the last one.
    """
    known = np.flatnonzero(groups >= 0)
    numbers, first, inverse, sizes = np.unique(groups[known], return_index=True, return_inverse=True, return_counts=True)
    unused = 1 - sum(fractions.values())
    wanted = np.array([*fractions.values(), *([unused] if unused > 1e-9 else [])]) * len(known)
    if seed is None:
        order, capacity = np.lexsort((first, sizes))[::-1], np.cumsum(wanted)
    else:
        shuffled = np.random.default_rng(seed).permutation(len(numbers))
        large = sizes[shuffled] > wanted.min() / 2
        order, capacity = np.concatenate([shuffled[large], shuffled[~large]]), wanted
    filled, part_of = np.zeros(len(wanted), dtype=np.int64), np.zeros(len(numbers), dtype=np.int64)
    for group in order:
        taken = np.cumsum(filled) if seed is None else filled  # the plain form fills the parts one after another
        fits = np.flatnonzero(taken + sizes[group] <= capacity + 1e-9)
        part_of[group] = fits[0] if len(fits) else len(wanted) - 1
        filled[part_of[group]] += sizes[group]
    part = np.full(len(groups), -1)
    part[known] = np.where(part_of < len(fractions), part_of, -1)[inverse]
    return part
