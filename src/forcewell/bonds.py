"""Bond graphs perceived from geometry, and the benchmark molecules that pre-training data must not contain.

A molecule is told by the graph of its bonds and elements, whatever its identifier, atom order or conformation. Bonds are
perceived in open space; periodic images are not looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from forcewell.errors import InputError, nearest
from forcewell.system import Block, squared_distances

# Atoms closer than the sum of their covalent radii plus this are bonded: C-H up to 1.32 Å, C-C up to 1.77 Å, O-H up to
# 1.22 Å. Of 8000 frames at 500 K of the benchmark molecules all keep their graph; at 0.35 Å, 6 of salicylic acid's, whose
# proton comes within 1.3 Å of the other oxygen, do not.
TOLERANCE = 0.25  # Å
ROUNDS = 8  # of refinement: atoms see 8 bonds far, more than the diameter of any benchmark molecule (9 atoms wide at most)

# Molecules that models are judged by: SMILES for the reader, elements (hydrogens last) and bonds. Data sets are imported without
# the first four, which the literature fine-tunes on; data that Forcewell makes contain none of them.
BENCHMARK: dict[str, tuple[str, str, tuple[tuple[int, int], ...]]] = {
    "ethanol": ("CCO", "CCO", ((0, 1), (1, 2))),
    "naphthalene": (
        "c1ccc2ccccc2c1",
        "CCCCCCCCCC",
        ((0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7), (7, 8), (8, 9), (9, 0), (3, 8)),
    ),
    "salicylic acid": (
        "O=C(O)c1ccccc1O",
        "OCOCCCCCCO",
        ((0, 1), (1, 2), (1, 3), (3, 4), (4, 5), (5, 6), (6, 7), (7, 8), (8, 3), (8, 9)),
    ),
    "aspirin": (
        "CC(=O)Oc1ccccc1C(=O)O",
        "CCOOCCCCCCCOO",
        ((0, 1), (1, 2), (1, 3), (3, 4), (4, 5), (5, 6), (6, 7), (7, 8), (8, 9), (9, 4), (9, 10), (10, 11), (10, 12)),
    ),
    "malonaldehyde": ("O=CCC=O", "OCCCO", ((0, 1), (1, 2), (2, 3), (3, 4))),
    "uracil": ("O=c1cc[nH]c(=O)[nH]1", "OCCCNCON", ((0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (5, 7), (7, 1))),
    "paracetamol": (
        "CC(=O)Nc1ccc(O)cc1",
        "CCONCCCCOCC",
        ((0, 1), (1, 2), (1, 3), (3, 4), (4, 5), (5, 6), (6, 7), (7, 8), (7, 9), (9, 10), (10, 4)),
    ),
    "caffeine": (
        "Cn1cnc2c1c(=O)n(C)c(=O)n2C",
        "CNCNCCCONCCONC",
        ((0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7), (6, 8), (8, 9), (8, 10), (10, 11), (10, 12), (12, 13), (5, 1), (12, 4)),
    ),
    "alanine dipeptide": (
        "CNC(=O)C(C)NC(C)=O",
        "CNCOCCNCCO",
        ((0, 1), (1, 2), (2, 3), (2, 4), (4, 5), (4, 6), (6, 7), (7, 8), (7, 9)),
    ),
}
FINE_TUNED = ("ethanol", "naphthalene", "salicylic acid", "aspirin")
# Hydrogens on each of the atoms above.
HYDROGENS = {
    "ethanol": (3, 2, 1),
    "naphthalene": (1, 1, 1, 0, 1, 1, 1, 1, 0, 1),
    "salicylic acid": (0, 0, 1, 0, 1, 1, 1, 1, 0, 1),
    "aspirin": (3, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 1),
    "malonaldehyde": (0, 1, 2, 1, 0),
    "uracil": (0, 0, 1, 1, 1, 0, 0, 1),
    "paracetamol": (3, 0, 0, 1, 0, 1, 1, 0, 1, 1, 1),
    "caffeine": (3, 0, 1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 3),
    "alanine dipeptide": (3, 1, 0, 0, 1, 3, 1, 0, 3, 0),
}
SYMBOLS = {"C": 6, "N": 7, "O": 8}  # of the heavy atoms above


@lru_cache
def covalent_radii() -> np.ndarray:
    """(119,) Å: covalent radii of Cordero et al., Dalton Trans. 2832 (2008), as ASE tabulates them."""
    from ase.data import covalent_radii as tabulated

    return np.asarray(tabulated[:119])


def bonds(block: Block, tolerance: float = TOLERANCE) -> np.ndarray:
    """(E, 2) bonded pairs i < j of atom indices into the flat block, all conformations together.

    Vectorised over conformations with the same number of atoms; memory is bounded. Candidates are found in single
    precision with 1 % to spare and decided in double precision.
    """
    radii, offsets = covalent_radii(), block.offsets
    positions, reach = block.arrays["positions"], radii[block.arrays["numbers"]] + 0.5 * tolerance
    farthest = (2.02 * float(reach.max(initial=0.0))) ** 2  # one number to compare with: the longest bond of the block
    found, distances = [np.zeros((0, 2), dtype=np.int64)], [np.zeros(0, dtype=np.float32)]
    for rows, points in block.by_size():
        start = offsets[rows]
        for i, squared in squared_distances(points):
            atom, row = np.nonzero(squared < farthest)
            left = start[row] + atom
            found.append(np.stack([left, left + i], axis=1))
            distances.append(squared[atom, row])
    pairs, squared = np.concatenate(found), np.concatenate(distances)
    left, right = pairs.T
    limit = (reach[left] + reach[right]) ** 2
    bonded = squared < limit
    close = np.flatnonzero(np.abs(squared - limit) < 0.01 * limit)
    bonded[close] = ((positions[left[close]] - positions[right[close]]) ** 2).sum(-1) < limit[close]
    return pairs[bonded]


def _mix(values: np.ndarray) -> np.ndarray:
    """A fixed scrambling of uint64 (the finaliser of SplitMix64); sums of scrambled values tell multisets apart."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _components(atoms: int, edges: np.ndarray) -> tuple[int, np.ndarray, Any]:
    """Number of connected components, (N,) the component of every atom, and the adjacency matrix."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    start, end = np.concatenate([edges, edges[:, ::-1]]).T
    # Its products with a vector wrap around like any sum of uint64.
    graph = coo_array((np.ones(len(start), dtype=np.uint64), (start, end)), shape=(atoms, atoms)).tocsr()
    components, owner = connected_components(graph, directed=False)
    return components, owner, graph


def _component_hashes(numbers: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(C,) uint64 hash of every connected component, and (N,) the component of every atom.

    Weisfeiler-Lehman refinement: an atom's label takes in the multiset of its neighbours' labels, ``ROUNDS`` times.
    """
    components, owner, graph = _components(len(numbers), edges)
    labels = _mix(numbers.astype(np.uint64) + np.uint64(1))
    for _ in range(ROUNDS):
        labels = _mix(labels * np.uint64(0x9E3779B97F4A7C15) + graph @ _mix(labels))
    hashes = np.zeros(components, dtype=np.uint64)
    np.add.at(hashes, owner, _mix(labels))
    size = np.bincount(owner, minlength=components).astype(np.uint64)
    return _mix(hashes + size), owner


