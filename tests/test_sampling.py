"""Sampling against independent paths: ASE's vibrations, equipartition, a planar ammonia that must not stay so, finite differences."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from forcewell.engines import Engine, EngineFailure, Labels, engine
from forcewell.generate import sampling
from forcewell.generate.campaign import JobFailure, engine_settings
from forcewell.generate.conformers import conformers
from forcewell.generate.dimers import FARTHEST, NEAREST, contact, dimer
from forcewell.generate.dynamics import molecular_dynamics
from forcewell.generate.planning import Sampling, molecule_jobs
from forcewell.generate.relaxation import moved, relax
from forcewell.generate.sampling import Sampler, molecule
from forcewell.generate.species import bare, intact, read_species
from forcewell.generate.torsions import scan_torsions
from forcewell.generate.vibrations import FLOOR, SOFT, Modes, normal_modes, sample_modes, settle
from forcewell.system import System
from forcewell.units import ACCELERATION, thermal_energy

pytest.importorskip("tblite")
GFN2 = engine("gfn2")


class Tethered(Calculator):
    """Each atom in a harmonic well of its own: energy k/2 Σ (r - r0)², whose thermal average is known exactly."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def __init__(self, centres: np.ndarray, stiffness: float) -> None:
        super().__init__()
        self.centres, self.stiffness = centres, stiffness

    def calculate(self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        apart = self.atoms.positions - self.centres
        self.results = {"energy": 0.5 * self.stiffness * (apart**2).sum(), "forces": -self.stiffness * apart}


class Wells(Engine):
    """An engine of tethered atoms."""

    def __init__(self, centres: np.ndarray, stiffness: float) -> None:
        self.name = self.level = self.version = "wells"
        self.settings, self.centres, self.stiffness = {}, centres, stiffness

    def label(self, system: System) -> Labels:
        apart = system.positions - self.centres
        return Labels(0.5 * self.stiffness * (apart**2).sum(), -self.stiffness * apart)

    def calculator(self, system: System, accuracy: float | None = None) -> Calculator:
        return Tethered(self.centres, self.stiffness)


def test_dynamics_is_canonical_at_any_stable_timestep() -> None:
    """Potential energy of 3n harmonic coordinates: 3n kT/2 on average, variance 3n (kT)²/2, at a timestep of half the stable one."""
    centres = np.array([[0.0, 0, 0], [2.0, 0, 0], [0, 2.0, 0], [0, 0, 2.0]])
    start = System({"numbers": np.array([6, 8, 1, 7], dtype=np.uint8), "positions": centres})
    wells, temperature = Wells(centres, 20.0), 500.0
    frequency = np.sqrt(20.0 * ACCELERATION / 1.008)  # 1/fs, of hydrogen
    timestep = 1.0 / frequency
    settings = {"spacing": 8 * timestep, "equilibration": 200.0, "timestep": timestep, "friction": 0.05}
    frames = molecular_dynamics(start, wells, temperature, frames=500, seed=1, **settings)
    assert [round(time / timestep) for time, _ in frames[:2]] == [8, 16]
    # Positions are given about the centre; the wells are not, so the energy is taken relative to each frame's own centre.
    apart = np.array([(frame.positions - frame.positions.mean(0)) - (centres - centres.mean(0)) for _, frame in frames])
    energies = 0.5 * 20.0 * (apart**2).sum(axis=(1, 2))
    expected = 9 * thermal_energy(temperature) / 2  # 12 coordinates, 3 of them the centre's
    error = energies.std() / np.sqrt(len(energies) / 2)
    print(f"mean {energies.mean():.4f} eV, expected {expected:.4f} ± {error:.4f}; timestep {timestep:.1f} fs")
    assert abs(energies.mean() - expected) < 4 * error < 0.2 * expected
    variance = 9 * thermal_energy(temperature) ** 2 / 2
    assert 0.7 < energies.var() / variance < 1.4
    again = molecular_dynamics(start, wells, temperature, frames=2, seed=1, **settings)
    assert np.array_equal(again[1][1].positions, frames[1][1].positions)


def test_frequencies_are_those_of_ase(tmp_path: Any) -> None:
    from ase.vibrations import Vibrations

    species = read_species("C=O")
    minimum = relax(conformers(species, 1, 0)[0], GFN2, 0.002)
    modes = normal_modes(minimum, GFN2)
    atoms = Atoms(minimum.numbers, minimum.positions, calculator=GFN2.calculator(minimum))
    vibrations = Vibrations(atoms, name=str(tmp_path / "vib"), delta=0.01, nfree=2)
    vibrations.run()
    theirs = np.sort(vibrations.get_frequencies().real)[6:]
    print(f"{modes.frequencies.round(1)} 1/cm; largest difference {np.abs(modes.frequencies - theirs).max():.2f}")
    assert np.allclose(modes.frequencies, theirs, rtol=0, atol=5.0)  # ASE leaves the rotations in: 1 here
    masses = Atoms(minimum.numbers).get_masses()
    flat = modes.vectors.reshape(len(modes.vectors), -1)
    assert np.allclose(flat @ flat.T, np.eye(len(flat)), atol=1e-10)
    # No mode moves or turns the molecule.
    shifts = modes.vectors / np.sqrt(masses)[:, None]
    assert np.abs(np.einsum("a,kax->kx", masses, shifts)).max() < 1e-10
    turns = np.cross(minimum.positions - np.average(minimum.positions, axis=0, weights=masses), shifts)
    assert np.abs(np.einsum("a,kax->kx", masses, turns)).max() < 1e-10


@pytest.mark.parametrize(("smiles", "expected"), [("O=C=O", 4), ("O", 3), ("[H][H]", 1)])
def test_linear_molecules_have_a_mode_more(smiles: str, expected: int) -> None:
    modes = settle(conformers(read_species(smiles), 1, 0)[0], GFN2)
    assert len(modes.frequencies) == expected and modes.frequencies[0] > 100


def test_displacements_are_thermal() -> None:
    """Variance of each mode's coordinate kT/ω², at the floor for soft ones, none below the softest."""
    minimum = bare(read_species("O"), np.array([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0.0]]))
    vectors = np.linalg.qr(np.random.default_rng(0).normal(size=(9, 9)))[0][:3].reshape(3, 3, 3)
    frequencies = np.array([SOFT - 1, SOFT + 1, 1500.0])
    drawn = np.array(sample_modes(Modes(minimum, frequencies, vectors), 600.0, 4000, np.random.default_rng(1)))
    masses = Atoms(minimum.numbers).get_masses()
    coordinates = np.einsum("kax,fax->fk", vectors, (drawn - minimum.positions) * np.sqrt(masses)[:, None])
    angular = 2 * np.pi * 2.99792458e-5 * np.array([np.inf, FLOOR, 1500.0])
    wanted = thermal_energy(600.0) * ACCELERATION / angular**2
    print("variance over expected:", coordinates.var(axis=0)[1:] / wanted[1:])
    assert np.allclose(coordinates.var(axis=0), wanted, rtol=0.1, atol=1e-20)


