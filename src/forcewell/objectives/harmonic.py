"""A cheap model Hessian at minima: springs between all pairs of atoms of a molecule."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from forcewell.batch import Batch
from forcewell.bonds import TOLERANCE, covalent_radii
from forcewell.errors import InputError
from forcewell.units import BOHR, BOLTZMANN

# Decay α (1/bohr²) and distance r₀ (bohr) of a spring, by the periods of its ends: H-He, Li-Ne, Na and beyond (Lindh et al.,
# Chem. Phys. Lett. 241, 423 (1995), table 1).
ALPHA = torch.tensor([[1.0, 0.3949, 0.3949], [0.3949, 0.28, 0.28], [0.3949, 0.28, 0.28]], dtype=torch.float64)
LENGTH = torch.tensor([[1.35, 2.10, 2.53], [2.10, 2.87, 3.40], [2.53, 3.40, 3.40]], dtype=torch.float64)
# eV/Å². Lindh's 0.45 Hartree/bohr² is 44, in internal coordinates with bends of their own; here a bend is the spring between its
# ends, by how many of them are hydrogen, and 31 is what C-C and C-H single bonds are in organic molecules.
BOND, BEND, OTHER = 31.0, torch.tensor([9.0, 4.5, 2.5], dtype=torch.float64), 0.3


@dataclass(frozen=True)
class PairField:
    """H of ½ Σ_pairs k_ij (u_ij·(ε_i - ε_j))²: constants k (M, A, A) in eV/Å², unit vectors u (M, A, A, 3), where the
    atoms of a batch are in them ``place`` (N,), A the largest molecule.

    k = 31 exp(α (r₀² - r²)) for bonds (C=O 72, C-C 29, C-H 33 eV/Å²), 9, 4.5 or 2.5 for the ends of an angle, 0.3
    exp(...) for other pairs. Exactly free of rigid-body motion. Springs along lines: torsions are almost free, and a linear
    molecule has no force against bending.
    """

    constants: Tensor
    directions: Tensor
    place: Tensor

    @classmethod
    def of(cls, batch: Batch) -> PairField:
        """The field of conformations that are minima. Raises InputError for periodic ones."""
        if bool(batch.pbc.any()):
            raise InputError("force-denoising: a model Hessian (target harmonic, or temperature) is for open structures, not periodic ones")
        M, A = len(batch), int(batch.counts.max())
        place = torch.arange(len(batch.molecule), device=batch.molecule.device) - batch.offsets[:-1].index_select(0, batch.molecule)
        place = place + batch.molecule * A
        positions = batch.positions.new_zeros(M * A, 3, dtype=torch.float64).index_copy(0, place, batch.positions.double()).view(M, A, 3)
        numbers = batch.numbers.new_zeros(M * A).index_copy(0, place, batch.numbers).view(M, A)
        vectors = positions[:, :, None] - positions[:, None]
        pairs = (numbers[:, :, None] > 0) & (numbers[:, None] > 0) & ~torch.eye(A, dtype=torch.bool, device=numbers.device)
        squared = torch.where(pairs, (vectors**2).sum(3), 1.0)
        radii = torch.from_numpy(np.array(covalent_radii())).to(positions)[numbers]
        bonded = pairs & (squared < (radii[:, :, None] + radii[:, None] + TOLERANCE) ** 2)
        second = ((bonded.double() @ bonded.double()) > 0) & pairs & ~bonded
        period = (numbers > 2).long() + (numbers > 10).long()
        rows, columns = period[:, :, None].expand(M, A, A), period[:, None].expand(M, A, A)
        decay = torch.exp(ALPHA.to(squared.device)[rows, columns] * (LENGTH.to(squared.device)[rows, columns] ** 2 - squared / BOHR**2))
        hydrogens = (numbers == 1).long()
        bend = BEND.to(squared.device)[hydrogens[:, :, None] + hydrogens[:, None]]
        constants = torch.where(bonded, BOND * decay, torch.where(second, bend, OTHER * decay)) * pairs
        return cls(constants, vectors / squared.sqrt()[..., None], place)

    def times(self, epsilon: Tensor) -> Tensor:
        """H ε (N, 3): the force that pulls atoms back from r - ε, in eV/Å for ε (N, 3) in Å."""
        M, A = self.constants.shape[:2]
        e = epsilon.new_zeros(M * A, 3, dtype=torch.float64).index_copy(0, self.place, epsilon.double()).view(M, A, 3)
        stretch = ((e[:, :, None] - e[:, None]) * self.directions).sum(3)
        forces = ((self.constants * stretch)[..., None] * self.directions).sum(2)
        return forces.reshape(M * A, 3).index_select(0, self.place).to(epsilon.dtype)

    def matrix(self) -> Tensor:
        """(M, 3A, 3A) the Hessians, eV/Å²; rows and columns of absent atoms are zero."""
        M, A = self.constants.shape[:2]
        blocks = -self.constants[..., None, None] * self.directions[..., :, None] * self.directions[..., None, :]  # (M, A, A, 3, 3)
        own = torch.arange(A, device=blocks.device)
        blocks[:, own, own] = -blocks.sum(2)
        return blocks.permute(0, 1, 3, 2, 4).reshape(M, 3 * A, 3 * A)


def thermal(field: PairField, normal: Tensor, temperature: float, largest: float) -> Tensor:
    """(N, 3) Å from standard normal numbers: displacements of covariance k_B T / H, at most ``largest`` Å along each mode."""
    M, A = field.constants.shape[:2]
    values, modes = torch.linalg.eigh(field.matrix())
    amplitudes = torch.sqrt(BOLTZMANN * temperature / values.clamp(min=1e-12)).clamp(max=largest)
    xi = normal.new_zeros(M * A, 3, dtype=torch.float64).index_copy(0, field.place, normal.double()).view(M, 3 * A, 1)
    # Symmetric, so that it does not depend on the signs that eigh gives its vectors.
    moved = modes @ (amplitudes[:, :, None] * (modes.mT @ xi))
    return moved.reshape(M * A, 3).index_select(0, field.place).to(normal.dtype)
