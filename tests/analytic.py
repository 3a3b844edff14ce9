"""A potential with a known formula and the call signature of ``forcewell.Potential``, to test dynamics on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from forcewell.batch import Batch
from forcewell.errors import InputError
from forcewell.system import System

WATER = System(
    {"numbers": np.array([8, 1, 1], dtype=np.uint8), "positions": np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])}
)
ETHANOL = System(
    {
        "numbers": np.array([6, 6, 8, 1, 1, 1, 1, 1, 1], dtype=np.uint8),
        "positions": np.array(
            [
                [1.17, -0.37, 0.01],
                [-0.04, 0.54, -0.02],
                [-1.21, -0.25, 0.03],
                [2.08, 0.22, -0.03],
                [1.16, -1.06, -0.84],
                [1.18, -0.95, 0.93],
                [-0.02, 1.21, 0.85],
                [-0.03, 1.14, -0.94],
                [-1.96, 0.34, -0.02],
            ]
        ),
    }
)


@dataclasses.dataclass
class Prediction:
    """As ``forcewell.potential.Prediction``."""

    energy: Tensor
    forces: Tensor | None = None
    stress: Tensor | None = None


class MorseNetwork(nn.Module):
    """Morse springs between all pairs of a molecule, E = Σ D (1 - exp(-a (r - r0)))², with r0 from a template of as many atoms.

    depths: D (eV) by number of atoms. ``total_energy`` adds 100 eV per molecule.
    """

    elements = (1, 6, 8)
    levels = ("first", "second")
    width = 1.5  # a, 1/Å
    path = "Morse springs"

    def __init__(self, templates: Sequence[System] = (WATER, ETHANOL), depths: Sequence[float] = (5.0, 5.0)) -> None:
        super().__init__()
        self.lengths, self.depth = {}, nn.Parameter(torch.tensor(max(depths), dtype=torch.float64))
        self.scale = {len(system): depth / max(depths) for system, depth in zip(templates, depths, strict=True)}
        for system in templates:
            gaps = system.positions[:, None] - system.positions[None]
            self.lengths[len(system)] = torch.from_numpy(np.linalg.norm(gaps, axis=-1))
        self._counts: list[int] = []

    @property
    def dtype(self) -> torch.dtype:
        return self.depth.dtype

    @property
    def device(self) -> torch.device:
        return self.depth.device

    def check_electrons(self, charge: int, spin: int) -> None:
        """Springs know of neither."""

    def states_passed_over(self, columns: object) -> int:
        return 0

    def check_elements(self, numbers: np.ndarray) -> None:
        if not set(np.unique(numbers)) <= set(self.elements):
            raise InputError("the model never saw one of the elements")

    def level_index(self, level: str | None = None) -> int:
        return 1 if level is None else self.levels.index(level)

    def total_energy(self, prediction: Prediction, batch: Batch) -> Tensor:
        return prediction.energy.double() + 100.0 * (1 + batch.level.double())

    def _pairs(self, batch: Batch) -> tuple[Tensor, ...]:
        """Pairs of the batch, cached as long as its composition stays."""
        counts = batch.counts.tolist()
        if counts != self._counts:
            parts, start = [], 0
            for molecule, count in enumerate(counts):
                i, j = torch.triu_indices(count, count, 1)
                scale = torch.full((len(i),), self.scale[count], dtype=torch.float64)
                parts.append((i + start, j + start, torch.full_like(i, molecule), self.lengths[count][i, j], scale))
                start += count
            self._counts, self._cached = counts, tuple(torch.cat(column) for column in zip(*parts, strict=True))
        return self._cached

    def forward(self, batch: Batch, forces: bool = True, stress: bool = False, create_graph: bool = False) -> Prediction:
        i, j, molecule, lengths, scale = self._pairs(batch)
        positions = batch.positions.detach().to(self.dtype)
        vectors = positions[i] - positions[j]
        r = torch.linalg.vector_norm(vectors, dim=1)
        decay = torch.exp(-self.width * (r - lengths.to(self.dtype)))
        depth = scale.to(self.dtype) * self.depth.detach()
        energy = positions.new_zeros(len(batch)).index_add_(0, molecule, depth * (1 - decay) ** 2)
        pull = -(2 * self.width * depth * (1 - decay) * decay / r)[:, None] * vectors
        total = torch.zeros_like(positions).index_add_(0, i, pull).index_add_(0, j, -pull)
        return Prediction(energy, total if forces else None)