def test_a_saddle_point_is_left_downhill() -> None:
    species = read_species("N")
    planar = np.array([[0.0, 0, 0], *([np.cos(t), np.sin(t), 0.0] for t in np.radians([0, 120, 240]))])
    saddle = relax(bare(species, planar), GFN2)
    assert np.abs(saddle.positions[:, 2]).max() < 1e-3 and normal_modes(saddle, GFN2).frequencies[0] < -300
    modes = settle(bare(species, planar), GFN2)
    height = np.abs(np.linalg.det(modes.minimum.positions[1:] - modes.minimum.positions[0]))
    print(f"lowest mode {modes.frequencies[0]:.0f} 1/cm, pyramid's volume {height:.2f} Å³")
    assert modes.frequencies[0] > 300 and height > 0.3
    with pytest.raises(JobFailure, match="did not reach"):
        relax(bare(species, planar * 1.2), GFN2, steps=1)


def test_torsion_scan_of_butane() -> None:
    species = read_species("CCCC")
    minimum = relax(conformers(species, 1, 0)[0], GFN2)
    scanned, missing = scan_torsions(species, minimum, GFN2, points=6, rotors=3)
    middle = [(angle, frame) for name, angle, frame in scanned if name == "0-1-2-3"]
    assert len(middle) == 5 and len(scanned) == 15 and not missing  # two methyl groups besides
    bottom = GFN2.label(minimum).energy
    for angle, frame in middle:
        measured = Atoms(frame.numbers, frame.positions).get_dihedral(0, 1, 2, 3)
        assert abs((measured - angle + 180) % 360 - 180) < 0.5
        assert intact(species.bonds, species.numbers, frame.positions)
    rises = {round(angle) % 360: GFN2.label(frame).energy - bottom for angle, frame in middle}
    print({angle: f"{rise:.3f} eV" for angle, rise in rises.items()})
    # Two gauche minima of equal energy (experiment: 0.03 eV) below the eclipsed top (0.2 eV).
    gauche = [rises[angle] for angle in (60, 300)]
    assert abs(gauche[0] - gauche[1]) < 0.01 and 0.0 < gauche[0] < 0.06 and 0.12 < rises[0] < 0.35


