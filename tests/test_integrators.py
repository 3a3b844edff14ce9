"""Integrators against ASE, step by step, and against the canonical distribution."""

from __future__ import annotations

import math

import ase
import ase.units
import numpy as np
import pytest
import torch
from analytic import ETHANOL, WATER, MorseNetwork
from ase.md.langevinbaoab import LangevinBAOAB
from ase.md.nose_hoover_chain import NoseHooverChainNVT
from ase.md.verlet import VelocityVerlet

import forcewell.integrators as integrators
from forcewell.ase_calculator import calculator
from forcewell.batch import Batch
from forcewell.evaluate.conservation import conservation
from forcewell.units import ACCELERATION, BOLTZMANN, thermal_energy

STEPS, TIMESTEP, TEMPERATURE = 200, 0.5, 400.0
# ASE's constants are CODATA 2014: its unit of time is derived here from ours, so that both integrate the same numbers.
ASE_TIME = math.sqrt(ACCELERATION)  # ASE times per fs
ASE_TEMPERATURE = TEMPERATURE * BOLTZMANN / ase.units.kB
SYSTEMS = [WATER, ETHANOL]


def start(fix_center: bool, chain: int = 0) -> tuple[MorseNetwork, integrators.State, list[ase.Atoms]]:
    """Two molecules in one batch, and the same molecules with the same velocities for ASE."""
    potential = MorseNetwork()
    batch = Batch.from_systems(SYSTEMS, dtype=torch.float64, level=1)
    generator = torch.Generator().manual_seed(3)
    state = integrators.init(batch, potential, temperature=TEMPERATURE, generator=generator, fix_center=fix_center, chain=chain)
    molecules = []
    for index, system in enumerate(SYSTEMS):
        atoms = system.to_atoms()
        atoms.calc = calculator(potential)
        atoms.set_velocities(state.velocities[batch.molecule == index].numpy() / ASE_TIME)
        molecules.append(atoms)
    return potential, state, molecules


def difference(state: integrators.State, molecules: list[ase.Atoms]) -> float:
    """Largest difference of positions (Å), velocities (Å/fs) and energies (eV)."""
    positions = np.concatenate([atoms.positions for atoms in molecules]) - state.positions.numpy()
    velocities = np.concatenate([atoms.get_velocities() for atoms in molecules]) * ASE_TIME - state.velocities.numpy()
    energies = np.array([atoms.get_potential_energy() for atoms in molecules]) - state.energy.numpy()
    return max(float(np.abs(part).max()) for part in (positions, velocities, energies))


def test_verlet_equals_ase() -> None:
    potential, state, molecules = start(fix_center=True)
    first = state.positions.clone()
    runs = [VelocityVerlet(atoms, TIMESTEP * ASE_TIME) for atoms in molecules]
    worst = 0.0
    for _ in range(STEPS):
        integrators.verlet_step(state, potential, TIMESTEP)
        for run in runs:
            run.run(1)
        worst = max(worst, difference(state, molecules))
    print("velocity Verlet, largest difference from ASE", worst)  # 5e-14
    assert worst < 1e-12
    assert float((state.positions - first).abs().max()) > 0.1  # it moved


@pytest.mark.parametrize(("links", "loops"), [(3, 1), (1, 2)])
def test_nose_hoover_equals_ase(links: int, loops: int) -> None:
    # ASE counts 3n degrees of freedom whatever the momentum, so the centre is left free here.
    potential, state, molecules = start(fix_center=False, chain=links)
    period = 20.0
    runs = [
        NoseHooverChainNVT(atoms, TIMESTEP * ASE_TIME, ASE_TEMPERATURE, tdamp=period * ASE_TIME, tchain=links, tloop=loops)
        for atoms in molecules
    ]
    worst = conserved = 0.0
    begin = (state.energy + integrators.kinetic_energy(state) + integrators.thermostat_energy(state, TEMPERATURE, period)).numpy()
    for _ in range(STEPS):
        integrators.nose_hoover_step(state, potential, TIMESTEP, TEMPERATURE, period, loops)
        for run in runs:
            run.run(1)
        worst = max(worst, difference(state, molecules))
        whole = (state.energy + integrators.kinetic_energy(state) + integrators.thermostat_energy(state, TEMPERATURE, period)).numpy()
        conserved = max(conserved, float(np.abs(whole - begin).max()))
        assert np.abs(whole - [run.get_conserved_energy() for run in runs]).max() < 1e-10
    print("Nosé-Hoover, largest difference from ASE", worst, "conserved energy moves by", conserved)
    assert worst < 1e-12
    assert conserved < 0.05  # eV, of a kinetic energy of 0.5 eV; O(h²)
    assert float(state.chain[0].abs().max()) > 0.01  # the chains act


class SameNoise:
    """Hands ASE the rows of the noise that one molecule of the batch gets."""

    def __init__(self, rows: torch.Tensor, state: integrators.State) -> None:
        self.generator = torch.Generator()
        self.generator.set_state(state.generator.get_state())
        self.rows, self.shape = rows, state.positions.shape

    def normal(self, size: tuple[int, int]) -> np.ndarray:
        return torch.randn(self.shape, generator=self.generator, dtype=torch.float64)[self.rows].numpy()


def test_langevin_equals_ase() -> None:
    potential, state, molecules = start(fix_center=False)
    friction = 0.02
    runs = []
    for index, atoms in enumerate(molecules):
        run = LangevinBAOAB(atoms, TIMESTEP * ASE_TIME, temperature_K=ASE_TEMPERATURE, T_tau=ASE_TIME / friction, rng=0)
        run.rng = SameNoise(state.batch.molecule == index, state)  # type: ignore[assignment]
        runs.append(run)
    worst = 0.0
    for _ in range(STEPS):
        integrators.langevin_step(state, potential, TIMESTEP, TEMPERATURE, friction)
        for run in runs:
            run.run(1)
        worst = max(worst, difference(state, molecules))
    print("Langevin BAOAB, largest difference from ASE", worst)
    assert worst < 1e-12


