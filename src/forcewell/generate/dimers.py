"""Pairs of molecules at random orientations and distances."""

from __future__ import annotations

from typing import Any

import numpy as np

from forcewell.system import System

# Closest contact in units of the van der Waals radii's sum. 0.65 is a short hydrogen bond (H...O 1.7 Å), 1.4 is beyond every minimum.
NEAREST, FARTHEST = 0.65, 1.4
STEP = 0.25  # Å, of the approach


def dimer(one: System, two: System, generator: np.random.Generator) -> System:
    """The two side by side, unlabelled: orientation and direction at random, the closest contact uniform between the bounds above.

    Charges add up, and so do unpaired electrons. The molecule is named by both, as one SMILES with a dot.
    """
    from rdkit import Chem

    turned = [(system.positions - system.positions.mean(axis=0)) @ _rotation(generator) for system in (one, two)]
    direction = _rotation(generator)[0]
    wanted = generator.uniform(NEAREST, FARTHEST)
    positions = np.concatenate([turned[0], turned[1] + direction * _distance(one, two, turned, direction, wanted)])
    arrays: dict[str, Any] = {name: np.concatenate([one.get(name), two.get(name)]) for name in ("numbers", "formal_charges")}
    arrays["positions"] = positions - positions.mean(axis=0)
    arrays["charge"] = np.int8(one.get("charge") + two.get("charge"))
    arrays["spin"] = np.uint8(int(one.get("spin")) + int(two.get("spin")) - 1)
    names = [Chem.CanonSmiles(f"{getattr(one, key)}.{getattr(two, key)}") for key in ("molecule", "smiles")]
    return System(arrays, molecule=names[0], smiles=names[1])


def contact(one: System, two: System, first: np.ndarray, second: np.ndarray) -> float:
    """Closest contact between two molecules in units of the sum of van der Waals radii."""
    from ase.data import vdw_radii

    radii = [np.nan_to_num(vdw_radii[system.numbers], nan=2.0) for system in (one, two)]
    apart = np.linalg.norm(first[:, None] - second[None], axis=-1)
    return float((apart / (radii[0][:, None] + radii[1])).min())


def _rotation(generator: np.random.Generator) -> np.ndarray:
    """(3, 3) rotation, uniform over all of them: the orthogonal factor of a normal matrix, its signs fixed."""
    orthogonal, triangular = np.linalg.qr(generator.normal(size=(3, 3)))
    orthogonal *= np.sign(np.diag(triangular))
    return orthogonal * np.sign(np.linalg.det(orthogonal))


def _distance(one: System, two: System, turned: list[np.ndarray], direction: np.ndarray, wanted: float) -> float:
    """How far to shift the second along ``direction`` for the closest contact to be ``wanted``, coming from outside."""

    def closest(shift: float) -> float:
        return contact(one, two, turned[0], turned[1] + direction * shift)

    outside = 10.0 + sum(float(np.linalg.norm(positions, axis=1).max()) for positions in turned)
    while outside > STEP and closest(outside - STEP) > wanted:
        outside -= STEP
    inside = outside - STEP
    for _ in range(20):
        middle = 0.5 * (outside + inside)
        outside, inside = (middle, inside) if closest(middle) > wanted else (outside, middle)
    return outside
