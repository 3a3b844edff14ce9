"""Denoising objectives: who is displaced, what is found again, with which encoders, and what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from learning import explained, learn, model_for, outputs, prepared

from forcewell.batch import Batch, concatenate
from forcewell.errors import InputError
from forcewell.nn import ENCODERS
from forcewell.nn.normaliser import RunningNormaliser
from forcewell.objectives import (
    COORDINATES,
    DATA,
    DENOISING,
    PRESETS,
    EnergyMatching,
    ForceMatching,
    Noise,
    ZeroForce,
    build,
    noisy,
)
from forcewell.objectives.harmonic import PairField, thermal
from forcewell.potential import Potential
from forcewell.system import Block, System

NOISE = Noise(seed=5, step=7)
BUTANE = "CCCC"


def glyoxal(minima: Block, copies: int = 4) -> Batch:
    """One six-atom minimum several times, each with noise of its own."""
    return Batch.from_block(minima.take([3] * copies), dtype=torch.float64, index=range(copies))


def labelled_batch(labelled: Block, rows: list[int]) -> Batch:
    return Batch.from_block(labelled.take(rows), dtype=torch.float64, source=1, index=rows)


# --- harmonic targets


def test_model_hessian_is_that_of_a_pair_energy(minima: Block) -> None:
    """H ε against finite differences of ½ Σ k (u·(ε_i - ε_j))², the full matrix, and force constants that chemists know."""
    batch = Batch.from_block(minima.take([0, 3, 2]), dtype=torch.float64)
    field = PairField.of(batch)
    epsilon = NOISE.normal(batch, "x").requires_grad_(True)
    M, A = field.constants.shape[:2]
    e = torch.zeros(M * A, 3, dtype=torch.float64).index_copy(0, field.place, epsilon).view(M, A, 3)
    energy = 0.25 * (field.constants * ((e[:, :, None] - e[:, None]) * field.directions).sum(3) ** 2).sum()
    gradient = torch.autograd.grad(energy, epsilon)[0]
    times = field.times(epsilon.detach())
    print(f"H ε against the energy's gradient: {float((times - gradient).abs().max()):.1e} eV/Å")
    assert float((times - gradient).abs().max()) < 1e-12
    flat = (field.matrix() @ e.detach().reshape(M, -1, 1)).reshape(M * A, 3)[field.place]
    assert float((flat - times).abs().max()) < 1e-12
    values = torch.linalg.eigvalsh(field.matrix())
    print(f"eigenvalues from {float(values.min()):.1e} to {float(values.max()):.0f} eV/Å²")
    assert float(values.min()) > -1e-10 and 60 < float(values.max()) < 250
    # Rigid motion costs nothing.
    turn_rate = torch.linalg.cross(torch.tensor([[0.3, -0.2, 0.5]], dtype=torch.float64).expand_as(batch.positions), batch.positions)
    assert float(field.times(turn_rate + 1.0).abs().max()) < 1e-10
    stretch = System({"numbers": np.array([6, 8]), "positions": np.array([[0.0, 0.0, 0.0], [1.21, 0.0, 0.0]])})
    single = System({"numbers": np.array([6, 1]), "positions": np.array([[0.0, 0.0, 0.0], [1.09, 0.0, 0.0]])})
    found = [float(PairField.of(Batch.from_systems([s], dtype=torch.float64)).constants[0, 0, 1]) for s in (stretch, single)]
    print(f"C=O {found[0]:.0f}, C-H {found[1]:.0f} eV/Å² (spectroscopy: about 76 and 31)")
    assert found[0] == pytest.approx(76, rel=0.15) and found[1] == pytest.approx(31, rel=0.15)


def test_thermal_noise_has_the_covariance_of_the_modes(minima: Block) -> None:
    """Along a mode of eigenvalue λ the spread is sqrt(k_B T / λ), or the cap where the mode is soft."""
    one = Batch.from_block(minima.take([3]), dtype=torch.float64)
    many = Batch.from_block(minima.take([3] * 3000), dtype=torch.float64, index=range(3000))
    field = PairField.of(one)
    values, modes = torch.linalg.eigh(field.matrix()[0])
    moved = torch.cat([thermal(PairField.of(part), NOISE.normal(part, "x"), 300.0, 0.05) for part in [many]]).view(3000, -1)
    spread = (moved @ modes).std(0)
    expected = torch.sqrt(8.617333e-5 * 300 / values.clamp(min=1e-9)).clamp(max=0.05)
    print(f"spread over expected: {float((spread / expected).min()):.3f} to {float((spread / expected).max()):.3f}")
    assert torch.allclose(spread, expected, rtol=0.07)
    assert float(expected.min()) < 0.025 and float(expected.max()) == 0.05


def test_harmonic_denoising_teaches_the_hessian(minima: Block) -> None:
    """After training, -dF/dr has the model Hessian's stiff and soft directions; an isotropic target has not."""
    batch = glyoxal(minima)
    minimum = batch.take(torch.tensor([0]))
    field = PairField.of(minimum)
    model, _ = learn({"force-denoising": {"sigma": 0.03, "target": "harmonic"}}, batch, 70)
    moves = [0.03 * Noise(9, k).normal(minimum, "test") for k in range(20)]
    found = torch.stack([model(dataclasses.replace(minimum, positions=minimum.positions - e)).forces for e in moves])
    target = torch.stack([field.times(e) for e in moves])
    isotropic = torch.stack(moves)
    best = float((target * isotropic).sum() / (isotropic**2).sum())
    print(f"explained of H ε: {explained(found, target):.3f}; by the best isotropic well: {explained(best * isotropic, target):.3f}")
    assert explained(found, target) > 0.8 > 0.7 > explained(best * isotropic, target)
    periodic = dataclasses.replace(minimum, pbc=torch.ones_like(minimum.pbc))
    with pytest.raises(InputError, match="for open structures, not periodic"):
        build({"force-denoising": {"target": "harmonic"}})[0].prepare(periodic, NOISE)