def test_fixed_center_stays() -> None:
    potential, state, _ = start(fix_center=True, chain=3)
    center = integrators.per_molecule(state.masses * state.positions, state.batch)
    assert state.freedom.tolist() == [6.0, 24.0]
    for _ in range(100):
        integrators.langevin_step(state, potential, TIMESTEP, TEMPERATURE, 0.02)
        integrators.nose_hoover_step(state, potential, TIMESTEP, TEMPERATURE, 50.0)
    moved = float((integrators.per_molecule(state.masses * state.positions, state.batch) - center).abs().max())
    print("centre of mass times mass moved by", moved, "amu Å")
    assert moved < 1e-9


def test_one_atom_keeps_its_momentum() -> None:
    from forcewell.system import System

    atom = System({"numbers": np.array([8]), "positions": np.zeros((1, 3))})
    potential = MorseNetwork([atom], [1.0])
    batch = Batch.from_systems([atom] * 4000, dtype=torch.float64)
    state = integrators.init(batch, potential, temperature=300.0, generator=torch.Generator().manual_seed(0))
    for _ in range(30):
        integrators.langevin_step(state, potential, 1.0, 300.0, 0.1)
    mean = float(integrators.temperatures(state).mean())
    print("mean temperature of free atoms", mean)  # standard error 300 sqrt(2/12000) = 3.9 K
    assert abs(mean - 300.0) < 16
    assert state.freedom[0] == 3


@pytest.mark.parametrize("ensemble", ["langevin", "nose-hoover"])
def test_kinetic_energy_is_canonical(ensemble: str) -> None:
    """K of f degrees of freedom is gamma distributed: mean f/2 kT, variance f/2 (kT)²."""
    potential, copies, temperature = MorseNetwork(), 100, 300.0
    batch = Batch.from_systems([WATER] * copies + [ETHANOL] * copies, dtype=torch.float64)
    chain = 3 if ensemble == "nose-hoover" else 0
    state = integrators.init(batch, potential, temperature=temperature, generator=torch.Generator().manual_seed(1), chain=chain)
    samples = []
    for step in range(2000):
        if ensemble == "langevin":
            integrators.langevin_step(state, potential, 0.25, temperature, 0.05)
        else:
            integrators.nose_hoover_step(state, potential, 0.25, temperature, 20.0)
        if step >= 500 and step % 50 == 0:
            samples.append(integrators.kinetic_energy(state).numpy() / thermal_energy(temperature))
    kinetic = np.stack(samples)
    for name, part, freedom in (("water", kinetic[:, :copies], 6), ("ethanol", kinetic[:, copies:], 24)):
        mean, variance = part.mean() / (freedom / 2), part.var() / (freedom / 2)
        print(ensemble, name, "mean", mean, "variance", variance, "of the canonical")
        # Standard error of the mean 0.01 to 0.02; counting 3n degrees of freedom would be off by 0.13 (ethanol) and 0.5.
        assert abs(mean - 1) < 0.04
        assert abs(variance - 1) < 0.15


def test_langevin_samples_the_harmonic_potential_energy() -> None:
    """At low temperature a molecule is 3n - 6 harmonic oscillators with kT/2 of potential energy each; BAOAB has no error there."""
    potential, copies, temperature = MorseNetwork(), 100, 1.0
    batch, generator = Batch.from_systems([ETHANOL] * copies, dtype=torch.float64), torch.Generator().manual_seed(2)
    state = integrators.init(batch, potential, temperature=temperature, generator=generator)
    samples = []
    for step in range(2000):
        integrators.langevin_step(state, potential, 0.5, temperature, 0.05)
        if step >= 500 and step % 40 == 0:
            samples.append((state.energy - state.zero).mean().item())
    ratio = float(np.mean(samples)) / (21 / 2 * thermal_energy(temperature))
    print("potential energy over (3n - 6) kT / 2:", ratio)
    assert abs(ratio - 1) < 0.03


def test_energy_error_falls_with_the_square_of_the_step() -> None:
    potential = MorseNetwork()
    deviations = []
    for timestep in (0.5, 0.25):
        generator = torch.Generator().manual_seed(4)
        state = integrators.init(Batch.from_systems([ETHANOL], dtype=torch.float64), potential, temperature=500.0, generator=generator)
        energies = []
        for _ in range(round(500 / timestep)):
            integrators.verlet_step(state, potential, timestep)
            energies.append(float(state.energy + integrators.kinetic_energy(state)))
        kept = conservation(np.arange(len(energies)) * timestep / 1000, np.array(energies), len(ETHANOL))
        deviations.append(kept.deviation)
    print("largest deviation of the energy, meV/atom", deviations, "ratio", deviations[0] / deviations[1])
    assert 3.0 < deviations[0] / deviations[1] < 5.0


def test_taking_a_replica_out_leaves_the_others_alone() -> None:
    potential, whole, _ = start(fix_center=True)
    _, part, _ = start(fix_center=True)
    part = part.take(torch.tensor([False, True]))
    for _ in range(20):
        integrators.langevin_step(whole, potential, TIMESTEP, TEMPERATURE, 0.02)
    for _ in range(20):
        integrators.langevin_step(part, MorseNetwork(), TIMESTEP, TEMPERATURE, 0.02)
    assert torch.equal(whole.positions[whole.batch.molecule == 1], part.positions)
