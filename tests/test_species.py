"""Molecules from SMILES: what is refused in one line, charge, spin and stereo as written, benchmark molecules told, bonds kept or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from forcewell.bonds import BENCHMARK
from forcewell.errors import InputError
from forcewell.generate.conformers import alike, conformers, moments_of
from forcewell.generate.planning import Request, Sampling, choose, molecule_jobs, read_smiles, source_smiles
from forcewell.generate.species import bare, excluded_as, intact, kept_stereo, read_species, stereo_of


@pytest.mark.parametrize(
    ("smiles", "options", "message"),
    [
        ("CC(", {}, "is not a SMILES that RDKit can read"),
        ("", {}, "is not a SMILES"),
        ("CC.O", {}, "has 2 fragments; expected one molecule"),
        ("C[CH2]", {}, "a radical with 1 unpaired electron; expected a closed shell, or a file of --smiles with spin=2"),
        ("C*", {}, "has a dummy atom"),
        ("C[N+](C)(C)C", {"neutralise": True}, r"cannot be neutralised by moving protons: a charge of \+1 stays"),
        ("C[N+](C)(C)CC(=O)[O-]", {"neutralise": True}, r"moving protons: \+1 at N, -1 at O stay"),
        ("CC", {"spin": 2}, "has 18 electrons, which spin multiplicity 2 does not fit"),
        ("[H][H]", {"spin": 5}, "has 2 electrons"),
    ],
)
def test_unusable_smiles(smiles: str, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_species(smiles, **options)
    print(caught.value)
    assert "\n" not in str(caught.value)


def test_charge_and_spin_are_as_written() -> None:
    acetate = read_species("CC(=O)[O-]")
    assert (acetate.charge, acetate.spin, len(acetate.numbers)) == (-1, 1, 7)
    assert read_species("CC(=O)[O-]", neutralise=True).smiles == "CC(=O)O"
    assert read_species("C[CH2]", spin=2).spin == 2 and read_species("C=C", spin=3).spin == 3
    start = conformers(acetate, 1, seed=0)[0]
    assert int(start.get("charge")) == -1 and int(start.get("formal_charges").sum()) == -1 and start.molecule == "CC(=O)[O-]"
    nitro = read_species("C[N+](=O)[O-]", neutralise=True)  # neutral already, with charged atoms
    assert nitro.charge == 0 and np.abs(nitro.charges).sum() == 2
    for zwitterion, neutral in (("[NH3+]CC(=O)[O-]", "NCC(=O)O"), ("C[NH2+]CCS(=O)(=O)[O-]", "CNCCS(=O)(=O)O")):
        assert read_species(zwitterion).charge == 0 and read_species(zwitterion).charges.any()
        assert read_species(zwitterion, neutralise=True).smiles == neutral


@pytest.mark.parametrize("smiles", ["C[C@H](O)Cl", "C[C@@H](O)Cl", "C/C=C/C", "C/C=C\\C", "O[C@H]1CCCC[C@@H]1O"])
def test_stereo_that_is_asked_for_is_kept(smiles: str) -> None:
    species = read_species(smiles)
    found = conformers(species, 3, seed=1)
    assert found and all(one.smiles == species.smiles and one.molecule == species.molecule != species.smiles for one in found)
    assert all(kept_stereo(species, one.positions) for one in found)
    mirrored = found[0].positions * [1, 1, -1]
    # The control: a mirror image has lost stereocentres, not double bonds.
    assert kept_stereo(species, mirrored) == ("/" in smiles) or stereo_of(species, mirrored) == species.smiles


def test_stereo_that_is_left_open_is_written_down() -> None:
    found = conformers(read_species("NCC(O)CO"), 6, seed=0)
    assert {one.smiles for one in found} == {"NC[C@H](O)CO", "NC[C@@H](O)CO"} and {one.molecule for one in found} == {"NCC(O)CO"}


def test_conformers_are_different_and_none_is_far_above_the_best() -> None:
    butane = conformers(read_species("CCCC"), 4, seed=3)
    assert len(butane) == 2  # anti and gauche; its mirror image is a copy
    assert not np.allclose(moments_of(butane[0]), moments_of(butane[1]), rtol=0.01)
    assert len(conformers(read_species("c1ccccc1"), 4, seed=0)) == 1
    assert alike(0.0, np.ones(3), 1e-4, np.ones(3)) and not alike(0.0, np.ones(3), 0.01, np.ones(3))
    again = conformers(read_species("CCCC"), 4, seed=3)
    assert all(np.array_equal(one.positions, two.positions) for one, two in zip(butane, again, strict=True))


def test_bonds_are_kept_or_not() -> None:
    species = read_species("CO")
    start = conformers(species, 1, seed=0)[0].positions
    assert intact(species.bonds, species.numbers, start)
    for factor, kept in ((1.3, True), (1.6, False)):
        pulled = start.copy()
        hydroxyl = 5
        assert species.numbers[hydroxyl] == 1 and [1, 5] in species.bonds.tolist()
        pulled[hydroxyl] = start[1] + factor * (start[hydroxyl] - start[1])
        assert intact(species.bonds, species.numbers, pulled) is kept
    nearer = start.copy()
    nearer[5] = start[0] + 1.1 * (start[5] - start[0]) / np.linalg.norm(start[5] - start[0])
    assert not intact(species.bonds, species.numbers, nearer)  # on the carbon: another bond
    assert intact(np.zeros((0, 2), dtype=int), np.array([2]), np.zeros((1, 3)))


def test_benchmark_molecules_are_told_by_their_bonds() -> None:
    for name, (smiles, _, _) in BENCHMARK.items():
        assert excluded_as(read_species(smiles), list(BENCHMARK)) == name
        assert excluded_as(read_species(smiles), []) is None
    assert excluded_as(read_species("COC"), list(BENCHMARK)) is None  # an isomer of ethanol
    requests = [Request(smiles, None, "") for smiles in ("OCC", "COC", "CN1C(=O)N(C)c2ncn(C)c2C1=O")]
    chosen = choose(requests)
    assert [one.smiles for one in chosen.species] == ["COC"] and chosen.excluded == 2
    assert len(choose(requests, exclude="none").species) == 3 and len(choose(requests, exclude="benchmark").species) == 2


def test_files_of_smiles(tmp_path: Path) -> None:
    file = tmp_path / "mine.smi"
    file.write_text("# comment\nCC#N acetonitrile\n\n[O][O] oxygen spin=3\n", encoding="utf-8")
    assert [(one.smiles, one.spin) for one in read_smiles(file)] == [("CC#N", None), ("[O][O]", 3)]
    table = tmp_path / "mine.csv"
    table.write_text("name,SMILES,spin\na,CC,\nb,C[CH2],2\n", encoding="utf-8")
    assert [(one.smiles, one.spin) for one in read_smiles(table)] == [("CC", None), ("C[CH2]", 2)]
    for text, message in (("\n", "has no SMILES"), ("CC spin=x", "line 1: spin is 'x'")):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=message):
            read_smiles(file)
    with pytest.raises(InputError, match="does not exist"):
        read_smiles(tmp_path / "none.smi")
    table.write_text("name\na\n", encoding="utf-8")
    with pytest.raises(InputError, match="no column smiles"):
        read_smiles(table)
    with pytest.raises(InputError, match="unknown source 'qm10'"):
        source_smiles("qm10")


def test_collections_and_their_filters() -> None:
    requests = source_smiles("rdkit-nci")
    assert len(requests) == 4999
    chosen = choose(requests[:400], elements=["H", "C", "N", "O"], heavy_atoms=(4, 8), neutral=True)
    assert len(chosen.species) == len({one.smiles for one in chosen.species}) > 15
    for one in chosen.species:
        assert set(one.numbers.tolist()) <= {1, 6, 7, 8} and 4 <= one.heavy_atoms <= 8 and not one.charges.any()
    with pytest.raises(InputError, match="unknown element 'Xx'"):
        choose(requests[:1], elements=["Xx"])


def test_seeds_belong_to_molecules() -> None:
    """Another molecule in the list changes nothing about the others."""
    species = [read_species(smiles) for smiles in ("CO", "CN", "CC")]
    three, two = molecule_jobs(species, Sampling(), seed=5), molecule_jobs(species[1:], Sampling(), seed=5)
    assert three[1:] == two and len({job["seed"] for job in three}) == 3
    assert molecule_jobs(species, Sampling(), seed=6)[0]["seed"] != three[0]["seed"]
    assert bare(species[0]).molecule == "CO"
