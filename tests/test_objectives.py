"""Objectives: what each teaches, that nothing leaks, that the noise is a pure function, and that forces point back."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from forcewell.batch import Batch, concatenate
from forcewell.errors import InputError
from forcewell.objectives import (
    DATA,
    DENOISING,
    PRESETS,
    ForceDenoising,
    ForceMatching,
    Noise,
    Objective,
    ZeroForce,
    build,
    remove_rigid_motion,
)
from forcewell.potential import Potential, Prediction
from forcewell.system import Block, System, block_of

NOISE = Noise(seed=5, step=7)
STEPS = 200  # of the smallest training run that learns one well
LINEAR = System({"numbers": np.array([8, 6, 8]), "positions": np.array([[0.0, 0.0, -1.16], [0.0, 0.0, 0.0], [0.0, 0.0, 1.16]])})
ATOM = System({"numbers": np.array([8]), "positions": np.array([[1.0, 2.0, 3.0]])})
CRYSTAL = System(
    {
        "numbers": np.array([11, 17]),
        "positions": np.array([[0.0, 0.0, 0.0], [2.0, 2.1, 1.9]]),
        "cell": np.eye(3) * 4.0,
        "pbc": np.ones(3, dtype=bool),
    }
)


def potential(layers: int = 2) -> Potential:
    torch.manual_seed(1)
    encoder = {"name": "equivariant-transformer", "channels": 16, "layers": layers, "heads": 2, "radial": 16, "elements": 20}
    return Potential({"encoder": {**encoder, "conditions": 1}}).double()


def mixture(minima: Block, labelled: Block) -> Batch:
    """Three minima (source 0), three labelled conformations (source 1), one of which lacks the forces of one atom."""
    first = Batch.from_block(minima.take([3, 4, 2]), dtype=torch.float64, source=0, index=[3, 4, 2])
    second = Batch.from_block(labelled.take([0, 9, 20]), dtype=torch.float64, source=1, index=[0, 9, 20])
    second.targets.forces[4] = torch.nan
    return concatenate([first, second])


def prepared(objectives: tuple[Objective, ...], batch: Batch, noise: Noise = NOISE) -> Batch:
    for objective in objectives:
        batch = objective.prepare(batch, noise)
    return batch


def same(a: Any, b: Any) -> bool:
    return torch.equal(torch.nan_to_num(a, nan=-77.0), torch.nan_to_num(b, nan=-77.0))


@pytest.mark.parametrize("preset", ["et-ore", "et-oreo", "et-oreo-faithful"])
def test_losses_equal_a_hand_computation(preset: str, minima: Block, labelled: Block) -> None:
    """Each term over exactly its own conformations, in NumPy."""
    objectives, model = build(preset), potential()
    batch = prepared(objectives, mixture(minima, labelled))
    prediction = model(batch)
    forces, labels = prediction.forces.numpy(), batch.targets.forces.numpy()
    offsets = batch.offsets.numpy()
    rows = [np.arange(offsets[m], offsets[m + 1]) for m in range(len(batch))]
    wanted = {
        "forces": np.concatenate([np.setdiff1d(rows[m], np.flatnonzero(np.isnan(labels).any(axis=1))) for m in (3, 4, 5)]),
        "zero-force": np.concatenate(rows[:3]),
        "force-denoising": np.concatenate([*rows[6:], np.zeros(0, dtype=int)]),
    }
    aims = {"forces": labels, "zero-force": 0 * forces, "force-denoising": batch.targets.noise_target.numpy()}
    for objective in objectives:
        term = objective.loss(prediction, batch)
        atoms = wanted[objective.name]
        expected = float(((forces - aims[objective.name])[atoms] ** 2).sum())
        print(f"{preset} {objective.name}: {float(term.total):.4f} over {int(term.count)}, by hand {expected:.4f} over {3 * len(atoms)}")
        assert float(term.count) == 3 * len(atoms) > 0
        assert float(term.total) == pytest.approx(expected, rel=1e-12)


def test_copies_displace_minima_only(minima: Block, labelled: Block) -> None:
    clean = mixture(minima, labelled)
    objective = ForceDenoising(sigma=0.2, kappa=3.0, conditioned=True)
    batch = objective.prepare(clean, NOISE)
    assert batch.role.tolist() == [DATA] * 6 + [DENOISING] * 3
    assert batch.condition.tolist() == [0] * 6 + [DENOISING] * 3
    copied = batch.molecule >= 6
    assert batch.index[6:].tolist() == [3, 4, 2] and torch.equal(batch.numbers[copied], clean.numbers[clean.molecule < 3])
    displacement = batch.positions[copied] - clean.positions[clean.molecule < 3]
    error = float((displacement + batch.targets.noise_target[copied] / 3.0).abs().max())
    print(f"positions of the copies against r - ε: {error:.1e} Å")
    assert error < 1e-14
    assert same(batch.positions[~copied], clean.positions) and torch.isnan(batch.targets.noise_target[~copied]).all()
    assert prepared((objective, objective), clean).role.tolist().count(DENOISING) == 6  # copies are not copied again
    assert not ForceDenoising().prepare(clean, NOISE).condition.any()  # a token must be asked for


def test_minima_are_displaced_in_place(minima: Block, labelled: Block) -> None:
    """The same displaced conformations as the copies, without the minima themselves."""
    clean = mixture(minima, labelled)
    copies = ForceDenoising(sigma=0.2, kappa=3.0, conditioned=True).prepare(clean, NOISE)
    objective = ForceDenoising(sigma=0.2, kappa=3.0, conditioned=True, place="instead")
    batch = objective.prepare(clean, NOISE)
    assert objective.copied == "none" and ForceDenoising().copied == "minima"
    assert batch.role.tolist() == [DATA] * 3 + [DENOISING] * 3
    assert same(batch.positions, copies.take(torch.arange(3, 9)).positions)
    assert same(batch.targets.noise_target, copies.take(torch.arange(3, 9)).targets.noise_target)
    with pytest.raises(InputError, match=r"place 'instead' leaves nothing for zero-force; use 'copies'"):
        build({"forces": {}, "zero-force": {}, "force-denoising": {"place": "instead"}})


def elements(objective: Objective, model: Potential, batch: Batch) -> int:
    return int(objective.loss(model(batch), batch).count)


def test_no_label_reaches_a_copy(minima: Block, labelled: Block) -> None:
    """Other labels on a minimum, the same copy and the same denoising loss."""
    objective, model = ForceDenoising(), potential()
    clean = mixture(minima, labelled)
    other = concatenate([clean])
    other.targets.energy[:3] = torch.tensor([1e6, -5.0, torch.inf], dtype=torch.float64)
    other.targets.forces[other.molecule < 3] = 123.0
    other.targets.stress[:3] = 9.0
    other.targets.equilibrium[3:] = 0
    found = []
    for batch in (objective.prepare(clean, NOISE), objective.prepare(other, NOISE)):
        copies = batch.take(batch.role == DENOISING)
        assert torch.isnan(copies.targets.energy).all() and torch.isnan(copies.targets.forces).all()
        assert torch.isnan(copies.targets.stress).all() and (copies.targets.equilibrium == -1).all()
        found.append((copies, objective.loss(model(batch), batch)))
        for unrelated in (ForceMatching(), ZeroForce()):  # and no other objective takes a copy for data
            assert elements(unrelated, model, batch) == elements(unrelated, model, batch.take(batch.role == DATA))
    # Even a copy that carried labels would teach nothing but denoising, and would not be copied.
    batch.targets.forces[batch.molecule >= 6], batch.targets.equilibrium[6:] = 1.0, 1
    for unrelated in (ForceMatching(), ZeroForce()):
        assert elements(unrelated, model, batch) == elements(unrelated, model, other) > 0
    assert len(objective.prepare(batch, NOISE)) == len(batch) + 3
    for field in dataclasses.fields(Batch):
        if field.name != "targets":
            assert same(getattr(found[0][0], field.name), getattr(found[1][0], field.name)), field.name
    assert float(found[0][1].total) == float(found[1][1].total) > 0


def test_gradients_are_finite_whatever_is_missing(minima: Block, labelled: Block) -> None:
    """No labels at all, NaN labels, copies, one atom and forces that are exactly zero: gradients without NaN."""
    lonely = Batch.from_systems([ATOM, LINEAR], dtype=torch.float64)
    lonely.targets.equilibrium[:] = 1
    unlabelled = Batch.from_block(labelled.take([1]), dtype=torch.float64)
    unlabelled.targets.forces[:] = torch.nan
    for name, batch in {"a mixture": mixture(minima, labelled), "one atom": lonely, "no label": unlabelled}.items():
        model = potential()
        objectives = build("et-oreo")
        batch = prepared(objectives, batch)
        prediction = model(batch, create_graph=True)
        terms = [objective.loss(prediction, batch) for objective in objectives]
        sum(term.total / term.count.clamp(min=1) for term in terms).backward()  # type: ignore[union-attr]
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        largest = max(float(g.abs().max()) for g in gradients)
        print(f"{name}: counts {[int(term.count) for term in terms]}, largest gradient {largest:.2e}")
        assert gradients and all(bool(torch.isfinite(g).all()) for g in gradients)
    assert [int(term.count) for term in terms] == [0, 0, 0] and largest == 0.0


def test_exactly_zero_forces(minima: Block) -> None:
    forces = torch.zeros(int(minima.counts[:2].sum()), 3, requires_grad=True)
    batch = Batch.from_block(minima.take([0, 1]))
    term = ZeroForce().loss(Prediction(torch.zeros(2), forces), batch)
    term.total.backward()
    assert float(term.total.detach()) == 0.0 and torch.equal(forces.grad, torch.zeros_like(forces))  # type: ignore[arg-type]


def test_a_source_can_be_left_out(minima: Block, labelled: Block) -> None:
    batch, model = mixture(minima, labelled), potential()
    batch.targets.equilibrium[3] = 1  # a minimum of source 1 as well
    limited = build("et-oreo", {"forces": [0], "zero-force": [1], "force-denoising": [1]})
    assert [objective.sources for objective in limited] == [(0,), (1,), (1,)]
    ready = prepared(limited, batch)
    terms = [objective.loss(model(ready), ready) for objective in limited]
    atoms = int(batch.counts[3])
    assert [int(term.count) for term in terms] == [0, 3 * atoms, 3 * atoms]
    assert ready.index[6:].tolist() == [0] and ready.source[6:].tolist() == [1]
    assert int(build("et-ore")[0].loss(model(batch), batch).count) > 0


def test_presets() -> None:
    assert all(build(preset) for preset in PRESETS)
    faithful = build("et-oreo-faithful")
    assert faithful == (ForceMatching(1.0), ZeroForce(1.0), ForceDenoising(1.0, sigma=0.2, kappa=1.0, conditioned=False))
    assert faithful[2].sigma ** 2 == pytest.approx(0.04)  # type: ignore[attr-defined]  # the paper's "variance 0.04"
    assert build("et-ore") == (ForceMatching(1.0),)
    assert [objective.name for objective in build("et-oreo")] == ["forces", "zero-force", "force-denoising"]


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("et-oero", "unknown preset 'et-oero'; did you mean 'et-oreo'"),
        ("ET-OREO", r"\(known: et-oreo-faithful, et-oreo-faithful-nn, et-ore, et-oreo, "),
        ("energy", r"'energy' is one objective, not a named set of them; write --set 'objectives=\{energy: \{\}\}' to learn it alone"),
        ({"force": {}}, "unknown objective 'force'; did you mean 'forces'"),
        ({"force-denoising": {"sigm": 0.1}}, "objectives.force-denoising: unknown setting 'sigm'; did you mean 'sigma'"),
        ({"forces": {"sources": [0]}}, "unknown setting 'sources'"),
        ({"force-denoising": {"sigma": "wide"}}, "objectives.force-denoising.sigma: expected a positive number, got 'wide'"),
        ({"zero-force": {"weight": -1}}, "objectives.zero-force.weight: expected a positive number, got -1"),
        ({"forces": {"weight": float("nan")}}, "got nan"),
        ({"force-denoising": {"conditioned": "no"}}, "expected true or false"),
        ({}, "at least one is needed"),
    ],
)
def test_mistaken_objectives(description: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build(description)
    print(caught.value)


def test_noise_is_a_pure_function_of_the_sample(minima: Block) -> None:
    def draw(rows: list[int], noise: Noise = NOISE, name: str = "force-denoising", source: int = 0) -> dict[int, torch.Tensor]:
        batch = Batch.from_block(minima.take(rows), dtype=torch.float64, index=rows, source=source)
        return dict(zip(rows, noise.normal(batch, name).split(batch.counts.tolist()), strict=True))

    reference = draw([0, 1, 2, 3, 4, 5])
    for rows in ([5, 3, 1], [2], [4, 0, 9, 2]):  # another order, alone, other company; so also another rank's share
        assert all(torch.equal(value, reference[row]) for row, value in draw(rows).items() if row in reference)
    others = [draw([0], Noise(5, 8)), draw([0], Noise(6, 7)), draw([0], Noise(5, 2**40)), draw([0], name="x"), draw([0], source=1)]
    for other in others:
        assert float((other[0] - reference[0]).abs().min()) > 1e-6
    assert not torch.equal(reference[0], reference[1])  # both ethanol-like, nine atoms
    single = NOISE.normal(Batch.from_block(minima.take([0]), index=[0]), "force-denoising")
    assert torch.equal(single, reference[0].float())  # float32 models see the same noise, rounded


def test_noise_is_normal() -> None:
    """Moments over samples, and no correlation between samples, steps or sources that follow each other."""
    block = block_of([LINEAR] * 400)
    grid = torch.stack(
        [
            Noise(0, step).normal(Batch.from_block(block, dtype=torch.float64, source=source), "force-denoising").reshape(400, 9)
            for step in range(4)
            for source in range(2)
        ]
    ).reshape(4, 2, 400, 9)
    count = grid.numel()
    moments = [float(m) for m in (grid.mean(), (grid**2).mean() - 1, (grid**4).mean() - 3)]
    related = [
        float((a * b).mean())
        for a, b in ((grid[1:], grid[:-1]), (grid[:, 1], grid[:, 0]), (grid[:, :, 1:], grid[:, :, :-1]), (grid[..., 1:], grid[..., :-1]))
    ]
    print(f"{count} numbers: mean, variance - 1, kurtosis - 3: {moments}; correlations {related}")
    for value, deviation in zip(moments, (1.0, 2**0.5, 96**0.5), strict=True):
        assert abs(value) < 5 * deviation / count**0.5
    assert max(map(abs, related)) < 5 / (count / 2) ** 0.5


def rigid(systems: list[System], seed: int = 0) -> tuple[Batch, torch.Tensor, torch.Tensor]:
    batch = Batch.from_systems(systems, dtype=torch.float64)
    raw = Noise(seed, 0).normal(batch, "test")
    return batch, raw, remove_rigid_motion(raw, batch)


def momenta(batch: Batch, displacement: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Net displacement and net angular displacement about the centroid, (M, 3) each."""
    sums = [torch.zeros(len(batch), 3, dtype=torch.float64) for _ in range(3)]
    sums[0].index_add_(0, batch.molecule, batch.positions)
    centred = batch.positions - (sums[0] / batch.counts[:, None])[batch.molecule]
    sums[1].index_add_(0, batch.molecule, displacement)
    sums[2].index_add_(0, batch.molecule, torch.linalg.cross(centred, displacement))
    return sums[1], sums[2]


