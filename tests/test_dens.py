"""DeNS: who is corrupted, which forces are given, what they are worth."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from learning import explained, model_for, prepared

from forcewell.batch import Batch
from forcewell.objectives import CORRUPTED, Noise, build
from forcewell.system import Block

NOISE = Noise(seed=5, step=7)
BUTANE = "CCCC"


def labelled_batch(labelled: Block, rows: list[int]) -> Batch:
    return Batch.from_block(labelled.take(rows), dtype=torch.float64, source=1, index=rows)


def test_dens_corrupts_and_gives_forces(labelled: Block) -> None:
    batch = labelled_batch(labelled, list(range(40)))
    batch.targets.forces[3] = torch.nan  # the first conformation is not complete
    objectives = build({"forces": {}, "energy": {}, "dens": {"probability": 0.5, "corrupted": 0.4}})
    dens = objectives[2]
    ready = dens.prepare(batch, NOISE)
    taken = ready.role == CORRUPTED
    atoms = taken[ready.molecule]
    moved = ~torch.isnan(ready.targets.noise_target).any(1)
    print(f"{int(taken.sum())} of 40 conformations, {int(moved.sum())} of their {int(atoms.sum())} atoms")
    assert 10 < int(taken.sum()) < 30 and 0.25 < float(moved.sum() / atoms.sum()) < 0.55
    assert 0 not in ready.index[taken].tolist()
    assert not (moved & ~atoms).any() and torch.equal(moved, ~torch.isnan(ready.given_forces).any(1))
    assert torch.isnan(ready.targets.forces[atoms]).all()
    clean = {int(i): m for m, i in enumerate(batch.index)}
    for m in taken.nonzero()[:3, 0].tolist():
        mine, theirs = ready.molecule == m, batch.molecule == clean[int(ready.index[m])]
        back = ready.positions[mine] + 0.025 * torch.nan_to_num(ready.targets.noise_target[mine])
        assert float((back - batch.positions[theirs]).abs().max()) < 1e-12
        given = ready.given_forces[mine]
        assert torch.equal(given[moved[mine]], batch.targets.forces[theirs][moved[mine]])
    counts = [int(o.loss(model_for(objectives)(ready, noise=True), ready).count) for o in objectives]
    assert counts == [3 * int((~atoms).sum()) - 3, 40, 3 * int(moved.sum())]  # one atom has no label
    assert dens.prepare(batch, dataclasses.replace(NOISE, training=False)) is batch


def test_given_forces_tell_which_conformation_is_meant(labelled: Block) -> None:
    """Two conformations of one molecule, noise as large as their distance: with their forces given the noise is found better."""
    rows = labelled.take([0, 1] * 6)
    batch = Batch.from_block(rows, dtype=torch.float64, source=1, index=range(12))
    scores = {}
    for given in (True, False):
        noise_only = {"dens": {"sigma": 0.3, "probability": 1.0, "corrupted": 1.0}, "energy": {"weight": 1e-9}}
        objectives = build(noise_only)
        model = model_for(objectives)
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
        for step in range(120):
            ready = prepared(objectives, batch, Noise(0, step))
            ready = ready if given else dataclasses.replace(ready, given_forces=torch.full_like(ready.given_forces, torch.nan))
            term = objectives[0].loss(model(ready, forces=False, noise=True), ready)
            optimiser.zero_grad()
            (term.total / term.count).backward()
            optimiser.step()
        ready = prepared(objectives, batch, Noise(0, 10_000))
        ready = ready if given else dataclasses.replace(ready, given_forces=torch.full_like(ready.given_forces, torch.nan))
        scores[given] = explained(model(ready, forces=False, noise=True).noise.detach(), ready.targets.noise_target)
    print(f"explained of the noise: {scores[True]:.3f} with forces, {scores[False]:.3f} without")
    assert scores[True] > scores[False] + 0.02


def test_given_forces_turn_with_the_molecule_and_add_nothing_when_fresh(labelled: Block) -> None:
    objectives = build("dens")
    model = model_for(objectives)
    batch = build({"forces": {}, "dens": {"probability": 1.0}})[1].prepare(labelled_batch(labelled, [0, 20]), NOISE)
    plain = dataclasses.replace(batch, given_forces=torch.full_like(batch.given_forces, torch.nan))
    assert torch.allclose(model(batch).forces, model(plain).forces, atol=1e-13)  # zero in a fresh model
    for parameter in model.encoder.force_embedding.parameters():  # type: ignore[union-attr]
        torch.nn.init.normal_(parameter)
    q, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3)))
    rotation = torch.from_numpy(q * np.sign(np.linalg.det(q)))
    first = model(batch, noise=True)
    rotated = dataclasses.replace(batch, positions=batch.positions @ rotation, given_forces=batch.given_forces @ rotation)
    second = model(rotated, noise=True)
    errors = float((second.energy - first.energy).abs().max()), float((second.noise - first.noise @ rotation).abs().max())
    effect = float((first.energy - model(plain).energy).abs().max())
    print(f"turned: energy {errors[0]:.1e} eV, noise {errors[1]:.1e}; given forces change the energy by {effect:.2f}")
    assert max(errors) < 1e-10 < 0.01 < effect
