"""The ASE calculator: numerical forces and stress, and MD in ASE equal to MD here, with the default encoder."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import ase
import ase.build
import numpy as np
import pytest
import torch
from analytic import ETHANOL, WATER, MorseNetwork
from ase.calculators.calculator import PropertyNotImplementedError

import forcewell.integrators as integrators
from forcewell.ase_calculator import calculator
from forcewell.batch import Batch
from forcewell.checkpoint import save_model
from forcewell.errors import InputError
from forcewell.potential import Potential

SMALL = {"encoder": {"name": "equivariant-transformer", "channels": 16, "layers": 2, "heads": 4, "radial": 8, "cutoff": 4.0}}


@pytest.fixture(scope="module")
def potential() -> Potential:
    torch.manual_seed(0)
    references = {"dft": np.arange(119) * -10.0}
    return Potential(SMALL, levels=("dft",), references=references, elements=(1, 6, 8)).float()


def numerical(atoms: ase.Atoms, step: float = 1e-3) -> np.ndarray:
    """Fourth-order finite differences of the energy, (n, 3) eV/Å."""
    forces = np.zeros((len(atoms), 3))
    for atom in range(len(atoms)):
        for axis in range(3):
            for shift, weight in ((-2, 1), (-1, -8), (1, 8), (2, -1)):
                moved = atoms.copy()
                moved.calc = atoms.calc
                moved.positions[atom, axis] += shift * step
                forces[atom, axis] -= weight * moved.get_potential_energy() / (12 * step)
    return forces


def test_forces_are_the_gradient(potential: Potential) -> None:
    atoms = ETHANOL.to_atoms()
    atoms.calc = calculator(potential)
    worst = np.abs(atoms.get_forces() - numerical(atoms)).max()
    print("forces differ from finite differences by", worst, "of", np.abs(atoms.get_forces()).max())
    assert worst < 2e-9
    assert np.abs(atoms.get_forces()).max() > 1e-3


def test_stress_is_the_strain_derivative(potential: Potential) -> None:
    atoms = ETHANOL.to_atoms()
    atoms.set_cell([[7.0, 0.3, 0], [0, 6.5, 0.2], [0, 0, 6.0]])
    atoms.pbc = True
    atoms.calc = calculator(potential)
    from ase.calculators.fd import calculate_numerical_stress

    reference = calculate_numerical_stress(atoms, eps=1e-4)
    worst = np.abs(atoms.get_stress() - reference).max()
    print("stress differs from finite strain by", worst, "of", np.abs(reference).max())
    assert worst < 5e-10


def test_energy_is_that_of_predict(potential: Potential) -> None:
    atoms = WATER.to_atoms()
    atoms.calc = calculator(potential, dtype="float32")
    out = potential.predict([atoms])
    assert atoms.get_potential_energy() == pytest.approx(out["energy"][0], abs=1e-6)
    assert atoms.get_potential_energy() == pytest.approx(-100.0, abs=5.0)  # references: -80 - 10 - 10
    assert np.allclose(atoms.get_forces(), out["forces"][0], atol=1e-6)
    assert potential.dtype == torch.float32


def test_md_in_ase_equals_md_here(potential: Potential) -> None:
    from ase.md.verlet import VelocityVerlet

    from forcewell.units import ACCELERATION

    double = Potential(SMALL, levels=("dft",), elements=(1, 6, 8)).double()
    double.load_state_dict({name: value.double() if value.is_floating_point() else value for name, value in potential.state_dict().items()})
    batch = Batch.from_systems([WATER, ETHANOL], dtype=torch.float64)
    state = integrators.init(batch, double, temperature=300.0, generator=torch.Generator().manual_seed(0))
    atoms = ETHANOL.to_atoms()
    atoms.calc = calculator(potential)
    atoms.set_velocities(state.velocities[3:].numpy() / ACCELERATION**0.5)
    run = VelocityVerlet(atoms, 0.5 * ACCELERATION**0.5)
    for _ in range(50):
        integrators.verlet_step(state, double, 0.5)
        run.run(1)
    worst = np.abs(atoms.positions - state.positions[3:].numpy()).max()
    print("positions differ from ASE's by", worst)
    assert worst < 1e-12


def test_refusals(potential: Potential) -> None:
    atoms = ase.build.molecule("CH3Cl")
    atoms.calc = calculator(potential)
    with pytest.raises(InputError, match="never saw Cl"):
        atoms.get_potential_energy()
    water = WATER.to_atoms()
    water.calc = calculator(potential)
    with pytest.raises(PropertyNotImplementedError, match="periodic"):  # which code for any calculator looks for
        water.get_stress()
    water.info["charge"] = 1
    with pytest.warns(UserWarning, match="the atoms are charged or not singlets, which this model does not see"):
        water.get_potential_energy()
    with pytest.raises(InputError, match="unknown dtype"):
        calculator(potential, dtype="float16")
    with pytest.raises(InputError, match="level of theory"):
        calculator(potential, level="hf")


def test_a_model_by_name_or_path(potential: Potential, tmp_path: Path) -> None:
    atoms = WATER.to_atoms()
    save_model(tmp_path / "model.safetensors", potential)
    energies = []
    for given in (potential, tmp_path / "model.safetensors", str(tmp_path / "model.safetensors")):
        atoms.calc = calculator(given)
        energies.append(atoms.get_potential_energy())
    assert energies[0] == energies[1] == energies[2]
    atoms.calc = calculator("forcewell-small")
    assert np.isfinite(atoms.get_forces()).all()
    with pytest.raises(InputError, match="no-such-model"):
        calculator("no-such-model")
    with pytest.raises(InputError, match="takes a potential, a model file or a model's name, not int"):
        calculator(3)
    with pytest.raises(InputError, match=r"device 'cuda:99' cannot be used here \(.*\); try cpu"):
        calculator(potential, device="cuda:99")


@pytest.mark.parametrize("copied", [lambda thing: pickle.loads(pickle.dumps(thing)), copy.deepcopy])
def test_copies_and_pickles(copied: Callable[[Any], Any], potential: Potential) -> None:
    """Also after the compiled kernels were used, which are addresses in this process."""
    atoms = ETHANOL.to_atoms()
    before = potential.predict([atoms])
    after = copied(potential).predict([atoms])
    assert np.array_equal(before["energy"], after["energy"]) and np.array_equal(before["forces"][0], after["forces"][0])
    for dtype in ("float32", "float64"):
        atoms.calc = calculator(potential, dtype=dtype)
        energy, again = atoms.get_potential_energy(), ETHANOL.to_atoms()
        again.calc = copied(atoms.calc)
        again.calc.reset()
        assert again.get_potential_energy() == energy
        again.positions[0, 0] += 0.01
        assert again.get_potential_energy() != energy == atoms.get_potential_energy()


def test_other_processes_compute(potential: Potential) -> None:
    atoms = WATER.to_atoms()
    atoms.calc = calculator(potential)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(ase.Atoms.get_potential_energy, atoms).result() == atoms.get_potential_energy()


def test_level_chooses_the_energy_zero() -> None:
    atoms = WATER.to_atoms()
    energies = []
    for level in ("first", None):
        atoms.calc = calculator(MorseNetwork(), level=level)
        energies.append(atoms.get_potential_energy())
    assert energies[1] - energies[0] == pytest.approx(100.0)