def test_a_separate_head_leaves_the_energy_alone(minima: Block) -> None:
    """The noise head finds κ ε at displaced minima; no gradient reaches the energy's head."""
    batch = glyoxal(minima)
    model, objectives = learn({"force-denoising": {"sigma": 0.1, "kappa": 3.0, "own_head": True}}, batch, 120)
    ready = prepared(objectives, batch, Noise(3, 999))
    found = model(ready, **outputs(objectives)).noise
    copies = ready.molecule >= 4
    score = explained(found[copies], ready.targets.noise_target[copies])
    print(f"explained of κ ε: {score:.3f}")
    assert score > 0.6
    model.zero_grad()
    prediction = model(ready, create_graph=True, **outputs(objectives))
    assert prediction.forces is None  # no second-order graph
    objectives[0].loss(prediction, ready).total.backward()
    assert all(p.grad is None or not p.grad.any() for p in model.head.parameters())
    assert any(p.grad is not None and bool(p.grad.any()) for p in model.noise_head.parameters())  # type: ignore[union-attr]


# --- coordinate denoising


@pytest.mark.parametrize("encoder", ["equivariant-transformer", "egnn", "schnet"])
def test_coordinate_denoising_brings_atoms_back(encoder: str, labelled: Block) -> None:
    """By vectors, by moved coordinates and by the gradient of a second energy, at a conformation that is no minimum."""
    row = labelled.take([0] * 4)
    batch = Batch.from_block(row, dtype=torch.float64, index=range(4))
    model, objectives = learn("wang", batch, 60 if encoder == "schnet" else 120, encoder)
    ready = prepared(objectives, batch, Noise(3, 999))
    assert ready.role.tolist() == [COORDINATES] * 4
    prediction = model(ready, **outputs(objectives))
    assert prediction.forces is None
    before = (ready.positions - batch.positions).norm()
    after = (ready.positions + prediction.noise - batch.positions).norm().detach()
    print(f"{encoder} ({type(model.noise_head).__name__}): distance from the clean conformation {float(before):.2f} -> {float(after):.2f}")
    assert float(after) < 0.92 * float(before)
    published = build("wang-faithful")[0].prepare(batch, NOISE)
    moved = published.positions - batch.positions
    assert float((published.targets.noise_target - moved).abs().max()) < 1e-12  # farther away, as published
    assert float(moved.reshape(4, -1, 3).sum(1).abs().max()) > 0.1  # and with its net translation


