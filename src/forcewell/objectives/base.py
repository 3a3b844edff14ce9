"""What all objectives share: the contract, roles of conformations, noise, forms of an error."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from forcewell.batch import Batch
from forcewell.potential import Prediction

# Roles of a conformation. One of another role than DATA belongs to one objective, and no other takes it for data.
DATA = 0  # as it came from its source
DENOISING = 1  # copies that ForceDenoising appended; also the condition token of such copies
COORDINATES = 2  # displaced by CoordinateDenoising or FractionalDenoising
CORRUPTED = 3  # partly displaced, with its forces given, by NonEquilibriumDenoising

Form = Literal["mse", "mae", "huber", "l2"]
Place = Literal["copies", "instead", "with-labels"]


@dataclass(slots=True)
class Term:
    """A loss before averaging: the sum of errors and the number of elements in it (this process's share)."""

    total: Tensor  # ()
    count: Tensor  # ()


@dataclass(frozen=True, slots=True)
class Noise:
    """Random numbers as a pure function of (seed, step, objective, source, sample index): the same on one process, on
    two, and after a resume, whatever the order of the samples. training: False while validating."""

    seed: int
    step: int
    training: bool = True

    def generator(self, objective: str, source: int, index: int) -> np.random.Generator:
        """The generator of one sample."""
        key = [self.seed, zlib.crc32(objective.encode())]
        # Philox advances the first word of its counter, so the sample's name goes into the other three.
        return np.random.Generator(np.random.Philox(key=key, counter=[0, self.step, source, index]))

    def normal(self, batch: Batch, objective: str) -> Tensor:
        """(N, 3) standard normal numbers for the atoms of ``batch``."""
        rows = zip(batch.counts.tolist(), batch.source.tolist(), batch.index.tolist(), strict=True)
        parts = [self.generator(objective, source, index).standard_normal((count, 3)) for count, source, index in rows]
        noise = np.concatenate(parts) if parts else np.zeros((0, 3))
        return torch.from_numpy(noise).to(batch.positions)

    def uniform(self, batch: Batch, objective: str) -> tuple[Tensor, Tensor]:
        """Numbers from 0 to 1 for the conformations (M,) and for the atoms (N,) of ``batch``."""
        rows = zip(batch.counts.tolist(), batch.source.tolist(), batch.index.tolist(), strict=True)
        parts = [self.generator(objective, source, index).random(1 + count) for count, source, index in rows]
        molecules = np.array([part[0] for part in parts])
        atoms = np.concatenate([part[1:] for part in parts]) if parts else np.zeros(0)
        return torch.from_numpy(molecules).to(batch.positions), torch.from_numpy(atoms).to(batch.positions)


class Objective(Protocol):
    """What the training loop asks of an objective.

    weight times the mean of its errors enters the loss (``reduction`` "sum": times their sum over the batch); where
    ``until`` is given the weight falls linearly to zero at that fraction of the run, and validation leaves the term out
    of the loss. sources: numbers of the sources it is limited to. copied: which conformations it appends a copy of.
    """

    name: ClassVar[str]

    @property
    def weight(self) -> float: ...

    @property
    def sources(self) -> tuple[int, ...] | None: ...

    @property
    def until(self) -> float | None: ...

    @property
    def needs(self) -> frozenset[str]:
        """Outputs of the potential: "energy", "forces", "noise", "properties"."""
        ...

    @property
    def copied(self) -> Literal["none", "minima", "all"]: ...

    @property
    def reduction(self) -> Literal["mean", "sum"]: ...

    def useful(self, fields: frozenset[str], minima: bool, properties: frozenset[str]) -> bool:
        """Whether data with these labelled fields, with or without minima, and with these properties can teach it."""
        ...

    def prepare(self, batch: Batch, noise: Noise) -> Batch:
        """The batch with what this objective needs added; appended copies carry no label."""
        ...

    def loss(self, prediction: Prediction, batch: Batch) -> Term:
        """The objective's errors over the conformations it is for."""
        ...


@dataclass(frozen=True)
class Common:
    """Settings of every objective, and what most have in common (see ``Objective``)."""

    needs: ClassVar[frozenset[str]] = frozenset({"forces"})
    copied: ClassVar[Literal["none", "minima", "all"]] = "none"
    reduction: ClassVar[Literal["mean", "sum"]] = "mean"
    weight: float = 1.0
    sources: tuple[int, ...] | None = None
    until: float | None = None

    def prepare(self, batch: Batch, noise: Noise) -> Batch:
        """Needs nothing more."""
        return batch


def share(objective: Objective, progress: float) -> float:
    """The weight of an objective at ``progress`` (0 to 1) of a run."""
    return objective.weight if objective.until is None else objective.weight * max(0.0, 1 - progress / objective.until)


def data(batch: Batch, sources: tuple[int, ...] | None) -> Tensor:
    """(M,) mask of conformations as they are, of the given sources (None: of any)."""
    return (batch.role == DATA) & of_sources(batch, sources)


def of_sources(batch: Batch, sources: tuple[int, ...] | None) -> Tensor:
    """(M,) mask of conformations of the given sources (None: of any), whatever their role."""
    if sources is None:
        return torch.ones_like(batch.role, dtype=torch.bool)
    return torch.isin(batch.source, torch.tensor(sources, device=batch.source.device))


def atoms_of(molecules: Tensor, batch: Batch) -> Tensor:
    """(N,) mask of the atoms of masked conformations (M,)."""
    return molecules.index_select(0, batch.molecule)


def measured(predicted: Tensor, target: Tensor, rows: Tensor, form: Form = "mse", delta: float = 0.01) -> Term:
    """The errors of ``rows`` (a mask) in one form; masked before any arithmetic: 0 * NaN is NaN, in the gradient too.

    mse, mae, huber (quadratic below ``delta``, linear above): over all elements; l2: the length of each row's error.
    """
    difference = predicted[rows] - target[rows].to(predicted.dtype)
    if form == "l2":
        errors = length(difference)
    elif form == "mae":
        errors = difference.abs()
    elif form == "huber":
        errors = torch.nn.functional.huber_loss(difference, torch.zeros_like(difference), reduction="none", delta=delta)
    else:
        errors = difference**2
    return Term(errors.sum(), torch.tensor(errors.numel(), dtype=torch.float64, device=errors.device))


def length(vectors: Tensor, softening: float = 1e-6) -> Tensor:
    """(..., K) -> (...): sqrt(|v|² + δ²) - δ, a norm without the kink at zero, where its derivative would be NaN."""
    return torch.sqrt((vectors**2).sum(-1) + softening**2) - softening
