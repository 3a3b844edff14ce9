"""The potential: the shipped physics checks hold and can fail, and ``predict`` is exact, periodic and strict."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import ase
import numpy as np
import pytest
import torch
from ase.build import bulk, molecule

import forcewell
from forcewell.batch import Batch
from forcewell.errors import InputError
from forcewell.graph import DENSE_ATOMS
from forcewell.potential import ELEMENTS, Potential, Prediction
from forcewell.system import System
from forcewell.testing import check_potential, small_potential

ET = "equivariant-transformer"


@pytest.fixture
def potential() -> Potential:
    return small_potential(ET).double()


def failures(potential: Potential, periodic: bool = False) -> set[str]:
    return {check.name for check in check_potential(potential, periodic=periodic) if not check.passed}


def test_all_checks_hold(potential: Potential) -> None:
    checks = check_potential(potential)
    for check in checks:
        print(f"{check.name:50s} {check.error:.1e}")
    assert len(checks) == 40
    assert [check.name for check in checks if not check.passed] == []
    assert all(parameter.grad is None and parameter.dtype == torch.float64 for parameter in potential.parameters())


class Broken(Potential):
    """A potential whose output is changed by ``spoil(prediction, batch)``."""

    spoil: Callable[[Prediction, Batch], None]

    def forward(self, batch: Batch, **keywords: Any) -> Prediction:  # type: ignore[override]
        prediction = super().forward(batch, **keywords)
        type(self).spoil(prediction, batch)
        return prediction


class WithTerm(Potential):
    """A potential with an energy per molecule (M,) added, ``term(positions, batch, cutoff)``, and its exact gradient."""

    term: Callable[[torch.Tensor, Batch, float], torch.Tensor]

    def forward(self, batch: Batch, *, create_graph: bool = False, **keywords: Any) -> Prediction:  # type: ignore[override]
        prediction = super().forward(batch, create_graph=create_graph, **keywords)
        with torch.enable_grad():
            positions = batch.positions.detach().requires_grad_(True)
            energy = type(self).term(positions, batch, self.cutoff)
            (gradient,) = torch.autograd.grad(energy.sum(), positions, create_graph=create_graph, materialize_grads=True, allow_unused=True)
        prediction.energy = prediction.energy + (energy if create_graph else energy.detach())
        if prediction.forces is not None:
            prediction.forces = prediction.forces - gradient
        return prediction


def per_molecule(batch: Batch, values: torch.Tensor) -> torch.Tensor:
    return values.new_zeros(len(batch)).index_add(0, batch.molecule, values)


def not_the_gradient(prediction: Prediction, batch: Batch) -> None:
    if prediction.forces is not None:
        prediction.forces = prediction.forces * 1.001


def mean_over_atoms(prediction: Prediction, batch: Batch) -> None:
    prediction.energy = prediction.energy / batch.counts
    if prediction.forces is not None:
        prediction.forces = prediction.forces / batch.counts.index_select(0, batch.molecule)[:, None]


def looks_at_other_molecules(prediction: Prediction, batch: Batch) -> None:
    if prediction.forces is not None:
        prediction.forces = prediction.forces * (1 + 1e-6 * batch.positions.std())


def wrong_stress(prediction: Prediction, batch: Batch) -> None:
    if prediction.stress is not None:
        prediction.stress = -prediction.stress


def no_interaction(prediction: Prediction, batch: Batch) -> None:
    prediction.energy = prediction.energy * 0
    if prediction.forces is not None:
        prediction.forces = prediction.forces * 0


def rounded(prediction: Prediction, batch: Batch) -> None:
    if prediction.forces is not None:
        prediction.forces = prediction.forces.half().to(prediction.forces.dtype)


def moves_its_input(prediction: Prediction, batch: Batch) -> None:
    with torch.no_grad():
        batch.positions += 1e-12


def chirality(r: torch.Tensor, batch: Batch, cutoff: float) -> torch.Tensor:
    """The determinant of three differently weighted sums over neighbours: local, smooth, and a pseudoscalar."""
    vectors = r[None] - r[:, None]
    same = (batch.molecule[None] == batch.molecule[:, None]) & ~torch.eye(len(r), dtype=torch.bool)
    d = torch.where(same, (vectors**2).sum(2), cutoff**2).sqrt()
    envelope = 0.5 * (torch.cos(torch.pi * d / cutoff) + 1) * (same & (d < cutoff))
    sums = [(weight[:, :, None] * vectors).sum(1) for weight in (envelope, envelope * d, envelope / d)]
    return per_molecule(batch, torch.linalg.det(torch.stack(sums, dim=1)))


def place(r: torch.Tensor, batch: Batch, cutoff: float) -> torch.Tensor:
    return per_molecule(batch, 0.01 * (r**2).sum(1))


def direction(r: torch.Tensor, batch: Batch, cutoff: float) -> torch.Tensor:
    """Pairs of neighbours in the list, along x only."""
    inside = (batch.molecule[1:] == batch.molecule[:-1]).to(r.dtype)
    along = torch.cat([inside * (r[1:, 0] - r[:-1, 0]) ** 2, r.new_zeros(1)])
    return per_molecule(batch, 0.01 * along)


def order(r: torch.Tensor, batch: Batch, cutoff: float) -> torch.Tensor:
    """Springs between atoms that follow each other in the list."""
    inside = (batch.molecule[1:] == batch.molecule[:-1]).to(r.dtype)
    return per_molecule(batch, 0.01 * torch.cat([inside * ((r[1:] - r[:-1]) ** 2).sum(1), r.new_zeros(1)]))


def long_range(r: torch.Tensor, batch: Batch, cutoff: float) -> torch.Tensor:
    i, j = torch.triu_indices(len(r), len(r), 1)
    same = batch.molecule[i] == batch.molecule[j]
    i, j = i[same], j[same]
    return r.new_zeros(len(batch)).index_add(0, batch.molecule[i], 1.0 / (r[i] - r[j]).norm(dim=1))


def only_one_image(r: torch.Tensor, batch: Batch, cutoff: float) -> torch.Tensor:
    """Springs that do not see periodic images: right for molecules, wrong in a crystal."""
    vectors = r[None] - r[:, None]
    same = (batch.molecule[None] == batch.molecule[:, None]) & ~torch.eye(len(r), dtype=torch.bool)
    d = torch.where(same, (vectors**2).sum(2), cutoff**2).sqrt()
    return per_molecule(batch, (0.5 * (torch.cos(torch.pi * d / cutoff) + 1) * (same & (d < cutoff))).sum(1))


CELLS = ("water in a cell", "a chain of carbon dioxide")
BROKEN: list[tuple[Callable[..., Any], set[str]]] = [
    (not_the_gradient, {"forces: finite differences"}),
    (mean_over_atoms, {"separation: energy", "separation: forces"}),
    (looks_at_other_molecules, {"batched = single: forces", "other molecules: no influence"}),
    (wrong_stress, {f"{cell}: stress by finite strain" for cell in CELLS}),
    (no_interaction, {"forces: not all zero", "inside the cutoff: an interaction"}),
    (rounded, {"forces: finite differences"}),
    (moves_its_input, {"input not changed"}),
    (chirality, {"inversion: energy", "inversion: forces"}),
    (place, {"translation: energy", "net force"}),
    (direction, {"rotation: energy", "net torque"}),
    (order, {"permutation: energy", "permutation: forces"}),
    (only_one_image, {f"{cell}: {law}" for cell in CELLS for law in ("lattice translation", "two cells, twice the energy")}),
    (long_range, {"beyond the cutoff: no force", "separation: energy"}),
]


@pytest.mark.parametrize(("fault", "expected"), BROKEN, ids=[fault.__name__ for fault, _ in BROKEN])
def test_checks_find_a_broken_potential(potential: Potential, fault: Callable[..., Any], expected: set[str]) -> None:
    spoils = "prediction" in fault.__code__.co_varnames
    kind = type("Kind", (Broken if spoils else WithTerm,), {"spoil" if spoils else "term": staticmethod(fault)})
    broken = kind(potential.config).double()
    broken.load_state_dict(potential.state_dict())
    found = failures(broken, periodic=fault in (wrong_stress, only_one_image))
    print(fault.__name__, "->", sorted(found))
    assert expected <= found
    if fault in (not_the_gradient, wrong_stress, moves_its_input, chirality):  # these break one law only
        assert found == expected


def test_checks_find_a_hard_cutoff(potential: Potential) -> None:
    config = {"encoder": {**potential.config["encoder"], "smooth_cutoff": False}}
    hard = Potential(config).double()
    hard.load_state_dict(potential.state_dict())
    found = failures(hard)
    print("hard cutoff ->", sorted(found))
    assert found == {"at the cutoff: energy continuous", "at the cutoff: forces continuous"}


def test_checks_find_a_cone_in_the_read_out(potential: Potential) -> None:
    """The published norm of a vector, without softening: infinite second derivatives at an exactly tetrahedral carbon."""
    for block in potential.head.blocks:
        block.softening = 0.0  # type: ignore[union-attr]
    found = failures(potential)
    print("norm without softening ->", sorted(found))
    assert found & {"second derivatives finite: methane, exactly tetrahedral", "second derivatives finite: molecules"}


def test_checks_find_a_lost_dtype(potential: Potential) -> None:
    """Parameters that hold more than float32 can tell, here a huge energy scale with a difference: single differs from double."""
    with torch.no_grad():
        potential.head.blocks[1].gate.bias += 1e6  # type: ignore[union-attr]
        potential.head.blocks[0].gate.weight *= 1e3  # type: ignore[union-attr]
        potential.encoder.layers[0].output.bias += 1e5  # type: ignore[index, union-attr]
    assert "float32 against float64: forces, relative" in failures(potential)


REFERENCES = {level: np.random.default_rng(k).uniform(-2e5, -1e3, ELEMENTS) for k, level in enumerate(("PBE/def2-SVP", "wB97x/6-31G(d)"))}


def with_references(potential: Potential) -> Potential:
    full = Potential(potential.config, levels=list(REFERENCES), references=REFERENCES, elements=(1, 6, 8))
    full.load_state_dict(potential.state_dict())
    return full  # float32: the network's own dtype must not touch the references


@pytest.mark.parametrize("level", ["PBE/def2-SVP", "wB97x/6-31G(d)", None])
def test_references_stay_exact(potential: Potential, level: str | None) -> None:
    model = with_references(potential)
    atoms = molecule("CH3CH2OH")
    other = atoms.copy()
    other.rattle(0.05, seed=1)
    energy = model.predict([atoms, other], level=level)["energy"]
    batch = Batch.from_systems([System.from_atoms(a) for a in (atoms, other)], dtype=torch.float32)
    own = model(batch).energy.detach().double().numpy()
    table = REFERENCES[level or "wB97x/6-31G(d)"]
    error = np.abs(energy - own - table[atoms.numbers].sum() - table[0]).max()  # entry 0 once per molecule
    print(f"energies {energy}, differ from network + references by {error:.1e} eV; their difference by {abs(np.diff(energy - own))[0]:.1e}")
    assert energy.dtype == np.float64 and abs(energy[0]) > 1e5
    assert error < 1e-9  # float32 would lose 0.06 eV


def test_level_is_chosen_by_name(potential: Potential) -> None:
    model = with_references(potential)
    first, last = (model.predict([molecule("H2O")], level=level)["energy"][0] for level in model.levels)
    expected = sum(REFERENCES[model.levels[0]][z] - REFERENCES[model.levels[1]][z] for z in (8, 1, 1, 0))
    assert first - last == pytest.approx(expected, abs=1e-9)
    with pytest.raises(InputError, match=r"level of theory 'PBE/def2-SPV'; did you mean 'PBE/def2-SVP'\? \(known: PBE"):
        model.predict([molecule("H2O")], level="PBE/def2-SPV")
    for single in (molecule("H2O"), System.from_atoms(molecule("H2O"))):
        with pytest.raises(InputError, match=r"predict takes a list of structures, and this is a single one: predict\(\[atoms\]\)"):
            model.predict(single)  # type: ignore[arg-type]
    assert len(model.predict(molecule(name) for name in ("H2O", "H2O"))["energy"]) == 2
    for wrong in ("water.xyz", [3]):
        with pytest.raises(InputError, match=r"takes a list of ase\.Atoms or Systems"):
            model.predict(wrong)  # type: ignore[arg-type]


def changed(cell: Any = None, pbc: Any = False, symbols: str = "OH2", positions: Any = None) -> ase.Atoms:
    return ase.Atoms(symbols, positions or [[0, 0, 0], [0.97, 0, 0], [-0.24, 0.93, 0]], cell=cell, pbc=pbc)


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        (changed(symbols="NH2"), "never saw N; it was trained on H, C, O"),
        (changed(positions=[[0, 0, 0], [np.nan, 0, 0], [0, 1, 0]]), "NaN or infinite"),
        (changed(positions=[[0, 0, 0], [0, 0, 0.2], [0, 1, 0]]), r"on top of each other \(0.200 Å"),
        (changed(symbols="XH2"), "unknown atomic number 0"),
        (ase.Atoms(), "has no atoms"),
        (changed(pbc=True), "finite, independent lattice vectors"),
        (changed(cell=[6, 6, np.nan], pbc=True), "finite, independent lattice vectors"),
        (changed(cell=[[6, 0, 0], [12, 0, 0], [0, 0, 6]], pbc=True), "finite, independent lattice vectors"),
        (changed(cell=[0.97, 6, 6], pbc=True), "or of its periodic image"),
    ],
)
def test_unusable_structures(potential: Potential, atoms: ase.Atoms, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        with_references(potential).predict([molecule("H2O"), atoms], batch_atoms=3)
    print(caught.value)
    assert "\n" not in str(caught.value)


def test_charges_and_spins_that_predict_passes_over(potential: Potential) -> None:
    ion = molecule("H2O")
    ion.info["charge"] = -1
    radical = molecule("H2O")
    radical.info["spin"] = 2
    with pytest.warns(UserWarning, match="2 of 3 conformations are charged or not singlets, which this model does not see"):
        energies = potential.predict([molecule("H2O"), ion, radical])["energy"]
    assert energies[0] == energies[1] == energies[2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        potential.predict([molecule("H2O")])
        seeing = small_potential("equivariant-transformer", electronic=True).predict([molecule("H2O"), ion])["energy"]
    assert seeing[0] != seeing[1]


def test_nothing_to_predict(potential: Potential) -> None:
    out = potential.predict([], stress=True)
    assert out["energy"].shape == (0,) and out["forces"] == [] and out["stress"].shape == (0, 3, 3)


def test_stress_needs_a_cell(potential: Potential) -> None:
    with pytest.raises(InputError, match="periodic cell"):
        potential.predict([molecule("H2O")], stress=True)


def test_groups_of_a_large_request(potential: Potential) -> None:
    systems = [molecule(name) for name in ("H2O", "CH4", "CH3CH2OH", "C6H6", "O", "CO2")]
    whole = potential.predict(systems)
    split = potential.predict(systems, batch_atoms=10)
    error = max(np.abs(a - b).max() for a, b in zip(whole["forces"], split["forces"], strict=True))
    print(f"batches of 10 atoms against one: {np.abs(whole['energy'] - split['energy']).max():.1e} eV, {error:.1e} eV/Å")
    assert [len(f) for f in split["forces"]] == [len(a) for a in systems]
    assert np.abs(whole["energy"] - split["energy"]).max() < 1e-12 and error < 1e-12


def large_molecule(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    grid = np.stack(np.meshgrid(*[np.arange(8)] * 3), axis=-1).reshape(-1, 3)[:count] * 2.3
    return rng.choice([1, 6, 8], count), grid + rng.uniform(-0.3, 0.3, (count, 3))


def test_large_molecules_take_another_path_to_the_same_forces(potential: Potential, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers, positions = large_molecule(DENSE_ATOMS + 12)
    atoms = [ase.Atoms(numbers, positions), molecule("H2O")]
    cell_list = potential.predict(atoms)
    monkeypatch.setattr("forcewell.graph.DENSE_ATOMS", 10**6)
    monkeypatch.setattr("forcewell.graph._cell_list", None)  # the control: it is not called now
    dense = potential.predict(atoms)
    energy = np.abs(cell_list["energy"] - dense["energy"]).max()
    force = max(np.abs(a - b).max() for a, b in zip(cell_list["forces"], dense["forces"], strict=True))
    print(f"{len(numbers)} atoms, cell list against all pairs: {energy:.1e} eV, {force:.1e} eV/Å")
    assert energy < 1e-10 and force < 1e-11


def test_stress_against_ase(potential: Potential) -> None:
    """ASE's numerical stress differentiates the energy by strain; a compressed, rattled cell of several atoms."""
    from ase.calculators.fd import calculate_numerical_stress

    atoms = bulk("C", cubic=True) * (1, 1, 2)
    atoms.set_cell(atoms.cell @ np.array([[1.0, 0.05, 0.0], [0.0, 0.97, 0.02], [0.0, 0.0, 1.03]]), scale_atoms=True)
    atoms.rattle(0.1, seed=3)
    atoms.calc = forcewell.calculator(potential)
    analytic, numeric = atoms.get_stress(voigt=False), calculate_numerical_stress(atoms, eps=1e-5, voigt=False)
    predicted = potential.predict([atoms], stress=True)["stress"][0]
    print(f"stress up to {np.abs(analytic).max():.2e} eV/Å³, differs from ASE's numerical one by {np.abs(analytic - numeric).max():.1e}")
    assert np.abs(analytic - numeric).max() < 1e-9 and np.abs(analytic).max() > 1e-3
    assert np.abs(analytic - predicted).max() < 1e-13


