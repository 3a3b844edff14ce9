"""What a SMILES string says about charges and, where its atoms are numbered, about their order; no toolkit needed."""

from __future__ import annotations

import re

import numpy as np

# Isotope, element, chirality, hydrogens, charge, atom map: the OpenSMILES grammar of a bracket atom.
_ATOM = re.compile(
    r"\[(?:\d+)?(?P<element>[A-Z][a-z]?|se|as|te|[bcnops])(?:@(?:@|[A-Z]{2}\d{1,2})?)?(?:H\d*)?"
    r"(?P<charge>[+-]\d+|\++|-+)?(?::(?P<number>\d+))?\]"
)


def _charge(text: str | None) -> int:
    """+2, ++, -, "" -> 2, 2, -1, 0."""
    if not text:
        return 0
    return int(text) if text[1:].isdigit() else len(text) * (1 if text[0] == "+" else -1)


def total_charge(smiles: str) -> int:
    """The molecule's charge; only bracket atoms can carry one."""
    return sum(_charge(atom["charge"]) for atom in _ATOM.finditer(smiles))


def ordered_atoms(smiles: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Atomic numbers (A,) and formal charges (A,) in the order of the atom maps 1 ... A; None where not all atoms have one.

    >>> ordered_atoms("[H:2][O-:1]")
    (array([8, 1]), array([-1,  0]))
    """
    from ase.data import atomic_numbers

    atoms = list(_ATOM.finditer(smiles))
    order = [int(atom["number"] or 0) for atom in atoms]
    outside = re.sub(r"\[[^\]]*\]", "", smiles)  # letters here are atoms without a map
    if not atoms or sorted(order) != list(range(1, len(atoms) + 1)) or re.search("[A-Za-z]", outside):
        return None
    numbers, charges = np.zeros((2, len(atoms)), dtype=np.int64)
    for place, atom in zip(order, atoms, strict=True):
        numbers[place - 1] = atomic_numbers.get(atom["element"].capitalize(), 0)
        charges[place - 1] = _charge(atom["charge"])
    return (numbers, charges) if numbers.all() else None
