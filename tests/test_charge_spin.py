"""Charge and spin from what others write, to what a calculator gets, while a molecule moves and when it is labelled."""

from __future__ import annotations

import io
import sys
import types
from pathlib import Path
from typing import Any

import ase
import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.io import write
from tiny_runs import refuse, succeed

from forcewell.engines import EngineFailure, engine
from forcewell.errors import InputError
from forcewell.generate.conformers import conformers
from forcewell.generate.dynamics import molecular_dynamics
from forcewell.generate.executors import execute
from forcewell.generate.planning import Request, Sampling, choose, molecule_jobs, source_smiles
from forcewell.generate.relaxation import relax
from forcewell.generate.species import read_species
from forcewell.sources import extxyz
from forcewell.store import Store
from forcewell.system import System

pytest.importorskip("tblite")
GFN2 = engine("gfn2")
TOLD = {"method": "GFN2-xTB", "accuracy": 0.1, "verbosity": 0}


def oxygen(charges: Any = None, moments: Any = None, **info: Any) -> ase.Atoms:
    atoms = ase.Atoms("O2", [[0, 0, 0], [0, 0, 1.2]], info=info)
    if charges is not None:
        atoms.set_initial_charges(charges)
    atoms.set_initial_magnetic_moments(moments)
    return atoms


@pytest.mark.parametrize(
    ("atoms", "charge", "spin"),
    [
        (oxygen(), 0, 1),
        (oxygen([-1, -1], [1, 1]), -2, 3),
        (oxygen(Charge=-1, Spin=2), -1, 2),
        (oxygen(net_charge=1.0, Multiplicity=4), 1, 4),
        (oxygen(moments=[-1, -1], **{"total charge": 2}), 2, 3),
        (oxygen(spin=1, multiplicity=3), 0, 3),  # S beside 2S + 1
        (oxygen([0.31, -0.32]), 0, 1),  # partial charges
        (oxygen([0.31, -0.30], charge=-1), -1, 1),
        (oxygen([-0.48, -0.49], charge=-1), -1, 1),
        (oxygen([-0.4995, -0.5004]), -1, 1),
        (oxygen(moments=[0.6, 0.6], spin=3), 0, 3),  # a guess of moments
    ],
)
def test_what_atoms_state(tmp_path: Path, atoms: ase.Atoms, charge: int, spin: int) -> None:
    """From Atoms, and from the same Atoms in a file."""
    write(tmp_path / "one.xyz", atoms, format="extxyz")
    [block] = extxyz.read([tmp_path / "one.xyz"])
    for system in (System.from_atoms(atoms), block.system(0)):
        assert (int(system.get("charge")), int(system.get("spin"))) == (charge, spin)


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        (oxygen([-1, -1], charge=0), "charge is 0, but its initial charges add up to -2"),
        (oxygen(moments=[1, 1], spin=1), "spin is 1, but its initial magnetic moments are those of multiplicity 3"),
        (oxygen(charge=1, total_charge=0), "charge=1 and total_charge=0 contradict each other"),
        (oxygen([0.3, 0.3]), "initial charges add up to 0.600; expected a whole number, or the key charge"),
        (oxygen(moments=[0.6, 0.6]), "initial magnetic moments add up to 1.200"),
        (oxygen(spin=0), r"spin is 0; expected a whole number from 1 to 255, the multiplicity 2S \+ 1"),
        (oxygen(charge=200), "charge is 200; expected a whole number"),
    ],
)
def test_statements_that_cannot_be(tmp_path: Path, atoms: ase.Atoms, message: str) -> None:
    write(tmp_path / "one.xyz", atoms, format="extxyz")
    with pytest.raises(InputError, match=f"one.xyz, frame 0: {message}"):
        list(extxyz.read([tmp_path / "one.xyz"]))
    with pytest.raises(InputError, match=message):
        System.from_atoms(atoms)


def test_moments_of_a_crystal_are_a_guess() -> None:
    from ase.build import bulk

    iron = bulk("Fe")
    iron.set_initial_magnetic_moments([2.3])
    assert "spin" not in System.from_atoms(iron).arrays