def test_no_rigid_motion_is_left(minima: Block) -> None:
    systems = [*(minima.system(k) for k in range(20)), LINEAR, ATOM, CRYSTAL]
    batch, raw, left = rigid(systems)
    before, after = momenta(batch, raw), momenta(batch, left)
    open_ones = ~batch.pbc.any(dim=1)
    print(f"net displacement {float(after[0].abs().max()):.1e} Å (was {float(before[0].abs().max()):.1f})", end="; ")
    print(f"net turn {float(after[1][open_ones].abs().max()):.1e} Å² (was {float(before[1].abs().max()):.1f})")
    assert float(after[0].abs().max()) < 1e-13 and float(after[1][open_ones].abs().max()) < 1e-12
    twice = remove_rigid_motion(left, batch)
    print(f"once more: changed by {float((twice - left).abs().max()):.1e} Å")
    assert float((twice - left).abs().max()) < 1e-13
    alone = batch.molecule == 21
    assert torch.equal(left[alone], torch.zeros(1, 3, dtype=torch.float64))
    # A crystal cannot turn: only the translation goes.
    inside = batch.molecule == 22
    assert torch.allclose(left[inside], raw[inside] - raw[inside].mean(0), rtol=0, atol=1e-15)
    assert float(after[1][22].abs().max()) > 0.1
    # Against least squares on the explicit basis of translations and rotations.
    for m in range(22):
        atoms = batch.molecule == m
        r = batch.positions[atoms] - batch.positions[atoms].mean(0)
        axes = torch.eye(3, dtype=torch.float64)
        basis = torch.stack([*(e.expand_as(r) for e in axes), *(torch.linalg.cross(e.expand_as(r), r) for e in axes)]).flatten(1).T
        flat = raw[atoms].flatten().numpy()
        fit = np.linalg.lstsq(basis.numpy(), flat, rcond=1e-10)[0]
        assert np.abs(flat - basis.numpy() @ fit - left[atoms].flatten().numpy()).max() < 1e-12


