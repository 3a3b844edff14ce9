"""Splitting data into named parts, saved as JSON that anybody can reuse, and checked for leaks when written and when used.

Frames of one trajectory are correlated, so a random split of them tests memory. Split by molecule where there are many
molecules, and by blocks of time where there is one. Scaffold splits ask for new chemistry; leave-one-out splits, splits by
size and by element ask for molecules unlike all that were trained on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forcewell.errors import InputError, nearest
from forcewell.files import write_bytes
from forcewell.leakage import Leak, described, first_rows, identifiers, leaks, molecules, moments
from forcewell.scaffolds import packed, scaffolds
from forcewell.store import Dataset

PARTS = ("train", "validation", "test")  # names of fractions that come without
Fractions = Mapping[str, float] | Sequence[float]
CHECKED_ON_LOADING = 20_000  # molecules and conformations that a split about to be used is checked with: a second or two

# Which kinds of leak a method rules out: between which parts ("all", or those that "test" is one of).
SAME_MOLECULE = ("identifier", "smiles", "graph")
RULED_OUT: dict[str, dict[str, tuple[str, ...]]] = {
    "molecule": {"all": ("row", *SAME_MOLECULE, "geometry")},
    "scaffold": {"all": ("row", *SAME_MOLECULE, "geometry")},
    "balanced-scaffold": {"all": ("row", *SAME_MOLECULE, "geometry")},
    "time": {"all": ("row", "geometry")},
    "random": {"all": ("row", "geometry")},
    "leave-one-out": {"all": ("row", "geometry"), "test": SAME_MOLECULE},
    "size": {"all": ("row", *SAME_MOLECULE, "geometry")},
    "element": {"all": ("row", *SAME_MOLECULE, "geometry")},
}


@dataclass(frozen=True, slots=True)
class Split:
    """parts: sorted index arrays by name, disjoint. method, seed, settings: how they were made. fingerprint: of the data."""

    parts: dict[str, np.ndarray]
    method: str
    seed: int
    settings: dict[str, Any]
    fingerprint: str

    def save(self, path: str | os.PathLike[str], accepted: Sequence[Leak] = ()) -> None:
        """Writes JSON, atomically. accepted: leaks against the method that whoever made the split knows of and wants."""
        write_bytes(Path(path), self.content(accepted))

    def content(self, accepted: Sequence[Leak] = ()) -> bytes:
        """The JSON that ``save`` writes; the same split has the same bytes."""
        content = {
            "format": "forcewell-split",
            "version": 1,
            "method": self.method,
            "seed": self.seed,
            "settings": self.settings,
            "fingerprint": self.fingerprint,
            "accepted_leaks": [{"kind": leak.kind, "parts": leak.parts, "number": leak.number} for leak in accepted],
            "parts": {name: rows.tolist() for name, rows in self.parts.items()},
        }
        return json.dumps(content).encode()

    @classmethod
    def load(cls, path: str | os.PathLike[str], dataset: Dataset, *, leaky: bool = False) -> Split:
        """Reads a split of this very data and checks it for leaks, unless it may be ``leaky``.

        Raises InputError for a damaged file, one made for other data, or one with leaks that its method rules out.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"split {path} does not exist")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != "forcewell-split" or content["version"] != 1:
                raise KeyError("format")
            parts = {name: np.unique(np.array(rows, dtype=np.int64)) for name, rows in content["parts"].items()}
            split = cls(parts, content["method"], content["seed"], content["settings"], content["fingerprint"])
            accepted = {(item["kind"], *item["parts"]) for item in content.get("accepted_leaks", [])}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is not a split file ({type(error).__name__}: {error}); make it with `forcewell data split`") from None
        if split.fingerprint != dataset.fingerprint:
            raise InputError(
                f"{path} was made for other data (fingerprint {split.fingerprint[:12]}, not {dataset.fingerprint[:12]}); split again"
            )
        for name, rows in parts.items():
            if len(rows) and not 0 <= rows.min() <= rows.max() < len(dataset):
                raise InputError(f"{path}: part {name!r} has indices outside 0 to {len(dataset) - 1}")
        if leaky:
            return split
        found = [leak for leak in split.leaks(dataset, CHECKED_ON_LOADING) if (leak.kind, *leak.parts) not in accepted]
        if wrong := split.ruled_out(found):
            raise InputError(f"{path}: {wrong[0]}, which a split by {split.method} rules out; split again")
        return split

    def part(self, name: str, path: str | os.PathLike[str]) -> np.ndarray:
        """Indices of the part ``name``; raises InputError, naming the file ``path``, where it has no such part or an empty one."""
        if name not in self.parts or not len(self.parts[name]):
            raise InputError(f"{path} has no part {name!r} (it has: {', '.join(self.parts)})")
        return self.parts[name]

    def leaks(self, dataset: Dataset, limit: int | None = None) -> list[Leak]:
        """All that its parts share; see ``leaks``."""
        return leaks(dataset, self.parts, limit, ordered=self.method == "time")

    def ruled_out(self, found: Sequence[Leak]) -> list[Leak]:
        """Those leaks that a split of this method must not have."""
        rules = RULED_OUT.get(self.method, {})
        everywhere, test = rules.get("all", ("row",)), rules.get("test", ())
        if self.method == "time" and self.settings.get("gap", 0) > 0:
            everywhere = (*everywhere, "trajectory")
        return [leak for leak in found if leak.kind in everywhere or (leak.kind in test and "test" in leak.parts)]


