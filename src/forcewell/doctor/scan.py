"""One pass over the conformations that gathers, for each, the few numbers that all checks judge by.

Everything is vectorised over conformations with the same number of atoms; memory is about 170 bytes per conformation
examined (700 while all parts are joined and judged), beside one block at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from forcewell.bonds import covalent_radii
from forcewell.store import Dataset
from forcewell.system import Block

ROWS = 8192  # conformations read at a time
STRETCH = 512  # neighbouring conformations examined together where not all are
PAIRS_AT_ONCE = 1_000_000  # entries of distance matrices held at a time, 8 MB each
BONDED = 1.6  # distance in units of the covalent radii' sum up to which atoms belong to one fragment: C-H 1.7 Å, C-C 2.4 Å
HYDROGENS = 60_000  # X-H bonds whose forces are looked at
HARMONIC = 0.12  # Å: about three standard deviations at 500 K


@dataclass(slots=True)
class Facts:
    """What is known about each of n examined conformations; ``row`` is its index in the data.

    asked: how many were to be examined; those without atoms are left out.

    composition: index into ``compositions`` (U, 119). electrons: of the atoms and charge. closest, loosest: smallest and
    largest distance of an atom to its nearest neighbour, in units of the sum of covalent radii. typical: the median of these.
    overlap: smallest distance [Å]. fragments: bonded pieces. invariants (n, 3), sensitivity (n, 3): see ``_invariants``.
    largest, squared: largest force [eV/Å] and sum of squared components. net, twist: size of the forces' sum, and of their
    torque about the centre per root of the summed squared distances to it [eV/Å]. bonds: X-H bonds, see ``_hydrogens``.
    """

    asked: int
    row: np.ndarray
    count: np.ndarray
    level: np.ndarray
    source: np.ndarray
    molecule: np.ndarray
    composition: np.ndarray
    compositions: np.ndarray
    values: dict[str, np.ndarray]
    invariants: np.ndarray
    sensitivity: np.ndarray
    bonds: np.ndarray

    def __getattr__(self, name: str) -> np.ndarray:
        try:
            return self.values[name]
        except KeyError:
            raise AttributeError(name) from None

    def __len__(self) -> int:
        return len(self.row)

    def kinds(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """(level, source, positions (k,) in these arrays) of every pair of level and source that occurs."""
        for level, source in np.unique(np.stack([self.level, self.source], axis=1), axis=0):
            yield int(level), int(source), np.flatnonzero((self.level == level) & (self.source == source))


def joined(several: Sequence[Facts]) -> Facts:
    """One after another, with compositions numbered anew; molecules, levels and sources keep their own numbers."""
    compositions, inverse = np.unique(np.concatenate([facts.compositions for facts in several]), axis=0, return_inverse=True)
    starts = np.cumsum([0, *(len(facts.compositions) for facts in several)])
    codes = [inverse.reshape(-1)[start + facts.composition] for start, facts in zip(starts, several, strict=False)]

    def column(name: str) -> np.ndarray:
        return np.concatenate([getattr(facts, name) for facts in several])

    return Facts(
        sum(facts.asked for facts in several), column("row"), column("count"), column("level"), column("source"), column("molecule"),
        np.concatenate(codes), compositions, {name: column(name) for name in several[0].values},
        column("invariants"), column("sensitivity"), column("bonds"),
    )  # fmt: skip


def rows_to_examine(number: int, limit: int) -> np.ndarray:
    """All indices up to ``limit``; beyond, evenly spread stretches of ``STRETCH`` neighbours, ``limit`` in all."""
    if number <= limit:
        return np.arange(number)
    stretches = max(1, limit // STRETCH)
    starts = np.linspace(0, number - STRETCH, stretches).astype(np.int64)
    return np.unique((starts[:, None] + np.arange(STRETCH)).reshape(-1))


def scan(dataset: Dataset, rows: np.ndarray) -> Facts:
    """The facts about ``rows``; those without atoms are left out, NaN coordinates or unknown elements give NaN geometry."""
    import pyarrow as pa

    radii, step = covalent_radii(), max(1, len(rows) * 8 // HYDROGENS)
    parts, names, bonds, met = [], [], [np.zeros((0, 4))], 0
    for start in range(0, len(rows), ROWS):
        block = dataset.block(rows[start : start + ROWS])
        filled = np.flatnonzero(block.counts)  # the others have no atom
        if len(filled) < len(block):
            block = block.take(filled)
        parts.append({"row": rows[start + filled], **_of_block(block, radii)})
        names.append(pa.array(block.molecule, pa.large_string()))
        few = np.arange(0, len(block), step)
        bonds.append(_hydrogens(block.take(few), met + few, radii))
        met += len(block)
    values = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    asked, rows = len(rows), values.pop("row")
    level, source = dataset.column("level")[rows], dataset.column("source")[rows]
    keys, first, composition = np.unique(values.pop("key"), return_index=True, return_inverse=True)
    compositions = np.zeros((len(keys), 119), dtype=np.int64)
    for chunk in np.array_split(np.arange(len(keys)), len(keys) // ROWS + 1):
        block = dataset.block(rows[first[chunk]])
        np.add.at(compositions, (np.repeat(chunk, block.counts), np.minimum(block.arrays["numbers"], 118)), 1)
    molecule = pa.chunked_array(names).combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return Facts(
        asked, rows, values.pop("count"), level, source, molecule, composition.reshape(-1), compositions, values,
        values.pop("invariants"), values.pop("sensitivity"), np.concatenate(bonds),
    )  # fmt: skip


def _of_block(block: Block, radii: np.ndarray) -> dict[str, np.ndarray]:
    """The facts of a block's F conformations by name, each (F, ...)."""
    frames, offsets = len(block), block.offsets
    numbers, positions = block.arrays["numbers"].astype(np.int64), block.arrays["positions"]
    known = np.isfinite(positions).all(axis=1) & (numbers > 0) & (numbers < 119)
    sound = np.minimum.reduceat(known, offsets[:-1])
    charge = block.arrays["charge"].astype(np.int64) if "charge" in block.arrays else np.zeros(frames, dtype=np.int64)
    weights = np.random.default_rng(0).integers(1, 2**63, size=256, dtype=np.uint64) | np.uint64(1)
    found = {
        "count": block.counts,
        "key": np.add.reduceat(weights[numbers], offsets[:-1]),  # compositions share a sum by chance once in 2^64
        "sound": sound,
        "unknown_element": ~np.minimum.reduceat((numbers > 0) & (numbers < 119), offsets[:-1]),
        "electrons": np.add.reduceat(numbers, offsets[:-1]) - charge,
        "spin": block.arrays["spin"].astype(np.int64) if "spin" in block.arrays else np.ones(frames, dtype=np.int64),
        "periodic": block.arrays["pbc"].any(axis=1) if "pbc" in block.arrays else np.zeros(frames, dtype=bool),
        "energy": block.arrays["energy"] if "energy" in block.arrays else np.full(frames, np.nan),
        "minimum": block.arrays["equilibrium"] == 1 if "equilibrium" in block.arrays else np.zeros(frames, dtype=bool),
        **_forces(block),
    }
    geometry = {name: np.full(frames, np.nan) for name in ("overlap", "closest", "loosest", "typical", "fragments")}
    invariants, sensitivity = np.full((frames, 3), np.nan), np.full((frames, 3), np.nan)
    for count in np.unique(block.counts[sound]):
        group = np.flatnonzero(sound & (block.counts == count))
        for rows in np.array_split(group, max(1, len(group) * int(count) ** 2 // PAIRS_AT_ONCE)):
            atoms = offsets[rows][:, None] + np.arange(count)
            z = numbers[atoms]
            distances = _distances(positions[atoms])
            _shape(distances, z, radii, rows, geometry)
            invariants[rows], sensitivity[rows] = _invariants(distances, z)
    return {**found, **geometry, "invariants": invariants, "sensitivity": sensitivity}


def _distances(positions: np.ndarray) -> np.ndarray:
    """(F, A, A) Å, infinite on the diagonal, by Gram matrices: a fifth of the time of taking differences."""
    centred = positions - positions.mean(axis=1, keepdims=True)
    square = (centred**2).sum(axis=2)
    squared = square[:, :, None] + square[:, None] - 2 * centred @ centred.transpose(0, 2, 1)
    atoms = np.arange(positions.shape[1])
    squared[:, atoms, atoms] = np.inf
    return np.sqrt(np.maximum(squared, 0.0))


def _shape(distances: np.ndarray, numbers: np.ndarray, radii: np.ndarray, rows: np.ndarray, found: dict[str, np.ndarray]) -> None:
    """Closest, loosest and typical neighbours and the number of fragments, written into ``found`` at ``rows``."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    frames, count = numbers.shape
    if count == 1:
        found["fragments"][rows] = 1
        return
    ratio = distances / (radii[numbers][:, :, None] + radii[numbers][:, None])
    nearest = ratio.min(axis=2)
    found["overlap"][rows] = distances.min(axis=(1, 2))
    found["closest"][rows], found["loosest"][rows] = nearest.min(axis=1), nearest.max(axis=1)
    found["typical"][rows] = np.median(nearest, axis=1)
    frame, left, right = np.nonzero(ratio < BONDED)
    ends = (frame * count + left, frame * count + right)
    graph = coo_array((np.ones(len(frame), dtype=np.int8), ends), shape=(frames * count, frames * count))
    owner = connected_components(graph, directed=False)[1].reshape(frames, count)
    ordered = np.sort(owner, axis=1)
    found["fragments"][rows] = 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(axis=1)


def _invariants(distances: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(F, 3) sums over pairs of z z / d, z z / d² and z z d, and by how much each changes when atoms move at random by 1 Å (per Å).

    Equal for turned, shifted, mirrored and reordered copies; a copy that was rounded differs by its rounding times the second.
    """
    product = (numbers[:, :, None] * numbers[:, None]).astype(np.float64)
    with np.errstate(divide="ignore"):
        inverse = np.where(distances > 1e-3, 1 / distances, 1e3)
    infinite = np.isinf(distances)
    first, second = product * inverse, product * inverse**2
    third = np.where(infinite, 0.0, product * np.where(infinite, 0.0, distances))
    product[infinite] = 0.0
    slopes = (second, 2 * second * inverse, product)
    values = np.stack([0.5 * term.sum(axis=(1, 2)) for term in (first, second, third)], axis=1)
    return values, np.stack([np.sqrt((slope**2).sum(axis=(1, 2))) for slope in slopes], axis=1)


def _forces(block: Block) -> dict[str, np.ndarray]:
    frames, first = len(block), block.offsets[:-1]
    if "forces" not in block.arrays:
        nothing = dict.fromkeys(("largest", "squared", "net", "twist"))
        return {**{name: np.full(frames, np.nan) for name in nothing}, "labelled": np.zeros(frames, dtype=bool)}
    forces = block.arrays["forces"]
    labelled = np.minimum.reduceat(np.isfinite(forces).all(axis=1), first)
    exact = np.where(np.isfinite(forces), forces, 0.0).astype(np.float64)
    positions = np.where(np.isfinite(block.arrays["positions"]), block.arrays["positions"], 0.0)
    centre = np.add.reduceat(positions, first) / block.counts[:, None]
    arm = positions - np.repeat(centre, block.counts, axis=0)
    torque = np.linalg.norm(np.add.reduceat(np.cross(arm, exact), first), axis=1)
    lever = np.sqrt(np.add.reduceat((arm**2).sum(axis=1), first))
    squared = (exact**2).sum(axis=1)
    found = {
        "largest": np.sqrt(np.maximum.reduceat(squared, first)),
        "squared": np.add.reduceat(squared, first),
        "net": np.linalg.norm(np.add.reduceat(exact, first), axis=1),
        "twist": torque / np.maximum(lever, 1e-3),
    }
    return {**{name: np.where(labelled, values, np.nan) for name, values in found.items()}, "labelled": labelled}


def _hydrogens(block: Block, where: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """(B, 4) of each hydrogen: position in the facts, its neighbour's element, their distance [Å], force along the bond [eV/Å].

    The force is the hydrogen's own, positive where it points away from the neighbour.
    """
    found = [np.zeros((0, 4))]
    forces, offsets = block.arrays.get("forces"), block.offsets
    if forces is None:
        return found[0]
    for count in np.unique(block.counts[block.counts > 1]):
        rows = np.flatnonzero(block.counts == count)
        for part in np.array_split(rows, max(1, len(rows) * int(count) ** 2 // PAIRS_AT_ONCE)):
            atoms = offsets[part][:, None] + np.arange(count)
            numbers, positions = np.minimum(block.arrays["numbers"][atoms], 118), block.arrays["positions"][atoms]
            positions = np.where(np.isfinite(positions), positions, 0.0)
            ratio = _distances(positions) / (radii[numbers][:, :, None] + radii[numbers][:, None])
            frame, hydrogen = np.nonzero(numbers == 1)
            neighbour = ratio.argmin(axis=2)[frame, hydrogen]
            bond = positions[frame, hydrogen] - positions[frame, neighbour]
            length = np.linalg.norm(bond, axis=1)
            along = (forces[atoms][frame, hydrogen] * bond).sum(axis=1) / np.maximum(length, 1e-6)
            found.append(np.stack([where[part][frame], numbers[frame, neighbour], length, along], axis=1))
    bonds = np.concatenate(found)
    return bonds[np.isfinite(bonds).all(axis=1)]
