"""The kernels' features and their gradients, through read-outs in PyTorch, against the PyTorch modules in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_fused import SIZES, apart, crystals, in_float64, liquid, molecules, random_potential, threads, use, with_inputs

from forcewell import fused
from forcewell.batch import Batch
from forcewell.potential import Potential

__all__ = ["crystals", "molecules", "threads"]  # fixtures

WHITENED = {"channels": 32, "layers": 2, "heads": 2, "radial": 16, "vector_norm": "whitened"}
GIVEN = {"channels": 32, "layers": 2, "heads": 2, "radial": 16, "given_forces": True}
HEADS = {"noise": True, "properties": {"names": ["dipole", "gap"], "classes": False, "mean": [0.0, 0.0], "spread": [1.0, 1.0]}}


def potential_with_heads(**sizes: Any) -> Potential:
    return random_potential(head=HEADS, **sizes)


def learn(potential: Potential, batch: Batch, forces: bool = False) -> dict[str, torch.Tensor]:
    """Energies, noise and properties, and each parameter's gradient of a loss on all of them."""
    potential.zero_grad()
    out = potential(batch, forces=forces, noise=True, properties=True, create_graph=forces)
    generator = torch.Generator().manual_seed(2)
    loss = out.energy.new_zeros(())
    named = {"energy": out.energy, "noise": out.noise, "properties": out.properties} | ({"forces": out.forces} if forces else {})
    for value in named.values():
        assert value is not None
        loss = loss + ((value - torch.randn(value.shape, generator=generator).to(value)) ** 2).sum()
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in potential.named_parameters() if parameter.grad is not None}
    return {name: value.detach().double() for name, value in (named | gradients).items()}


def give_forces(batch: Batch) -> Batch:
    """To every other conformation, as DeNS does."""
    given = torch.randn(batch.positions.shape, generator=torch.Generator().manual_seed(5)).to(batch.positions)
    batch.given_forces = torch.where((batch.molecule % 2 == 0)[:, None], given, torch.nan)
    return batch


