"""Ring-opening enthalpies: error bars against known statistics, the estimator against an analytic model, the harmonic correction."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from forcewell.engines import Engine, Labels, labelled
from forcewell.errors import InputError
from forcewell.generate.dynamics import molecular_dynamics
from forcewell.generate.enthalpy import Average, average, endless, per_repeat_unit
from forcewell.generate.ring_energies import from_dynamics, from_minima, loops_in, thermal_enthalpy
from forcewell.generate.ring_opening import loop, open_ring
from forcewell.generate.species import bare, read_species, without_stereo
from forcewell.generate.vibrations import Modes
from forcewell.store import MemoryData, StoreWriter
from forcewell.system import System, block_of
from forcewell.units import thermal_energy

MONOMER = "O=C1CCCO1"


def correlated(generator: np.random.Generator, frames: int, rho: float) -> np.ndarray:
    """A stationary series of variance 1 with correlation rho**k, about 0."""
    from scipy.signal import lfilter

    noise = math.sqrt(1 - rho**2) * generator.normal(size=frames)
    noise[0] = generator.normal()
    return lfilter([1.0], [1.0, -rho], noise)


def exact_error(trajectories: int, frames: int, rho: float, apart: float) -> float:
    """Standard error of the mean of such series, each about a value of its own of standard deviation ``apart``."""
    lag = np.arange(1, frames)
    inside = (1 + 2 * np.sum((1 - lag / frames) * rho**lag)) / frames
    return math.sqrt((inside + apart**2) / trajectories)


@pytest.mark.parametrize(
    ("trajectories", "frames", "rho", "apart"),
    [(1, 2000, 0.0, 0.0), (1, 4000, 0.9, 0.0), (10, 100, 0.5, 0.0), (10, 100, 0.9, 0.0), (10, 100, 0.8, 1.0)],
)
def test_error_bars_are_those_of_the_statistics(trajectories: int, frames: int, rho: float, apart: float) -> None:
    generator, found, within = np.random.default_rng(1), [], 0
    for _ in range(200):
        series = [correlated(generator, frames, rho) + apart * generator.normal() for _ in range(trajectories)]
        one = average(series)
        found.append(one.error)
        within += abs(one.mean) < 2 * one.error
    true = exact_error(trajectories, frames, rho, apart)
    naive = math.sqrt((1 + apart**2) / frames / trajectories)
    ratio = float(np.mean(found)) / true
    print(f"error bar / true error {ratio:.3f}; as if frames were independent {naive / true:.3f}; within two error bars {within / 200:.3f}")
    assert 0.85 < ratio < 1.1
    assert within / 200 > 0.87  # 0.954 if the error were known exactly
    assert rho == 0 or naive / true < 0.6  # the control: an estimate that ignores correlation fails these bounds


def test_the_average_of_unequal_trajectories_is_over_frames() -> None:
    one = average([np.array([1.0, 2.0, 3.0]), np.array([4.0]), np.zeros(0)])
    assert (one.mean, one.frames, one.trajectories) == (2.5, 4, 2)
    assert average([np.full(8, 2.0)]).error == 0.0
    with pytest.raises(InputError, match="3 frames are too few"):
        average([np.ones(3)])


def test_the_limit_is_recovered_with_its_error() -> None:
    """E(L) = L e + a, with normal errors of known size: the fit's deviations are as large as it says, in the mean over 400 tries."""
    generator, energy, strain, monomer = np.random.default_rng(2), -10.0, 0.3, -9.8
    errors = {1: 0.004, 3: 0.02, 4: 0.03, 5: 0.03, 6: 0.05}
    deviations = []
    for _ in range(400):
        loops = {1: Average(monomer + errors[1] * generator.normal(), errors[1], 100, 10)}
        for repeats in (3, 4, 5, 6):
            value = repeats * energy + strain + errors[repeats] * generator.normal()
            loops[repeats] = Average(value, errors[repeats], 100, 10)
        limit = endless(loops)
        assert limit is not None
        deviations.append((limit.value - (energy - monomer)) / limit.error)
    print(f"deviation / error: mean {np.mean(deviations):.3f}, standard deviation {np.std(deviations):.3f}")
    assert abs(np.mean(deviations)) < 0.15
    assert 0.75 < np.std(deviations) < 1.1  # below 1, since errors are scaled up, never down