def test_dimers_touch_as_they_should() -> None:
    generator = np.random.default_rng(0)
    one, two = (conformers(read_species(smiles), 1, 0)[0] for smiles in ("C=O", "C[NH3+]"))
    contacts, directions = [], []
    for _ in range(60):
        pair = dimer(one, two, generator)
        first, second = pair.positions[: len(one)], pair.positions[len(one) :]
        contacts.append(contact(one, two, first, second))
        directions.append(second.mean(0) - first.mean(0))
        # Each molecule is turned as a whole.
        assert np.allclose(np.linalg.norm(first[0] - first[1]), np.linalg.norm(one.positions[0] - one.positions[1]))
    assert int(pair.get("charge")) == 1 and pair.molecule == pair.smiles == "C=O.C[NH3+]"
    low, high = min(contacts), max(contacts)
    print(f"contacts {low:.3f} to {high:.3f} of the van der Waals radii, mean {np.mean(contacts):.3f}")
    assert NEAREST - 1e-3 < low < NEAREST + 0.1 and FARTHEST - 0.1 < high < FARTHEST + 1e-3
    unit = np.array(directions) / np.linalg.norm(directions, axis=1, keepdims=True)
    assert np.abs(unit.mean(axis=0)).max() < 4 / np.sqrt(3 * 60)


def sampled(smiles: str, spin: int | None = None, **changes: Any) -> list[System]:
    few = {"conformers": 1, "modes": {1000: 3}, "dynamics": {500: 3}, "equilibration": 20.0, "timestep": 1.0, "spacing": 5.0, **changes}
    [arguments] = molecule_jobs([read_species(smiles, spin)], Sampling(**few), seed=0)
    frames, left_out = molecule({**arguments, **engine_settings(GFN2), "sampler": None})
    assert not left_out
    return frames


def test_every_frame_says_where_it_is_from() -> None:
    frames = sampled("CO", dimers=2, partners=["O"], torsion_points=3)
    kinds = {kind: [frame for frame in frames if frame.source == kind] for kind in dict.fromkeys(frame.source for frame in frames)}
    assert {kind: len(mine) for kind, mine in kinds.items()} == {
        "minimum": 1, "normal modes": 3, "molecular dynamics": 3, "torsion scan": 2, "dimer": 2,
    }  # fmt: skip
    assert all(frame.level == "GFN2-xTB" and "tblite" in frame.engine and "seed" in frame.properties for frame in frames)
    assert [int(frame.get("equilibrium")) for frame in frames] == [1] + [0] * 10
    assert np.abs(kinds["minimum"][0].arrays["forces"]).max() < 0.02
    trajectory = kinds["molecular dynamics"]
    assert [frame.properties["time"] for frame in trajectory] == [5.0, 10.0, 15.0]
    assert len({frame.properties["trajectory"] for frame in trajectory}) == 1 and trajectory[0].properties["temperature"] == 500.0
    assert {frame.molecule for frame in kinds["dimer"]} == {"CO.O", "CO.CO"}
    # Energies against forces, for one frame of each kind.
    for kind, mine in kinds.items():
        frame = mine[-1]
        errors = []
        for coordinate in range(0, 3 * len(frame), 4):
            shifted = []
            for sign in (1, -1):
                place = frame.positions.copy()
                place.flat[coordinate] += sign * 1e-3
                shifted.append(GFN2.label(moved(frame, place)).energy)
            errors.append(abs((shifted[1] - shifted[0]) / 2e-3 - frame.arrays["forces"].flat[coordinate]))
        print(f"{kind}: finite differences of the energy differ from the forces by at most {max(errors):.1e} eV/Å")
        assert max(errors) < 1e-4