def component_hashes(block: Block) -> tuple[np.ndarray, np.ndarray]:
    """(C,) uint64 graph hash of every bonded component of every conformation, and (C,) the conformation it is in."""
    hashes, owner = _component_hashes(block.arrays["numbers"], bonds(block))
    conformation = np.repeat(np.arange(len(block)), block.counts)
    inside = np.zeros(len(hashes), dtype=np.int64)
    inside[owner] = conformation
    return hashes, inside


def graph_hashes(block: Block) -> np.ndarray:
    """(F,) uint64 hash of each conformation's bond graph: equal for equal graphs, whatever the order of atoms.

    Graphs that Weisfeiler-Lehman refinement cannot tell apart within ``ROUNDS`` bonds share a hash.
    """
    hashes, inside = component_hashes(block)
    total = np.zeros(len(block), dtype=np.uint64)
    np.add.at(total, inside, _mix(hashes))
    return _mix(total)


def formulas(block: Block) -> list[str]:
    """Each conformation's formula in the order C, H, then alphabetical."""
    from ase.data import chemical_symbols

    result = []
    for numbers in np.split(block.arrays["numbers"], block.offsets[1:-1]):
        values, number = np.unique(numbers, return_counts=True)
        parts = {chemical_symbols[z]: n for z, n in zip(values.tolist(), number.tolist(), strict=True)}
        order = sorted(parts, key=lambda symbol: ({"C": 0, "H": 1}.get(symbol, 2), symbol))
        result.append("".join(f"{symbol}{parts[symbol] if parts[symbol] > 1 else ''}" for symbol in order))
    return result


def identify(block: Block) -> np.ndarray:
    """(F,) identifiers made of formula and bond graph, such as ``C2H6O-5f0c9a1e``, for data without any of their own."""
    pairs = zip(formulas(block), graph_hashes(block).tolist(), strict=True)
    return np.array([f"{formula}-{value >> 32:08x}" for formula, value in pairs], dtype=object)


