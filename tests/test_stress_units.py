"""Stress in a user's files: its unit, its sign, and virials."""

from __future__ import annotations

from pathlib import Path

import ase.build
import ase.io
import numpy as np
import pytest
from ase import units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect

from forcewell.cli import main
from forcewell.errors import InputError
from forcewell.sources.mapping import as_options, stress_unit
from forcewell.store import Store, open_data
from forcewell.units import HARTREE, stress_factor

STRESS = np.array([[0.03, 0.001, 0.002], [0.001, -0.02, 0.004], [0.002, 0.004, 0.01]])  # eV/Å³
VOLUME = 3.6**3


def copper(**info: object) -> ase.Atoms:
    """A cell with these labels, its energy and forces in eV and Å."""
    atoms = ase.build.bulk("Cu", a=3.6, cubic=True)
    atoms.info |= {"my_e": -3.0, **info}
    atoms.arrays["my_f"] = np.full((4, 3), 0.1) * [[1], [-1], [1], [-1]]
    return atoms


def read(path: Path, atoms: ase.Atoms, *words: str) -> np.ndarray:
    """(3, 3) eV/Å³ as an extended XYZ file with these units is read."""
    ase.io.write(path, [atoms], format="extxyz")
    return open_data(path, **as_options(["my_e=energy", "my_f=forces"], list(words))).column("stress")[0]


@pytest.mark.parametrize(
    ("unit", "value"),
    [
        ("GPa", 160.2176634),
        ("kbar", 1602.176634),
        ("eV/Å³", 1.0),
        ("eV/angstrom^3", 1.0),
        ("Hartree/bohr^3", units.Bohr**3 / units.Hartree),
    ],
)
def test_declared_units(tmp_path: Path, unit: str, value: float) -> None:
    assert stress_factor(unit) == pytest.approx(1 / value, rel=1e-8)
    assert np.allclose(read(tmp_path / "a.xyz", copper(stress=STRESS * value), f"stress={unit}"), STRESS, rtol=1e-7)


def test_the_unit_follows_energies_and_forces(tmp_path: Path) -> None:
    """Of forces in Hartree/bohr, stress in Hartree/bohr³, although coordinates are in Å; it was taken for Hartree/Å³."""
    words = ("energy=Hartree", "forces=Hartree/bohr")
    found = read(tmp_path / "a.xyz", copper(stress=STRESS * units.Bohr**3 / units.Hartree), *words)
    assert np.allclose(found, STRESS, rtol=1e-6)
    assert stress_unit(as_options([], list(words))) == "Hartree/bohr³"
    assert stress_unit({"energy_unit": "kcal/mol", "length_unit": "bohr"}) == "kcal/mol/bohr³" and stress_unit({}) == "eV/Å³"
    assert stress_factor("kcal/mol/bohr³") == pytest.approx(units.kcal / units.mol / units.Bohr**3, rel=1e-6)


def test_unknown_units_of_stress(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown unit of stress 'Gpa'; did you mean 'GPa'\? \(known: GPa, .*Hartree/bohr\^3"):
        stress_factor("Gpa")
    with pytest.raises(InputError, match="unknown unit of stress 'eV'"):
        stress_factor("eV")
    np.savez(tmp_path / "a.npz", z=[1], pos=np.zeros((1, 1, 3)))
    with pytest.raises(InputError, match="source 'npz' has no option 'stress_unit'"):
        open_data(tmp_path / "a.npz", stress_unit="GPa")


@pytest.mark.parametrize("key", ["virial", "REF_virial", "REF_virials", "Virial"])
def test_virials(tmp_path: Path, key: str) -> None:
    """-volume * stress, in the unit of energies; a stress beside it comes first unless the virial is MACE's REF_."""
    virial = -VOLUME * STRESS
    assert np.allclose(read(tmp_path / "a.xyz", copper(**{key: virial})), STRESS, rtol=1e-7)
    assert np.allclose(read(tmp_path / "a.xyz", copper(**{key: virial / HARTREE}), "energy=Hartree"), STRESS, rtol=1e-7)
    both = read(tmp_path / "a.xyz", copper(**{key: virial, "stress": 2 * STRESS}))
    assert np.allclose(both, STRESS if key.startswith("REF") else 2 * STRESS, rtol=1e-7)


def test_virials_by_other_names_and_without_volume(tmp_path: Path) -> None:
    atoms = copper(my_virial=-VOLUME * STRESS)
    ase.io.write(tmp_path / "a.xyz", [atoms], format="extxyz")
    options = as_options(["my_e=energy", "my_f=forces", "my_virial=stress"], [])
    assert np.allclose(open_data(tmp_path / "a.xyz", **options).column("stress")[0], STRESS, rtol=1e-7)
    ase.io.write(tmp_path / "a.xyz", [copper(virial_stress=STRESS)], format="extxyz")  # a stress, by its name
    options = as_options(["my_e=energy", "my_f=forces", "virial_stress=stress"], [])
    assert np.allclose(open_data(tmp_path / "a.xyz", **options).column("stress")[0], STRESS, rtol=1e-7)
    atoms = copper(virial=-VOLUME * STRESS)
    atoms.pbc, atoms.cell[2] = (True, True, False), 0.0
    assert np.isnan(read(tmp_path / "a.xyz", atoms)).all()


def test_the_import_says_which_unit_it_took(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also from an ASE database, whose stress is a calculator's."""
    atoms = copper(stress=STRESS * 160.2176634)
    ase.io.write(tmp_path / "a.xyz", [atoms], format="extxyz")
    atoms.info = {}
    atoms.calc = SinglePointCalculator(
        atoms, energy=-3.0, forces=atoms.arrays["my_f"], stress=STRESS[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
    )
    with connect(tmp_path / "a.db") as database:
        database.write(atoms)
    mapped = ["--map", "my_e=energy", "--map", "my_f=forces", "--unit", "stress=GPa"]
    for file, words, unit in (("a.xyz", mapped, "GPa"), ("a.db", [], "eV/Å³")):
        source = {"a.xyz": "extxyz", "a.db": "asedb"}[file]
        main(["data", "import", source, str(tmp_path / file), "--out", str(tmp_path / f"{file}.fw"), *words])
        assert f"stress is taken to be in {unit}, positive under tension" in capsys.readouterr().out
        assert np.allclose(Store(tmp_path / f"{file}.fw").column("stress")[0], STRESS, rtol=1e-7)
