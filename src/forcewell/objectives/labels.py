"""Objectives on conformations as they are: labelled forces, energies and properties, and what minima say of forces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from forcewell.batch import Batch
from forcewell.objectives.base import CORRUPTED, Common, Form, Term, atoms_of, data, measured, of_sources
from forcewell.potential import Prediction


@dataclass(frozen=True)
class ForceMatching(Common):
    """F(r) against F* where forces are labelled (eV/Å).

    form: mse and mae over components, l2 the length of each atom's error (GemNet), huber with ``delta`` in eV/Å.
    """

    name: ClassVar[str] = "forces"
    form: Form = "mse"
    delta: float = 0.01

    def useful(self, fields: frozenset[str], minima: bool, properties: frozenset[str]) -> bool:
        """Data with forces."""
        return "forces" in fields

    def loss(self, prediction: Prediction, batch: Batch) -> Term:
        """Over the atoms whose three force components are known; an infinite label is not missing but wrong."""
        assert prediction.forces is not None
        known = ~torch.isnan(batch.targets.forces).any(dim=1)
        atoms = atoms_of(data(batch, self.sources), batch) & known
        return measured(prediction.forces, batch.targets.forces, atoms, self.form, self.delta)


@dataclass(frozen=True)
class ZeroForce(Common):
    """‖F(r)‖² at minima (``equilibrium`` = 1): forces vanish there by definition (ET-OREO eq. 2)."""

    name: ClassVar[str] = "zero-force"

    def useful(self, fields: frozenset[str], minima: bool, properties: frozenset[str]) -> bool:
        """Minima."""
        return minima

    def loss(self, prediction: Prediction, batch: Batch) -> Term:
        """Over the atoms of minima."""
        assert prediction.forces is not None
        atoms = atoms_of(data(batch, self.sources) & (batch.targets.equilibrium == 1), batch)
        return measured(prediction.forces, torch.zeros_like(prediction.forces), atoms)


@dataclass(frozen=True)
class EnergyMatching(Common):
    """E(r) against E* where energies are labelled, each without the reference energies of its level of theory (eV).

    Levels of theory have zeros of their own, and absolute energies lose their digits in float32: the training loop
    takes the references off, in float64. form: mse, mae (Gao et al.) or huber with ``delta`` in eV. per_atom: errors
    divided by the number of atoms, so that large molecules do not outweigh small ones. standardised: the network's own energies
    are multiplied by the spread of the labels around the references (Wang et al. bring energies to unit spread before
    fine-tuning), for models that know no energies or forces yet; errors stay in eV.
    """

    name: ClassVar[str] = "energy"
    needs: ClassVar[frozenset[str]] = frozenset({"energy"})
    form: Form = "mse"
    delta: float = 0.01
    per_atom: bool = False
    standardised: bool = False

    def useful(self, fields: frozenset[str], minima: bool, properties: frozenset[str]) -> bool:
        """Data with energies."""
        return "energy" in fields

    def loss(self, prediction: Prediction, batch: Batch) -> Term:
        """Over the labelled conformations; ``targets.energy`` is without references here. Those that DeNS corrupted keep
        their energy: with the forces that are given the clean one can be told."""
        corrupted = (batch.role == CORRUPTED) & of_sources(batch, self.sources)
        rows = (data(batch, self.sources) | corrupted) & ~torch.isnan(batch.targets.energy)
        scale = batch.counts.to(prediction.energy.dtype) if self.per_atom else torch.ones_like(prediction.energy)
        return measured(prediction.energy / scale, batch.targets.energy / scale, rows, self.form, self.delta)


@dataclass(frozen=True)
class ForceNorm(Common):
    """‖∂E/∂R‖ at minima, the length of the whole molecule's gradient, not squared (Gao et al. 2022).

    Their loss is (1 - α) |E - E*| + α ‖∂E/∂R‖: ``energy`` with weight 1 - α and form mae, ``force-norm`` with weight α. Their
    text calls "α = 1" a training without this term; by their own equation that is α = 0, the term left out.
    """

    name: ClassVar[str] = "force-norm"

    def useful(self, fields: frozenset[str], minima: bool, properties: frozenset[str]) -> bool:
        """Minima."""
        return minima

    def loss(self, prediction: Prediction, batch: Batch) -> Term:
        """Over the minima, each once."""
        assert prediction.forces is not None
        rows = data(batch, self.sources) & (batch.targets.equilibrium == 1)
        squared = prediction.forces.new_zeros(len(batch)).index_add(0, batch.molecule, (prediction.forces**2).sum(1))
        norms = torch.sqrt(squared[rows] + 1e-12) - 1e-6  # no kink at zero
        return Term(norms.sum(), rows.sum().double())


@dataclass(frozen=True)
class PropertyMatching(Common):
    """Labelled properties by name, e.g. HOMO energies of QM9 or the classes of MoleculeNet; a head of its own reads them.

    names: properties of the data. form: mse, mae or huber (``delta``) of values brought to mean zero and unit spread over the
    training data, or "bce": classes 0 and 1 by cross-entropy, several tasks at once. A missing label is NaN and left out.
    pool: how the head reads the molecule (nn/heads.py); None: the encoder's default.
    """

    name: ClassVar[str] = "property"
    needs: ClassVar[frozenset[str]] = frozenset({"properties"})
    names: tuple[str, ...] = ()
    form: Form | str = "mse"
    delta: float = 1.0
    pool: str | None = None

    def useful(self, fields: frozenset[str], minima: bool, properties: frozenset[str]) -> bool:
        """Data with any of the properties."""
        return bool(properties & set(self.names))

    def loss(self, prediction: Prediction, batch: Batch) -> Term:
        """Over the labelled values; ``targets.properties`` is standardised here, as ``Prediction.properties`` is."""
        assert prediction.properties is not None
        labels = batch.targets.properties
        known = ~torch.isnan(labels) & data(batch, self.sources)[:, None]
        if self.form == "bce":
            errors: Tensor = binary_cross_entropy_with_logits(
                prediction.properties[known], labels[known].to(prediction.properties.dtype), reduction="none"
            )
            return Term(errors.sum(), known.sum().double())
        return measured(prediction.properties, labels, known, self.form, self.delta)  # type: ignore[arg-type]
