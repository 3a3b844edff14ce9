"""What goes into every encoder: the kind of each atom, and what is known of its molecule."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, softplus

from forcewell.batch import Batch
from forcewell.errors import InputError
from forcewell.static_batch import StaticBatch

# Element and formal charge of each of the 28 atom classes of Wang et al. (JCTC 2023), which are those of the SPICE
# models: the order is that of their embedding's rows.
WANG_CLASSES: tuple[tuple[int, int], ...] = (
    (35, -1), (35, 0), (6, -1), (6, 0), (6, 1), (20, 2), (17, -1), (17, 0), (9, -1), (9, 0), (1, 0), (53, -1), (53, 0), (19, 1),
    (3, 1), (12, 2), (7, -1), (7, 0), (7, 1), (11, 1), (8, -1), (8, 0), (8, 1), (15, 0), (15, 1), (16, -1), (16, 0), (16, 1),
)  # fmt: skip
_CHARGES = 8  # formal charges from -8 to 8 have a place in the table of classes


class Encoder(nn.Module):
    """Base of all encoders: Batch -> Features, with ``channels`` C and ``cutoff`` in Å.

    A subclass computes ``x = self.embed(batch)`` (N, C), its input features, and is then free. Every encoder has these
    settings, besides its own:

    elements: atomic numbers below this can be embedded. classes: "elements", one row per atomic number, or "wang", one
    for each of the 28 pairs of element and formal charge of Wang et al. (reads ``Batch.formal_charges``; others raise
    InputError). conditions: learned tokens added where ``Batch.condition`` > 0 (condition 0 adds nothing). electronic:
    total charge and spin multiplicity are inputs (see ``Electronic``). levels: a learned vector for each of so many
    levels of theory (``Batch.level``), zero in a fresh model; a run makes room for all levels of its data. A fresh model
    is the same with and without them, and condition 0, charge 0 and a singlet add exactly zero for ever. given_forces: the
    forces of some atoms are inputs (``Batch.given_forces``; see ``ForceEmbedding``), for encoders with vectors.

    ``provides`` names the optional features; ``energy_head`` and ``noise_head`` the default read-outs in heads.py. ``capturable``:
    whether a CUDA graph can hold it, i.e. nothing in it waits for the device.
    """

    provides: ClassVar[frozenset[str]] = frozenset()
    energy_head: ClassVar[str] = "per-atom"
    noise_head: ClassVar[str] = "gradient"
    capturable: bool = True

    def __init__(
        self,
        channels: int,
        cutoff: float,
        *,
        elements: int = 100,
        classes: Literal["elements", "wang"] = "elements",
        conditions: int = 0,
        electronic: bool = False,
        levels: int = 0,
        given_forces: bool = False,
    ) -> None:
        super().__init__()
        if given_forces and "vectors" not in self.provides:
            raise InputError(
                f"{type(self).__name__} has no vector features to put given forces into (dens needs them); "
                "use an encoder that has, e.g. equivariant-transformer"
            )
        self.channels, self.cutoff, self.elements, self.classes, self.conditions = channels, cutoff, elements, classes, conditions
        self.rows = elements if classes == "elements" else len(WANG_CLASSES)
        self.embedding: nn.Module = nn.Embedding(self.rows, channels)
        self.tokens: Tensor | None
        self.register_parameter("tokens", nn.Parameter(torch.zeros(conditions, channels)) if conditions else None)
        self.electronic = Electronic(channels) if electronic else None
        self.levels: Tensor | None
        self.register_parameter("levels", nn.Parameter(torch.zeros(levels, channels)) if levels else None)
        self.force_embedding = ForceEmbedding(channels) if given_forces else None
        self.register_buffer("class_table", _class_table() if classes == "wang" else None, persistent=False)

    def species(self, batch: Batch) -> Tensor:
        """(N,) row of each atom in an embedding. Raises InputError for an element with a formal charge that has none."""
        if self.class_table is None:
            return batch.numbers
        rows = self.class_table[batch.numbers, batch.formal_charges.clamp(-_CHARGES, _CHARGES) + _CHARGES]  # type: ignore[index]
        if not isinstance(batch, StaticBatch) and bool((rows < 0).any()):
            atom = int((rows < 0).nonzero()[0, 0])
            z, charge = int(batch.numbers[atom]), int(batch.formal_charges[atom])
            raise InputError(f"classes 'wang' has no class for atomic number {z} with formal charge {charge:+d}; use classes 'elements'")
        return rows

    def embed(self, batch: Batch) -> Tensor:
        """(N, C) input features of each atom."""
        x = self.embedding(self.species(batch))
        if self.electronic is not None:
            x = x + self.electronic(x, batch)
        if self.tokens is not None:
            # Row 0 is no token at all, not a learned one: a model used without a condition cannot depend on them.
            table = torch.cat([torch.zeros_like(self.tokens[:1]), self.tokens])
            x = x + embedding(batch.condition, table).index_select(0, batch.molecule)
        if self.levels is not None:
            x = x + embedding(batch.level, self.levels).index_select(0, batch.molecule)
        if self.force_embedding is not None:
            x = x + self.force_embedding.scalars(batch)
        return x


class OneHot(nn.Module):
    """Rows (N,) -> (N, rows): an embedding that learns nothing."""

    table: Tensor

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.register_buffer("table", torch.eye(rows), persistent=False)

    def forward(self, rows: Tensor) -> Tensor:
        return embedding(rows, self.table)


class ForceEmbedding(nn.Module):
    """Given forces f of atoms: |f| a to their scalars and f b to their vectors, a and b learned (C,) and zero in a fresh model.

    The degrees 0 and 1 of DeNS's force encoding (Liao et al. 2024); an atom without a given force gets exactly zero.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.lengths, self.directions = nn.Parameter(torch.zeros(channels)), nn.Parameter(torch.zeros(channels))

    def scalars(self, batch: Batch) -> Tensor:
        """(N, C)."""
        return torch.linalg.vector_norm(torch.nan_to_num(batch.given_forces), dim=1)[:, None] * self.lengths

    def vectors(self, batch: Batch) -> Tensor:
        """(N, 3, C)."""
        return torch.nan_to_num(batch.given_forces)[:, :, None] * self.directions