@lru_cache
def benchmark_hash(name: str) -> int:
    """Graph hash of a benchmark molecule. Raises InputError for a name that is none."""
    if name not in BENCHMARK:
        raise InputError(f"unknown molecule {name!r}{nearest(name, BENCHMARK)} (known: {', '.join(BENCHMARK)})")
    _, elements, heavy = BENCHMARK[name]
    numbers, edges = [SYMBOLS[element] for element in elements], list(heavy)
    for atom, hydrogens in enumerate(HYDROGENS[name]):
        for _ in range(hydrogens):
            edges.append((atom, len(numbers)))
            numbers.append(1)
    return graph_hash(numbers, edges)


def graph_hash(numbers: Sequence[int] | np.ndarray, edges: Sequence[tuple[int, int]] | np.ndarray) -> int:
    """Hash of one connected molecule: atomic numbers (n,) and bonded pairs (E, 2), wherever they are from."""
    return int(_component_hashes(np.asarray(numbers), np.asarray(edges, dtype=np.int64).reshape(-1, 2))[0][0])


def excluded(block: Block, molecules: Iterable[str | int], each: bool = False) -> np.ndarray:
    """(F,) True where any bonded component of a conformation is one of ``molecules`` (benchmark names or graph hashes).

    A dimer that contains ethanol is found, too. Of conformations that share a molecule identifier only the first is
    looked at, unless ``each``, for identifiers that isomers share. Raises InputError for an unknown name.
    """
    molecules = list(molecules)
    wanted = np.array([benchmark_hash(item) if isinstance(item, str) else item for item in molecules], dtype=np.uint64)
    first, inverse = np.arange(len(block)), np.arange(len(block))
    if not each:
        assert block.molecule is not None
        names = np.where(block.molecule != "", block.molecule, np.arange(len(block)).astype(str)).astype(str)
        _, first, inverse = np.unique(names, return_index=True, return_inverse=True)
    if all(isinstance(item, str) for item in molecules):
        # Most conformations lack the atoms, which is a hundred times cheaper to see than their bonds.
        first = np.where(could_contain(block, [str(item) for item in molecules])[first], first, -1)
    looked_at = np.flatnonzero(first >= 0)
    found = np.zeros(len(first), dtype=bool)
    if len(looked_at):
        part = block if len(looked_at) == len(block) else block.take(first[looked_at])
        found[looked_at[_containing(part, wanted, [str(item) for item in molecules])]] = True
    return found[inverse]


def _containing(block: Block, wanted: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Conformations with a component whose hash is ``wanted``. Only components as large as those of ``names``, with as many
    carbons, are hashed where all of them are benchmark molecules."""
    numbers, edges = block.arrays["numbers"], bonds(block)
    conformation = np.repeat(np.arange(len(block)), block.counts)
    if set(names) <= BENCHMARK.keys():
        components, owner, _ = _components(len(numbers), edges)
        size, carbons = np.bincount(owner, minlength=components), np.bincount(owner[numbers == 6], minlength=components)
        sizes = [(len(BENCHMARK[name][1]) + sum(HYDROGENS[name]), BENCHMARK[name][1].count("C")) for name in names]
        atoms = np.logical_or.reduce([(size == n) & (carbons == c) for n, c in sizes])[owner]
        place = np.cumsum(atoms) - 1
        edges = place[edges[atoms[edges[:, 0]]]]
        numbers, conformation = numbers[atoms], conformation[atoms]
    hashes, owner = _component_hashes(numbers, edges)
    return np.unique(conformation[np.isin(hashes, wanted)[owner]])


def could_contain(block: Block, molecules: Sequence[str]) -> np.ndarray:
    """(F,) True where a conformation has at least the atoms of one of the benchmark molecules."""
    starts, possible = block.offsets[:-1], np.zeros(len(block), dtype=bool)
    met = {z: np.add.reduceat(block.arrays["numbers"] == z, starts, dtype=np.int64) for z in (1, 6, 7, 8)} if len(block) else {}
    for name in molecules if met else ():
        elements = BENCHMARK[name][1]
        needed = {z: elements.count(symbol) for symbol, z in SYMBOLS.items()} | {1: sum(HYDROGENS[name])}
        possible |= np.logical_and.reduce([met[z] >= number for z, number in needed.items()])
    return possible


def resolve(exclude: str | Sequence[str]) -> list[str]:
    """Names to leave out, from "none", "benchmark" (the four of the literature's fine-tuning), "all" (the whole list), or names
    separated by commas. Raises InputError for unknown ones."""
    if isinstance(exclude, str) and exclude in ("none", "benchmark", "all"):
        return {"none": [], "benchmark": list(FINE_TUNED), "all": list(BENCHMARK)}[exclude]
    names = [name.strip() for name in (exclude.split(",") if isinstance(exclude, str) else exclude)]
    aliases = {"salicylic": "salicylic acid", "salicylic_acid": "salicylic acid"}
    names = [aliases.get(name, name) for name in names if name]
    for name in names:
        benchmark_hash(name)
    return names