def by_molecule(dataset: Dataset, fractions: Fractions, seed: int, merge: bool = True) -> Split:
    """All conformations of a molecule go to one part.

    fractions: of the conformations, by part name, or in the order train, validation, test; together at most 1. Parts are
    filled with whole molecules in random order. merge: identifiers with one canonical SMILES or bond graph count as one
    molecule (see ``leakage.molecules``). Raises InputError where a part would be empty.
    """
    wanted = named_fractions(fractions)
    codes = molecules(dataset) if merge else dataset.molecule_codes()
    part = _whole_molecules(codes, wanted, seed, "split by time or at random instead")
    whole = f"{codes.max() + 1} molecules ({len(codes)} conformations), which stay whole"
    return _split(part, wanted, "molecule", seed, {} if merge else {"merge": False}, dataset, whole)


def by_time_block(dataset: Dataset, fractions: Fractions, blocks: int = 10, gap: int = 0, seed: int = 0) -> Split:
    """Each molecule's trajectory is cut into ``blocks`` stretches of time, and whole stretches are dealt out.

    gap: frames left out on either side of a border between stretches of different parts, so that neighbours in time are
    never in two parts. A molecule's trajectories and their order: ``leakage.moments``. Raises InputError where there
    are fewer blocks than parts or a part would be empty.
    """
    wanted = named_fractions(fractions)
    if blocks < len(wanted) or gap < 0:
        raise InputError(
            f"{blocks} blocks and a gap of {gap} frames cannot make {len(wanted)} parts; use more blocks and a gap of 0 or more"
        )
    generator = np.random.default_rng(seed)
    codes = dataset.molecule_codes()
    trajectory, frame = moments(dataset)
    order = np.lexsort((frame, trajectory, codes))
    part = np.full(len(codes), -1)
    middle = (np.arange(blocks) + 0.5) / blocks
    borders = np.flatnonzero(np.diff(codes[order]) | (np.diff(trajectory[order]) != 0)) + 1
    for rows in np.split(order, borders):
        dealt = _part_at(middle, wanted)[generator.permutation(blocks)]
        stretch = np.arange(len(rows)) * blocks // len(rows)
        mine = dealt[stretch]
        kept = mine.copy()
        for border in np.flatnonzero(np.diff(mine)) + 1:
            kept[max(0, border - gap) : border + gap] = -1
        part[rows] = kept
    return _split(part, wanted, "time", seed, {"blocks": blocks, "gap": gap}, dataset, f"{blocks} blocks, which stay whole")


def random(dataset: Dataset, fractions: Fractions, seed: int) -> Split:
    """Single conformations at random: right only for conformations that are independent of each other.

    Raises InputError where a part would be empty.
    """
    wanted = named_fractions(fractions)
    order = np.random.default_rng(seed).permutation(len(dataset))
    part = np.full(len(dataset), -1)
    part[order] = _part_at((np.arange(len(dataset)) + 0.5) / len(dataset), wanted)
    return _split(part, wanted, "random", seed, {}, dataset)


