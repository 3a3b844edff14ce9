"""What two parts of a data set have in common that they should not: molecules, stretches of a trajectory, geometries."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from forcewell.bonds import graph_hashes
from forcewell.overlap import geometry_hashes
from forcewell.store import Dataset

ROWS = 8192  # conformations read at a time

WHAT = {
    "row": "conformations in both",
    "identifier": "molecules with conformations in both",
    "smiles": "molecules in both under different identifiers but one canonical SMILES",
    "graph": "molecules in both under different identifiers but one bond graph",
    "trajectory": "frames that follow each other in time, one in each",
    "geometry": "geometries in both",
}


@dataclass(frozen=True, slots=True)
class Leak:
    """kind: a key of ``WHAT``. parts: the two. number: how many of them. rows: one example, a row of each part."""

    kind: str
    parts: tuple[str, str]
    number: int
    rows: tuple[int, int]

    def __str__(self) -> str:
        first, second = self.rows
        example = f"row {first}" if first == second else f"rows {first} and {second}"
        return f"{self.parts[0]} and {self.parts[1]}: {WHAT[self.kind]}: {self.number} (such as {example})"


def leaks(dataset: Dataset, parts: Mapping[str, np.ndarray], limit: int | None = None, ordered: bool = False) -> list[Leak]:
    """What the parts (index arrays by name) share; whether that matters depends on what the split is for.

    limit: look at no more molecules for SMILES and bond graph, and no more conformations for geometry, than this many,
    evenly spread; identifiers, rows and trajectories are always compared in full. None: at all. ordered: data without the
    properties "frame" or "time" are trajectories in the order in which they are stored.
    """
    names, owner = list(parts), _owner(dataset, parts)
    found = [*molecule_leaks(dataset, parts, limit), *trajectory_leaks(dataset, parts, ordered)]
    rows = _evenly(np.flatnonzero(owner >= 0), limit)
    rows = rows[dataset.counts[rows] > 1]  # an atom has no geometry
    hashes = [geometry_hashes(dataset.block(rows[start : start + ROWS])) for start in range(0, len(rows), ROWS)]
    found += _shared("geometry", np.concatenate([np.zeros(0, dtype=np.uint64), *hashes]), rows, owner[rows], names)
    return found


def molecule_leaks(dataset: Dataset, parts: Mapping[str, np.ndarray], limit: int | None = None) -> list[Leak]:
    """Of ``leaks``, those of rows and molecules: the same row, identifier, bond graph or canonical SMILES."""
    names, codes, owner = list(parts), identified(dataset), _owner(dataset, parts)
    shared = _shared("identifier", codes, np.arange(len(codes)), owner, names)
    return [*_same_rows(parts), *shared, *_same_molecules(dataset, codes, owner, names, limit)]


def trajectory_leaks(dataset: Dataset, parts: Mapping[str, np.ndarray], ordered: bool = False) -> list[Leak]:
    """Of ``leaks``, those of frames next to each other in a trajectory."""
    return [*_neighbours_in_time(dataset, identified(dataset), _owner(dataset, parts), list(parts), ordered)]


def _owner(dataset: Dataset, parts: Mapping[str, np.ndarray]) -> np.ndarray:
    owner = np.full(len(dataset), -1, dtype=np.int16)
    for number, rows in enumerate(parts.values()):
        owner[rows] = number
    return owner


def identified(dataset: Dataset) -> np.ndarray:
    """(n,) integers from 0, equal where the molecule identifiers are; a conformation without one is a molecule of its own."""
    codes = dataset.molecule_codes()
    first = first_rows(codes)
    unnamed = np.flatnonzero(identifiers(dataset, first) == "")
    if not len(unnamed):
        return codes
    rows = np.flatnonzero(codes == unnamed[0])
    separate = codes.astype(np.int64)
    separate[rows] = len(first) + np.arange(len(rows))
    _, appearance, inverse = np.unique(separate, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(appearance))[inverse]


def identifiers(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    """(len(rows),) str: molecule identifiers, without loading those of all conformations."""
    blocks = [dataset.block(rows[start : start + ROWS]) for start in range(0, len(rows), ROWS)]
    return np.concatenate([np.zeros(0, dtype=object), *(block.molecule for block in blocks if block.molecule is not None)])


def molecules(dataset: Dataset) -> np.ndarray:
    """(n,) integers, 0 to K - 1 in order of first appearance, equal for conformations of one molecule.

    Conformations with the same identifier are of one molecule, and so are identifiers whose first conformations share a
    canonical SMILES or a bond graph.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    codes = identified(dataset)
    first = first_rows(codes)
    left, right, size = [], [], len(first)
    for key in described(dataset, first):
        known = np.flatnonzero(key != -1)
        values, same = np.unique(key[known], return_inverse=True)
        left, right, size = [*left, known], [*right, size + same], size + len(values)
    edges = np.concatenate(left), np.concatenate(right)
    _, component = connected_components(coo_array((np.ones(len(edges[0]), dtype=np.int8), edges), shape=(size, size)), directed=False)
    _, appearance, merged = np.unique(component[: len(first)], return_index=True, return_inverse=True)
    return np.argsort(np.argsort(appearance))[merged][codes]


def first_rows(codes: np.ndarray) -> np.ndarray:
    """(K,) the first row of each of the codes 0 to K - 1."""
    first = np.zeros(int(codes.max(initial=-1)) + 1, dtype=np.int64)
    first[codes[::-1]] = np.arange(len(codes) - 1, -1, -1)  # of equal codes the last assignment stays
    return first


