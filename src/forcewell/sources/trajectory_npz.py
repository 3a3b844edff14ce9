"""Frames of one molecule in an .npz, as MD17, revised MD17 and their subsets keep them. Used by two sources."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from forcewell.errors import InputError
from forcewell.sources.card import Card, Factors, chunks, load_npz, pick, rows_of
from forcewell.system import Block

# kcal/mol and kcal/mol/Å throughout both collections.
FACTORS = Factors.of("kcal/mol", "kcal/mol/Å", "Å")


def molecule_name(path: Path) -> str:
    """The molecule from a file name: ``rmd17_ethanol_train_01.npz``, ``md22_AT-AT.npz``, ``toluene_ccsd_t-test.npz``."""
    name = re.sub(r"^(rmd17|md17|md22)_", "", path.stem.lower())
    return re.sub(r"(_(train|test|\d+|dft|ccsd|ccsd_t|ccsd\(t\)))+$", "", re.sub(r"-(train|test)$", "", name))


def read_trajectory(
    path: Path, card: Card, keys: dict[str, tuple[str, ...]], molecule: str | None, arrays: Mapping[str, np.ndarray] | None = None
) -> Iterator[Block]:
    """Blocks of one file, or of its ``arrays`` where they are read already.

    keys: names that ``numbers, positions, energy, forces, frame`` may have in it. The position in the original trajectory,
    where the file gives it, becomes the property "frame".
    """
    arrays = load_npz(path) if arrays is None else arrays
    numbers, positions = pick(arrays, path, *keys["numbers"]), pick(arrays, path, *keys["positions"])
    energy = pick(arrays, path, *keys["energy"]).reshape(-1)
    forces = pick(arrays, path, *keys["forces"])
    frames = len(positions)
    if numbers.ndim != 1 or positions.shape != (frames, len(numbers), 3) or forces.shape != positions.shape or len(energy) != frames:
        shapes = f"numbers {numbers.shape}, positions {positions.shape}, energies {energy.shape}, forces {forces.shape}"
        raise InputError(f"{path} is not a trajectory of one molecule: {shapes}")
    index = next((arrays[name] for name in keys["frame"] if name in arrays), None)
    for part in chunks(frames, rows_of(len(numbers))):
        size = part.stop - part.start
        yield Block.shared(
            numbers,
            positions[part].astype(np.float64) * FACTORS.length,
            energy=energy[part].astype(np.float64) * FACTORS.energy,
            forces=forces[part] * FACTORS.force,
            equilibrium=np.zeros(size),  # frames of a simulation are not minima
            source=card.name,
            level=card.level,
            molecule=np.full(size, molecule or molecule_name(path), dtype=object),
            properties={} if index is None else {"frame": index[part].astype(np.float64)},
        )


def truth(value: Any) -> bool:
    """An option given as a Python bool or, on the command line, as a word. Raises InputError for any other word."""
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if str(value).lower() not in words:
        raise InputError(f"expected yes or no, not {value!r}")
    return words[str(value).lower()]