def test_exact_energies_give_the_exact_limit() -> None:
    loops = {repeats: Average(-10.0 * repeats + 0.3, 0.0, 1, 1) for repeats in (3, 4, 6)} | {1: Average(-9.8, 0.0, 1, 1)}
    limit = endless(loops)
    assert limit is not None
    assert limit.value == pytest.approx(-0.2, abs=1e-12)
    assert limit.slope == pytest.approx(0.3, abs=1e-11)
    assert limit.error < 1e-12
    assert [unit.value for unit in per_repeat_unit(loops)] == pytest.approx([-0.1, -0.125, -0.15])
    assert endless({1: loops[1], 3: loops[3]}) is None


class Wells(Engine):
    """Every atom in a harmonic well about the origin: the mean energy at T is ``bottom`` + 3 n k_B T / 2, whatever the constants."""

    name, level, version, settings = "wells", "wells", "1", {}
    stiffness = 2.0  # eV/Å²
    bottoms: ClassVar[dict[int, float]] = {}  # by number of atoms, eV

    def label(self, system: System) -> Labels:
        positions = system.positions
        return Labels(self.bottoms[len(system)] + 0.5 * self.stiffness * float((positions**2).sum()), -self.stiffness * positions)

    def calculator(self, system: System, accuracy: float | None = None) -> Any:
        engine = self

        class Calculator:
            def get_forces(self, atoms: Any) -> np.ndarray:
                return -engine.stiffness * atoms.positions

        return Calculator()


@pytest.fixture(scope="module")
def sampled() -> MemoryData:
    """Trajectories at 400 K of a monomer and its loops in wells with bottoms at L e + a, by the package's own dynamics."""
    engine, frames = Wells(), []
    for repeats in (1, 3, 4):
        species = read_species(loop(open_ring(MONOMER), repeats))
        start = bare(species, np.zeros((len(species.numbers), 3)))
        start.smiles = species.smiles
        Wells.bottoms[len(start)] = -9.8 if repeats == 1 else -10.0 * repeats + 0.3
        for seed in range(3):
            run = molecular_dynamics(start, engine, 400.0, frames=100, seed=10 * repeats + seed, timestep=2.0, spacing=20.0)
            # As dynamics gives positions about the centre, which the wells know: the energy of the centre's motion is put back on average.
            for time, frame in run:
                made = labelled(frame, engine, temperature=400.0, seed=seed, trajectory=10 * repeats + seed, time=time)
                made.arrays["energy"] = made.arrays["energy"] + 1.5 * thermal_energy(400.0)
                frames.append(dataclasses.replace(made, source="loop molecular dynamics"))
    return MemoryData.from_systems(frames)


def test_enthalpies_of_an_analytic_model(sampled: MemoryData) -> None:
    (found,) = from_dynamics(sampled)
    assert (found.quantity, found.temperature, found.monomer) == ("enthalpy", 400.0, MONOMER)
    for repeats, one in found.loops.items():
        exact = Wells.bottoms[12 * repeats] + 1.5 * 12 * repeats * thermal_energy(400.0)
        print(f"L = {repeats}: {one.mean:.4f} ± {one.error:.4f} eV, exact {exact:.4f}")
        assert abs(one.mean - exact) < 4 * one.error
        assert one.error < 0.12
    for unit in found.units:
        exact = (-10.0 * unit.repeats + 0.3) / unit.repeats + 9.8
        assert abs(unit.value - exact) < 4 * unit.error
    assert found.limit is not None and abs(found.limit.value + 0.2) < 4 * found.limit.error
    # The control: bottoms alone, without the thermal energy, are more than ten error bars off.
    assert abs(found.loops[4].mean - Wells.bottoms[48]) > 10 * found.loops[4].error


def test_what_cannot_be_averaged(sampled: MemoryData) -> None:
    systems = [sampled[k] for k in range(len(sampled))]
    with pytest.raises(InputError, match="no trajectories at 300 K"):
        from_dynamics(sampled, 300.0)
    with pytest.raises(InputError, match="no energies of a minimum"):
        from_minima(sampled)
    with pytest.raises(InputError, match="both a monomer"):
        from_dynamics(MemoryData.from_systems([one for one in systems if len(one) > 12]))
    other = [dataclasses.replace(one, level="another") if len(one) > 12 else one for one in systems]
    with pytest.raises(InputError, match=r"2 levels \(another, wells\)"):
        from_dynamics(MemoryData.from_systems(other))
    told = [dataclasses.replace(one, level="another", engine=labelled(one, Wells(), moved_by=Wells()).engine) for one in systems]
    with pytest.raises(InputError, match="wells moved these molecules and another labelled them: energies would be of neither"):
        from_dynamics(MemoryData.from_systems(told))


