"""Rotatable bonds: from a molecule's SMILES where it fits, else perceived from its geometry."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from forcewell.bonds import bonds as bonds_of
from forcewell.bonds import covalent_radii
from forcewell.system import Block

# A bond shorter than this share of the sum of covalent radii is more than single: C=C 0.88, N=N 0.88, C=N 0.87 are; an amide's
# C-N 0.92, an ester's C-O 0.95 and butadiene's middle bond 0.97 are not. Below the second share, it is triple (0.79).
DOUBLE, TRIPLE = 0.905, 0.83
# RDKit's own definition of a rotatable bond in its loose form: single, not in a ring, neither end terminal or triply bonded.
PATTERN = "[!$(*#*)&!D1]-&!@[!$(*#*)&!D1]"

Rotor = tuple[int, int, np.ndarray]


def perceived(numbers: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """(E, 2) bonds of one molecule, by its geometry."""
    return bonds_of(Block(np.array([len(numbers)]), {"numbers": numbers, "positions": positions}))


def rotatable(numbers: np.ndarray, positions: np.ndarray, bonds: np.ndarray, fragments: np.ndarray | None = None) -> list[Rotor]:
    """Rotatable bonds of one molecule: (atom that stays, atom that turns, all atoms on its side, the smaller one).

    A bond between two of ``fragments`` (n,); without those, one that no ring contains, both ends with other heavy or
    hydrogen neighbours, as long as a single bond, and no end with a triple bond. Turning a methyl group counts.
    """
    neighbours: list[list[int]] = [[] for _ in numbers]
    for i, j in bonds.tolist():
        neighbours[i].append(j)
        neighbours[j].append(i)
    radii = covalent_radii()[numbers]
    shares = np.linalg.norm(positions[bonds[:, 0]] - positions[bonds[:, 1]], axis=1) / (radii[bonds[:, 0]] + radii[bonds[:, 1]])
    triple = set(bonds[shares < TRIPLE].ravel().tolist())
    found: list[Rotor] = []
    for (i, j), share in zip(bonds.tolist(), shares.tolist(), strict=True):
        if min(len(neighbours[i]), len(neighbours[j])) < 2:
            continue
        if fragments is None:
            if share < DOUBLE or i in triple or j in triple:
                continue
        elif fragments[i] == fragments[j]:
            continue
        side = _side(neighbours, i, j)
        if side is None:
            continue
        other = _side(neighbours, j, i)
        assert other is not None
        found.append((i, j, np.array(side)) if len(side) <= len(other) else (j, i, np.array(other)))
    return found


def _side(neighbours: list[list[int]], origin: int, start: int) -> list[int] | None:
    """Atoms that ``start`` is bonded to, directly or not, without the bond to ``origin``; None where a ring leads back."""
    seen, stack = {start}, [start]
    while stack:
        atom = stack.pop()
        for other in neighbours[atom]:
            if other == origin:
                if atom != start:
                    return None
            elif other not in seen:
                seen.add(other)
                stack.append(other)
    return sorted(seen)


def fragments_of(smiles: str, numbers: np.ndarray, positions: np.ndarray) -> np.ndarray | None:
    """(n,) pieces that the molecule falls into without the rotatable bonds of its SMILES, numbered from 0.

    The SMILES' atoms are put in the order of the structure by matching it to the perceived bond graph. None where there is
    no SMILES, RDKit is not installed or cannot read it, or it is not this molecule.
    """
    if not smiles:
        return None
    bonds = perceived(numbers, positions)
    return _fragments(smiles, tuple(numbers.tolist()), tuple(map(tuple, bonds.tolist())))


@lru_cache(maxsize=65536)
def _fragments(smiles: str, numbers: tuple[int, ...], bonds: tuple[tuple[int, int], ...]) -> np.ndarray | None:
    try:
        from rdkit import Chem, rdBase
    except ImportError:
        return None
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles)
        if molecule is None:
            return None
        molecule = Chem.AddHs(molecule)
        graph, skeleton = Chem.RWMol(), Chem.RWMol()
        for z in numbers:
            graph.AddAtom(Chem.AtomFromSmarts(f"[#{z}]"))
        for i, j in bonds:
            graph.AddBond(i, j, Chem.BondType.SINGLE)
        for atom in molecule.GetAtoms():
            skeleton.AddAtom(Chem.AtomFromSmarts(f"[#{atom.GetAtomicNum()}]"))
        for bond in molecule.GetBonds():
            skeleton.AddBond(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), Chem.BondType.SINGLE)
        if (graph.GetNumAtoms(), graph.GetNumBonds()) != (skeleton.GetNumAtoms(), skeleton.GetNumBonds()):
            return None
        order = graph.GetSubstructMatch(skeleton)  # place in the structure of each atom of the SMILES
        if len(order) != len(numbers):
            return None
        cut = {frozenset(order[a] for a in pair) for pair in molecule.GetSubstructMatches(Chem.MolFromSmarts(PATTERN))}
    pieces = np.arange(len(numbers))
    for i, j in bonds:
        if frozenset((i, j)) not in cut:
            pieces[pieces == pieces[j]] = pieces[i]
    return np.unique(pieces, return_inverse=True)[1]