class Electronic(nn.Module):
    """Total charge and unpaired electrons of a molecule, shared among its atoms (SpookyNet, Unke et al. 2021, eq. 10).

    Of Ψ = charge, and of Ψ = multiplicity - 1, each atom gets the share a_i = Ψ w_i / Σ_j w_j over its molecule, with
    w = softplus(q(x_i)·k / √C), and adds a_i v to its features; k and v differ between cations, anions and spin. The
    shares sum to Ψ, so one electron more is an effect of order one whatever the size of the molecule; they depend on the
    kinds of atoms only, never on where they are.

    Exactly zero for a neutral singlet: fragments that are neutral singlets have the sum of their energies when far
    apart. A charge or spin of a whole batch entry is spread over all its atoms, however far apart, so a charged
    system of separate fragments does not; where charges have a place, ``classes: wang`` is local and has no such limit.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Linear(channels, channels)
        self.keys = nn.Parameter(torch.randn(3, channels))  # cation, anion, unpaired electrons
        self.values = nn.Parameter(torch.zeros(3, channels))

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        """x (N, C) -> what to add to it."""
        charge, unpaired = batch.charge.to(x.dtype), (batch.spin - 1).clamp(min=0).to(x.dtype)
        amounts = torch.stack([charge.clamp(min=0), (-charge).clamp(min=0), unpaired], dim=1)  # (M, 3)
        weights = softplus(self.query(x) @ self.keys.T / math.sqrt(x.shape[1]))  # (N, 3)
        total = weights.new_zeros(len(batch), 3).index_add(0, batch.molecule, weights)
        # The smallest float guards molecules without atoms and weights that underflow in float32.
        scaled = amounts / total.clamp(min=torch.finfo(x.dtype).tiny)
        return (weights * scaled.index_select(0, batch.molecule)) @ self.values


def _class_table() -> Tensor:
    """(119, 17) row of each atomic number and formal charge (-8 ... 8) in Wang's embedding; -1 where there is none."""
    table = torch.full((119, 2 * _CHARGES + 1), -1)
    for row, (number, charge) in enumerate(WANG_CLASSES):
        table[number, charge + _CHARGES] = row
    return table
