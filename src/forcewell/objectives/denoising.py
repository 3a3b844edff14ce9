"""Denoising: what displaced conformations teach. Needs no label.

ET-OREO (arXiv 2308.14759, eq. 1-3), written with the predicted force F = -dE/dr:
E_off ‖F(r) - F*‖² + E_eq [ ‖F(r)‖² + E_ε ‖F(r - ε) - κ ε‖² ]. The force at r - ε points along +ε, back to the minimum.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from forcewell.batch import Batch, concatenate
from forcewell.objectives.base import COORDINATES, CORRUPTED, DATA, DENOISING, Common, Noise, Place, Term, atoms_of, data, measured
from forcewell.objectives.dihedrals import turned
from forcewell.objectives.harmonic import PairField, thermal
from forcewell.objectives.rigid import remove_rigid_motion
from forcewell.potential import Prediction


@dataclass(frozen=True)
class ForceDenoising(Common):
    """‖F(r - ε) - κ ε‖² at minima, ε ~ N(0, σ²) without rigid-body motion.

    sigma σ in Å; kappa κ in eV/Å² (the paper's equations imply 1). What keeps an isotropic well of κ from overwriting the
    anisotropic physical one (mean Hessian eigenvalue of organic minima about 29 eV/Å², up to 140):
    conditioned: the displaced copies carry a learned token that is absent everywhere else;
    own_head: the target is found by the noise head, not by the energy;
    target "harmonic": κ H ε with the model Hessian H of ``harmonic.PairField`` (κ is then a plain factor).
    temperature, in K: noise per normal mode of H, of the thermal amplitude sqrt(k_B T / λ), at most sigma; else sigma for all.
    place: displaced "copies" of the minima, or the minima themselves "instead" (half the cost; zero force then has none to learn from).
    """

    name: ClassVar[str] = "force-denoising"
    role: ClassVar[int] = DENOISING
    sigma: float = 0.2
    kappa: float = 1.0
    conditioned: bool = False
    own_head: bool = False
    target: Literal["isotropic", "harmonic"] = "isotropic"
    temperature: float | None = None
    place: Literal["copies", "instead"] = "copies"

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """The noise head, or forces."""
        return frozenset({"noise" if self.own_head else "forces"})

    @property
    def copied(self) -> Literal["none", "minima", "all"]:  # type: ignore[override]
        """A copy of every minimum, where copies were asked for."""
        return "minima" if self.place == "copies" else "none"

    @property
    def of_hessian(self) -> bool:
        """Whether the model Hessian of the minima is needed, for the target or for the size of the noise."""
        return self.target == "harmonic" or self.temperature is not None

    def useful(self, fields: frozenset[str], minima: bool, properties: frozenset[str]) -> bool:
        """Minima."""
        return minima

    def prepare(self, batch: Batch, noise: Noise) -> Batch:
        """Appends one displaced copy of each minimum, or displaces it, by ``place``; labels and ``equilibrium`` are cleared.

        Raises InputError for harmonic targets of periodic structures, whose images the model Hessian does not know.
        """
        minima = data(batch, self.sources) & (batch.targets.equilibrium == 1)
        if not bool(minima.any()):
            return batch
        copy = batch.take(minima)
        field = PairField.of(copy) if self.of_hessian else None
        epsilon = noise.normal(copy, self.name)
        if field is not None and self.temperature is not None:
            epsilon = thermal(field, epsilon, self.temperature, self.sigma)
        else:
            epsilon = self.sigma * epsilon
        epsilon = remove_rigid_motion(epsilon, copy)
        target = field.times(epsilon) if field is not None and self.target == "harmonic" else epsilon
        copy = displaced(copy, -epsilon, self.kappa * target, DENOISING)
        if self.conditioned:
            copy.condition = torch.full_like(copy.condition, DENOISING)
        return concatenate([batch if self.place == "copies" else batch.take(~minima), copy])

    def loss(self, prediction: Prediction, batch: Batch) -> Term:
        """Over the atoms of the copies."""
        found = prediction.noise if self.own_head else prediction.forces
        assert found is not None
        return measured(found, batch.targets.noise_target, atoms_of(batch.role == DENOISING, batch))


@dataclass(frozen=True)
class CoordinateDenoising(Common):
    """Where do displaced atoms belong? r' = r + e, e ~ N(0, σ²); the noise head finds -e (Wang et al.; NoisyNode).

    For any conformation, not only minima: -e is no physical force there, so it is read by a head of its own: the gradient of
    a second energy, vectors, or moved coordinates (nn/heads.py), as the encoder allows. sigma σ in Å.

    place: "copies" of the conformations, whose labels are cleared, beside other objectives; "instead" of them, where
    nothing else is learned from them (half the cost); "with-labels", in place with the clean labels kept, as NoisyNode does
    while fine-tuning (in training only; validation sees clean conformations).
    published_sign: the target is +e, as in Wang et al.'s code: farther away (their pseudo-energies have a maximum at
    the data). rigid_motion: noise keeps its net translation and rotation, of which no invariant model can tell (6/(3N) of it).
    normalise: targets by their running mean and deviation, "per-component" as NoisyNode (which distinguishes x
    from z) or "isotropic", by one deviation. summed: the loss is the sum over the batch, as Wang et al.'s, not the mean.
    in_energy: the potential's own force is the target's reader, as published for SchNet and the SE(3)-Transformer; never
    together with physical terms.
    """

    name: ClassVar[str] = "coordinate-denoising"
    role: ClassVar[int] = COORDINATES
    sigma: float = 0.2
    place: Place = "copies"
    published_sign: bool = False
    rigid_motion: bool = False
    normalise: Literal["none", "isotropic", "per-component"] = "none"
    summed: bool = False
    in_energy: bool = False

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """The noise head, or forces."""
        return frozenset({"forces" if self.in_energy else "noise"})

    @property
    def copied(self) -> Literal["none", "minima", "all"]:  # type: ignore[override]
        """A copy of every conformation, where copies were asked for."""
        return "all" if self.place == "copies" else "none"

    @property
    def reduction(self) -> Literal["mean", "sum"]:  # type: ignore[override]
        """How the errors enter the loss."""
        return "sum" if self.summed else "mean"

    def useful(self, fields: frozenset[str], minima: bool, properties: frozenset[str]) -> bool:
        """Any data; beside labels it is but an auxiliary task, which needs theirs."""
        return self.place != "with-labels"

    def prepare(self, batch: Batch, noise: Noise) -> Batch:
        """Displaces copies of the conformations, or the conformations themselves, by ``place``."""
        mask = data(batch, self.sources)
        if not bool(mask.any()) or (self.place == "with-labels" and not noise.training):
            return batch
        chosen = batch.take(mask)
        chosen = dataclasses.replace(chosen, positions=self.start(chosen, noise))
        e = self.sigma * noise.normal(chosen, self.name)
        if not self.rigid_motion:
            e = remove_rigid_motion(e, chosen)
        target = e if self.published_sign else -e
        if self.place == "with-labels":
            moved = dataclasses.replace(
                chosen, positions=chosen.positions + e, targets=dataclasses.replace(chosen.targets, noise_target=target)
            )
        else:
            moved = displaced(chosen, e, target, COORDINATES)
        return concatenate([batch if self.place == "copies" else batch.take(~mask), moved])

    def start(self, batch: Batch, noise: Noise) -> Tensor:
        """(N, 3) positions that the noise is added to."""
        return batch.positions

    def loss(self, prediction: Prediction, batch: Batch) -> Term:
        """Over the displaced atoms."""
        found = prediction.forces if self.in_energy else prediction.noise
        assert found is not None
        return measured(found, batch.targets.noise_target, noisy(batch, self))


@dataclass(frozen=True)
class FractionalDenoising(CoordinateDenoising):
    """Coordinate noise on top of dihedral noise; only the coordinate noise is the target (Frad, Feng et al., ICML 2023).

    Every rotatable bond turns by an angle ~ N(0, ``dihedral``²), in rad, then r' = r_turned + e. The dihedral noise makes the
    sampled conformations spread along soft torsions, where an isotropic e would have to stay small. Rotatable bonds come
    from the SMILES where the data have one that fits, else from the geometry (``dihedrals``).
    """

    name: ClassVar[str] = "fractional-denoising"
    sigma: float = 0.04
    dihedral: float = 2.0

    def start(self, batch: Batch, noise: Noise) -> Tensor:
        """The conformations with turned dihedrals."""
        return turned(batch, self.dihedral, noise, f"{self.name}/dihedral")


@dataclass(frozen=True)
class NonEquilibriumDenoising(Common):
    """DeNS: the noise of partly displaced conformations, found from their forces (Liao et al. 2024, arXiv 2403.09549).

    Off minima the noise alone is ambiguous: many conformations are as near. The forces of the clean one, given as an input
    to the displaced atoms, tell which is meant. In training a share ``probability`` of the conformations with forces is
    taken; of each, a share ``corrupted`` of the atoms is displaced by N(0, ``sigma``²) and gets its forces; the vector head
    finds -e/σ. Their energy stays a label (``energy``), their forces do not: here forces are the gradient of an energy, and the
    published direct forces of the atoms left in place have no counterpart. Needs an encoder with vectors.
    """

    name: ClassVar[str] = "dens"
    role: ClassVar[int] = CORRUPTED
    needs: ClassVar[frozenset[str]] = frozenset({"noise"})
    gives_forces: ClassVar[bool] = True
    sigma: float = 0.025
    probability: float = 0.5
    corrupted: float = 0.5

    def useful(self, fields: frozenset[str], minima: bool, properties: frozenset[str]) -> bool:
        """Data with forces."""
        return "forces" in fields

    def prepare(self, batch: Batch, noise: Noise) -> Batch:
        """Corrupts a share of the conformations, in training only."""
        if not noise.training:
            return batch
        molecules, atoms = noise.uniform(batch, f"{self.name}/choice")
        unknown = torch.isnan(batch.targets.forces).any(dim=1).long()
        complete = torch.zeros_like(batch.counts).index_add(0, batch.molecule, unknown) == 0
        mask = data(batch, self.sources) & complete & (molecules < self.probability)
        if not bool(mask.any()):
            return batch
        rows = atoms_of(mask, batch)
        chosen, moves = batch.take(mask), (atoms[rows] < self.corrupted)[:, None]
        e = torch.where(moves, self.sigma * noise.normal(chosen, self.name), 0.0)
        nothing = torch.full_like(e, torch.nan)
        targets = dataclasses.replace(
            chosen.targets,
            forces=nothing,
            stress=torch.full_like(chosen.targets.stress, torch.nan),
            equilibrium=torch.full_like(chosen.targets.equilibrium, -1),
            noise_target=torch.where(moves, -e / self.sigma, nothing),
        )
        given = torch.where(moves, chosen.targets.forces, nothing)
        role = torch.full_like(chosen.role, CORRUPTED)
        moved = dataclasses.replace(chosen, positions=chosen.positions + e, given_forces=given, role=role, targets=targets)
        return concatenate([batch.take(~mask), moved])

    def loss(self, prediction: Prediction, batch: Batch) -> Term:
        """Over the displaced atoms."""
        assert prediction.noise is not None
        return measured(prediction.noise, batch.targets.noise_target, noisy(batch, self))


def noisy(batch: Batch, objective: CoordinateDenoising | NonEquilibriumDenoising | ForceDenoising) -> Tensor:
    """(N,) mask of the atoms whose noise an objective wants to be found."""
    role = DATA if getattr(objective, "place", "") == "with-labels" else objective.role
    return atoms_of(batch.role == role, batch) & ~torch.isnan(batch.targets.noise_target).any(dim=1)


def displaced(batch: Batch, displacement: Tensor, target: Tensor, role: int) -> Batch:
    """Moved conformations of a role, all their labels cleared, so that nothing of the clean ones leaks."""
    targets = dataclasses.replace(batch.targets.cleared(), equilibrium=torch.full_like(batch.targets.equilibrium, -1), noise_target=target)
    return dataclasses.replace(batch, positions=batch.positions + displacement, role=torch.full_like(batch.role, role), targets=targets)