def test_share_of_rigid_motion() -> None:
    """6 of 3N degrees of freedom, 5 of a linear molecule, 3 of a crystal, all of an atom."""
    bent = System({"numbers": np.array([8, 1, 1]), "positions": np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])})
    for name, system, freedom in (("water", bent, 6), ("carbon dioxide", LINEAR, 5), ("salt", CRYSTAL, 3), ("atom", ATOM, 3)):
        _, raw, left = rigid([system] * 3000)
        share, expected = 1 - float((left**2).sum() / (raw**2).sum()), freedom / (3 * len(system))
        print(f"{name}: {share:.4f} removed, {expected:.4f} expected")
        assert share == pytest.approx(expected, abs=0.015)  # five standard deviations of 3,000 samples of water


def test_almost_linear_molecules_still_turn() -> None:
    """HCN bent by 1e-3 rad turns about its axis: the hydrogen's share of that motion is removed too."""
    for angle in (1e-2, 1e-3):
        positions = np.array([[1.07 * angle, 0.0, -1.07], [0.0, 0.0, 0.0], [0.0, 0.0, 1.16]])
        bent = System({"numbers": np.array([1, 6, 7]), "positions": positions})
        batch, _, left = rigid([bent])
        _, turn = momenta(batch, left)
        print(f"{angle} rad: net turn {float(turn.abs().max()):.1e} Å²")
        assert float(turn.abs().max()) < 1e-12 and float(left.abs().max()) < 10


