"""Physics checks that ship with the library, for any potential.

``python -m forcewell.testing potential ENCODER`` checks a small random model of an encoder;
``python -m forcewell.testing golden FILE.npz`` compares with a published implementation.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forcewell.batch import Batch, concatenate
from forcewell.errors import InputError
from forcewell.nn import encoder_settings
from forcewell.potential import Potential
from forcewell.system import Block

# Distorted geometries in Å, so that no symmetry hides a mistake.
MOLECULES: dict[str, tuple[list[int], list[list[float]]]] = {
    "water": ([8, 1, 1], [[0.0, 0.02, 0.0], [0.97, 0.0, 0.03], [-0.24, 0.93, 0.0]]),
    "methanol": (
        [6, 8, 1, 1, 1, 1],
        [[0.01, 0.0, 0.0], [1.42, 0.03, 0.0], [-0.36, 1.02, 0.05], [-0.38, -0.5, 0.9], [-0.35, -0.53, -0.88], [1.75, -0.4, 0.78]],
    ),
    # Exactly collinear, along each axis and along none: angles and polar axes are undefined there.
    "hydrogen cyanide": ([1, 6, 7], [[0.0, 0.0, -1.07], [0.0, 0.0, 0.0], [0.0, 0.0, 1.16]]),
    "carbon dioxide": ([8, 6, 8], [[0.0, -1.18, 0.0], [0.0, 0.0, 0.0], [0.0, 1.15, 0.0]]),
    "acetylene": ([1, 6, 6, 1], [[-1.65, 0.0, 0.0], [-0.6, 0.0, 0.0], [0.6, 0.0, 0.0], [1.66, 0.0, 0.0]]),
    "hydrogen cyanide, askew": ([1, 6, 7], [[-0.625, -0.5, -0.75], [0.0, 0.0, 0.0], [0.625, 0.5, 0.75]]),
    "one atom": ([8], [[0.3, -0.2, 0.1]]),
}
SEVERAL = tuple(name for name in MOLECULES if name != "one atom")
# Sizes of the models that are checked; an encoder takes those of the settings that it has.
SMALL = {"channels": 32, "layers": 2, "heads": 4, "divisor": 2, "radial": 16, "filters": 24, "elements": 20}
# Largest error allowed, in float64 and in the unit of the quantity (eV, eV/Å). Random models with energies and
# forces of order one reach 1e-13 for exact symmetries and 1e-9 for finite differences.
EXACT, DIFFERENCE = 1e-10, 1e-8
# Å, of finite differences. At 1e-4 the Equivariant Transformer's softened norms, which bend within 1e-4 where symmetry
# makes a vector vanish, gave an error of 3e-6 eV/Å that is not the force's; at 1e-5 it is 3e-10, and rounding no more.
STEP = 1e-5


@dataclasses.dataclass(slots=True)
class Check:
    """One property: the error seen, the bound, and whether it holds."""

    name: str
    error: float
    bound: float

    @property
    def passed(self) -> bool:
        """True where the error is finite and within its bound."""
        return bool(self.error <= self.bound)


def check_potential(potential: Potential, *, periodic: bool = True) -> list[Check]:
    """Checks a potential's physics in float64 on small molecules, and float32 against float64.

    Conservative forces (finite differences), rotation, inversion, translation, permutation, separation, batched =
    single, no influence between molecules, one atom, collinear atoms, vanishing and continuous at the cutoff with a
    non-zero control inside it, second derivatives finite and right, inputs left alone; forces, stress, lattice translation
    and second derivatives in small triclinic cells where ``periodic``; the symmetries of a noise head where there is one.
    The potential itself is not changed. Returns every check, passed or not.
    """
    model = copy.deepcopy(potential).cpu().double().eval()
    checks = [*_symmetries(model), *_differences(model, "", batch_of(*SEVERAL))]
    checks += [*_independence(model), *_cutoff(model), *_second_order(model)]
    if periodic:
        checks += [check for name, batch in _cells().items() for check in _periodic(model, name, batch)]
    checks += _precision(potential, model)
    return checks


def batch_of(*names: str, offset: float = 0.0) -> Batch:
    """The named test molecules as a float64 batch, moved by ``offset`` Å along each axis."""
    numbers = [MOLECULES[name][0] for name in names]
    positions = np.concatenate([np.array(MOLECULES[name][1]) + offset for name in names])
    return Batch.from_block(
        Block(np.array([len(z) for z in numbers]), {"numbers": np.concatenate(numbers), "positions": positions}), dtype=torch.float64
    )


def _moved(batch: Batch, positions: Tensor, **rest: Tensor) -> Batch:
    return dataclasses.replace(batch, positions=positions, **rest)


def _error(a: Tensor | None, b: Tensor | None) -> float:
    assert a is not None and b is not None
    difference = (a - b).detach().abs()
    return float(difference.max()) if bool(torch.isfinite(difference).all()) else float("inf")


def _symmetries(model: Potential) -> list[Check]:
    batch, noisy = batch_of(*SEVERAL), model.noise_head is not None
    base = model(batch, noise=noisy)
    assert base.forces is not None
    generator = torch.Generator().manual_seed(3)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    if torch.linalg.det(rotation) < 0:
        rotation[:, 0] *= -1
    molecules = torch.arange(len(batch.numbers)).split(batch.counts.tolist())
    order = torch.cat([atoms[torch.randperm(len(atoms), generator=generator)] for atoms in molecules])
    unit, every = torch.eye(3, dtype=torch.float64), torch.arange(len(order))
    checks = []
    for name, matrix, shift, rows in (
        ("rotation", rotation, 0.0, every),
        ("inversion", -unit, 0.0, every),
        ("translation", unit, 7.3, every),
        ("permutation", unit, 0.0, order),
    ):
        out = model(_moved(batch, (batch.positions @ matrix.T + shift)[rows], numbers=batch.numbers[rows]), noise=noisy)
        checks.append(Check(f"{name}: energy", _error(out.energy, base.energy), EXACT))
        checks.append(Check(f"{name}: forces", _error(out.forces, (base.forces @ matrix.T)[rows]), EXACT))
        if noisy:
            checks.append(Check(f"{name}: noise", _error(out.noise, (base.noise @ matrix.T)[rows]), EXACT))
    net = torch.zeros(len(batch), 3, dtype=torch.float64).index_add(0, batch.molecule, base.forces)
    torque = torch.zeros(len(batch), 3, dtype=torch.float64).index_add(0, batch.molecule, torch.linalg.cross(batch.positions, base.forces))
    checks.append(Check("net force", float(net.abs().max()), EXACT))
    checks.append(Check("net torque", float(torque.abs().max()), EXACT))
    return checks


def _differences(model: Potential, name: str, batch: Batch) -> list[Check]:
    """Forces against fourth-order finite differences of the energy, every atom and axis."""
    forces = model(batch).forces
    numeric = torch.zeros_like(batch.positions)
    for atom in range(len(batch.numbers)):
        for axis in range(3):
            numeric[atom, axis] = -_derivative(lambda d, a=atom, x=axis: model(_displaced(batch, a, x, d), forces=False).energy.sum(), STEP)
    control = float(forces.abs().max())
    return [
        Check(f"{name}forces: finite differences", _error(forces, numeric), DIFFERENCE),
        Check(f"{name}forces: not all zero", 0.0 if control > 1e-6 else float("inf"), 0.0),
    ]


def _derivative(function: Callable[[float], Tensor], step: float) -> Tensor:
    with torch.no_grad():
        return (8 * (function(step) - function(-step)) - (function(2 * step) - function(-2 * step))) / (12 * step)


def _displaced(batch: Batch, atom: int, axis: int, distance: float) -> Batch:
    positions = batch.positions.clone()
    positions[atom, axis] += distance
    return _moved(batch, positions)


def _independence(model: Potential) -> list[Check]:
    names = list(MOLECULES)
    batch = batch_of(*names)
    kept = [tensor.clone() for tensor in (batch.positions, batch.numbers)]
    out = model(batch)
    untouched = torch.equal(kept[0], batch.positions) and torch.equal(kept[1], batch.numbers) and not batch.positions.requires_grad
    single = [model(batch_of(name)) for name in names]
    checks = [
        Check("input not changed", 0.0 if untouched else float("inf"), 0.0),
        Check("batched = single: energy", _error(out.energy, torch.cat([one.energy for one in single])), EXACT),
        Check("batched = single: forces", _error(out.forces, torch.cat([one.forces for one in single])), EXACT),
        Check("one atom: no force", float(out.forces[-1].abs().max()), EXACT),
    ]
    near, far = batch_of("water"), batch_of("methanol", offset=40.0)
    pair = _moved(near, torch.cat([near.positions, far.positions]), numbers=torch.cat([near.numbers, far.numbers]))
    joined = Batch.from_block(
        Block(np.array([9]), {"numbers": pair.numbers.numpy(), "positions": pair.positions.numpy()}), dtype=torch.float64
    )
    apart = model(concatenate([near, far]))
    together = model(joined)
    checks.append(Check("separation: energy", _error(together.energy, apart.energy.sum()[None]), EXACT))
    checks.append(Check("separation: forces", _error(together.forces, apart.forces), EXACT))
    positions = batch.positions.clone()
    positions[:3] += torch.linspace(0.0, 0.4, 9, dtype=torch.float64).reshape(3, 3)
    other = model(_moved(batch, positions))
    checks.append(Check("other molecules: no influence", _error(other.forces[3:], out.forces[3:]), EXACT))
    return checks


def _pair(distance: float) -> Batch:
    """A water whose oxygen is ``distance`` Å from a lone nitrogen that only the oxygen can see."""
    water = np.array([[0.0, 0.0, 0.0], [-0.76, 0.59, 0.0], [-0.76, -0.59, 0.0]])
    positions = np.concatenate([water, [[distance, 0.0, 0.0]]])
    return Batch.from_block(Block(np.array([4]), {"numbers": np.array([8, 1, 1, 7]), "positions": positions}), dtype=torch.float64)


def _cutoff(model: Potential) -> list[Check]:
    """Nothing beyond the cutoff, no jump at it, and something inside it, without which the rest proves nothing."""
    cutoff, tiny = model.cutoff, 1e-7
    # Other pairs of _pair are beyond the cutoff at these distances, so only the O-N edge comes and goes.
    inside, below, above, beyond = (model(_pair(d)) for d in (0.6 * cutoff, cutoff - tiny, cutoff + tiny, cutoff + 1.0))
    scale = max(1.0, float(beyond.energy.abs().max()))
    control = _error(inside.energy, beyond.energy)
    force_control = float(inside.forces[3].abs().max())
    return [
        Check("inside the cutoff: an interaction", 0.0 if min(control, force_control) > 1e-6 * scale else float("inf"), 0.0),
        Check("beyond the cutoff: no force", float(beyond.forces[3].abs().max()), EXACT),
        Check("at the cutoff: energy continuous", _error(below.energy, above.energy), 1e-8 * scale),
        Check("at the cutoff: forces continuous", _error(below.forces, above.forces), 1e-5 * scale),
    ]


def _second_order(model: Potential) -> list[Check]:
    """Gradients of a force loss must be finite, also for one atom, collinear atoms and a tetrahedral site, and right."""
    methane = torch.tensor([[0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64) * 0.63
    tetrahedral = Batch.from_block(
        Block(np.array([5]), {"numbers": np.array([6, 1, 1, 1, 1]), "positions": methane.numpy()}), dtype=torch.float64
    )
    checks = []
    for name, batch in (("molecules", batch_of(*MOLECULES)), ("methane, exactly tetrahedral", tetrahedral)):
        gradients = _force_loss_gradients(model, batch)
        finite = bool(gradients) and all(bool(torch.isfinite(g).all()) for g in gradients.values())
        checks.append(Check(f"second derivatives finite: {name}", 0.0 if finite else float("inf"), 0.0))
    return [*checks, _training_gradient(model, "", batch_of("water", "carbon dioxide"))]


def _force_loss_gradients(model: Potential, batch: Batch) -> dict[str, Tensor]:
    model.zero_grad()
    (model(batch, create_graph=True).forces ** 2).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return gradients


def _training_gradient(model: Potential, name: str, batch: Batch) -> Check:
    """The derivative of the sum of squared forces along a random direction of the parameters, against finite differences."""
    gradients = _force_loss_gradients(model, batch)
    generator = torch.Generator().manual_seed(7)
    parameters = dict(model.named_parameters())
    direction = {key: torch.randn(value.shape, generator=generator, dtype=value.dtype) for key, value in gradients.items()}
    kept = {key: parameters[key].detach().clone() for key in direction}

    def loss(distance: float) -> Tensor:
        for key, value in kept.items():
            parameters[key].data.copy_(value + distance * direction[key])
        return (model(batch).forces ** 2).sum()

    numeric = _derivative(loss, 1e-6)  # softened norms of linear molecules bend within 1e-5: then an error of 1e-3
    loss(0.0)
    exact = torch.stack([(gradients[key] * direction[key]).sum() for key in direction]).sum()
    size = torch.stack([(gradient**2).sum() for gradient in gradients.values()]).sum().sqrt()  # of what is differentiated, typically
    return Check(f"{name}second derivatives: finite differences, relative", float((exact - numeric).abs() / size), 1e-6)


def _cells() -> dict[str, Batch]:
    """Small triclinic cells, in which every atom meets several images of itself."""
    described = {
        "water in a cell": ("water", [[4.1, 0.0, 0.0], [0.7, 4.4, 0.0], [-0.5, 0.6, 3.9]]),
        "a chain of carbon dioxide": ("carbon dioxide", [[2.9, 0.0, 0.4], [0.0, 3.7, 0.0], [-0.3, 0.0, 3.1]]),
    }
    batches = {}
    for name, (molecule, cell) in described.items():
        numbers, positions = MOLECULES[molecule]
        arrays = {"cell": np.array([cell]), "pbc": np.ones((1, 3), dtype=bool)}
        batches[name] = Batch.from_block(Block.shared(numbers, np.array([positions]), **arrays), dtype=torch.float64)
    return batches


def _periodic(model: Potential, name: str, batch: Batch) -> list[Check]:
    out = model(batch, stress=True)
    wrapped = batch.positions.clone()
    wrapped[1] += batch.cell[0, 0] - 2 * batch.cell[0, 2]
    lattice = model(_moved(batch, wrapped))
    volume = float(torch.linalg.det(batch.cell[0]).abs())
    numeric = torch.zeros(3, 3, dtype=torch.float64)
    for a in range(3):
        for b in range(3):

            def strained(amount: float, a: int = a, b: int = b) -> Tensor:
                strain = torch.zeros(3, 3, dtype=torch.float64)
                strain[a, b] += amount / 2
                strain[b, a] += amount / 2
                deform = torch.eye(3, dtype=torch.float64) + strain
                return model(_moved(batch, batch.positions @ deform, cell=batch.cell @ deform), forces=False).energy.sum()

            numeric[a, b] = _derivative(strained, STEP) / volume
    doubled = torch.cat([batch.positions, batch.positions + batch.cell[0, 0]])
    big = batch.cell * torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64)[None, :, None]
    arrays = {"cell": big.numpy(), "pbc": batch.pbc.numpy()}
    repeated = model(Batch.from_block(Block.shared(batch.numbers.repeat(2).tolist(), doubled[None].numpy(), **arrays), dtype=torch.float64))
    return [
        Check(f"{name}: lattice translation", max(_error(lattice.energy, out.energy), _error(lattice.forces, out.forces)), EXACT),
        *_differences(model, f"{name}: ", batch),
        Check(f"{name}: stress by finite strain", _error(out.stress[0], numeric), DIFFERENCE),
        Check(f"{name}: two cells, twice the energy", _error(repeated.energy, 2 * out.energy), EXACT * 10),
        _training_gradient(model, f"{name}: ", batch),
    ]


def _precision(potential: Potential, model: Potential) -> list[Check]:
    batch = batch_of(*SEVERAL)
    single = copy.deepcopy(potential).cpu().float().eval()
    exact, rough = model(batch), single(batch.to(dtype=torch.float32))
    return [
        Check(f"float32 against float64: {name}, relative", _error(a.double(), b) / max(float(b.abs().max()), 1e-12), 2e-5)
        for name, a, b in (("energies", rough.energy, exact.energy), ("forces", rough.forces, exact.forces))
    ]


def small_potential(name: str, seed: int = 0, head: Mapping[str, Any] | None = None, **settings: Any) -> Potential:
    """A small random model of an encoder (32 channels, 2 layers), for checks; its ``head``, and ``settings`` of its encoder.

    Biases, which start at zero, are drawn too: without them filters vanish at the cutoff, and a hard cutoff hides. So
    are weights that start (nearly) at zero, such as those of EGNN's steps, which would hide what is wrong with them.
    """
    torch.manual_seed(seed)
    known = encoder_settings(name)  # refuses an unknown name before anything is built
    small = {key: value for key, value in SMALL.items() if key in known}
    potential = Potential({"encoder": {"name": name, **small, **settings}, "head": head or {}})
    with torch.no_grad():
        for parameter in potential.parameters():
            if parameter.dim() == 1 or float(parameter.abs().max()) < 1e-2:
                parameter += 0.2 * torch.randn_like(parameter)
    return potential


def main(arguments: list[str] | None = None) -> int:
    """``golden FILE.npz [--tolerance T]`` or ``potential ENCODER``; exit status 0 only if everything holds."""
    import argparse

    parser = argparse.ArgumentParser(
        prog="python -m forcewell.testing", description="Physics checks and comparison with published outputs."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    golden = commands.add_parser("golden", help="compare with the stored outputs of a published implementation")
    golden.add_argument("file", type=Path)
    golden.add_argument("--tolerance", type=float, default=1e-9)
    physics = commands.add_parser("potential", help="check the physics of a small random model of an encoder")
    physics.add_argument("encoder")
    given = parser.parse_args(arguments)
    try:
        if given.command == "golden":
            from forcewell.golden import compare

            checks = [Check(name, error, given.tolerance) for name, error in compare(given.file).items()]
        else:
            checks = check_potential(small_potential(given.encoder))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for check in checks:
        print(f"{'ok  ' if check.passed else 'FAIL'}  {check.name:45s} {check.error:.2e}  (bound {check.bound:.0e})")
    failed = sum(not check.passed for check in checks)
    print(f"{len(checks) - failed} of {len(checks)} hold")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