def test_places(minima: Block, labelled: Block) -> None:
    """Copies beside the data, instead of them, or in place with the labels kept, in training only."""
    batch = concatenate([glyoxal(minima, 2), labelled_batch(labelled, [0, 9])])
    copies = build({"coordinate-denoising": {}, "forces": {}})[0].prepare(batch, NOISE)
    assert copies.role.tolist() == [DATA] * 4 + [COORDINATES] * 4
    assert torch.isnan(copies.targets.energy[4:]).all() and torch.isnan(copies.targets.forces[copies.molecule >= 4]).all()
    instead = build("noisynode")[0].prepare(batch, NOISE)
    assert instead.role.tolist() == [COORDINATES] * 4 and torch.isnan(instead.targets.forces).all()
    assert (instead.targets.equilibrium == -1).all()
    auxiliary = build({"forces": {}, "coordinate-denoising": {"place": "with-labels", "sigma": 0.005}})[1]
    kept = auxiliary.prepare(batch, NOISE)
    assert kept.role.tolist() == [DATA] * 4
    assert torch.equal(torch.nan_to_num(kept.targets.forces), torch.nan_to_num(batch.targets.forces))
    error = float((kept.positions + kept.targets.noise_target - batch.positions).abs().max())
    assert error < 1e-14 and bool(noisy(kept, auxiliary).all())  # type: ignore[arg-type]
    validation = dataclasses.replace(NOISE, training=False)
    assert auxiliary.prepare(batch, validation) is batch
    assert build("noisynode")[0].prepare(batch, validation).role.tolist() == [COORDINATES] * 4


