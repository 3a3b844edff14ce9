"""Physics checks that ship with the library, for any potential.

``python -m forcewell.testing potential ENCODER`` checks a small random model of an encoder;
``python -m forcewell.testing golden FILE.npz`` compares with a published implementation.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Callable
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
    "hydrogen cyanide": ([1, 6, 7], [[0.0, 0.0, -1.07], [0.0, 0.0, 0.0], [0.0, 0.0, 1.16]]),
    "one atom": ([8], [[0.3, -0.2, 0.1]]),
}
# Sizes of the models that are checked; an encoder takes those of the settings that it has.
SMALL = {"channels": 32, "layers": 2, "heads": 4, "divisor": 2, "radial": 16, "filters": 24, "elements": 20}
# Largest error allowed, in float64 and in the unit of the quantity (eV, eV/Å). Random models with energies and
# forces of order one reach 1e-13 for exact symmetries and 1e-9 for finite differences.
EXACT, DIFFERENCE = 1e-10, 1e-8


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
    non-zero control inside it, finite second derivatives, inputs left alone; strain and lattice translation where
    ``periodic``. The potential itself is not changed. Returns every check, passed or not.
    """
    model = copy.deepcopy(potential).cpu().double().eval()
    checks = [*_symmetries(model), *_differences(model), *_independence(model), *_cutoff(model), *_second_order(model)]
    if periodic:
        checks += _periodic(model)
    checks.append(_precision(potential, model))
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
    difference = (a - b).abs()
    return float(difference.max()) if bool(torch.isfinite(difference).all()) else float("inf")


def _symmetries(model: Potential) -> list[Check]:
    batch = batch_of("water", "methanol", "hydrogen cyanide")
    base = model(batch)
    assert base.forces is not None
    generator = torch.Generator().manual_seed(3)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    if torch.linalg.det(rotation) < 0:
        rotation[:, 0] *= -1
    checks = []
    for name, matrix, shift in (
        ("rotation", rotation, 0.0),
        ("inversion", -torch.eye(3, dtype=torch.float64), 0.0),
        ("translation", torch.eye(3, dtype=torch.float64), 7.3),
    ):
        out = model(_moved(batch, batch.positions @ matrix.T + shift))
        checks.append(Check(f"{name}: energy", _error(out.energy, base.energy), EXACT))
        checks.append(Check(f"{name}: forces", _error(out.forces, base.forces @ matrix.T), EXACT))
    order = torch.tensor([1, 0, 2, 5, 8, 4, 3, 7, 6, 11, 10, 9])
    permuted = model(_moved(batch, batch.positions[order], numbers=batch.numbers[order], molecule=batch.molecule))
    checks.append(Check("permutation: energy", _error(permuted.energy, base.energy), EXACT))
    checks.append(Check("permutation: forces", _error(permuted.forces, base.forces[order]), EXACT))
    net = torch.zeros(len(batch), 3, dtype=torch.float64).index_add(0, batch.molecule, base.forces)
    torque = torch.zeros(len(batch), 3, dtype=torch.float64).index_add(0, batch.molecule, torch.linalg.cross(batch.positions, base.forces))
    checks.append(Check("net force", float(net.abs().max()), EXACT))
    checks.append(Check("net torque", float(torque.abs().max()), EXACT))
    return checks


def _differences(model: Potential, step: float = 1e-4) -> list[Check]:
    """Forces against fourth-order finite differences of the energy, every atom and axis."""
    batch = batch_of("water", "methanol", "hydrogen cyanide")
    forces = model(batch).forces
    numeric = torch.zeros_like(batch.positions)
    for atom in range(len(batch.numbers)):
        for axis in range(3):
            numeric[atom, axis] = -_derivative(lambda d, a=atom, x=axis: model(_displaced(batch, a, x, d), forces=False).energy.sum(), step)
    control = float(forces.abs().max())
    return [
        Check("forces: finite differences", _error(forces, numeric), DIFFERENCE),
        Check("forces: not all zero", 0.0 if control > 1e-6 else float("inf"), 0.0),
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
    """Gradients of a force loss must be finite, also for one atom, collinear atoms and a tetrahedral site."""
    methane = torch.tensor([[0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64) * 0.63
    tetrahedral = Batch.from_block(
        Block(np.array([5]), {"numbers": np.array([6, 1, 1, 1, 1]), "positions": methane.numpy()}), dtype=torch.float64
    )
    checks = []
    for name, batch in (("molecules", batch_of(*MOLECULES)), ("methane, exactly tetrahedral", tetrahedral)):
        model.zero_grad()
        forces = model(batch, create_graph=True).forces
        (forces**2).sum().backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        finite = bool(gradients) and all(bool(torch.isfinite(g).all()) for g in gradients)
        checks.append(Check(f"second derivatives finite: {name}", 0.0 if finite else float("inf"), 0.0))
    model.zero_grad()
    return checks


def _periodic(model: Potential) -> list[Check]:
    """A small triclinic cell, in which every atom meets several images of itself."""
    numbers, positions = MOLECULES["water"]
    cell = np.array([[[4.1, 0.0, 0.0], [0.7, 4.4, 0.0], [-0.5, 0.6, 3.9]]])
    arrays = {"numbers": np.array(numbers), "positions": np.array(positions), "cell": cell, "pbc": np.ones((1, 3), dtype=bool)}
    batch = Batch.from_block(Block(np.array([3]), arrays), dtype=torch.float64)
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

            numeric[a, b] = _derivative(strained, 1e-4) / volume
    doubled = np.concatenate([np.array(positions), np.array(positions) + cell[0, 0]])
    big = cell * np.array([2.0, 1.0, 1.0])[None, :, None]
    repeated = model(
        Batch.from_block(
            Block(np.array([6]), {"numbers": np.tile(numbers, 2), "positions": doubled, "cell": big, "pbc": arrays["pbc"]}),
            dtype=torch.float64,
        )
    )
    return [
        Check("periodic: lattice translation", max(_error(lattice.energy, out.energy), _error(lattice.forces, out.forces)), EXACT),
        Check("periodic: stress by finite strain", _error(out.stress[0], numeric), DIFFERENCE),
        Check("periodic: two cells, twice the energy", _error(repeated.energy, 2 * out.energy), EXACT * 10),
    ]


def _precision(potential: Potential, model: Potential) -> Check:
    batch = batch_of("water", "methanol", "hydrogen cyanide")
    single = copy.deepcopy(potential).cpu().float().eval()
    exact = model(batch).forces
    rough = single(batch.to(dtype=torch.float32)).forces.double()
    scale = float(exact.abs().max())
    return Check("float32 against float64: forces, relative", _error(rough, exact) / max(scale, 1e-12), 2e-5)


def small_potential(name: str, seed: int = 0, **settings: Any) -> Potential:
    """A small random model of an encoder (32 channels, 2 layers), for checks; ``settings`` of its encoder.

    Biases, which start at zero, are drawn too: without them filters vanish at the cutoff, and a hard cutoff hides.
    """
    torch.manual_seed(seed)
    known = encoder_settings(name)  # refuses an unknown name before anything is built
    small = {key: value for key, value in SMALL.items() if key in known}
    potential = Potential({"encoder": {"name": name, **small, **settings}})
    with torch.no_grad():
        for parameter in potential.parameters():
            if parameter.dim() == 1:
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
