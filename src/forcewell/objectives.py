"""Pre-training and fine-tuning objectives: small values that say what a conformation teaches.

ET-OREO (arXiv 2308.14759, eq. 1-3), written with the predicted force F = -dE/dr:
E_off ‖F(r) - F*‖² + E_eq [ ‖F(r)‖² + E_ε ‖F(r - ε) - κ ε‖² ]. The force at r - ε points along +ε, back to the minimum.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from forcewell.batch import Batch, concatenate
from forcewell.errors import InputError, nearest
from forcewell.potential import Prediction

DATA = 0  # role of a conformation as it came from its source
DENOISING = 1  # role of a copy that ForceDenoising appended; also the condition token of such copies


@dataclass(slots=True)
class Term:
    """A loss before averaging: the sum of squared errors and the number of elements in it (this process's share)."""

    total: Tensor  # ()
    count: Tensor  # ()


@dataclass(frozen=True, slots=True)
class Noise:
    """Normal noise as a pure function of (seed, step, objective, source, sample index): the same on one process, on
    two, and after a resume, whatever the order of the samples."""

    seed: int
    step: int

    def normal(self, batch: Batch, objective: str) -> Tensor:
        """(N, 3) standard normal numbers for the atoms of ``batch``."""
        key = [self.seed, zlib.crc32(objective.encode())]
        rows = zip(batch.counts.tolist(), batch.source.tolist(), batch.index.tolist(), strict=True)
        # Philox advances the first word of its counter, so the sample's name goes into the other three.
        parts = [
            np.random.Generator(np.random.Philox(key=key, counter=[0, self.step, source, index])).standard_normal((count, 3))
            for count, source, index in rows
        ]
        noise = np.concatenate(parts) if parts else np.zeros((0, 3))
        return torch.from_numpy(noise).to(batch.positions)


class Objective(Protocol):
    """What the training loop asks of an objective."""

    name: ClassVar[str]
    weight: float
    sources: tuple[int, ...] | None
    copies: ClassVar[int]

    def prepare(self, batch: Batch, noise: Noise) -> Batch:
        """The batch with what this objective needs added; appended copies carry no label."""
        ...

    def loss(self, prediction: Prediction, batch: Batch) -> Term:
        """The objective's squared errors over the conformations it is for."""
        ...


def _data(batch: Batch, sources: tuple[int, ...] | None) -> Tensor:
    """(M,) mask of uncopied conformations of the given sources (None: of any)."""
    mask = batch.role == DATA
    if sources is not None:
        mask = mask & torch.isin(batch.source, torch.tensor(sources, device=batch.source.device))
    return mask


def _squared(forces: Tensor, target: Tensor, atoms: Tensor) -> Term:
    """Masked before any arithmetic: 0 * NaN is NaN, in the gradient too."""
    difference = forces[atoms] - target[atoms]
    return Term((difference**2).sum(), torch.tensor(difference.numel(), dtype=torch.float64, device=forces.device))


@dataclass(frozen=True)
class _OnData:
    """What the objectives on conformations as they are have in common."""

    copies: ClassVar[int] = 0
    weight: float = 1.0
    sources: tuple[int, ...] | None = None

    def prepare(self, batch: Batch, noise: Noise) -> Batch:
        """Needs nothing more."""
        return batch


@dataclass(frozen=True)
class ForceMatching(_OnData):
    """‖F(r) - F*‖² where forces are labelled (eV/Å)."""

    name: ClassVar[str] = "forces"

    def loss(self, prediction: Prediction, batch: Batch) -> Term:
        """Over the atoms whose three force components are known; an infinite label is not missing but wrong."""
        assert prediction.forces is not None
        known = ~torch.isnan(batch.targets.forces).any(dim=1)
        atoms = (_data(batch, self.sources).index_select(0, batch.molecule) & known).nonzero()[:, 0]
        return _squared(prediction.forces, batch.targets.forces, atoms)


@dataclass(frozen=True)
class ZeroForce(_OnData):
    """‖F(r)‖² at minima (``equilibrium`` = 1): forces vanish there by definition."""

    name: ClassVar[str] = "zero-force"

    def loss(self, prediction: Prediction, batch: Batch) -> Term:
        """Over the atoms of minima."""
        assert prediction.forces is not None
        mask = _data(batch, self.sources) & (batch.targets.equilibrium == 1)
        atoms = mask.index_select(0, batch.molecule).nonzero()[:, 0]
        return _squared(prediction.forces, torch.zeros_like(prediction.forces), atoms)


@dataclass(frozen=True)
class ForceDenoising:
    """‖F(r - ε) - κ ε‖² at minima, ε ~ N(0, σ²) without rigid-body motion.

    sigma σ in Å; kappa κ in eV/Å² (the paper's equations imply 1). conditioned: the displaced copies carry a learned
    token that is absent everywhere else, so an isotropic well of κ does not overwrite the anisotropic physical one
    (mean Hessian eigenvalue of organic minima about 29 eV/Å², up to 140).
    """

    name: ClassVar[str] = "force-denoising"
    copies: ClassVar[int] = 1
    weight: float = 1.0
    sources: tuple[int, ...] | None = None
    sigma: float = 0.2
    kappa: float = 1.0
    conditioned: bool = False

    def prepare(self, batch: Batch, noise: Noise) -> Batch:
        """Appends one displaced copy of each minimum; its energy, forces and ``equilibrium`` are cleared."""
        rows = (_data(batch, self.sources) & (batch.targets.equilibrium == 1)).nonzero()[:, 0]
        if len(rows) == 0:
            return batch
        copy = batch.take(rows)
        epsilon = remove_rigid_motion(self.sigma * noise.normal(copy, self.name), copy)
        cleared = {name: torch.full_like(getattr(copy.targets, name), torch.nan) for name in ("energy", "forces", "stress")}
        targets = dataclasses.replace(
            copy.targets, **cleared, equilibrium=torch.full_like(copy.targets.equilibrium, -1), noise_target=self.kappa * epsilon
        )
        condition = torch.full_like(copy.condition, DENOISING) if self.conditioned else copy.condition
        role = torch.full_like(copy.role, DENOISING)
        return concatenate(
            [batch, dataclasses.replace(copy, positions=copy.positions - epsilon, role=role, condition=condition, targets=targets)]
        )

    def loss(self, prediction: Prediction, batch: Batch) -> Term:
        """Over the atoms of the copies."""
        assert prediction.forces is not None
        atoms = (batch.role == DENOISING).index_select(0, batch.molecule).nonzero()[:, 0]
        return _squared(prediction.forces, batch.targets.noise_target, atoms)


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


OBJECTIVES: dict[str, type[Any]] = {kind.name: kind for kind in (ForceMatching, ZeroForce, ForceDenoising)}

# et-oreo-faithful: the paper's equations at its stated noise, variance 0.04 Å² (σ = 0.2 Å), κ = 1, no weights.
# et-ore: its ablation without the equilibrium terms. et-oreo: our best-measured form (docs/decisions.md).
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "et-oreo-faithful": {"forces": {}, "zero-force": {}, "force-denoising": {"sigma": 0.2, "kappa": 1.0}},
    "et-ore": {"forces": {}},
    "et-oreo": {"forces": {}, "zero-force": {}, "force-denoising": {"weight": 2.0, "sigma": 0.05, "kappa": 10.0, "conditioned": True}},
}


