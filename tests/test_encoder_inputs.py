"""What goes into and comes out of every encoder beside energies: charge, spin, classes, levels, noise, layers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import forcewell
from forcewell.batch import Batch
from forcewell.errors import InputError
from forcewell.formal_charges import formal_charges
from forcewell.nn import ENCODERS, encoder
from forcewell.nn.embedding import WANG_CLASSES
from forcewell.potential import Potential
from forcewell.system import Block
from forcewell.testing import batch_of, small_potential

DATA = Path(__file__).parent / "data"


def noisy(name: str, energy: str | None = None, noise: bool | str = True, **settings: Any) -> Potential:
    """A small random float64 model with a noise head."""
    return small_potential(name, head={"energy": energy, "noise": noise}, **settings).double()


def with_state(batch: Batch, charge: list[int], spin: list[int]) -> Batch:
    return dataclasses.replace(batch, charge=torch.tensor(charge), spin=torch.tensor(spin))


@pytest.mark.parametrize("name", ENCODERS)
def test_charge_states_are_learned_apart(name: str) -> None:
    """Four states of one geometry, with four energies; nothing but charge and spin tells them apart."""
    torch.manual_seed(0)
    model = Potential({"encoder": {**small_potential(name).config["encoder"], "electronic": True}}).double()
    batch = with_state(batch_of(*["water"] * 4), [0, 1, -1, 0], [1, 2, 2, 3])
    target = torch.tensor([0.0, 1.0, -0.5, 0.5], dtype=torch.float64)
    fresh = model(batch, forces=False).energy.detach()
    assert float((fresh - fresh[0]).abs().max()) < 1e-12  # a fresh model does not know them apart
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(100):
        optimiser.zero_grad()
        loss = ((model(batch, forces=False).energy - target) ** 2).mean()
        loss.backward()
        optimiser.step()
    error = float(loss.detach()) ** 0.5
    print(f"{name}: 4 states within {error:.3f} eV (spread {float(target.std(unbiased=False)):.2f})")
    assert error < 0.1


@pytest.mark.parametrize("name", ENCODERS)
def test_a_neutral_singlet_adds_exactly_nothing(name: str) -> None:
    model, plain = noisy(name, electronic=True), noisy(name)
    plain.load_state_dict({key: value for key, value in model.state_dict().items() if "electronic" not in key})
    batch = batch_of("water", "methanol", "one atom")
    first, second = model(batch), plain(batch)
    assert torch.equal(first.energy, second.energy) and torch.equal(first.forces, second.forces)  # type: ignore[arg-type]
    charged = model(with_state(batch, [1, 0, 0], [2, 1, 3]))
    changes = (charged.energy - first.energy).detach().abs()
    print(f"{name}: a cation changes {changes[0]:.1e} eV, a triplet atom {changes[2]:.1e} eV")
    assert changes[1] == 0 and min(changes[0], changes[2]) > 1e-6


def test_one_charge_whatever_the_size() -> None:
    """The shares of a molecule's atoms sum to its charge, so a chain ten times as long is not charged ten times."""
    model = noisy("schnet", electronic=True)
    module = model.encoder.electronic
    assert module is not None
    with torch.no_grad():
        module.values.fill_(1.0)  # what is added to the features is then the share itself
    for atoms in (1, 7, 70):
        positions = np.zeros((1, atoms, 3))
        positions[0, :, 0] = np.arange(atoms)
        batch = Batch.from_block(Block.shared([6, 1, 8, 7, 1, 1, 9][:atoms] * max(1, atoms // 7), positions), dtype=torch.float64)
        for charge, spin in ((2, 1), (-3, 1), (0, 3)):
            added = module(model.encoder.embedding(batch.numbers), with_state(batch, [charge], [spin]))
            total = float(added[:, 0].detach().sum())
            assert total == pytest.approx(abs(charge) + spin - 1, abs=1e-12)


def test_levels_of_theory() -> None:
    """Each has its own vector; more levels than vectors are refused."""
    model = noisy("schnet", levels=2)
    batch = batch_of("water", "water", "water")
    batch.level = torch.tensor([0, 1, 0])
    energy = model(batch, forces=False).energy.detach()
    print(f"levels 0 and 1 of one geometry: {energy[0]:.6f} and {energy[1]:.6f} eV")
    assert float((energy[0] - energy[2]).abs()) < 1e-12 and float((energy[0] - energy[1]).abs()) > 1e-4
    assert not encoder("schnet", channels=8, levels=2).levels.any()  # type: ignore[union-attr]
    with pytest.raises(InputError, match="embeds 2 levels of theory, and these are 3"):
        Potential(model.config, levels=["a", "b", "c"])


def test_fine_tuning_keeps_each_level_its_vector() -> None:
    """Levels are reordered (the run's own last); the known ones take their vector along, a new one starts as their mean."""
    from forcewell.model_building import carry_levels

    known = Potential(noisy("schnet", levels=2).config, levels=["PBE", "wB97X"]).double()
    torch.nn.init.normal_(known.encoder.levels, generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    config = {**known.config, "encoder": {**known.config["encoder"], "levels": 3}}
    tuned = Potential(config, levels=["wB97X", "CCSD", "PBE"]).double()
    carry_levels(known, tuned)
    old, new = known.encoder.levels, tuned.encoder.levels
    assert old is not None and new is not None
    assert torch.equal(new[0], old[1]) and torch.equal(new[2], old[0]) and torch.allclose(new[1], old.mean(0))


@pytest.mark.parametrize("name", ["equivariant-transformer", "schnet", "egnn", "se3-transformer"])
def test_classes_of_element_and_charge(name: str) -> None:
    model = noisy(name, classes="wang")
    batch = batch_of("methanol")
    neutral = model(batch, forces=False).energy
    rows = model.encoder.species(batch).tolist()
    assert [WANG_CLASSES[row] for row in rows] == [(int(z), 0) for z in batch.numbers]
    assert rows[:3] == [3, 21, 10]  # carbon, oxygen, hydrogen
    charged = dataclasses.replace(batch, formal_charges=torch.tensor([0, -1, 0, 0, 0, 0]))
    assert model.encoder.species(charged)[1] == 20
    change = float((model(charged, forces=False).energy - neutral).detach().abs()[0])
    print(f"{name}: O instead of O⁻ changes {change:.1e} eV")
    assert change > 1e-6
    with pytest.raises(InputError, match=r"no class for atomic number 8 with formal charge \+2"):
        model(dataclasses.replace(batch, formal_charges=torch.tensor([0, 2, 0, 0, 0, 0])))
    with pytest.raises(InputError, match=r"no class for atomic number 6 with formal charge -9"):
        model(dataclasses.replace(batch, formal_charges=torch.tensor([-9, 0, 0, 0, 0, 0])))


def test_the_first_class_is_trained_unless_as_published() -> None:
    """Class 0 is Br⁻: in the published SchNet its embedding is zero and has no gradient."""
    for published in (True, False):
        model = noisy("schnet", classes="wang", published=published)
        batch = Batch.from_block(Block.shared([35, 1], np.array([[[0.0, 0.0, 0.0], [1.4, 0.0, 0.0]]])), dtype=torch.float64)
        batch.formal_charges = torch.tensor([-1, 0])
        model(batch, forces=False).energy.sum().backward()
        gradient = model.encoder.embedding.weight.grad
        assert gradient is not None
        assert bool(gradient[0].any()) is not published and bool(gradient[10].any())


def test_formal_charges_of_mapped_smiles() -> None:
    """Zwitterions of SPICE: charges sum to the SMILES' own, sit on the right elements, and a shuffled order is refused."""
    rows = json.loads((DATA / "spice_mapped_smiles.json").read_text())
    for row in rows:
        charges = formal_charges(row["smiles"], row["numbers"])
        pairs = list(zip(row["numbers"], charges.tolist(), strict=True))
        assert all(pair in WANG_CLASSES for pair in pairs) and charges.dtype == np.int8
        assert sum(charge > 0 for charge in charges) == row["smiles"].count("+") > 0
        assert charges.sum() == 0 and {7, 8} >= {z for z, charge in pairs if charge} - {6}
    print(f"{len(rows)} molecules, {sum(row['smiles'].count('+') for row in rows)} cationic atoms")
    numbers = rows[0]["numbers"]
    assert numbers[0] == 8 and numbers[15] == 7 and formal_charges(rows[0]["smiles"], numbers)[[0, 15]].tolist() == [-1, 1]
    for smiles, given, message in (
        (rows[0]["smiles"], numbers[::-1], "atom 1 is O in the SMILES, and atomic number 1 beside"),
        (rows[0]["smiles"], numbers[:-1], "expected atoms numbered 1 to 24"),
        ("C[NH3+]", [6, 7], "expected atoms numbered 1 to 2, hydrogens too, each once; 0 of its 2"),
        ("[CH3:1][NH3+:1]", [6, 7], "each once"),
        ("nonsense(", [6], "not a SMILES"),
    ):
        with pytest.raises(InputError, match=message):
            formal_charges(smiles, given)


@pytest.mark.parametrize("name", ENCODERS)
def test_scalars_of_each_layer(name: str) -> None:
    model = noisy(name)
    batch = batch_of("water", "one atom")
    features, plain = model.encoder(batch, layers=True), model.encoder(batch)
    assert plain.layers is None and torch.equal(plain.scalars, features.scalars)
    assert len(features.layers) >= 2
    assert all(scalars.dim() == 2 and len(scalars) == 4 for scalars in features.layers)
    assert not torch.equal(features.layers[0], features.layers[1])


@pytest.mark.parametrize("name", ENCODERS)
def test_noise_head_learns_and_leaves_the_energy_alone(name: str) -> None:
    """Vectors, the moved coordinates, or the gradient of an energy of its own: it fits the displacement of one molecule."""
    model = noisy(name)
    batch = batch_of("methanol")
    with torch.no_grad():
        apart = model(batch, forces=False, noise=True)
    assert not apart.energy.requires_grad and not apart.noise.requires_grad  # type: ignore[union-attr]
    both = model(batch, noise=True)
    assert torch.allclose(both.noise, apart.noise, atol=1e-12) and torch.equal(both.energy.detach(), model(batch).energy)  # type: ignore[arg-type]
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    displacement = 0.1 * torch.randn(6, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    displacement -= displacement.mean(0)
    moved = dataclasses.replace(batch, positions=batch.positions + displacement)
    losses = []
    for _ in range(150):
        optimiser.zero_grad()
        noise = model(moved, forces=False, noise=True, create_graph=True).noise
        loss = ((noise + displacement) ** 2).mean() / (displacement**2).mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    print(f"{name}: share of the noise left unexplained, {losses[0]:.2f} -> {losses[-1]:.3f}")
    assert losses[-1] < 0.2
    energetic = {id(parameter) for parameter in model.head.parameters()}
    assert energetic.isdisjoint(id(parameter) for parameter in model.noise_head.parameters())  # type: ignore[union-attr]


def test_gradient_noise_is_minus_the_derivative_of_its_own_energy() -> None:
    model = noisy("schnet")
    batch = batch_of("water")
    noise = model(batch, forces=False, noise=True).noise
    assert noise is not None and not noise.requires_grad
    numeric = torch.zeros(3, 3, dtype=torch.float64)
    for atom in range(3):
        for axis in range(3):
            values = []
            for step in (1e-4, -1e-4):
                positions = batch.positions.clone()
                positions[atom, axis] += step
                values.append(model.noise_head(model.encoder(dataclasses.replace(batch, positions=positions))).sum())  # type: ignore[misc]
            numeric[atom, axis] = -(values[0] - values[1]).detach() / 2e-4
    print(f"differs by {(noise - numeric).abs().max():.1e} of {noise.abs().max():.1e}")
    assert (noise - numeric).abs().max() < 1e-7 and noise.abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "head", "message"),
    [
        ("schnet", {"noise": "vectors"}, "head 'vectors' needs vectors, which SchNet has not \\(possible: gradient\\)"),
        ("schnet", {"energy": "equivariant"}, "needs vectors, which SchNet has not"),
        ("egnn", {"energy": "own"}, "needs energies, which EGNN has not"),
        ("egnn", {"energy": "poled"}, "unknown head 'poled'; did you mean 'pooled'"),
    ],
)
def test_heads_that_do_not_fit(name: str, head: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Potential({"encoder": {"name": name}, "head": head})


def test_heads_that_halve_one_channel() -> None:
    with pytest.raises(InputError, match="halves the channels of the encoder, which has 1; 2 or more are needed"):
        Potential({"encoder": {"name": "schnet", "channels": 1}})
    assert Potential({"encoder": {"name": "schnet", "channels": 1}, "head": {"energy": "per-atom"}}).encoder.channels == 1


def test_settings_are_checked_by_name() -> None:
    with pytest.raises(InputError, match="unknown setting 'heads'"):
        encoder("schnet", heads=8)
    with pytest.raises(InputError, match="did you mean 'attention'"):
        encoder("egnn", atention=True)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"cutoff": -1}, "encoder schnet: cutoff: input should be greater than 0, got -1"),
        ({"layers": "a"}, "encoder schnet: layers: input should be a valid integer, unable to parse string as an integer, got 'a'"),
        ({"layers": 1.5}, "encoder schnet: layers: input should be a valid integer"),
        ({"heads": 8}, "encoder schnet: unknown setting 'heads'"),
    ],
)
def test_values_of_settings_in_python(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        forcewell.encoder("schnet", **wrong)
    assert str(caught.value).startswith(said)
    small = forcewell.encoder("schnet", channels=8, layers=1, conditions=1)
    assert small.channels == 8 and small.conditions == 1