@pytest.mark.parametrize("preset", ["et-oreo", "et-oreo-faithful"])
def test_a_displaced_atom_is_pushed_back(preset: str, minima: Block) -> None:
    """Trained on one minimum only, forces must point back to it, for every atom and direction, with slope κ."""
    objectives = build(preset)
    kappa, sigma = objectives[2].kappa, objectives[2].sigma  # type: ignore[attr-defined]
    model = potential(layers=1)
    batch = Batch.from_block(minima.take([3, 3]), dtype=torch.float64, index=[0, 1])  # glyoxal, six atoms
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(STEPS):
        ready = prepared(objectives, batch, Noise(0, step))
        prediction = model(ready, create_graph=True)
        terms = [objective.loss(prediction, ready) for objective in objectives]
        loss = sum(o.weight * t.total / t.count.clamp(min=1) for o, t in zip(objectives, terms, strict=True))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        optimiser.step()
        for group in optimiser.param_groups:
            group["lr"] = 1e-2 * (1 - step / STEPS)
    displaced, moves = displacements(batch.take(torch.tensor([0])), sigma)
    for condition in {0, int(objectives[2].conditioned)}:  # type: ignore[attr-defined]
        forces = model(dataclasses.replace(displaced, condition=torch.full_like(displaced.condition, condition))).forces
        along = torch.zeros(len(displaced), dtype=torch.float64).index_add(0, displaced.molecule, (forces * moves).sum(1))
        slopes = along / torch.zeros_like(along).index_add(0, displaced.molecule, (moves**2).sum(1))
        print(f"{preset}, condition {condition}: F·d/d² from {slopes.min():.2f} to {slopes.max():.2f} eV/Å², κ = {kappa}")
        assert float(slopes.max()) < 0
        assert float(slopes.mean()) == pytest.approx(-kappa, rel=0.25)


def displacements(minimum: Batch, size: float) -> tuple[Batch, torch.Tensor]:
    """Every atom of one conformation moved by ``size`` Å along ±x, ±y and ±z, rigid motion taken out."""
    atoms = len(minimum.numbers)
    batch = concatenate([minimum] * (6 * atoms))
    moves = torch.zeros_like(batch.positions)
    for k, (atom, axis, sign) in enumerate((a, x, s) for a in range(atoms) for x in range(3) for s in (1, -1)):
        moves[k * atoms + atom, axis] = sign * size
    moves = remove_rigid_motion(moves, batch)
    return dataclasses.replace(batch, positions=batch.positions + moves), moves