def build(
    description: str | Mapping[str, Mapping[str, Any] | None], sources: Mapping[str, Sequence[int]] | None = None
) -> tuple[Objective, ...]:
    """Objectives from a preset's name or from {name: settings}; ``sources`` restricts an objective to some sources.

    Raises InputError for an unknown preset, objective or setting.
    """
    if isinstance(description, str):
        if description not in PRESETS:
            raise InputError(f"objectives: unknown preset {description!r}{nearest(description, PRESETS)} (known: {', '.join(PRESETS)})")
        description = PRESETS[description]
    built = []
    for name, settings in description.items():
        if name not in OBJECTIVES:
            raise InputError(f"objectives: unknown objective {name!r}{nearest(name, OBJECTIVES)} (known: {', '.join(OBJECTIVES)})")
        known = {f.name: f.default for f in dataclasses.fields(OBJECTIVES[name]) if f.name != "sources"}
        given = {}
        for key, value in (settings or {}).items():
            if key not in known:
                raise InputError(f"objectives.{name}: unknown setting {key!r}{nearest(key, known)} (known: {', '.join(known)})")
            given[key] = _checked(f"objectives.{name}.{key}", value, known[key])
        only = None if sources is None or name not in sources else tuple(sources[name])
        built.append(OBJECTIVES[name](**given, sources=only))
    if not built:
        raise InputError("objectives: at least one is needed, e.g. forces")
    return tuple(built)


def _checked(where: str, value: Any, default: Any) -> bool | float:
    """A setting's value, of the kind of its default: true or false, or a positive number (also as YAML's text "1e-3")."""
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise InputError(f"{where}: expected true or false, got {value!r}")
        return value
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise InputError(f"{where}: expected a positive number, got {value!r}")
    return number
