"""When the kernels may stand for the PyTorch modules, and that they notice every change to them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_fused import SIZES, apart, in_float64, liquid, molecules, random_potential
from torch import nn
from torch.nn.utils import parametrizations, prune, vector_to_parameters

from forcewell.batch import Batch
from forcewell.nn import EquivariantScalar, EquivariantTransformer
from forcewell.potential import Potential

__all__ = ["molecules"]  # a fixture


def off(potential: Potential, batch: Batch) -> float:
    """How far forces are from those of the same weights in float64."""
    right = in_float64(potential)(batch.to(dtype=torch.float64)).forces
    found = potential(batch).forces
    return apart(found, right)


def scale(potential: Potential) -> None:
    for parameter in potential.parameters():
        parameter.data.mul_(1.1)  # which changes no version


def refill(potential: Potential) -> None:
    values = torch.cat([parameter.detach().flatten() for parameter in potential.parameters()])
    for _ in range(2):  # the second time memory of the first is used again
        vector_to_parameters(values * 1.1, potential.parameters())


def other_basis(potential: Potential) -> None:
    potential.encoder.basis.means.mul_(0.9)  # type: ignore[union-attr, operator]


def other_layer(potential: Potential) -> None:
    layer: Any = potential.encoder.layers[1]  # type: ignore[index]
    torch.manual_seed(3)
    layer.output = nn.Linear(layer.channels, 3 * layer.channels)


def other_head(potential: Potential) -> None:
    torch.manual_seed(3)
    potential.head = EquivariantScalar(potential.encoder.channels)


@pytest.mark.parametrize("change", [scale, refill, other_basis, other_layer, other_head])
def test_changes_are_noticed(change: Callable[[Potential], None], molecules: Batch) -> None:
    potential = random_potential(**SIZES[0])
    before = potential(molecules).forces
    change(potential)
    error, moved = off(potential, molecules), apart(potential(molecules).forces, before)
    print(f"{change.__name__}: moved by {moved:.1e} of the largest force, {error:.1e} off")
    assert potential.kernels(molecules) is not None and error < 1e-5 < 1e-3 < moved


def test_pruned_or_normalised_weights_are_pytorchs(molecules: Batch) -> None:
    for change in (lambda m: prune.l1_unstructured(m, "weight", 0.5), parametrizations.weight_norm):
        potential = random_potential(**SIZES[0])
        potential(molecules)
        change(potential.encoder.layers[0].output)  # type: ignore[index]
        assert potential.kernels(molecules) is None
        assert bool(torch.isfinite(potential(molecules).forces).all())


def test_hooks_and_own_encoders_are_pytorchs(molecules: Batch) -> None:
    seen: list[str] = []
    potential = random_potential(**SIZES[0])
    potential(molecules)
    hook = potential.encoder.register_forward_hook(lambda *_: seen.append("encoder"))
    potential(molecules)
    assert seen == ["encoder"] and potential.kernels(molecules) is None
    hook.remove()
    assert potential.kernels(molecules) is not None

    class Doubled(EquivariantTransformer):
        def forward(self, batch: Batch, layers: bool = False) -> Any:
            features = super().forward(batch, layers)
            features.scalars = 2 * features.scalars
            return features

    potential.encoder = Doubled(**SIZES[0])
    assert potential.kernels(molecules) is None


@pytest.mark.parametrize("forces", [True, False])
def test_parameters_changed_before_the_backward_pass(forces: bool, molecules: Batch) -> None:
    """In place by an optimiser, with the graph kept."""
    potential = random_potential(**SIZES[0])
    optimiser = torch.optim.AdamW(potential.parameters(), lr=1e-2, fused=True)
    out = potential(molecules, forces=forces, create_graph=forces)
    first = out.forces.square().sum() if forces else out.energy.square().sum()
    first.backward(retain_graph=True)
    optimiser.step()
    with pytest.raises(RuntimeError, match="changed between"):
        out.energy.sum().backward()


def test_parameters_that_nobody_else_holds(molecules: Batch) -> None:
    """Of a functional call: they must live until the backward pass."""
    potential = random_potential(**SIZES[0])
    weights = {name: value.detach().clone().requires_grad_(True) for name, value in potential.named_parameters()}
    given = {name: value * 1.1 for name, value in weights.items()}
    energy = torch.func.functional_call(potential, given, (molecules,), {"forces": False}).energy.sum()
    del given
    torch.randn(1_000_000)  # would take their memory
    energy.backward()
    exact = in_float64(potential)
    right = {name: value.detach().double().requires_grad_(True) for name, value in weights.items()}
    scaled = {name: value * 1.1 for name, value in right.items()}
    torch.func.functional_call(exact, scaled, (molecules.to(dtype=torch.float64),), {"forces": False}).energy.sum().backward()
    found = {name: value.grad for name, value in weights.items() if value.grad is not None}
    worst = max(apart(found[n], g.grad) for n, g in right.items() if g.grad is not None and g.grad.abs().max() > 0)
    print(f"gradients {worst:.1e}")
    assert worst < 1e-4


@pytest.mark.parametrize("forces", [True, False])
def test_second_derivatives_are_refused(forces: bool, molecules: Batch) -> None:
    potential = random_potential(**SIZES[0])
    combine: Any = potential.encoder.combine
    weight = combine.weight
    energy = potential(molecules, forces=forces, create_graph=forces).energy.sum()
    (gradient,) = torch.autograd.grad(energy, [weight], create_graph=True)
    assert bool(torch.isfinite(gradient).all())  # itself it may be used
    with pytest.raises(RuntimeError, match="no second derivatives"):
        gradient.square().sum().backward()


def test_other_defaults_of_pytorch(molecules: Batch) -> None:
    potential = random_potential(**SIZES[0])
    right = potential(molecules)
    torch.set_default_dtype(torch.float64)
    try:
        found = potential(molecules, create_graph=True)
        found.forces.square().sum().backward()
        potential(molecules, forces=False).energy.sum().backward()
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found.forces, right.forces) and torch.equal(found.energy, right.energy)
    assert all(bool(torch.isfinite(p.grad).all()) for p in potential.parameters() if p.grad is not None)


def test_inference_mode() -> None:
    with torch.inference_mode():
        potential = random_potential(**SIZES[1])
        batch = Batch.from_systems([liquid(6)])
        first = potential(batch, forces=False).energy
        for parameter in potential.parameters():
            parameter.mul_(1.1)
        second = potential(batch, forces=False).energy
    assert bool(torch.isfinite(first).all()) and not torch.equal(first, second)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_positions_that_are_no_numbers(value: float, molecules: Batch) -> None:
    """As in PyTorch: the molecule's energy is no number, the others' are."""
    molecules.positions[1, 2] = value
    out = random_potential(**SIZES[0])(molecules)
    assert not bool(torch.isfinite(out.energy[0])) and bool(torch.isfinite(out.energy[1:]).all())