def test_forces_against_ase(potential: Potential) -> None:
    from ase.calculators.fd import calculate_numerical_forces

    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.1, seed=3)
    atoms.calc = forcewell.calculator(potential)
    error = np.abs(atoms.get_forces() - calculate_numerical_forces(atoms, eps=1e-4)).max()
    print(f"forces up to {np.abs(atoms.get_forces()).max():.2f} eV/Å, differ from ASE's numerical ones by {error:.1e} eV/Å")
    assert error < 1e-7


def test_what_was_not_asked_for_is_absent(potential: Potential) -> None:
    batch = Batch.from_systems([System.from_atoms(molecule("H2O"))], dtype=torch.float64)
    bare = potential(batch, forces=False)
    assert bare.forces is None and bare.stress is None and bare.noise is None
    kept = potential(batch, create_graph=False)
    assert not kept.forces.requires_grad and not kept.energy.requires_grad
    assert potential(batch, create_graph=True).forces.requires_grad
    with pytest.raises(InputError, match="no noise head"):
        potential(batch, noise=True)


def test_noise_head_needs_no_second_order() -> None:
    torch.manual_seed(0)
    model = Potential({"encoder": {"name": ET, "channels": 16, "layers": 2, "heads": 2, "radial": 8}, "head": {"noise": True}}).double()
    batch = Batch.from_systems([System.from_atoms(molecule("CH3CH2OH"))], dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    out = model(batch, forces=False, noise=True)
    turned = model(dataclasses.replace(batch, positions=batch.positions @ rotation.T), forces=False, noise=True)
    error, size = (float(x.detach().abs().max()) for x in (turned.noise - out.noise @ rotation.T, out.noise))
    print(f"noise head after a rotation: {error:.1e} of {size:.1e}")
    assert error < 1e-13 and size > 1e-3 and out.noise.requires_grad
    both = model(batch, noise=True)
    assert torch.allclose(both.noise, out.noise)
    both.noise.sum().backward()  # still differentiable after the forces were taken
