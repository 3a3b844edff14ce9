"""Engines against other paths to the same numbers: finite differences, direct calls of the programs, ASE's own calculators."""

from __future__ import annotations

import json
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import ase
import numpy as np
import pytest
from ase.build import bulk, molecule

from forcewell.cli import main
from forcewell.engines import EngineFailure, dft, engine, labelled
from forcewell.errors import InputError
from forcewell.store import Store
from forcewell.system import System
from forcewell.units import BOHR, HARTREE

pytest.importorskip("tblite")
pytest.importorskip("pyscf")


def structure(name: str, charge: int = 0, spin: int = 1, seed: int = 0) -> System:
    """A molecule of ASE's, its atoms displaced by 0.05 Å."""
    atoms = molecule(name)
    atoms.rattle(0.05, seed=seed)
    atoms.set_initial_magnetic_moments(None)  # which ASE has for radicals
    atoms.info |= {"charge": charge, "spin": spin}
    return System.from_atoms(atoms)


def largest_difference(name: str, system: System, components: list[tuple[int, int]], step: float = 1e-3, **settings: Any) -> float:
    """Between forces and central differences of the energy, over some components [eV/Å]."""
    chosen = engine(name, **settings)
    forces, worst = chosen.label(system).forces, 0.0
    for atom, axis in components:
        energies = []
        for sign in (1, -1):
            moved = system.positions.copy()
            moved[atom, axis] += sign * step
            energies.append(chosen.label(System({**system.arrays, "positions": moved})).energy)
        worst = max(worst, abs(-(energies[0] - energies[1]) / (2 * step) - forces[atom, axis]))
    return worst


@pytest.mark.parametrize(
    ("name", "of", "charge", "spin"),
    [("gfn2", "CH3CH2OH", 0, 1), ("gfn1", "CH3CH2OH", 0, 1), ("gfn2", "CH3", 0, 2), ("gfn2", "OH", -1, 1), ("gfn2", "NH3", 1, 2)],
)
def test_xtb_forces_are_the_energys_slope(name: str, of: str, charge: int, spin: int) -> None:
    system = structure(of, charge, spin)
    worst = largest_difference(name, system, [(atom, axis) for atom in range(len(system)) for axis in range(3)])
    print(f"{name} {of}: {worst:.1e} eV/Å")
    assert worst < 1e-4


@pytest.mark.parametrize(("name", "spin", "of"), [("wB97X/6-31G*+d4", 1, "H2O"), ("HF/STO-3G+d3bj", 2, "CH3")])
def test_dft_forces_are_the_energys_slope(name: str, spin: int, of: str) -> None:
    """With the grid's response, which brings the net force to zero as well; without it they are off, the control."""
    system, some = structure(of, spin=spin), [(0, 2), (1, 1)]
    worst = largest_difference(f"pyscf:{name}", system, some, tolerance=1e-10)
    labels = engine(f"pyscf:{name}").label(system)
    print(f"{name}: {worst:.1e} eV/Å; net force {labels.notes['net_force']:.1e}")
    assert worst < 1e-4 and float(labels.notes["net_force"]) < 1e-5
    if name == "wB97X/6-31G*+d4":
        plain = engine(f"pyscf:{name}", grid_response=False).label(system)
        off = abs(plain.forces - labels.forces).max()
        print(f"without the grid's response: net force {plain.notes['net_force']:.1e}, forces off by {off:.1e}")
        assert float(plain.notes["net_force"]) > 1e-4 and abs(plain.forces.sum(axis=0)).max() < 1e-12


def test_xtb_by_two_doors() -> None:
    """Our call of tblite's Python interface against tblite's ASE calculator, whose constants are of another year."""
    from tblite.ase import TBLite

    for name, level in (("gfn2", "GFN2-xTB"), ("gfn1", "GFN1-xTB")):
        for of, charge, spin in (("CH3CH2OH", 0, 1), ("CH3", 0, 2), ("CN", -1, 1)):
            system = structure(of, charge, spin)
            atoms = system.to_atoms()
            atoms.calc = TBLite(method=level, accuracy=0.1, charge=charge, multiplicity=spin, verbosity=0)
            labels = engine(name).label(system)
            energy, forces = abs(labels.energy - atoms.get_potential_energy()), abs(labels.forces - atoms.get_forces()).max()
            print(f"{level} {of}: energies differ by {energy:.1e} eV, forces by {forces:.1e} eV/Å")
            assert energy < 2e-5 and forces < 2e-5
            atoms.calc = engine(name).calculator(system)
            assert abs(labels.energy - atoms.get_potential_energy()) < 2e-5