def test_frames_that_are_missing_are_counted_by_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every frame that was asked for is there or has a reason: forces, a failing engine, a broken trajectory, scan points, dimers."""
    water = Sampler(read_species("CO"), GFN2, GFN2, seed=0)
    modes = water.minima(1)[0]
    monkeypatch.setattr(sampling, "LARGEST", 1e-6)
    assert water.thermal(modes, 300.0, 2) == []
    assert water.left_out.pop("forces above 1e-06 eV/Å") == ["normal modes"] * 6 and not water.left_out
    monkeypatch.setattr(sampling, "LARGEST", 30.0)
    monkeypatch.setattr(sampling, "ABOVE", 0.0)  # nothing is thermal
    assert water.thermal(modes, 300.0, 2) == []
    assert [len(names) for names in water.left_out.values()] == [2]
    monkeypatch.setattr(sampling, "molecular_dynamics", lambda *arguments, frames, **_: [(1.0, modes.minimum)] * (frames - 3))
    monkeypatch.setattr(sampling, "scan_torsions", lambda *_: ([("0-1-2-3", 0.0, modes.minimum)], 4))
    monkeypatch.setattr(sampling, "intact", lambda bonds, numbers, _: len(numbers) < 7)
    assert len(water.trajectory(modes, 300.0, 5, spacing=1, timestep=1, equilibration=0)) == 2
    assert len(water.torsions(modes, 6, 1)) == 1 and water.dimers([modes], 3, []) == []
    assert Counter(name for names in water.left_out.values() for name in names) == {
        "normal modes": 2, "molecular dynamics": 3, "torsion scan": 4, "dimer": 3,
    }  # fmt: skip

    def failing(_: System) -> Labels:
        raise EngineFailure("the SCF did not converge")

    monkeypatch.setattr(GFN2, "label", failing)
    assert water.minimum(modes) == [] and water.left_out["the SCF did not converge"] == ["minimum"]
    with pytest.raises(JobFailure, match="no frame of it could be labelled: other bonds or too high"):
        Sampler.made(water, [])


def test_a_partner_that_does_not_relax_costs_its_dimers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(smiles: str, maker: Any) -> Any:
        raise JobFailure("it does not relax")

    water = Sampler(read_species("O"), GFN2, GFN2, seed=0)
    modes = water.minima(1)[0]
    monkeypatch.setattr(sampling, "_partner", failing)
    frames = water.dimers([modes], 4, ["CO"])
    assert water.left_out.pop("its partner CO: it does not relax") == ["dimer"] * 2
    assert len(frames) + sum(map(len, water.left_out.values())) == 2 and all(len(frame) == 6 for frame in frames)


def test_ions_and_open_shells_are_labelled_as_such() -> None:
    [hydronium] = sampled("[OH3+]", modes={}, dynamics={})
    assert int(hydronium.get("charge")) == 1 and hydronium.molecule == "[OH3+]"
    [methyl] = sampled("[CH3]", spin=2, modes={}, dynamics={})
    assert int(methyl.get("spin")) == 2
    [ethylene] = sampled("C=C", spin=3, modes={}, dynamics={})
    singlet = System({**ethylene.arrays, "spin": np.uint8(1)})
    # The triplet's minimum is twisted by 90 degrees, where the singlet's forces do not vanish.
    assert int(ethylene.get("spin")) == 3 and abs(GFN2.label(singlet).energy - float(ethylene.get("energy"))) > 0.05