def test_running_normalisation() -> None:
    """Moments over all steps equal those of all numbers at once; isotropic commutes with rotation, per component does not."""
    rng = np.random.default_rng(0)
    parts = [torch.from_numpy(0.04 * rng.standard_normal((n, 3)) * [1.0, 1.1, 0.9] + [0.01, 0, 0]) for n in (5, 400, 31)]
    whole = torch.cat(parts)
    one, each = RunningNormaliser(False, 0.04).double(), RunningNormaliser(True, 0.04).double()
    assert torch.allclose(one(parts[0]), parts[0] / 0.04)  # nothing seen yet
    for part in parts:
        halves = RunningNormaliser.moments(part[:3]) + RunningNormaliser.moments(part[3:])  # of two processes
        one.observe(halves)
        each.observe(halves)
    errors = (
        (each(whole) - (whole - whole.mean(0)) / whole.std(0, unbiased=False)).abs().max(),
        (one(whole) - whole / (whole**2).mean().sqrt()).abs().max(),
    )
    print(f"against moments of all at once: {[float(e) for e in errors]}")
    assert max(map(float, errors)) < 1e-11
    turn_z = torch.tensor([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    assert float((one(whole @ turn_z) - one(whole) @ turn_z).abs().max()) < 1e-12
    assert float((each(whole @ turn_z) - each(whole) @ turn_z).abs().max()) > 0.01


def test_the_published_form_in_the_energy(labelled: Block) -> None:
    """The potential's own force is compared with the noise, of either sign."""
    batch = labelled_batch(labelled, [0, 9])
    for sign in (False, True):
        objective = build({"coordinate-denoising": {"in_energy": True, "place": "instead", "published_sign": sign}})[0]
        model = model_for((objective,))
        assert objective.needs == {"forces"} and model.noise_head is None
        ready = objective.prepare(batch, NOISE)
        forces = model(ready).forces
        e = ready.positions - batch.positions
        expected = float(((forces - (e if sign else -e)) ** 2).sum())
        assert float(objective.loss(model(ready), ready).total) == pytest.approx(expected, rel=1e-12)


# --- refusals


@pytest.mark.parametrize("encoder", ["egnn", "schnet", "gemnet-t", "se3-transformer"])
def test_encoders_that_cannot_are_refused(encoder: str) -> None:
    with pytest.raises(InputError, match="no vector features to put given forces into"):
        model_for(build("dens"), encoder)
    with pytest.raises(InputError, match="needs vectors, which"):
        Potential({"encoder": {"name": encoder}, "head": {"noise": "vectors"}})
    assert model_for(build("wang"), encoder).noise_head is not None  # but every encoder can denoise coordinates


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder_learns_every_other_objective(encoder: str, minima: Block, labelled: Block) -> None:
    """One step of each set: terms that count, gradients that are finite and not all zero."""
    batch = concatenate([glyoxal(minima, 1), labelled_batch(labelled, [0])])
    for preset in sorted(set(PRESETS) - {"dens"}):
        objectives = build(preset)
        model = model_for(objectives, encoder)
        batch.targets.energy[1] = -1.0
        ready = prepared(objectives, batch, NOISE)
        prediction = model(ready, create_graph=True, **outputs(objectives))
        terms = [objective.loss(prediction, ready) for objective in objectives]
        assert all(float(term.count) > 0 for term in terms), preset
        sum(term.total for term in terms).backward()  # type: ignore[union-attr]
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert all(bool(torch.isfinite(g).all()) for g in gradients) and any(bool(g.any()) for g in gradients), preset


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"forces": {}, "coordinate-denoising": {"in_energy": True}}, "no physical force, and would spoil the energy that forces learns"),
        ({"energy": {}, "fractional-denoising": {"in_energy": True}}, "would spoil the energy that energy learns"),
        ({"force-denoising": {}, "coordinate-denoising": {"in_energy": True}}, "that force-denoising learns"),
        ({"coordinate-denoising": {"in_energy": True, "normalise": "isotropic"}}, "no normalised targets"),
        ({"forces": {}, "coordinate-denoising": {"place": "instead"}}, "leaves nothing for forces"),
        ({"zero-force": {}, "coordinate-denoising": {"place": "with-labels"}}, "moves the minima that zero-force is for"),
        ({"coordinate-denoising": {"place": "with-labels"}}, "auxiliary task; add an objective with labels"),
        ({"forces": {}, "fractional-denoising": {"place": "with-labels"}}, "keeps labels of molecules that it turns; use 'copies'"),
        ({"dens": {}}, "beside forces or energy"),
        ({"forces": {}, "force-denoising": {"own_head": True}, "coordinate-denoising": {}}, "would share the one noise head"),
        ({"force-denoising": {"target": "harmnic"}}, "unknown 'harmnic'; did you mean 'harmonic'"),
        ({"forces": {"until": 0.5}}, "every weight falls to zero"),
        ({"forces": {}, "force-denoising": {"until": 1.5}}, "expected a number above 0 and up to 1, got 1.5"),
        ({"property": {}}, "name the properties to learn"),
        ({"property": {"names": 3}}, "expected a list of names"),
        ({"energy": {"form": "l2"}}, "unknown 'l2'"),
        ({"property": {"names": ["x"], "pool": "max"}}, "possible: equivariant, pooled, mean-pooled"),
    ],
)
def test_impossible_mixes(description: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build(description)
    print(caught.value)


def test_roles_are_for_their_own_objective(minima: Block, labelled: Block) -> None:
    """Displaced conformations of one objective are data for no other."""
    batch = concatenate([glyoxal(minima, 2), labelled_batch(labelled, [0, 9])])
    objectives = build({"forces": {}, "zero-force": {}, "energy": {}, "force-denoising": {}, "coordinate-denoising": {}})
    ready = prepared(objectives, batch, NOISE)
    assert ready.role.tolist() == [DATA] * 4 + [DENOISING] * 2 + [COORDINATES] * 4
    model = model_for(objectives)
    for objective, alone in ((ForceMatching(), batch), (ZeroForce(), batch), (EnergyMatching(), batch)):
        counts = [float(objective.loss(model(b), b).count) for b in (ready, alone)]
        assert counts[0] == counts[1] > 0