def test_known_energies() -> None:
    """Water and methane at ASE's geometries, as tblite documents them; and PySCF without density fitting, within its error."""
    for of, energy in (("H2O", -137.96777625229421), ("CH4", -113.60956621093894)):
        found = engine("gfn2").label(System.from_atoms(molecule(of))).energy
        print(f"{of}: {found:.6f} eV, documented {energy:.6f}")
        assert found == pytest.approx(energy, abs=2e-5)
    from pyscf import dft as pyscf_dft
    from pyscf import gto

    system = structure("H2O")
    atoms = [(int(z), tuple(place)) for z, place in zip(system.numbers, system.positions, strict=True)]
    field = pyscf_dft.RKS(gto.M(atom=atoms, basis="def2-svp", verbose=0), xc="PBE")
    field.grids.level = 3
    direct, ours = field.kernel() * HARTREE, engine("pyscf:PBE/def2-SVP").label(system)
    print(f"density fitting: {ours.energy - direct:.1e} eV")
    assert 0 < abs(ours.energy - direct) < 5e-3
    slope = -field.nuc_grad_method().kernel() * HARTREE / BOHR
    assert abs(slope - ours.forces).max() < 5e-3


def test_labels_do_not_depend_on_what_was_labelled_before() -> None:
    chosen, system = engine("gfn2"), structure("CH3CH2OH")
    first = chosen.label(system)
    chosen.label(structure("CH3CH2OH", seed=5))
    again = chosen.label(system)
    assert first.energy == again.energy and np.array_equal(first.forces, again.forces)


def test_periodic_xtb() -> None:
    atoms = molecule("CH3OH", cell=[[5.0, 0, 0], [1.0, 5.5, 0], [0, 0.5, 5.0]], pbc=True)
    worst = largest_difference("gfn2", System.from_atoms(atoms), [(0, 0), (2, 1)])
    print(f"methanol in a triclinic cell: {worst:.1e} eV/Å")
    assert worst < 1e-4


def test_any_ase_calculator() -> None:
    from ase.calculators.lj import LennardJones

    atoms = ase.Atoms("Ar3", [[0, 0, 0], [3.8, 0, 0], [0, 4.0, 0]])
    chosen = engine("ase:lj.LennardJones", sigma=3.4, epsilon=0.01, rc=12.0)
    labels = chosen.label(System.from_atoms(atoms))
    atoms.calc = LennardJones(sigma=3.4, epsilon=0.01, rc=12.0)
    assert labels.energy == atoms.get_potential_energy() and np.array_equal(labels.forces, atoms.get_forces())
    print(chosen.level, chosen.version)
    assert chosen.level == "LennardJones epsilon=0.01 rc=12.0 sigma=3.4" and chosen.version == f"ase {ase.__version__}"
    # Charge and spin go where the settings say, checked through tblite's calculator.
    told = engine(
        "ase:tblite.ase.TBLite", method="GFN2-xTB", charge="{charge}", multiplicity="{spin}", accuracy=0.1, verbosity=0, level="GFN2-xTB"
    )
    for system in (structure("CN", -1), structure("CH3", 0, 2)):
        assert told.label(system).energy == pytest.approx(engine("gfn2").label(system).energy, abs=2e-5)
    assert told.level == "GFN2-xTB"


def test_a_model_as_engine(tmp_path: Path) -> None:
    from forcewell import calculator, load
    from forcewell.checkpoint import find_model

    system = structure("CH3CH2OH")
    chosen, atoms = engine("forcewell-small"), structure("CH3CH2OH").to_atoms()
    atoms.calc = calculator(load(find_model("forcewell-small")))
    labels = chosen.label(system)
    print(chosen.level, chosen.version, f"{labels.energy - atoms.get_potential_energy():.1e} eV")
    assert labels.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-3)
    assert abs(labels.forces - atoms.get_forces()).max() < 1e-3
    assert chosen.level.startswith("B3LYP/6-31G(2df,p) by forcewell-small")
    shutil.copy(find_model("forcewell-small"), tmp_path / "model.safetensors")
    assert engine(str(tmp_path)).label(system).energy == labels.energy  # a run's folder
    with pytest.raises(InputError, match="is a folder without a model"):
        engine(str(tmp_path.parent))