class Logging(Calculator):
    """A stand-in for a program: every atom in a well at the origin; what it is told is written down."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012
    log: list[tuple[Any, float, float]] = []  # noqa: RUF012

    def __init__(self, charge: int = 0, **_: Any) -> None:
        super().__init__()
        self.charge = charge

    def calculate(self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        self.log.append((self.charge, self.atoms.get_initial_charges().sum(), self.atoms.get_initial_magnetic_moments().sum()))
        self.results = {"energy": (self.atoms.positions**2).sum(), "forces": -2 * self.atoms.positions}


def test_a_calculator_gets_charge_and_spin_while_a_molecule_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPAW takes moments from the atoms, the charge by keyword only; what it never would get is refused."""
    kind = type("GPAW", (Logging,), {"__module__": "gpaw", "log": []})
    monkeypatch.setitem(sys.modules, "gpaw", types.SimpleNamespace(GPAW=kind, __name__="gpaw"))
    methyl, ammonium = (conformers(read_species(smiles, spin), 1, 0)[0] for smiles, spin in (("[CH3]", 2), ("[NH4+]", 1)))
    told = engine("ase:gpaw.GPAW", charge="{charge}")
    for system, expected in ((methyl, (0, 0, 1)), (ammonium, (1, 0, 0))):
        kind.log.clear()
        relax(system, told, steps=5000, force=0.5)
        molecular_dynamics(system, told, 300, frames=1, seed=0, equilibration=0, spacing=1)
        told.label(system)
        assert len(kind.log) > 3 and set(kind.log) == {expected}
    with pytest.raises(InputError, match=r'has charge 1, of which .* is not told; .* --set charge="\{charge\}"'):
        engine("ase:gpaw.GPAW").check(ammonium)
    with pytest.raises(InputError, match=r"has spin 2, of which .* --set mult="):
        engine("ase:gpaw.GPAW", spinpol=False).check(methyl)
    with pytest.raises(InputError, match=r'nelect is a number of electrons, not a charge; give charge="\{charge\}"'):
        engine("ase:vasp.Vasp", nelect="{charge}")
    with pytest.raises(InputError, match="nupdown is a number of unpaired electrons"):
        engine("ase:vasp.Vasp", nupdown="{spin}")


def test_who_reads_the_atoms_reads_them(tmp_path: Path) -> None:
    """The table's entries that need no program: what ASE writes for Gaussian, MOPAC and VASP; tblite against our own call of it."""
    from ase.calculators.mopac import MOPAC
    from ase.calculators.vasp.create_input import set_magmom
    from ase.io.gaussian import write_gaussian_in

    ion = System.from_atoms(oxygen(charge=1, spin=2))
    for name in ("ase:gaussian.Gaussian", "ase:mopac.MOPAC"):
        engine(name).check(ion)
    atoms = engine("ase:gaussian.Gaussian")._atoms_of(ion)
    text = io.StringIO()
    write_gaussian_in(text, atoms, method="HF", basis="STO-3G")
    assert "\n1 2\n" in text.getvalue()
    MOPAC(label=str(tmp_path / "ion")).write_input(atoms)
    assert "CHARGE=1 DOUBLET" in (tmp_path / "ion.mop").read_text()
    spinful = set_magmom(ispin=None, spinpol=True, atoms=atoms, magmom_input=None, sorting=[0, 1])[1]
    assert spinful["ispin"] == 2 and "magmom" in spinful
    tblite = engine("ase:tblite.ase.TBLite", **TOLD)
    for system in (ion, System.from_atoms(oxygen(spin=3))):
        assert tblite.label(system).energy == pytest.approx(GFN2.label(system).energy, abs=2e-5)
        relaxed = [relax(system, one) for one in (tblite, GFN2)]
        assert np.ptp([np.linalg.norm(one.positions[1] - one.positions[0]) for one in relaxed]) < 1e-3
    # Told by a keyword, nothing is put on the atoms, where ASE's Psi4 would take moments for a reason to forget its multiplicity.
    told = engine("ase:tblite.ase.TBLite", charge="{charge}", multiplicity="{spin}", **TOLD)
    assert not {"initial_charges", "initial_magmoms"} & set(told._atoms_of(ion).arrays)


def test_a_store_keeps_its_spin(tmp_path: Path) -> None:
    (tmp_path / "two.smi").write_text("O=O oxygen spin=3\n[CH3] methyl spin=2\n")
    few = ("--conformers", 1, "--modes", "none", "--dynamics", "none", "--workers", 1)
    succeed("generate", "molecules", "--smiles", tmp_path / "two.smi", "--out", tmp_path / "one.fw", *few)
    assert [(one.smiles, one.spin) for one in source_smiles(str(tmp_path / "one.fw"))] == [("O=O", 3), ("[CH3]", 2)]
    succeed("generate", "molecules", "--source", tmp_path / "one.fw", "--out", tmp_path / "two.fw", *few)
    assert Store(tmp_path / "two.fw").column("spin").tolist() == [3, 2]


def test_a_singlet_that_is_none_is_said() -> None:
    asked = [Request(smiles, spin, "line") for smiles, spin in (("O=O", None), ("O=O", 3), ("[Fe]", None), ("[Zn]", None), ("C=O", None))]
    chosen = choose(asked, exclude="none")
    assert [line.split(" is taken as a singlet")[0] for line in chosen.assumed] == ["line: O=O", "line: [Fe]"]


