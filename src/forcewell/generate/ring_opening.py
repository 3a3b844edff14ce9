"""Polymers of a ring-opening polymerisation, from the monomer's SMILES: which bond is opened, loops and chains of repeat units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from forcewell.errors import InputError
from forcewell.generate.species import read_species

# The bonds that open, most willing first. In each pattern the second atom is the one that attacks in the polymerisation: the
# opened monomer's tail is the second atom, its head the first. "@" is a ring bond; aromatic rings do not open.
OPENINGS = {
    "acyl C-O": "[CX3;$(C=[OX1,SX1])]-@[OX2,SX2]",  # lactones, carbonates, anhydrides, thiolactones
    "acyl C-N": "[CX3;$(C=[OX1,SX1])]-@[NX3]",  # lactams
    "P-O": "[PX4]-@[OX2]",
    "Si-O": "[SiX4]-@[OX2]",
    "S-S": "[SX2]-@[SX2]",
    "C-O": "[CX4]-@[OX2]",  # ethers, acetals
    "C-S": "[CX4]-@[SX2]",
    "C-N": "[CX4]-@[NX3,NX4+]",
    "C-C": "[CX4]-@[CX4]",
}
ENDS = "*[H]", "*O"


@dataclass(frozen=True, slots=True)
class Opening:
    """A monomer and its bond that opens.

    smiles: canonical. atoms: of the monomer, hydrogens included. bond: its kind, of ``OPENINGS``. head, tail: its atoms, in the
    order of ``smiles``. repeat_unit: SMILES with a dummy at either end, the tail first.
    """

    smiles: str
    atoms: int
    bond: str
    head: int
    tail: int
    repeat_unit: str


def open_ring(monomer: str) -> Opening:
    """Which ring bond of a monomer opens: the first kind of ``OPENINGS`` that it has; of that kind, the least substituted bond.

    A bond of a stereocentre or of a double bond with E and Z forms is never opened, since that would leave open what becomes
    of the stereo. Raises InputError where there is no bond to open, and as ``read_species`` does.
    """
    species = read_species(monomer)
    from rdkit import Chem

    molecule = Chem.MolFromSmiles(species.smiles)
    ranks, fixed = list(Chem.CanonicalRankAtoms(molecule)), _stereo_atoms(molecule)
    for kind, pattern in OPENINGS.items():
        pairs = molecule.GetSubstructMatches(Chem.MolFromSmarts(pattern), uniquify=False)
        free = [pair for pair in pairs if not fixed & set(pair)]
        if pairs and not free:
            raise InputError(f"{species.smiles} opens at its {kind} bond, which is one of a stereocentre; expected a bond that is not")
        if free:
            degree = [atom.GetDegree() for atom in molecule.GetAtoms()]
            head, tail = min(free, key=lambda pair: (degree[pair[0]] + degree[pair[1]], ranks[pair[0]], ranks[pair[1]]))
            return Opening(species.smiles, len(species.numbers), kind, head, tail, _repeat_unit(molecule, head, tail))
    raise InputError(
        f"{species.smiles} has no ring that can be opened; expected a ring with a single bond between sp3 carbons, or to O, N, S, Si or P"
    )


def has_ring_double_bond(smiles: str) -> bool:
    """Whether a monomer has a double bond between carbons of a ring that is not aromatic: norbornene, cyclooctene."""
    from rdkit import Chem

    return Chem.MolFromSmiles(smiles).HasSubstructMatch(Chem.MolFromSmarts("[#6]=@[#6]"))


def loop(opening: Opening, repeats: int) -> str:
    """Canonical SMILES of a loop of so many repeat units without end groups: ``repeats`` × ``opening.atoms`` atoms.

    One repeat unit is the monomer itself (Tran et al., J. Phys. Chem. Lett. 2022, 13, 4778). Raises InputError for less than one.
    """
    units, heads, tails = _units(opening, repeats)
    for k in range(repeats):
        _join(units, heads[k], tails[(k + 1) % repeats])
    return _finished(units)


def chain(opening: Opening, repeats: int, ends: Sequence[str] = ENDS) -> str:
    """Canonical SMILES of a chain of so many repeat units between two end groups.

    ends: SMILES with one ``*`` each, where they are bonded: the tail's first, then the head's. By default H and OH: a lactone
    gives the hydroxy acid, an ether the glycol. Raises InputError for ends that are something else.
    """
    from rdkit import Chem

    units, heads, tails = _units(opening, repeats)
    for k in range(repeats - 1):
        _join(units, heads[k], tails[k + 1])
    for atom, end in zip((tails[0], heads[-1]), _two(ends), strict=True):
        fragment, first = _end_group(end), units.GetNumAtoms()
        units.InsertMol(fragment)
        dummy = next(one for one in fragment.GetAtoms() if one.GetAtomicNum() == 0)
        _join(units, atom, first + dummy.GetNeighbors()[0].GetIdx())
        units.RemoveAtom(first + dummy.GetIdx())
    return _finished(Chem.RemoveHs(units, sanitize=False))


def _two(ends: Sequence[str]) -> Sequence[str]:
    if len(ends) != 2:
        raise InputError(f"there are {len(ends)} end groups; expected two, e.g. {ENDS[0]} and {ENDS[1]}")
    return ends


def _end_group(end: str) -> Any:
    from rdkit import Chem, rdBase

    parameters = Chem.SmilesParserParams()
    parameters.removeHs = False  # "*[H]" would lose what it is
    with rdBase.BlockLogs():
        fragment = Chem.MolFromSmiles(end, parameters)
    dummies = [atom for atom in fragment.GetAtoms() if atom.GetAtomicNum() == 0] if fragment is not None else []
    if len(dummies) != 1 or dummies[0].GetDegree() != 1 or dummies[0].GetBonds()[0].GetBondType() != Chem.BondType.SINGLE:
        raise InputError(f"the end group {end!r} is not a SMILES with one * that is bonded once; expected one such as {ENDS[1]} or *OC")
    return fragment


def _stereo_atoms(molecule: Any) -> set[int]:
    """Atoms that are, or could be, stereocentres, or are in a double bond with E and Z forms."""
    from rdkit import Chem

    found: set[int] = set()
    for one in Chem.FindPotentialStereo(Chem.Mol(molecule)):
        if one.type == Chem.StereoType.Bond_Double:
            bond = molecule.GetBondWithIdx(one.centeredOn)
            found |= {bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()}
        else:
            found.add(one.centeredOn)
    return found


def _units(opening: Opening, repeats: int) -> tuple[Any, list[int], list[int]]:
    """``repeats`` opened monomers side by side, not bonded, and the head and the tail of each."""
    from rdkit import Chem

    if repeats < 1:
        raise InputError(f"a polymer of {repeats} repeat units; expected at least 1")
    monomer = Chem.RWMol(Chem.MolFromSmiles(opening.smiles))
    monomer.RemoveBond(opening.head, opening.tail)
    units, size = Chem.RWMol(), monomer.GetNumAtoms()
    for _ in range(repeats):
        units.InsertMol(monomer)
    return units, [opening.head + k * size for k in range(repeats)], [opening.tail + k * size for k in range(repeats)]


def _join(molecule: Any, left: int, right: int) -> None:
    from rdkit import Chem

    molecule.AddBond(left, right, Chem.BondType.SINGLE)


def _finished(molecule: Any) -> str:
    """Canonical SMILES, read once more so that what stereo became meaningless is gone."""
    from rdkit import Chem

    Chem.SanitizeMol(molecule)
    return Chem.CanonSmiles(Chem.MolToSmiles(molecule))


def _repeat_unit(molecule: Any, head: int, tail: int) -> str:
    from rdkit import Chem

    unit = Chem.RWMol(molecule)
    unit.RemoveBond(head, tail)
    ends = [unit.AddAtom(Chem.Atom(0)) for _ in range(2)]
    _join(unit, tail, ends[0])
    _join(unit, head, ends[1])
    Chem.SanitizeMol(unit)
    return Chem.MolToSmiles(unit, rootedAtAtom=ends[0])