def by_scaffold(dataset: Dataset, fractions: Fractions, seed: int | None = None) -> Split:
    """Molecules with one Bemis-Murcko scaffold (of their SMILES) go to one part.

    seed None: the plain, deterministic split, largest scaffolds first. A number: the randomised balanced one, of which a
    comparison needs several. Conformations without a readable SMILES are in no part; settings["left_out"] is their number.
    Raises InputError where RDKit is not installed, no SMILES is known, or a part would be empty.
    """
    wanted = named_fractions(fractions)
    groups = scaffolds(dataset.column("smiles"))
    if (groups < 0).all():
        raise InputError("no conformation has a SMILES that can be read; scaffolds are made from SMILES: split by molecule instead")
    codes = molecules(dataset)
    readable = np.flatnonzero(groups >= 0)
    # One molecule written as two SMILES may have two scaffolds; it goes with the first of them.
    of_molecule = np.full(int(codes.max()) + 1, -1)
    of_molecule[codes[readable[::-1]]] = groups[readable[::-1]]
    groups = of_molecule[codes]
    part = packed(groups, wanted, seed)
    method = "scaffold" if seed is None else "balanced-scaffold"
    whole = f"{groups.max() + 1} scaffolds ({int((groups >= 0).sum())} conformations), which stay whole"
    return _split(part, wanted, method, seed or 0, {"left_out": int((groups < 0).sum())}, dataset, whole)


def leave_out(
    dataset: Dataset, molecule: str, validation: float = 0.1, seed: int = 0, per_molecule: int | None = None, tested: int | None = None
) -> Split:
    """Train on all molecules but one, test on that one (train-9-test-1 of Gao et al., on the ten molecules of MD17).

    molecule: its identifier. validation: fraction of the others' frames, drawn at random from each. per_molecule: use so many
    random frames of each of the others (Gao: 50,000), tested: of the one left out (5,000); None: all. Identifiers that share
    the bond graph or SMILES of the one left out are left out with it. Raises InputError where there is no such molecule.
    """
    first = first_rows(dataset.molecule_codes())
    known = identifiers(dataset, first).tolist()
    if molecule not in known:
        shown = ", ".join(known[:10]) + (f" and {len(known) - 10} more" if len(known) > 10 else "")
        raise InputError(f"the data have no molecule {molecule!r}{nearest(molecule, known)} (they have: {shown})")
    codes, generator = molecules(dataset), np.random.default_rng(seed)
    left = int(codes[first[known.index(molecule)]])
    if (codes == left).all():
        raise InputError(f"{molecule!r} is the only molecule of the data; nothing is left to train on")
    part = np.full(len(codes), -1)
    order = np.lexsort((generator.permutation(len(codes)), codes))
    for rows in np.split(order, np.flatnonzero(np.diff(codes[order])) + 1):
        if codes[rows[0]] == left:
            part[rows[:tested]] = 2
        else:
            used = rows[:per_molecule]
            part[used] = 0
            part[used[: round(validation * len(used))]] = 1
    settings = {"molecule": molecule, "validation": validation, "per_molecule": per_molecule, "tested": tested}
    return _held_out(part, "leave-one-out", seed, settings, dataset)


def leave_store_out(
    datasets: Mapping[str, Dataset],
    left: str,
    validation: float = 0.1,
    seed: int = 0,
    per_molecule: int | None = None,
    tested: int | None = None,
) -> dict[str, Split]:
    """``leave_out`` where every molecule is a data set of its own: a split for each, by name.

    The one left out has the part "test" alone, the others "train" and "validation". Raises InputError for an unknown name, for
    a single data set, and where the one left out has a molecule, told by bond graph, that another one has, too.
    """
    if left not in datasets or len(datasets) < 2:
        raise InputError(f"leave {left!r} out of what? give the stores of all molecules, its own among them ({', '.join(datasets)})")
    graphs = {name: described(dataset, first_rows(dataset.molecule_codes()))[0] for name, dataset in datasets.items()}
    splits = {}
    for name, dataset in datasets.items():
        if name != left and np.isin(graphs[name], graphs[left][graphs[left] != -1]).any():
            raise InputError(f"{left} and {name} have a molecule in common (equal bond graphs): it cannot be left out and trained on")
        order = np.random.default_rng(seed).permutation(len(dataset))[: tested if name == left else per_molecule]
        held = round(validation * len(order))
        parts = {"test": order} if name == left else {"train": order[held:], "validation": order[:held]}
        if not all(map(len, parts.values())):
            raise InputError(f"{name}: a part would be empty; change the fraction for validation ({validation})")
        settings = {"left_out": left, "validation": validation, "per_molecule": per_molecule, "tested": tested}
        parts = {part: np.sort(rows) for part, rows in parts.items()}
        splits[name] = Split(parts, "leave-one-out", seed, settings, dataset.fingerprint)
    return splits


