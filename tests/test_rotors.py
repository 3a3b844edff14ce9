"""Rotatable bonds, turning them, and fractional denoising."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from forcewell.batch import Batch
from forcewell.objectives import Noise, build
from forcewell.objectives.dihedrals import turn, turned
from forcewell.rotors import fragments_of, perceived, rotatable
from forcewell.system import System

NOISE = Noise(seed=5, step=7)
BUTANE = "CCCC"


def from_smiles(smiles: str) -> System:
    from rdkit import Chem
    from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    rdDistGeom.EmbedMolecule(molecule, randomSeed=3)
    rdForceFieldHelpers.MMFFOptimizeMolecule(molecule)
    numbers = np.array([atom.GetAtomicNum() for atom in molecule.GetAtoms()])
    order = np.random.default_rng(0).permutation(len(numbers))  # not the order of the SMILES
    positions = molecule.GetConformer().GetPositions()[order]
    return System({"numbers": numbers[order].astype(np.uint8), "positions": positions}, smiles=smiles)


@pytest.mark.parametrize(
    ("smiles", "count"),
    [
        (BUTANE, 3),  # two methyls and the middle
        ("C=CC=C", 1),  # butadiene: the middle only
        ("C1CCCCC1", 0),
        ("CC#CC", 0),  # next to a triple bond
        ("CC(=O)NC", 3),  # the amide bond counts, as in the published pattern
        ("OCc1ccccc1", 2),
        ("C", 0),
    ],
)
def test_rotatable_bonds(smiles: str, count: int) -> None:
    """From the SMILES and from the geometry alone."""
    system = from_smiles(smiles)
    bonds = perceived(system.numbers, system.positions)
    pieces = fragments_of(smiles, system.numbers, system.positions)
    assert pieces is not None
    known = rotatable(system.numbers, system.positions, bonds, pieces)
    guessed = rotatable(system.numbers, system.positions, bonds)
    assert {frozenset(r[:2]) for r in known} == {frozenset(r[:2]) for r in guessed}
    assert len(known) == count
    assert fragments_of("CCO", system.numbers, system.positions) is None  # another molecule
    for first, second, side in known:
        assert second in side and first not in side and 2 * len(side) <= len(system.numbers)


def test_turning_a_bond_changes_its_dihedral_alone() -> None:
    import ase

    system = from_smiles(BUTANE)
    bonds = perceived(system.numbers, system.positions)
    middle = next(r for r in rotatable(system.numbers, system.positions, bonds) if len(r[2]) == 7)
    carbons = [(a, b) for a, b in bonds.tolist() if system.numbers[a] == system.numbers[b] == 6]
    ends = [
        next(a if b == end else b for a, b in carbons if end in (a, b) and other not in (a, b))
        for end, other in (middle[:2], (middle[1], middle[0]))
    ]
    moved = system.positions.copy()
    turn(moved, *middle, 0.7)
    before, after = (ase.Atoms(system.numbers, p).get_dihedral(ends[0], middle[0], middle[1], ends[1]) for p in (system.positions, moved))
    print(f"dihedral {before:.3f} -> {after:.3f} degrees")
    assert (after - before - np.degrees(0.7) + 180) % 360 - 180 == pytest.approx(0, abs=1e-6)
    lengths = [np.linalg.norm(p[bonds[:, 0]] - p[bonds[:, 1]], axis=1) for p in (system.positions, moved)]
    assert np.abs(lengths[0] - lengths[1]).max() < 1e-12


def test_fractional_denoising_asks_for_the_coordinate_noise_alone() -> None:
    system = from_smiles(BUTANE)
    batch = Batch.from_systems([system] * 3, dtype=torch.float64)
    batch.fragment[:] = torch.from_numpy(np.tile(fragments_of(BUTANE, system.numbers, system.positions), 3))
    objective = build("frad")[0]
    ready = objective.prepare(batch, NOISE)
    start = ready.positions + ready.targets.noise_target  # the turned conformation
    swung, jitter = (start - batch.positions).norm(dim=1), ready.targets.noise_target.norm(dim=1)
    print(f"turned by up to {float(swung.max()):.2f} Å, noise up to {float(jitter.max()):.2f} Å")
    assert float(jitter.max()) < 0.25 and float(swung.max()) > 1.0
    assert torch.allclose(start, turned(batch, 2.0, NOISE, "fractional-denoising/dihedral"), atol=1e-12)
    bonds = perceived(system.numbers, system.positions)
    after, before = ((p[bonds[:, 0]] - p[bonds[:, 1]]).norm(dim=1) for p in (start, batch.positions))
    assert float((after - before).abs().max()) < 1e-12  # bonds are whole
    assert not torch.allclose(swung[:14], swung[14:28])  # each sample has angles of its own


def test_the_loader_gives_fragments_by_smiles() -> None:
    """Where the SMILES fits; where there is none, or another one, the geometry decides."""
    from forcewell.loader import Source, batch_of
    from forcewell.store import MemoryData
    from forcewell.system import block_of

    right, wrong = from_smiles(BUTANE), from_smiles("CCO")
    wrong = dataclasses.replace(wrong, smiles="CCC")
    data = MemoryData([block_of([right, wrong])])
    order, copies = np.zeros(1, dtype=np.int64), np.zeros(2, dtype=np.int64)
    batch = batch_of(Source("x", data, np.arange(2), 1.0, copies, order, rotors=True), 0, np.arange(2), torch.float64)
    assert len(set(batch.fragment[:14].tolist())) == 4 and (batch.fragment[14:] == -1).all()
    plain = batch_of(Source("x", data, np.arange(2), 1.0, copies, order), 0, np.arange(2), torch.float64)
    assert (plain.fragment == -1).all()
    moved = [build("frad")[0].prepare(one, NOISE).positions for one in (batch, plain)]
    assert torch.allclose(*moved)  # here both ways find the same bonds, in the same order