def test_an_scf_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """PySCF: second order takes over after DIIS; where that fails, too, the frame fails, and says so. tblite: likewise."""
    system = structure("H2O")
    expected = engine("pyscf:HF/STO-3G").label(system)
    monkeypatch.setattr(dft, "CYCLES", 1)
    rescued = engine("pyscf:HF/STO-3G").label(system)
    print(f"to second order: {rescued.energy - expected.energy:.1e} eV, forces {abs(rescued.forces - expected.forces).max():.1e} eV/Å")
    assert rescued.energy == pytest.approx(expected.energy, abs=1e-6) and abs(rescued.forces - expected.forces).max() < 1e-4
    from pyscf.soscf import newton_ah

    monkeypatch.setattr(newton_ah._CIAH_SOSCF, "kernel", lambda self, *_, **__: setattr(self, "converged", False))
    with pytest.raises(EngineFailure, match="did not converge in 1 cycles, nor to second order"):
        engine("pyscf:HF/STO-3G").label(system)
    import tblite.interface

    def failing(self: Any, *_: Any) -> None:
        raise RuntimeError("SCF not converged in 250 cycles")

    monkeypatch.setattr(tblite.interface.Calculator, "singlepoint", failing)
    with pytest.raises(EngineFailure, match="GFN2-xTB: SCF not converged in 250 cycles"):
        engine("gfn2").label(system)


def test_a_gpu_is_used_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for CuPy and gpu4pyscf: the mean field moves to the GPU, and its gradient comes back."""
    from pyscf.df import df_jk

    assert not dft.gpu_present()
    runtime = types.SimpleNamespace(getDeviceCount=lambda: 1)
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=runtime)))
    monkeypatch.setitem(sys.modules, "gpu4pyscf", types.ModuleType("gpu4pyscf"))
    moved: list[Any] = []
    monkeypatch.setattr(df_jk._DFHF, "to_gpu", lambda self: moved.append(self) or self)
    chosen = engine("pyscf:HF/STO-3G")
    chosen.label(structure("H2O"))
    assert len(moved) == 1 and chosen.version.endswith("gpu4pyscf")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("gfn3", {}, "unknown engine 'gfn3'; did you mean 'gfn2'.; expected gfn2, gfn1, pyscf:METHOD/BASIS"),
        ("gfn2", {"acuracy": 1.0}, "engine 'gfn2' has no setting 'acuracy'; did you mean 'accuracy'"),
        ("gfn2", {"accuracy": "high"}, "accuracy is 'high'; expected a value like 0.1"),
        ("pyscf:PBE", {}, "not of the form pyscf:METHOD/BASIS"),
        ("pyscf:PBEE/STO-3G", {}, "PySCF knows no method 'PBEE'"),
        ("pyscf:SVWN/STO-3G+d4", {}, "there are no d4 parameters for 'SVWN'"),
        ("ase:EMT", {}, "not of the form ase:MODULE.CLASS"),
        ("ase:emt.ETM", {}, "ase.calculators.emt has no ASE calculator 'ETM'"),
        ("ase:nowhere.Thing", {}, "there is no module 'nowhere'"),
        ("ase:os.system", {}, "os has no ASE calculator 'system'"),
        ("ase:tblite.ase.TBLite", {"method": "GFN7"}, None),
        ("no.safetensors", {}, "no.safetensors does not exist"),
    ],
)
def test_bad_engines(name: str, settings: dict[str, Any], message: str | None) -> None:
    if message is None:  # known only when it computes: the frame's failure, not the program's end
        with pytest.raises(EngineFailure, match="TBLite method=GFN7"):
            engine(name, **settings).label(structure("H2O"))
        return
    with pytest.raises(InputError, match=message) as caught:
        engine(name, **settings)
    print(caught.value)


@pytest.mark.parametrize(
    ("name", "missing"), [("gfn2", "tblite.interface"), ("pyscf:PBE/STO-3G", "pyscf"), ("pyscf:PBE/STO-3G+d4", "pyscf.dispersion")]
)
def test_an_engine_that_is_not_installed(name: str, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(InputError, match=r"needs .*: pip install 'forcewell\[qm\]'") as caught:
        engine(name)
    print(caught.value)


def test_what_an_engine_does_not_have() -> None:
    radical, uranium = structure("CH3"), System.from_atoms(ase.Atoms("U"))
    for name in ("gfn2", "pyscf:HF/STO-3G", "ase:emt.EMT", "forcewell-small"):
        with pytest.raises(InputError, match="9 electrons cannot have spin multiplicity 1; expected an even multiplicity"):
            engine(name).label(radical)
    told = structure("CH3", spin=2)
    cases = [
        ("gfn2", uranium, "GFN2-xTB has no parameters for U; it goes up to Rn"),
        ("pyscf:PBE/6-31G*", System.from_atoms(ase.Atoms("I2", [[0, 0, 0], [0, 0, 2.7]])), r"PySCF has no basis '6-31G\*' for I"),
        ("ase:emt.EMT", told, "CH3 has spin 2, of which engine 'ase:emt.EMT' is not told"),
        ("forcewell-small", told, "CH3: the model does not know of charge 0 and spin 2"),
        ("forcewell-small", System.from_atoms(molecule("SiH4")), "the model never saw Si"),
        ("pyscf:HF/STO-3G", System.from_atoms(bulk("Si")), "takes molecules, not periodic structures"),
    ]
    for name, system, message in cases:
        with pytest.raises(InputError, match=message) as caught:
            engine(name).label(system)
        print(caught.value)


def test_what_dft_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, settings, message in (
        ("pyscf:PBE/STO-3G", {"grid_level": 12}, "grid_level is 12; expected 0 to 9"),
        ("pyscf:wB97X-D/STO-3G", {}, "PySCF knows no method 'wB97X-D'"),
    ):
        with pytest.raises(InputError, match=message):
            engine(name, **settings)
    with pytest.raises(InputError, match=r"PySCF has no basis '6-31G\*\+d3' for H"):
        engine("pyscf:PBE/6-31G*+d3").check(structure("H2O"))


def test_a_dispersion_in_the_functionals_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "pyscf-dispersion" in engine("pyscf:wB97X-D3BJ/STO-3G").version
    assert "pyscf-dispersion" not in engine("pyscf:wB97X/STO-3G").version
    monkeypatch.setitem(sys.modules, "pyscf.dispersion", None)
    with pytest.raises(InputError, match="needs pyscf-dispersion"):
        engine("pyscf:wB97X-D3BJ/STO-3G")


def test_heavy_elements_have_their_cores() -> None:
    """def2 bases replace iodine's 28 inner electrons; without that its energy would be of an atom with no inner shells."""
    field = dft.DFT("pyscf:HF/def2-SVP")._field(System.from_atoms(ase.Atoms("IH", [[0, 0, 0], [0, 0, 1.6]])))
    assert field.mol.nelectron == 54 - 28