def by_size(dataset: Dataset, largest: int, validation: float = 0.1, seed: int = 0) -> Split:
    """Train and validate (whole molecules at random) on conformations of up to ``largest`` atoms, test on larger ones.

    Raises InputError where all are larger or none is.
    """
    return _unlike(dataset, dataset.counts > largest, "size", {"largest": largest}, validation, seed)


def by_element(dataset: Dataset, elements: Sequence[int], validation: float = 0.1, seed: int = 0) -> Split:
    """Test on conformations with any of ``elements`` (atomic numbers), train and validate on whole molecules without.

    Raises InputError where every conformation has one of them, or none has.
    """
    has = np.zeros(len(dataset), dtype=bool)
    for start in range(0, len(dataset), 8192):
        block = dataset.block(np.arange(start, min(start + 8192, len(dataset))))
        owner = np.repeat(np.arange(len(block)), block.counts)
        has[start + np.unique(owner[np.isin(block.arrays["numbers"], elements)])] = True
    return _unlike(dataset, has, "element", {"elements": list(map(int, elements))}, validation, seed)


def _unlike(dataset: Dataset, tested: np.ndarray, method: str, settings: dict[str, Any], validation: float, seed: int) -> Split:
    """Test where ``tested``; the molecules of the rest at random to train and validation."""
    if tested.all() or not tested.any():
        many = "every conformation" if tested.all() else "no conformation"
        raise InputError(f"{many} would be tested on with {method} {settings}; the data have {_range(dataset)}")
    part, codes = np.where(tested, 2, -1), molecules(dataset)
    rest = np.flatnonzero(~tested)
    # A molecule that is on both sides (a dimer's fragment under its name, say) belongs to the test.
    rest = rest[~np.isin(codes[rest], codes[tested])]
    if not len(rest):
        raise InputError(f"every molecule would be tested on with {method} {settings}; nothing is left to train on")
    wanted = {"train": 1 - validation, "validation": validation}
    _, dense = np.unique(codes[rest], return_inverse=True)
    part[rest] = _whole_molecules(dense, wanted, seed, "nothing would be left to validate on")
    return _held_out(part, method, seed, {**settings, "validation": validation}, dataset)


def _range(dataset: Dataset) -> str:
    counts = dataset.counts
    return f"{counts.min()} to {counts.max()} atoms and the elements {', '.join(map(str, dataset.elements))}"


def _held_out(part: np.ndarray, method: str, seed: int, settings: dict[str, Any], dataset: Dataset) -> Split:
    parts = {name: np.flatnonzero(part == number) for number, name in enumerate(PARTS)}
    for name, rows in parts.items():
        if not len(rows):
            raise InputError(f"part {name!r} would be empty; change the fraction for validation ({settings['validation']})")
    return Split(parts, method, seed, settings, dataset.fingerprint)


def _whole_molecules(codes: np.ndarray, wanted: Mapping[str, float], seed: int, otherwise: str) -> np.ndarray:
    """(n,) number of the part of each row: molecules (codes 0 to K - 1) in random order fill the parts."""
    number = np.bincount(codes)
    if len(number) < len(wanted):
        raise InputError(f"the data have {len(number)} molecule(s) for {len(wanted)} parts; {otherwise}")
    order = np.random.default_rng(seed).permutation(len(number))
    middle = (np.cumsum(number[order]) - 0.5 * number[order]) / len(codes)
    part_of = np.zeros(len(number), dtype=np.int8)
    part_of[order] = _part_at(middle, wanted)
    return part_of[codes]


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


def _split(
    part: np.ndarray, wanted: Mapping[str, float], method: str, seed: int, settings: dict[str, Any], dataset: Dataset, whole: str = ""
) -> Split:
    """whole: what is divided and never cut, in words, where that is not single conformations. Raises InputError for an empty part."""
    parts = {name: np.flatnonzero(part == k) for k, name in enumerate(wanted)}
    for name, rows in parts.items():
        if not len(rows):
            raise InputError(
                f"part {name!r} would be empty with a fraction of {wanted[name]} of {whole or f'{len(part)} conformations'}; enlarge it"
            )
    return Split(parts, method, seed, {"fractions": dict(wanted), **settings}, dataset.fingerprint)
