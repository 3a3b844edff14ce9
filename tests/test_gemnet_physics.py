"""GemNet-T: physics in both forms, exactly linear molecules, several images of one atom, short distances in float32."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from test_model import CELLS

from forcewell.batch import Batch
from forcewell.graph import neighbours
from forcewell.nn import gemnet
from forcewell.nn.gemnet_basis import zonal_harmonics
from forcewell.nn.triplets import edges_of
from forcewell.system import Block
from forcewell.testing import batch_of, check_potential, small_potential

LINEAR = {
    "carbon dioxide": ([8, 6, 8], [-1.16, 0.0, 1.16]),
    "hydrogen cyanide": ([1, 6, 7], [-1.07, 0.0, 1.15]),
    "acetylene": ([1, 6, 6, 1], [-1.66, -0.6, 0.6, 1.66]),
}


@pytest.mark.parametrize("own", [{"triplet_channels": 3}, {"basis": "gaussian", "layers": 1}])
def test_physics(own: dict[str, Any]) -> None:
    """Also with fitted scales: unfitted ones damp the triplets by the square of their factors, 10 to 20."""
    model = small_potential("gemnet-t", **own)
    model.encoder.fit_scales(batch_of("water", "methanol", "hydrogen cyanide").to(dtype=torch.float32))  # type: ignore[operator]
    checks = check_potential(model)
    for check in checks:
        print(f"{check.name:45s} {check.error:.1e}")
        assert check.passed, check.name
    assert len(checks) >= 29


@pytest.mark.parametrize(("name", "basis"), [*((name, "bessel") for name in LINEAR), ("carbon dioxide", "gaussian")])
def test_exactly_linear_molecules(name: str, basis: str) -> None:
    """Hessian by double backward against finite differences of the forces, along a skew axis, every angle 0 or π."""
    numbers, along = LINEAR[name]
    axis = np.array([0.0, 0.0, 1.0]) if basis == "bessel" else np.array([1.0, 2.0, -2.0]) / 3.0
    positions = np.array(along)[:, None] * axis
    model = small_potential("gemnet-t", basis=basis, channels=16).double()

    def energy(moved: torch.Tensor) -> torch.Tensor:
        batch = Batch.from_block(Block.shared(numbers, positions[None]), dtype=torch.float64)
        batch.positions = moved
        return model.head.energies(model.encoder(batch), batch).sum()  # type: ignore[operator]

    start = torch.from_numpy(positions)
    hessian = torch.autograd.functional.hessian(energy, start).reshape(start.numel(), -1)  # type: ignore[operator]
    numeric = torch.zeros_like(hessian)
    for k in range(start.numel()):
        slopes = []
        for amount in (-2e-4, -1e-4, 1e-4, 2e-4):
            moved = start.clone()
            moved.view(-1)[k] += amount
            moved.requires_grad_()
            slopes.append(torch.autograd.grad(energy(moved), moved)[0].reshape(-1))
        numeric[k] = (slopes[0] - 8 * slopes[1] + 8 * slopes[2] - slopes[3]) / 1.2e-3
    error, scale = float((hessian - numeric).abs().max()), float(hessian.abs().max())
    print(f"{name}: Hessian up to {scale:.2f} eV/Å², differs by {error:.1e}")
    assert error < 4e-11 * scale and scale > 1.0


def triclinic(name: str = "triclinic") -> Batch:
    cell, pbc = CELLS[name]
    positions = np.array([[0.0, 0.02, 0.0], [0.97, 0.0, 0.03], [-0.24, 0.93, 0.0]])
    return Batch.from_block(Block.shared([8, 1, 1], positions[None], cell=cell[None], pbc=np.array([pbc])), dtype=torch.float64)


@pytest.mark.parametrize("name", CELLS)
def test_triplets_of_images(name: str) -> None:
    """Sums over triplets against all pairs of edges, and reverse edges; an atom meets several images of others and of itself."""
    edges = edges_of(near := neighbours(triclinic(name), 5.0))
    vectors = edges.flat(near.vectors)
    assert torch.equal(edges.sender[edges.reverse], edges.receiver) and torch.equal(vectors[edges.reverse], -vectors)
    x = torch.randn(len(edges.sender), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    harmonics = gemnet._others(zonal_harmonics(edges.cosines(), 7, dim=2))
    found = edges.flat((harmonics.flatten(1, 2) @ edges.pad(x)).unflatten(1, harmonics.shape[1:3]))  # (E, 7, 3)
    # Every pair of edges, in no layout at all.
    together = (edges.receiver[:, None] == edges.receiver) & ~torch.eye(len(x), dtype=torch.bool)
    cosines = vectors @ vectors.T / (vectors.norm(dim=1)[:, None] * vectors.norm(dim=1))
    expected = torch.einsum("elf,fc->elc", zonal_harmonics(cosines, 7, dim=1) * together[:, None], x)
    same = int((together & (edges.sender[:, None] == edges.sender)).sum())
    error = float((found - expected).abs().max())
    print(f"{name}: {len(x)} edges, {same} triplets with two images of one atom, sums differ by {error:.1e}")
    assert error < 1e-12 and same > 20


@pytest.mark.parametrize("name", CELLS)
def test_periodic_energy_is_that_of_a_cluster_of_images(name: str) -> None:
    model = small_potential("gemnet-t", cutoff=4.2, channels=16, layers=1).double()
    model.encoder.fit_scales(batch_of("water", "methanol"))  # type: ignore[operator]
    batch = triclinic(name)
    cell, pbc = CELLS[name]
    steps = [range(-7, 8) if periodic else range(1) for periodic in pbc]
    shifts = np.array(sorted(itertools.product(*steps), key=lambda s: float(np.abs(s).sum())))
    cluster = (batch.positions.numpy()[None] + (shifts @ cell)[:, None]).reshape(-1, 3)
    # An edge into the atom reaches one cutoff, the edges into its sender two, and the triplets of those three.
    kept = np.linalg.norm(cluster, axis=1) < 3 * model.cutoff + 1.5
    numbers = np.tile(batch.numbers.numpy(), len(shifts))[kept]
    with torch.no_grad():
        whole = Batch.from_block(Block.shared(numbers, cluster[kept][None]), dtype=torch.float64)
        expected = float(model.head(model.encoder(whole))[:3].sum())
        found = float(model(batch, forces=False).energy)
        alone = float(model(batch_of("water"), forces=False).energy)
    print(f"{name}: {kept.sum()} atoms, differs by {abs(found - expected):.1e} eV; the images add {expected - alone:.1e} eV")
    assert abs(found - expected) < 1e-10 and abs(expected - alone) > 1e-3


def test_float32_at_short_distance() -> None:
    """Atoms 0.3 Å apart, as noise or a hot start may put them; and nearly at the cutoff."""
    model = small_potential("gemnet-t")
    positions = np.array([[[0.0, 0.0, 0.0], [0.3, 0.01, 0.0], [0.1, 1.1, 0.2], [4.99, 0.0, 0.1]]])
    batch = Batch.from_block(Block.shared([6, 1, 8, 1], positions), dtype=torch.float64)
    rough = model(batch.to(dtype=torch.float32)).forces.double()
    exact = model.double()(batch).forces
    error = float((rough - exact).abs().max() / exact.abs().max())
    print(f"forces up to {float(exact.abs().max()):.1f} eV/Å, relative error {error:.1e}")
    assert error < 2e-6