@pytest.mark.parametrize(
    ("campaign", "said"),
    [
        ({"work": "forcewell.generate.polymers:polymer", "sampler": {"engine": "gfn1"}}, "gfn1 moved these molecules and wells labelled"),
        ({"work": "forcewell.generate.label:label", "engine": "wells"}, "does not say what moved these molecules before wells labelled"),
        ({"work": "forcewell.generate.polymers:polymer", "sampler": None}, ""),
    ],
)
def test_stores_whose_frames_do_not_say_what_moved_them(sampled: MemoryData, tmp_path: Path, campaign: dict[str, Any], said: str) -> None:
    writer = StoreWriter(tmp_path / "old.fw", settings={"campaign": campaign})
    for k in range(len(sampled)):
        writer.append(block_of([sampled[k]]))
    store = writer.finish()
    if not said:
        assert len(from_dynamics(store)) == 1
        return
    with pytest.raises(InputError, match=said):
        from_dynamics(store)


def test_single_points_give_energies_not_enthalpies(sampled: MemoryData) -> None:
    systems = [dataclasses.replace(sampled[k], source="loop minimum") for k in range(len(sampled))]
    with pytest.raises(InputError, match="none of its minima is flagged"):
        from_minima(MemoryData.from_systems(systems))
    for one in systems:
        one.arrays["equilibrium"] = np.int8(1)  # type: ignore[assignment]
    (found,) = from_minima(MemoryData.from_systems(systems))
    assert found.quantity == "energy" and math.isnan(found.temperature)
    lowest = {repeats: min(float(one.get("energy")) for one in systems if len(one) == 12 * repeats) for repeats in (1, 3, 4)}
    assert [unit.value for unit in found.units] == pytest.approx([lowest[r] / r - lowest[1] for r in (3, 4)])
    assert [unit.error for unit in found.units] == [0.0, 0.0]


def test_a_data_file_does_not_start_programs(sampled: MemoryData) -> None:
    told = json.dumps({"engine": "ase:mopac.MOPAC", "version": "1", "settings": {"command": "false"}})
    systems = [dataclasses.replace(sampled[k], source="loop minimum", engine=told) for k in range(0, len(sampled), 50)]
    for one in systems:
        one.arrays["equilibrium"] = np.int8(1)  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"made by ase:mopac\.MOPAC, whose program a file cannot start"):
        from_minima(MemoryData.from_systems(systems), 300.0)


def test_loops_are_found_by_their_graph() -> None:
    dodecane = without_stereo(loop(open_ring("C1CC1"), 4))
    assert dodecane == without_stereo(loop(open_ring("C1CCC1"), 3))  # shared by two families
    found = loops_in(["C1CC1", "C1CCC1", dodecane, "CCO", without_stereo(loop(open_ring("C1CO1"), 2))])
    assert found == {"C1CC1": {1: "C1CC1", 4: dodecane}, "C1CCC1": {1: "C1CCC1", 3: dodecane}}


def test_the_harmonic_correction_is_that_of_an_ideal_gas() -> None:
    """E + Σ hν (1/2 + 1/(exp(hν/kT) − 1)) + 3/2 kT + 3/2 kT + kT, with scipy's constants."""
    from scipy import constants

    water = System({"numbers": np.array([8, 1, 1], dtype=np.uint8), "positions": np.array([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0.0]])})
    waves, temperature = np.array([1595.0, 3657.0, 3756.0]), 500.0
    quantum = constants.h * constants.c * 100 * waves / constants.e
    thermal = constants.k * temperature / constants.e
    exact = -76.0 + float(np.sum(quantum * (0.5 + 1 / np.expm1(quantum / thermal)))) + 4 * thermal
    found = thermal_enthalpy(Modes(water, waves, np.zeros((3, 3, 3))), -76.0, temperature)
    print(f"{found - exact:.1e} eV")
    assert abs(found - exact) < 1e-5
