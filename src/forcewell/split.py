"""Splitting data into named parts: by molecule, by blocks of time, or at random; saved as JSON and checked on loading.

Frames of one trajectory are correlated, so a random split of them tests memory. Split by molecule where there are many
molecules, and by blocks of time where there is one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forcewell.errors import InputError
from forcewell.store import Dataset

PARTS = ("train", "validation", "test")  # names of fractions that come without
Fractions = Mapping[str, float] | Sequence[float]


@dataclass(frozen=True, slots=True)
class Split:
    """parts: sorted index arrays by name, disjoint. method, seed, settings: how they were made. fingerprint: of the data."""

    parts: dict[str, np.ndarray]
    method: str
    seed: int
    settings: dict[str, Any]
    fingerprint: str

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes JSON, atomically."""
        path = Path(path)
        content = {
            "format": "forcewell-split",
            "version": 1,
            "method": self.method,
            "seed": self.seed,
            "settings": self.settings,
            "fingerprint": self.fingerprint,
            "parts": {name: rows.tolist() for name, rows in self.parts.items()},
        }
        temporary = path.with_name(path.name + ".tmp")
        try:
            temporary.write_text(json.dumps(content), encoding="utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str], dataset: Dataset) -> Split:
        """Reads a split of this very data. Raises InputError for a damaged file or one made for other data."""
        path = Path(path)
        if not path.is_file():
            raise InputError(f"split {path} does not exist")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != "forcewell-split" or content["version"] != 1:
                raise KeyError("format")
            parts = {name: np.array(rows, dtype=np.int64) for name, rows in content["parts"].items()}
            split = cls(parts, content["method"], content["seed"], content["settings"], content["fingerprint"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is not a split file ({type(error).__name__}: {error}); make it with `forcewell data split`") from None
        if split.fingerprint != dataset.fingerprint:
            raise InputError(
                f"{path} was made for other data (fingerprint {split.fingerprint[:12]}, not {dataset.fingerprint[:12]}); split again"
            )
        for name, rows in parts.items():
            if len(rows) and not 0 <= rows.min() <= rows.max() < len(dataset):
                raise InputError(f"{path}: part {name!r} has indices outside 0 to {len(dataset) - 1}")
        return split


def by_molecule(dataset: Dataset, fractions: Fractions, seed: int) -> Split:
    """All conformations of a molecule go to one part; molecules are told apart by identifier.

    fractions: of the conformations, by part name, or in the order train, validation, test; together at most 1. Parts are
    filled with whole molecules in random order. Raises InputError where a part would be empty.
    """
    wanted = named_fractions(fractions)
    codes = dataset.molecule_codes()
    molecules, number = np.unique(codes, return_counts=True)
    if len(molecules) < len(wanted):
        raise InputError(f"the data have {len(molecules)} molecule(s) for {len(wanted)} parts; split by time or at random instead")
    order = np.random.default_rng(seed).permutation(len(molecules))
    middle = (np.cumsum(number[order]) - 0.5 * number[order]) / len(codes)
    part_of = np.full(int(molecules.max()) + 1, -1)
    part_of[molecules[order]] = _part_at(middle, wanted)
    return _split(part_of[codes], wanted, "molecule", seed, {}, dataset)


def by_time_block(dataset: Dataset, fractions: Fractions, blocks: int = 10, gap: int = 0, seed: int = 0) -> Split:
    """Each molecule's trajectory is cut into ``blocks`` stretches of time, and whole stretches are dealt out.

    gap: frames left out on either side of a border between stretches of different parts, so that neighbours in time are
    never in two parts. Order: the property "frame" where the data carry it, else as stored. Raises InputError where there
    are fewer blocks than parts or a part would be empty.
    """
    wanted = named_fractions(fractions)
    if blocks < len(wanted) or gap < 0:
        raise InputError(
            f"{blocks} blocks and a gap of {gap} frames cannot make {len(wanted)} parts; use more blocks and a gap of 0 or more"
        )
    generator = np.random.default_rng(seed)
    codes = dataset.molecule_codes()
    frame = dataset.column("property:frame") if "frame" in dataset.properties else np.arange(len(codes))
    order = np.lexsort((frame, codes))
    part = np.full(len(codes), -1)
    middle = (np.arange(blocks) + 0.5) / blocks
    for rows in np.split(order, np.flatnonzero(np.diff(codes[order])) + 1):
        dealt = _part_at(middle, wanted)[generator.permutation(blocks)]
        stretch = np.arange(len(rows)) * blocks // len(rows)
        mine = dealt[stretch]
        kept = mine.copy()
        for border in np.flatnonzero(np.diff(mine)) + 1:
            kept[max(0, border - gap) : border + gap] = -1
        part[rows] = kept
    return _split(part, wanted, "time", seed, {"blocks": blocks, "gap": gap}, dataset)


def random(dataset: Dataset, fractions: Fractions, seed: int) -> Split:
    """Single conformations at random: right only for conformations that are independent of each other.

    Raises InputError where a part would be empty.
    """
    wanted = named_fractions(fractions)
    order = np.random.default_rng(seed).permutation(len(dataset))
    part = np.full(len(dataset), -1)
    part[order] = _part_at((np.arange(len(dataset)) + 0.5) / len(dataset), wanted)
    return _split(part, wanted, "random", seed, {}, dataset)


def named_fractions(fractions: Fractions) -> dict[str, float]:
    """Fractions by part name. Raises InputError for more than three without names, or values that make no split."""
    if not isinstance(fractions, Mapping):
        if len(fractions) > len(PARTS):
            raise InputError(f"{len(fractions)} fractions need names, such as train=0.5,validation=0.1,test=0.2,holdout=0.2")
        fractions = dict(zip(PARTS, fractions, strict=False))
    named = {name: float(value) for name, value in fractions.items()}
    total = sum(named.values())
    if not named or min(named.values()) <= 0 or not total <= 1 + 1e-9:
        raise InputError(f"fractions must be above 0 and add up to at most 1, not {', '.join(map(str, named.values()))}")
    return named


def _part_at(position: np.ndarray, wanted: Mapping[str, float]) -> np.ndarray:
    """Number of the part that each position in [0, 1) falls into, -1 beyond the last."""
    borders = np.cumsum(list(wanted.values()))
    # 0.8 + 0.1 + 0.1 is 0.9999999999999999 in binary.
    part = np.searchsorted(borders + 1e-12, position, side="right")
    return np.where(part < len(borders), part, -1)


def _split(part: np.ndarray, wanted: Mapping[str, float], method: str, seed: int, settings: dict[str, Any], dataset: Dataset) -> Split:
    parts = {name: np.flatnonzero(part == k) for k, name in enumerate(wanted)}
    for name, rows in parts.items():
        if not len(rows):
            raise InputError(f"part {name!r} would be empty with a fraction of {wanted[name]} of {len(part)} conformations; enlarge it")
    return Split(parts, method, seed, {"fractions": dict(wanted), **settings}, dataset.fingerprint)