@pytest.mark.parametrize("lanes", sorted(fused.INSTRUCTIONS))
@pytest.mark.parametrize("sizes", [*SIZES, WHITENED, GIVEN], ids=lambda sizes: f"{sizes['channels']} {[*sizes][4:5]}")
@pytest.mark.parametrize("kind", ["molecules", "crystals"])
def test_equal_to_pytorch(
    kind: str, sizes: dict[str, Any], lanes: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = with_inputs(request.getfixturevalue(kind), sizes)
    if sizes is GIVEN:
        batch = give_forces(batch)
    potential = potential_with_heads(**sizes)
    if not use(potential, lanes):
        assert lanes > 4
        pytest.skip(f"instructions {lanes} are not of this processor, or not for these sizes")
    right = learn(in_float64(potential), batch.to(dtype=torch.float64))
    right = {name: value for name, value in right.items() if value.abs().max() > 0}
    found = learn(potential, batch)
    monkeypatch.setattr("forcewell.potential.instructions", lambda *_, **__: 0)
    usual = learn(potential_with_heads(**sizes), batch)
    off = {name: (apart(found[name], value), apart(usual[name], value)) for name, value in right.items()}
    worst = max(off, key=lambda name: off[name][0])
    shown = [f"{name} {off[name][0]:.1e} ({off[name][1]:.1e})" for name in ("energy", "noise", "properties", worst)]
    print(f"{lanes} floats, in brackets PyTorch: {', '.join(shown)}")
    assert all(error < 1e-5 + 10 * rounding for error, rounding in off.values())
    assert set(found) >= set(usual) and not torch.equal(found["noise"], usual["noise"])  # the control: two ways indeed


def test_whitened_vectors_have_features_but_no_forces(molecules: Batch) -> None:
    """The kernels' energy reads vectors as they are."""
    potential = potential_with_heads(**WHITENED)
    assert potential.kernels(molecules, forces=False) is not None and potential.kernels(molecules) is None
    assert potential.path.startswith("PyTorch") and potential.path_of({"noise": True}).startswith("compiled kernels")
    right = learn(in_float64(potential), molecules.to(dtype=torch.float64), forces=True)["forces"]
    error = apart(learn(potential, molecules, forces=True)["forces"], right)
    print(f"forces {error:.1e}")
    assert error < 1e-4


@pytest.mark.parametrize("sizes", [SIZES[0], GIVEN], ids=["plain", "given forces"])
def test_beside_forces(sizes: dict[str, Any], molecules: Batch) -> None:
    """Objectives on forces and on noise of one prediction: both by kernels, and their gradients add up."""
    potential = potential_with_heads(**sizes)
    molecules = give_forces(molecules) if sizes is GIVEN else molecules
    right = learn(in_float64(potential), molecules.to(dtype=torch.float64), forces=True)
    right = {name: value for name, value in right.items() if value.abs().max() > 0}
    assert potential.kernels(molecules) is not None
    off = {name: apart(value, right[name]) for name, value in learn(potential, molecules, forces=True).items() if name in right}
    worst = max(off, key=lambda name: off[name])
    print(f"forces {off['forces']:.1e}, noise {off['noise']:.1e}, {worst} {off[worst]:.1e}")
    assert off["forces"] < 1e-5 and off[worst] < 1e-4
    if sizes is GIVEN:
        assert right["encoder.force_embedding.directions"].abs().max() > 0  # the control: they matter


@pytest.mark.parametrize("kind", ["one system", "a large system and small ones"])
@pytest.mark.parametrize("sizes", [SIZES[0], SIZES[2], {**GIVEN, "channels": 64}], ids=["64", "256", "64, given forces"])
def test_several_threads(kind: str, sizes: dict[str, Any], threads: Callable[[int], None]) -> None:
    small = [liquid(5), liquid(7)]
    batch = give_forces(Batch.from_systems([liquid(64), *(small if kind != "one system" else [])]))
    potential = potential_with_heads(**sizes)
    threads(1)
    forces = "given_forces" in sizes
    right = learn(potential, batch, forces)
    for count in (2, 3):
        threads(count)
        found, again = learn(potential, batch, forces), learn(potential, batch, forces)
        assert all(torch.equal(value, again[name]) for name, value in found.items())
        off = {name: apart(value, right[name]) for name, value in found.items() if right[name].abs().max() > 0}
        print(f"{count} threads: noise {off['noise']:.1e}, worst {max(off.values()):.1e}")
        assert max(off.values()) < 5e-5
        assert not torch.equal(found["noise"], right["noise"])  # the control: several threads indeed


def test_without_gradients_nothing_is_kept(molecules: Batch) -> None:
    potential = potential_with_heads(**SIZES[0])
    with torch.no_grad():
        out = potential(molecules, forces=False, noise=True, properties=True)
    assert out.forces is None and not any(value.requires_grad for value in (out.energy, out.noise, out.properties))
    with_forces = potential(molecules, noise=True)
    assert not with_forces.energy.requires_grad and not with_forces.forces.requires_grad
    assert with_forces.noise.requires_grad  # as by PyTorch's operations
    torch.testing.assert_close(with_forces.energy, out.energy, rtol=1e-5, atol=1e-5)


def test_features_belong_to_the_parameters_of_their_time() -> None:
    potential = potential_with_heads(**SIZES[0])
    batch = Batch.from_systems([liquid(5)])
    out = potential(batch, forces=False, noise=True)
    with torch.no_grad():
        potential.encoder.combine.weight += 1  # type: ignore[union-attr, operator]
    potential(batch, forces=False)
    with pytest.raises(RuntimeError, match="changed between"):
        out.noise.sum().backward()
    torch.optim.SGD(potential.parameters(), lr=0.1).zero_grad()
    again = potential(batch, forces=False, noise=True)
    again.noise.sum().backward()
    assert bool(torch.isfinite(potential.encoder.combine.weight.grad).all())  # type: ignore[union-attr, arg-type]