def test_settings_of_the_engine(tmp_path: Path) -> None:
    """They are part of the campaign: the same command goes on, another setting is another campaign."""
    (tmp_path / "one.smi").write_text("O\n")
    few = ("--conformers", 1, "--modes", "none", "--dynamics", "none", "--workers", 1)
    command = ("generate", "molecules", "--smiles", tmp_path / "one.smi", "--out", tmp_path / "one.fw", *few)
    succeed(*command, "--set", "accuracy=0.05")
    assert '"accuracy": 0.05' in Store(tmp_path / "one.fw")[0].engine
    assert "another campaign" in refuse(*command, "--set", "accuracy=0.2")
    assert "has no setting 'acuracy'" in refuse(*command, "--set", "acuracy=0.2")
    loops = ("generate", "polymers", "--monomer", "C1CO1", "--loops", "1", "--starts", 1, "--dynamics", "none", "--workers", 1)
    succeed(*loops, "--out", tmp_path / "loops.fw", "--set", "accuracy=0.05")
    assert '"accuracy": 0.05' in Store(tmp_path / "loops.fw")[0].engine


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("gfn2", {"accuracy": -1}, "accuracy is -1; expected a number above 0"),
        ("gfn1", {"electronic_temperature": -300.0}, "electronic_temperature is -300.0; expected a number above 0"),
        ("gfn2", {"accuracy": float("nan")}, "accuracy is nan; expected a value like 0.1"),
        ("gfn2", {"accuracy": [1]}, r"accuracy is \[1\]; expected a value like 0.1"),
        ("pyscf:HF/STO-3G", {"tolerance": 0}, "tolerance is 0; expected a number above 0"),
    ],
)
def test_settings_out_of_range(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        engine(name, **settings)


class Failing(Logging):
    """tblite's, which fails at one call."""

    calls, fails_at = 0, -1

    def __init__(self, **_: Any) -> None:
        from tblite.ase import TBLite

        Calculator.__init__(self)
        self.inner = TBLite(**TOLD)

    def calculate(self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes) -> None:
        Calculator.calculate(self, atoms, properties, system_changes)
        type(self).calls += 1
        if type(self).calls == type(self).fails_at:
            raise OSError("the disk is full")
        assert self.atoms is not None
        bare_atoms = self.atoms.copy()
        bare_atoms.calc = self.inner
        self.results = {"energy": bare_atoms.get_potential_energy(), "forces": bare_atoms.get_forces()}


def test_one_failed_evaluation_ends_its_part_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "failing", types.SimpleNamespace(Failing=Failing, __name__="failing"))
    settings = Sampling(conformers=1, modes={300: 2}, dynamics={300: 3}, equilibration=0, spacing=2, timestep=1)
    [job] = molecule_jobs([read_species("O")], settings, seed=0)
    engine_of = {"engine": "ase:failing.Failing", "engine_settings": {}, "sampler": None}

    def made(fails_at: int) -> list[str]:
        Failing.calls, Failing.fails_at = 0, fails_at
        result = execute("forcewell.generate.sampling:molecule", {**job, **engine_of})
        told = " ".join(result.left_out)
        assert result.frames == [] or len(result.frames) == 6 or "the disk is full" in told or "300 K, 1 fs a step, ended before" in told
        return [frame.source for frame in result.frames] or [result.reason]

    whole = ["minimum"] + ["normal modes"] * 2 + ["molecular dynamics"] * 3
    assert made(-1) == whole
    every = Failing.calls
    # From the end: three labels of frames, then seven forces of the trajectory, 2 fs apart, the first at its start.
    assert made(every) == made(every - 2) == whole[:-1]
    assert made(every - 3) == whole[:-1] and made(every - 6) == whole[:-2] and made(every - 9) == whole[:-3]
    # Before these two labels along modes (another try replaces one), the label that energies count from, the minimum's, and its modes.
    assert made(every - 11) == whole and made(every - 12) == [*whole[:1], *whole[3:]]
    assert made(every - 16) == ["Failing: OSError: the disk is full"]
    assert made(2) == ["relaxation failed: Failing: OSError: the disk is full"]


def test_a_model_that_meets_two_atoms_in_one_place() -> None:
    chosen, water = engine("forcewell-small"), System.from_atoms(molecule("H2O"))
    atoms = chosen.atoms(water)
    atoms.positions[1] = atoms.positions[0]
    for fails in (atoms.get_forces, lambda: chosen.label(System({**water.arrays, "positions": atoms.positions}))):
        with pytest.raises(EngineFailure, match="on top of each other"):
            fails()