def described(dataset: Dataset, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(len(rows),) int64 each: hash of the bond graph (-1: a single atom), and a number for each canonical SMILES (-1: none)."""
    graphs, texts = [np.zeros(0, dtype=np.uint64)], [np.zeros(0, dtype=object)]
    for start in range(0, len(rows), ROWS):
        block = dataset.block(rows[start : start + ROWS])
        assert block.smiles is not None
        graphs.append(graph_hashes(block))
        texts.append(block.smiles)
    unique, inverse = np.unique(np.concatenate(texts).astype(str), return_inverse=True)
    known = {"": -1}
    smiles = np.array([known.setdefault(canonical(text) if text else "", len(known)) for text in unique.tolist()], dtype=np.int64)
    return np.where(dataset.counts[rows] > 1, np.concatenate(graphs).view(np.int64), -1), smiles[inverse]


def canonical(smiles: str) -> str:
    """Canonical SMILES without atom numbers and explicit hydrogens; as given where RDKit is absent or cannot read it."""
    try:
        from rdkit import Chem, RDLogger
    except ImportError:
        return smiles
    RDLogger.DisableLog("rdApp.*")  # type: ignore[attr-defined]
    molecule = Chem.MolFromSmiles(smiles)
    if molecule is None:
        return smiles
    if ":" in smiles:  # numbered atoms, whose hydrogens RDKit keeps
        for atom in molecule.GetAtoms():
            atom.SetAtomMapNum(0)
        molecule = Chem.RemoveHs(molecule)
    return Chem.MolToSmiles(molecule)


def _evenly(rows: np.ndarray, limit: int | None) -> np.ndarray:
    return rows if limit is None or len(rows) <= limit else rows[np.linspace(0, len(rows) - 1, limit).astype(np.int64)]


def _same_rows(parts: Mapping[str, np.ndarray]) -> Iterator[Leak]:
    for (first, a), (second, b) in itertools.combinations(parts.items(), 2):
        common = np.intersect1d(a, b)
        if len(common):
            yield Leak("row", (first, second), len(common), (int(common[0]), int(common[0])))


def _shared(kind: str, keys: np.ndarray, rows: np.ndarray, owner: np.ndarray, names: list[str]) -> Iterator[Leak]:
    """Keys (integers) that two parts have in common; rows, owner: the row and the part (-1: none) of each key."""
    used = owner >= 0
    keys, rows, owner = keys[used], rows[used], owner[used]
    _, inverse = np.unique(keys, return_inverse=True)
    pairs = np.unique(inverse * len(names) + owner)  # every key once for each part that has it
    key, part = pairs // len(names), pairs % len(names)
    of_part = [key[part == number] for number in range(len(names))]
    for a, b in itertools.combinations(range(len(names)), 2):
        common = np.intersect1d(of_part[a], of_part[b], assume_unique=True)
        if len(common):
            first, second = (int(rows[np.argmax((inverse == common[0]) & (owner == number))]) for number in (a, b))
            yield Leak(kind, (names[a], names[b]), len(common), (first, second))


def _same_molecules(dataset: Dataset, codes: np.ndarray, owner: np.ndarray, names: list[str], limit: int | None) -> Iterator[Leak]:
    """Different identifiers of one molecule in two parts. Identifiers that are themselves in two parts are left to "identifier"."""
    low, high = np.full(int(codes.max(initial=-1)) + 1, len(names)), np.full(int(codes.max(initial=-1)) + 1, -1)
    used = np.flatnonzero(owner >= 0)
    for number in range(len(names)):
        mine = codes[used[owner[used] == number]]
        high[mine] = number
        low[mine] = np.minimum(low[mine], number)
    first = np.full(len(low), -1)
    first[codes[used[::-1]]] = used[::-1]
    whole = np.flatnonzero((low == high) & (first >= 0))
    rows = _evenly(first[whole], limit)
    for kind, keys in zip(("graph", "smiles"), described(dataset, rows), strict=True):
        known = keys != -1
        yield from _shared(kind, keys[known], rows[known], owner[rows[known]], names)


def moments(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """(n,) number of the trajectory within the molecule, and (n,) place in it: the property "frame", else "time" of the trajectory
    "trajectory" (as `forcewell generate` writes them; not a number for conformations of no trajectory), else the order of the rows."""
    names, alone = set(dataset.properties), np.zeros(len(dataset))
    if "frame" in names:
        return alone, dataset.column("property:frame")
    if {"time", "trajectory"} <= names:
        return np.nan_to_num(dataset.column("property:trajectory"), nan=-1.0), dataset.column("property:time")
    return alone, np.arange(len(dataset), dtype=np.float64)


def _neighbours_in_time(dataset: Dataset, codes: np.ndarray, owner: np.ndarray, names: list[str], ordered: bool) -> Iterator[Leak]:
    """Frames next to each other in a molecule's trajectory but in two parts."""
    if not ordered and not {"frame", "time"} & set(dataset.properties):
        return
    trajectory, frame = moments(dataset)
    order = np.lexsort((frame, trajectory, codes))
    order = order[np.isfinite(frame[order])]
    before, after = order[:-1], order[1:]
    near = (codes[before] == codes[after]) & (trajectory[before] == trajectory[after])
    near &= (owner[before] != owner[after]) & (owner[before] >= 0) & (owner[after] >= 0)
    for a, b in itertools.combinations(range(len(names)), 2):
        found = np.flatnonzero(near & (np.minimum(owner[before], owner[after]) == a) & (np.maximum(owner[before], owner[after]) == b))
        if len(found):
            pair = sorted((int(before[found[0]]), int(after[found[0]])), key=lambda row: owner[row])
            yield Leak("trajectory", (names[a], names[b]), len(found), (pair[0], pair[1]))
