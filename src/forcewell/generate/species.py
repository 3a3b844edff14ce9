"""What is sampled: one molecule read from a SMILES, in its charge and spin state, and whether a structure still is that molecule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from forcewell.bonds import BENCHMARK, benchmark_hash, covalent_radii, graph_hash
from forcewell.conformers import require_rdkit
from forcewell.errors import InputError
from forcewell.system import System

# In units of the sum of covalent radii. Hot bonds of H, C, N, O stay below the first (at 1000 K, none of 384 MD frames of
# 24 molecules reached it); atoms that are not bonded come closer than the second only where a proton has moved.
STRETCHED, TOUCHING = 1.45, 1.25
# Atoms that are singlets: noble gases, alkaline earths, zinc's group, Pd and Yb.
CLOSED_ATOMS = {2, 10, 18, 36, 54, 86, 4, 12, 20, 38, 56, 88, 30, 48, 80, 46, 70}


@dataclass(frozen=True, slots=True)
class Species:
    """A molecule to sample; atoms in RDKit's order, hydrogens last.

    smiles: canonical, with what stereo was written. molecule: the same without stereo, by which splits go. numbers, charges
    (n,): elements and formal charges. bonds: (E, 2) i < j. spin: multiplicity.
    """

    smiles: str
    molecule: str
    numbers: np.ndarray
    charges: np.ndarray
    bonds: np.ndarray
    spin: int

    @property
    def charge(self) -> int:
        """Total charge."""
        return int(self.charges.sum())

    @property
    def heavy_atoms(self) -> int:
        """Atoms other than hydrogen."""
        return int((self.numbers > 1).sum())

    @property
    def graph(self) -> int:
        """Hash of the bond graph, comparable with ``bonds.benchmark_hash``."""
        return graph_hash(self.numbers, self.bonds)


def read_species(smiles: str, spin: int | None = None, neutralise: bool = False) -> Species:
    """The species of a SMILES. spin: its multiplicity, default that of a closed shell. neutralise: move protons until it is neutral.

    Raises InputError with one line for a SMILES that cannot be read, of several fragments, of a radical whose multiplicity
    is not given, or that cannot be neutralised, and for a multiplicity that does not fit the number of electrons.
    """
    require_rdkit()
    from rdkit import Chem, rdBase

    shown = repr(smiles if len(smiles) <= 60 else smiles[:57] + "...")
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles)
        if molecule is None or not molecule.GetNumAtoms():
            raise InputError(f"{shown} is not a SMILES that RDKit can read")
        fragments = len(Chem.GetMolFrags(molecule))
        if fragments > 1:
            raise InputError(f"{shown} has {fragments} fragments; expected one molecule (complexes are made by sampling dimers)")
        if neutralise and _charged(molecule):
            molecule = _neutral(molecule, shown)
        canonical = Chem.MolToSmiles(molecule)
        # Read again, so that the atoms are in the order in which ``conformers.embed`` will have them.
        molecule = Chem.AddHs(Chem.MolFromSmiles(canonical))
    atoms = list(molecule.GetAtoms())
    unpaired = sum(atom.GetNumRadicalElectrons() for atom in atoms)
    if unpaired and spin is None:
        known = f"a radical with {unpaired} unpaired electron{'s' * (unpaired > 1)}"
        raise InputError(f"{shown} is {known}; expected a closed shell, or a file of --smiles with spin={unpaired + 1} after it")
    numbers = np.array([atom.GetAtomicNum() for atom in atoms])
    if not numbers.all():
        raise InputError(f"{shown} has a dummy atom (*), which is no element")
    charges = np.array([atom.GetFormalCharge() for atom in atoms])
    spin = 1 if spin is None else spin
    electrons = int(numbers.sum() - charges.sum())
    if spin < 1 or (electrons + spin) % 2 == 0 or spin > electrons + 1:
        raise InputError(f"{shown} has {electrons} electrons, which spin multiplicity {spin} does not fit")
    bonds = np.array(sorted(sorted((b.GetBeginAtomIdx(), b.GetEndAtomIdx())) for b in molecule.GetBonds()), dtype=np.int64).reshape(-1, 2)
    return Species(canonical, without_stereo(canonical), numbers, charges, bonds, spin)


def open_shell(species: Species) -> bool:
    """Whether the ground state is known to have unpaired electrons though the SMILES shows none: O2, S2, SO and most single atoms."""
    if len(species.numbers) == 1:
        return not species.charge and int(species.numbers[0]) not in CLOSED_ATOMS
    return species.smiles in ("O=O", "S=S", "O=S")


def bare(species: Species, positions: np.ndarray | None = None) -> System:
    """A structure of the species, not labelled; all atoms at the origin where no positions (n, 3) Å are given."""
    fields = {
        "numbers": species.numbers.astype(np.uint8),
        "positions": np.zeros((len(species.numbers), 3)) if positions is None else np.array(positions, dtype=np.float64),
        "formal_charges": species.charges.astype(np.int8),
        "charge": np.int8(species.charge),
        "spin": np.uint8(species.spin),
    }
    return System(fields, molecule=species.molecule, smiles=species.smiles if positions is None else stereo_of(species, positions))


def _neutral(molecule: Any, shown: str) -> Any:
    from rdkit import Chem
    from rdkit.Chem.MolStandardize import rdMolStandardize

    changed = rdMolStandardize.Uncharger(canonicalOrder=True).uncharge(molecule)
    left = Chem.GetFormalCharge(changed)
    if left:
        raise InputError(f"{shown} cannot be neutralised by moving protons: a charge of {left:+d} stays")
    apart = ", ".join(f"{atom.GetFormalCharge():+d} at {atom.GetSymbol()}" for atom in _charged(changed))
    if apart:
        raise InputError(f"{shown} cannot be neutralised by moving protons: {apart} stay")
    return changed


def _charged(molecule: Any) -> list[Any]:
    """Atoms with a formal charge that no neighbour has the opposite of; those of a nitro group, say, are a way of writing."""
    charged = [atom for atom in molecule.GetAtoms() if atom.GetFormalCharge()]
    return [atom for atom in charged if all(atom.GetFormalCharge() * other.GetFormalCharge() >= 0 for other in atom.GetNeighbors())]


def without_stereo(smiles: str) -> str:
    """Canonical SMILES without stereo marks. Raises InputError where RDKit is missing."""
    require_rdkit()
    from rdkit import Chem

    molecule = Chem.MolFromSmiles(smiles)
    Chem.RemoveStereochemistry(molecule)
    return Chem.MolToSmiles(molecule)


def stereo_of(species: Species, positions: np.ndarray) -> str:
    """Canonical SMILES with the stereo that a structure (n, 3) Å has, also at centres where none was asked for."""
    from rdkit import Chem
    from rdkit.Geometry import Point3D

    molecule = Chem.AddHs(Chem.MolFromSmiles(species.smiles))
    conformer = Chem.Conformer(molecule.GetNumAtoms())
    for atom, place in enumerate(positions.tolist()):
        conformer.SetAtomPosition(atom, Point3D(*place))
    molecule.AddConformer(conformer)
    Chem.AssignStereochemistryFrom3D(molecule)
    return Chem.MolToSmiles(Chem.RemoveHs(molecule))


def kept_stereo(species: Species, positions: np.ndarray) -> bool:
    """Whether a structure has all the stereo that the SMILES asks for."""
    from rdkit import Chem

    if species.smiles == species.molecule:
        return True
    obtained = Chem.MolFromSmiles(stereo_of(species, positions))
    return obtained.HasSubstructMatch(Chem.MolFromSmiles(species.smiles), useChirality=True)


def intact(bonds: np.ndarray, numbers: np.ndarray, positions: np.ndarray) -> bool:
    """Whether a structure has exactly these bonds (E, 2): none stretched to breaking, no others formed."""
    if len(numbers) < 2:
        return True
    radii = covalent_radii()[numbers]
    left, right = np.triu_indices(len(numbers), 1)
    ratio = np.linalg.norm(positions[left] - positions[right], axis=1) / (radii[left] + radii[right])
    bonded = np.zeros((len(numbers), len(numbers)), dtype=bool)
    bonded[bonds[:, 0], bonds[:, 1]] = True
    bonded = (bonded | bonded.T)[left, right]
    return bool((ratio[bonded] < STRETCHED).all() and (ratio[~bonded] > TOUCHING).all())


def excluded_as(species: Species, names: list[str]) -> str | None:
    """Which of the benchmark molecules ``names`` it is, by bond graph; None for none of them."""
    wanted = [name for name in names if len(BENCHMARK[name][1]) == species.heavy_atoms]
    return next((name for name in wanted if benchmark_hash(name) == species.graph), None) if wanted else None
