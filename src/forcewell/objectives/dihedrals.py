"""Turning molecules about their rotatable bonds."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from forcewell.batch import Batch
from forcewell.objectives.base import Noise
from forcewell.rotors import perceived, rotatable


def turned(batch: Batch, sigma: float, noise: Noise, name: str) -> Tensor:
    """(N, 3) positions with every rotatable bond turned by an angle ~ N(0, sigma²) in rad, the smaller side moving.

    Bonds lie between atoms of different ``batch.fragment`` where these are known, else they are perceived. Periodic
    conformations stay as they are.
    """
    positions = batch.positions.detach().cpu().double().numpy().copy()
    numbers, fragments = batch.numbers.cpu().numpy(), batch.fragment.cpu().numpy()
    periodic = batch.pbc.any(dim=1).tolist()
    offsets = batch.offsets.tolist()
    for m, (source, index) in enumerate(zip(batch.source.tolist(), batch.index.tolist(), strict=True)):
        atoms = slice(offsets[m], offsets[m + 1])
        if periodic[m]:
            continue
        known = fragments[atoms] if (fragments[atoms] >= 0).all() else None
        bonds = perceived(numbers[atoms], positions[atoms])
        rotors = rotatable(numbers[atoms], positions[atoms], bonds, known)
        angles = sigma * noise.generator(name, source, index).standard_normal(len(rotors))
        for (first, second, side), angle in zip(rotors, angles, strict=True):
            turn(positions[atoms], first, second, side, float(angle))
    return torch.from_numpy(positions).to(batch.positions)


def turn(positions: np.ndarray, first: int, second: int, side: np.ndarray, angle: float) -> None:
    """Turns the atoms ``side`` about the axis from atom ``first`` to ``second`` by an angle in rad, in place (Rodrigues)."""
    origin = positions[first]
    axis = positions[second] - origin
    axis = axis / np.linalg.norm(axis)
    arms = positions[side] - origin
    along = (arms @ axis)[:, None] * axis
    across = arms - along
    positions[side] = origin + along + np.cos(angle) * across + np.sin(angle) * np.cross(axis, across)
