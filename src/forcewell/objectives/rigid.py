"""Displacements without rigid-body motion."""

from __future__ import annotations

import torch
from torch import Tensor

from forcewell.batch import Batch


def remove_rigid_motion(displacement: Tensor, batch: Batch) -> Tensor:
    """(N, 3) displacements without net translation and, where nothing is periodic, without net rotation.

    An energy that is invariant under rigid motion has no force along it: 6/(3N) of the noise of a molecule (22 % at
    nine atoms) could never be predicted. Unit masses; the pseudo-inverse of the inertia tensor leaves the axis of a
    linear molecule and single atoms alone.
    """
    M, molecule = len(batch), batch.molecule
    count = batch.counts.to(torch.float64)[:, None]

    def total(per_atom: Tensor) -> Tensor:
        return per_atom.new_zeros(M, *per_atom.shape[1:]).index_add(0, molecule, per_atom)

    epsilon, r = displacement.double(), batch.positions.double()
    epsilon = epsilon - (total(epsilon) / count).index_select(0, molecule)
    r = r - (total(r) / count).index_select(0, molecule)
    inertia = total((r**2).sum(1)[:, None, None] * torch.eye(3, dtype=r.dtype, device=r.device) - r[:, :, None] * r[:, None, :])
    momentum = total(torch.linalg.cross(r, epsilon))
    # 1e-8: a bent HCN (1e-3 rad) has an inertia ratio of 1e-6 and still turns; a straight one has 1e-16.
    omega = torch.einsum("mab,mb->ma", torch.linalg.pinv(inertia, rtol=1e-8, hermitian=True), momentum)
    omega = torch.where(batch.pbc.any(dim=1)[:, None], torch.zeros_like(omega), omega)
    return (epsilon - torch.linalg.cross(omega.index_select(0, molecule), r)).to(displacement.dtype)
