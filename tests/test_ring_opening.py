"""The builder of ring-opened polymers: which bond opens, atoms, repeat units, stereo; the 24 families."""

from __future__ import annotations

import numpy as np
import pytest

from forcewell.bonds import bonds, graph_hash
from forcewell.errors import InputError
from forcewell.generate.conformers import conformers
from forcewell.generate.families import CLASSES, choose_families, families
from forcewell.generate.ring_opening import chain, has_ring_double_bond, loop, open_ring
from forcewell.generate.species import read_species
from forcewell.system import block_of

# Table 3 of the ET-OREO paper: repeat units (two of them set right) and atoms of the 15-loops.
TABLE = {
    "cyclooctane": ("*CCCCCCCC*", 360),
    "propyl-delta-valerolactone": ("*OC(CCC)CCCC(=O)*", 360),
    "gamma-butyrolactone": ("*OCCCC(=O)*", 180),
    "methyl-p-dioxanone": ("*OCCOC(C)C(=O)*", 240),
}


def centres(smiles: str) -> list[str]:
    """R, S or ? of every stereocentre."""
    from rdkit import Chem

    found = Chem.FindMolChiralCenters(Chem.MolFromSmiles(smiles), includeUnassigned=True, useLegacyImplementation=False)
    return sorted(label for _, label in found)


def canonical(smiles: str) -> str:
    from rdkit import Chem

    return Chem.CanonSmiles(smiles)


@pytest.mark.parametrize("name", TABLE)
def test_the_paper_s_four_have_its_repeat_units_and_atom_counts(name: str) -> None:
    family, (unit, atoms) = families()[name], TABLE[name]
    opening = open_ring(family.smiles)
    assert family.paper
    assert canonical(opening.repeat_unit) == canonical(unit)
    assert len(read_species(loop(opening, 15)).numbers) == atoms


def test_there_are_24_families_in_four_classes_and_every_loop_has_whole_monomers() -> None:
    known = families()
    assert len(known) == 24
    assert {family.kind for family in known.values()} == set(CLASSES)
    assert sum(family.paper for family in known.values()) == 4
    for family in known.values():
        opening = open_ring(family.smiles)
        monomer = read_species(family.smiles)
        assert loop(opening, 1) == opening.smiles
        for repeats in (2, 3, 6, 15):
            made = read_species(loop(opening, repeats))
            assert np.array_equal(np.sort(made.numbers), np.sort(np.tile(monomer.numbers, repeats))), (family.name, repeats)
            assert len(made.bonds) == repeats * len(monomer.bonds)  # as many bonds made as opened


@pytest.mark.parametrize(
    ("monomer", "bond", "unit"),
    [
        ("O=C1CCCCCN1", "acyl C-N", "*NCCCCCC(=O)*"),
        ("O=C1OCCCO1", "acyl C-O", "*OCCCOC(=O)*"),
        ("CC1CO1", "C-O", "*OC(C)C*"),  # at the CH2, not at the stereocentre
        ("CC1COC(=O)O1", "acyl C-O", "*OCC(C)OC(=O)*"),  # one of its two acyl bonds, always the same
        ("C1CSSC1", "S-S", "*SCCCS*"),
        ("C[Si]1(C)O[Si](C)(C)O[Si](C)(C)O1", "Si-O", "*O[Si](C)(C)O[Si](C)(C)O[Si](C)(C)*"),
    ],
)
def test_the_bond_that_opens(monomer: str, bond: str, unit: str) -> None:
    opening = open_ring(monomer)
    assert opening.bond == bond
    assert canonical(opening.repeat_unit) == canonical(unit)


def test_chains_have_end_groups() -> None:
    lactone, ether = open_ring("O=C1CCCO1"), open_ring("C1CO1")
    assert chain(lactone, 2) == canonical("OCCCC(=O)OCCCC(=O)O")  # the hydroxy acid
    assert chain(ether, 3) == canonical("OCCOCCOCCO")  # the glycol
    assert chain(lactone, 1, ("*C(C)=O", "*OC")) == canonical("CC(=O)OCCCC(=O)OC")


def test_stereo_of_the_monomer_is_in_every_unit() -> None:
    lactide = "C[C@@H]1OC(=O)[C@H](C)OC1=O"
    assert centres(lactide) == ["S", "S"]
    opening = open_ring(lactide)
    assert centres(loop(opening, 3)) == ["S"] * 6
    assert centres(chain(opening, 2)) == ["S"] * 4
    mirror = open_ring("C[C@H]1OC(=O)[C@@H](C)OC1=O")
    assert centres(loop(mirror, 3)) == ["R"] * 6


def test_stereo_that_is_open_comes_out_at_random_and_is_written_down() -> None:
    opening = open_ring(families()["propylene-oxide"].smiles)
    species = read_species(loop(opening, 4))
    assert centres(species.smiles) == ["?"] * 4
    obtained = [centres(conformers(species, 1, seed, tries=1)[0].smiles) for seed in range(6)]
    print(obtained)
    assert all(len(one) == 4 and "?" not in one for one in obtained)
    assert len({tuple(one) for one in obtained}) > 1


@pytest.mark.parametrize("name", families())
def test_embedded_loops_have_the_bonds_of_their_smiles(name: str) -> None:
    species = read_species(loop(open_ring(families()[name].smiles), 3))
    found = conformers(species, 1, 0, tries=1)[0]
    seen = bonds(block_of([found]))
    assert graph_hash(found.numbers, seen) == species.graph
    # The control: one atom pulled away.
    found.positions[0] += 1.5
    assert graph_hash(found.numbers, bonds(block_of([found]))) != species.graph


@pytest.mark.parametrize(
    ("smiles", "said"),
    [
        ("CCO", "no ring that can be opened"),
        ("c1ccccc1", "no ring that can be opened"),
        ("C1CCC2OC2C1", "stereocentre"),
        ("C1CC", "not a SMILES"),
        ("C1CO1.O", "2 fragments"),
        ("[CH]1CC1", "radical"),
    ],
)
def test_monomers_that_cannot_be(smiles: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        open_ring(smiles)


def test_an_ammonium_opens_as_its_amine_does() -> None:
    assert open_ring("C1CN1").bond == open_ring("[NH2+]1CC1").bond == "C-N"
    assert has_ring_double_bond("C1=CC2CC1CC2") and not has_ring_double_bond("C=CC1CO1") and not has_ring_double_bond("C1CC1c1ccccc1")


def test_what_else_cannot_be() -> None:
    opening = open_ring("C1CO1")
    with pytest.raises(InputError, match="at least 1"):
        loop(opening, 0)
    for ends in (("O", "*O"), ("**", "*O"), ("*=O", "*O"), ("*O*", "*O"), ("*X", "*O")):
        with pytest.raises(InputError, match="end group"):
            chain(opening, 2, ends)
    with pytest.raises(InputError, match=r"did you mean|gamma-butyrolactone"):
        choose_families("gamma-butirolactone")