def test_labelling_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ase.io import write

    frames = [molecule("H2O"), molecule("CH3"), molecule("CH3CH2OH")]
    for k, atoms in enumerate(frames):
        atoms.rattle(0.05, seed=k)
        atoms.set_initial_magnetic_moments(None)
    write(tmp_path / "in.xyz", frames)
    command = ["generate", "label", str(tmp_path / "in.xyz"), "--engine", "gfn2", "--set", "accuracy=0.05", "--workers", "1"]
    main([*command, "--out", str(tmp_path / "out.fw")])
    said = capsys.readouterr().out
    print(said)
    assert "1 done, 0 failed, 0 left; 2 frames" in said and "1 frames left out" in said and "9 electrons cannot have" in said
    store = Store(tmp_path / "out.fw")
    assert store.levels == ["GFN2-xTB"] and store.manifest["left_out"] == 1
    frame = store[1]
    about = json.loads(frame.engine)
    assert (about["engine"], about["settings"]["accuracy"]) == ("gfn2", 0.05) and about["version"].startswith("tblite ")
    direct = engine("gfn2", accuracy=0.05).label(System.from_atoms(frames[2]))
    assert float(frame.arrays["energy"]) == pytest.approx(direct.energy, abs=1e-6)
    main([*command, "--out", str(tmp_path / "out.fw")])  # nothing to do
    assert "1 done" in capsys.readouterr().out
    for wrong, message in ((["--executor", "slurm"], "unknown executor"), (["--count", "9"], "--count is 9; expected 1 to 3")):
        with pytest.raises(SystemExit) as caught:
            main([*command, "--out", str(tmp_path / "other.fw"), *wrong])
        assert caught.value.code == 2 and message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([word.replace("0.05", "0.1") for word in command] + ["--out", str(tmp_path / "out.fw")])
    assert 'holds another campaign (engine_settings: {"accuracy": 0.05' in capsys.readouterr().err
    write(tmp_path / "radical.xyz", frames[1])
    with pytest.raises(SystemExit):
        main(["generate", "label", str(tmp_path / "radical.xyz"), "--engine", "gfn2", "--out", str(tmp_path / "none.fw"), "--workers", "1"])
    assert "nothing could be labelled: CH3" in capsys.readouterr().err and not (tmp_path / "none.fw").exists()


def test_provenance_is_kept_and_old_labels_go() -> None:
    system = structure("H2O")
    system.properties = {"temperature": 500.0, "time": 20.0, "gap": 3.0}
    system.arrays |= {"equilibrium": np.int8(1), "stress": np.eye(3)}  # type: ignore[dict-item]
    frame = labelled(system, engine("gfn2"), seed=7, trajectory=3, temperature=300)
    assert frame.properties == {"temperature": 300.0, "time": 20.0, "seed": 7.0, "trajectory": 3.0}
    assert "stress" not in frame.arrays and "equilibrium" not in frame.arrays and frame.level == "GFN2-xTB"
