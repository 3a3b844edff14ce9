"""One molecule (System) and many (Block), in NumPy, validated; to and from ase.Atoms.

A source yields Blocks; a System is one conformation, a view of one row of a Block where it comes from a store.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from forcewell.charge_spin import charge_and_spin
from forcewell.errors import InputError
from forcewell.fields import ATOM_FIELDS, FIELDS, MOLECULE_FIELDS, REQUIRED

if TYPE_CHECKING:
    import ase

# Two atoms closer than this are on top of each other: the shortest bond of chemistry, H-H, is 0.74 Å.
OVERLAP = 0.25  # Å
ALL_PAIRS = 1000  # atoms of a periodic conformation up to which all pairs are tried; above, a cell list is faster
ATOMS_AT_ONCE = 20_000  # whose pair distances are computed together: 240 kB of single-precision coordinates stay in the cache


@dataclass(slots=True)
class Block:
    """F conformations stored flat: the atoms of all of them one after another (N in total).

    counts: (F,) atoms of each. arrays: by name from ``fields.FIELDS``; ``numbers`` (N,) and ``positions`` (N, 3) are
    required, atom fields have leading dimension N and molecule fields F; an absent one is unknown throughout.
    molecule: (F,) str, an identifier shared by the conformations of one molecule (splits go by it).
    smiles: (F,) str, "" where not known. source, level: where the data are from and their level of theory.
    properties: other labels by name, (F,) float64 in the unit that the source's card names.
    engine: what computed the labels, with version and settings, as one line of JSON; "" where not known.

    >>> water = Block.shared([8, 1, 1], [[[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]]], level="demo")
    >>> len(water), water.counts.tolist(), water.arrays["numbers"].tolist()
    (1, [3], [8, 1, 1])
    """

    counts: np.ndarray
    arrays: dict[str, np.ndarray]
    source: str = ""
    level: str = ""
    molecule: np.ndarray | None = None
    smiles: np.ndarray | None = None
    properties: dict[str, np.ndarray] = field(default_factory=dict)
    engine: str = ""

    def __post_init__(self) -> None:
        self.counts = np.asarray(self.counts, dtype=np.int64)
        frames, atoms = len(self.counts), int(self.counts.sum())
        for name in REQUIRED:
            if name not in self.arrays:
                raise InputError(f"{self.source or 'block'}: the field {name!r} is missing")
        for name, value in list(self.arrays.items()):
            if name not in FIELDS:
                raise InputError(f"{self.source or 'block'}: unknown field {name!r} (known: {', '.join(FIELDS)})")
            declared = FIELDS[name]
            shape = (atoms if declared.scope == "atom" else frames, *declared.shape)
            array = np.asarray(value)
            if array.shape != shape:
                raise InputError(f"{self.source or 'block'}: {name} has shape {array.shape}, expected {shape}")
            if array.dtype.kind in "iu" and array.size and np.dtype(declared.stored).kind in "iu":
                limits = np.iinfo(declared.stored)
                if array.min() < limits.min or array.max() > limits.max:  # 300 would wrap around to 44, ruthenium
                    raise InputError(f"{self.source or 'block'}: {name} holds {array.min()} to {array.max()}, beyond what is possible")
            self.arrays[name] = array.astype(declared.stored, copy=False)
        for name in ("molecule", "smiles"):
            column = getattr(self, name)
            if column is None:
                column = np.full(frames, "", dtype=object)
            setattr(self, name, np.asarray(column, dtype=object))

    @classmethod
    def shared(cls, numbers: Any, positions: Any, **rest: Any) -> Block:
        """Frames of one molecule: numbers (A,), positions (F, A, 3); forces and formal_charges as (F, A, ...).

        Other keywords are molecule fields (F, ...), ``properties`` or the attributes of Block.
        """
        numbers, positions = np.asarray(numbers), np.asarray(positions)
        frames, atoms = positions.shape[:2]
        arrays = {"numbers": np.tile(numbers, frames), "positions": positions.reshape(-1, 3)}
        for name in [key for key in rest if key in FIELDS]:
            value = np.asarray(rest.pop(name))
            arrays[name] = value.reshape(-1, *value.shape[2:]) if FIELDS[name].scope == "atom" else value
        return cls(counts=np.full(frames, atoms), arrays=arrays, **rest)

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def offsets(self) -> np.ndarray:
        """(F + 1,) position of each conformation's first atom."""
        return np.concatenate([[0], np.cumsum(self.counts)])

    def take(self, indices: Any) -> Block:
        """The conformations at ``indices`` (integers or a boolean mask), copied."""
        indices = np.asarray(indices)
        rows = np.flatnonzero(indices) if indices.dtype == bool else indices.astype(np.int64)
        offsets, counts = self.offsets, self.counts[rows]
        first = np.repeat(offsets[rows] - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
        atoms = first + np.arange(int(counts.sum()))
        arrays = {name: value[atoms if name in ATOM_FIELDS else rows] for name, value in self.arrays.items()}
        properties = {name: value[rows] for name, value in self.properties.items()}
        assert self.molecule is not None and self.smiles is not None
        return Block(counts, arrays, self.source, self.level, self.molecule[rows], self.smiles[rows], properties, self.engine)

    def system(self, index: int) -> System:
        """One conformation."""
        offsets = self.offsets
        atoms = slice(offsets[index], offsets[index + 1])
        arrays = {name: value[atoms if name in ATOM_FIELDS else index] for name, value in self.arrays.items()}
        properties = {name: float(value[index]) for name, value in self.properties.items()}
        assert self.molecule is not None and self.smiles is not None
        return System(arrays, self.source, self.level, str(self.molecule[index]), str(self.smiles[index]), properties, self.engine)

    def validate(self, first: int = 0) -> None:
        """Raises InputError, naming the conformation, for NaN positions, unknown elements, overlapping atoms or bad cells.

        first: number of the block's first conformation in what the user knows, a file say.
        """
        numbers, positions = self.arrays["numbers"], self.arrays["positions"]
        owner = np.repeat(np.arange(first, first + len(self)), self.counts)
        where = self.source or "structure"
        if (self.counts == 0).any():
            raise InputError(f"{where}: conformation {first + int(np.argmin(self.counts))} has no atoms")
        bad = (numbers < 1) | (numbers > 118)
        if bad.any():
            atom = int(np.argmax(bad))
            raise InputError(f"{where}: conformation {owner[atom]} has the unknown atomic number {numbers[atom]}; expected 1 to 118")
        bad = ~np.isfinite(positions).all(axis=1)
        if bad.any():
            raise InputError(f"{where}: conformation {owner[np.argmax(bad)]} has coordinates that are NaN or infinite")
        self._validate_cells(where, first)
        for rows, points in self.by_size():
            nearest = np.full(len(rows), np.inf, dtype=np.float32)
            for _, squared in squared_distances(points):
                np.minimum(nearest, squared.min(axis=0), out=nearest)
            suspect = np.flatnonzero(nearest < (1.01 * OVERLAP) ** 2)  # single precision is off by 1e-5 of a distance
            if len(suspect):
                exact = points[suspect].astype(np.float64)
                distances = np.linalg.norm(exact[:, :, None] - exact[:, None], axis=-1)
                distances[:, np.arange(points.shape[1]), np.arange(points.shape[1])] = np.inf
                closest = distances.reshape(len(suspect), -1).min(axis=1)
                if (closest < OVERLAP).any():
                    worst = int(np.argmin(closest))
                    raise InputError(
                        f"{where}: conformation {first + rows[suspect[worst]]} has two atoms on top of each other "
                        f"({closest[worst]:.3f} Å apart); is the length unit right?"
                    )

    def by_size(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(rows, positions (F, A, 3)) of conformations with the same number A > 1 of atoms, few enough for a processor's cache."""
        offsets, positions = self.offsets, self.arrays["positions"]
        for count in np.unique(self.counts[self.counts > 1]):
            rows = np.flatnonzero(self.counts == count)
            for chunk in np.array_split(rows, -(-len(rows) * int(count) // ATOMS_AT_ONCE)):
                if chunk[-1] - chunk[0] + 1 == len(chunk):  # neighbours, as in a trajectory: a view
                    flat = positions[offsets[chunk[0]] : offsets[chunk[-1] + 1]]
                else:
                    flat = positions[offsets[chunk][:, None] + np.arange(count)]
                yield chunk, flat.reshape(len(chunk), count, 3)

    def _validate_cells(self, where: str, first: int) -> None:
        """Raises InputError where a periodic conformation has no usable cell, or an atom on top of an image of one."""
        if "pbc" not in self.arrays or not self.arrays["pbc"].any():
            return
        rows = np.flatnonzero(self.arrays["pbc"].any(axis=1))
        periodic, cells = self.arrays["pbc"][rows], self.arrays["cell"][rows] if "cell" in self.arrays else np.zeros((len(rows), 3, 3))
        finite = np.asarray(np.isfinite(cells).all(axis=(1, 2)))
        known = np.where(periodic[:, :, None] & finite[:, None, None], cells, 0.0)
        bad = ~finite | (np.linalg.matrix_rank(known, tol=1e-3) < periodic.sum(axis=1))
        if bad.any():
            m = rows[np.argmax(bad)]
            raise InputError(f"{where}: conformation {first + m} is periodic, so its cell needs finite, independent lattice vectors")
        bad = self.take(rows)._meets_images(known)
        if bad.any():
            raise InputError(
                f"{where}: conformation {first + rows[np.argmax(bad)]} has an atom on top of another or of its periodic image; "
                "are the cell and the unit right?"
            )

    def _meets_images(self, cells: np.ndarray) -> np.ndarray:
        """(F,) True where an atom of a periodic conformation is within ``OVERLAP`` of another or of an image.

        cells: (F, 3, 3) Å, with zeros for the directions that are not periodic.
        """
        periodic, cells = self.arrays["pbc"], cells.copy()
        for m in np.flatnonzero(~periodic.all(axis=1)):  # perpendicular to those that are, so that distances along these stay
            cells[m, ~periodic[m]] = np.linalg.svd(cells[m, periodic[m]])[2][periodic[m].sum() :]
        inverse = np.linalg.inv(cells)
        # Two points within OVERLAP differ by at most this in a fractional coordinate. Where it is less than 1/2, nothing but the
        # nearest integer can be the shift between them, and an atom is far from its own images.
        reach = OVERLAP * np.linalg.norm(inverse, axis=1)
        thin = ((reach >= 0.5) & periodic).any(axis=1)
        found = np.zeros(len(self), dtype=bool)
        for rows, points in self.by_size():
            if points.shape[1] > ALL_PAIRS:
                continue
            fractions = np.ascontiguousarray((points @ inverse[rows]).transpose(2, 1, 0))
            wrapped, limit = periodic[rows].T[:, None], 1.001 * reach[rows].T[:, None]
            for i in range(1, points.shape[1]):
                step = fractions[:, i:] - fractions[:, :-i]
                step -= np.rint(step) * wrapped
                atom, near = np.nonzero((np.abs(step) < limit).all(axis=0))
                vectors = np.einsum("kn,nkx->nx", step[:, atom, near], cells[rows[near]])
                found[rows[near[np.linalg.norm(vectors, axis=1) < OVERLAP]]] = True
        for m in np.flatnonzero(thin | (self.counts > ALL_PAIRS)):
            from vesin import NeighborList  # loads PyTorch, which takes seconds

            points = self.arrays["positions"][self.offsets[m] : self.offsets[m + 1]]
            # Its time goes with the number of cells as large as the cutoff; in a thin cell with that of the images.
            pairs = NeighborList(cutoff=OVERLAP if thin[m] else 8 * OVERLAP, full_list=False)
            (distances,) = pairs.compute(points=points, box=cells[m], periodic=periodic[m].tolist(), quantities="d")
            found[m] = (distances < OVERLAP).any()
        return found


def squared_distances(points: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(i, (A - i, F) float32 Å²) for i = 1 ... A - 1: between atoms a and a + i of each of F conformations (F, A, 3).

    Five times faster than all A² differences at once in double precision; the relative error is about 1e-5.
    """
    flat = np.ascontiguousarray((points - points[:, :1]).transpose(2, 1, 0), dtype=np.float32)
    for i in range(1, flat.shape[1]):
        step = flat[:, i:] - flat[:, :-i]
        np.multiply(step, step, out=step)
        step[0] += step[1]
        step[0] += step[2]
        yield i, step[0]


@dataclass(slots=True)
class System:
    """One conformation: ``arrays`` by name (atom fields (n, ...), molecule fields (...)), and where it is from."""

    arrays: dict[str, np.ndarray]
    source: str = ""
    level: str = ""
    molecule: str = ""
    smiles: str = ""
    properties: dict[str, float] = field(default_factory=dict)
    engine: str = ""

    def __len__(self) -> int:
        return len(self.arrays["numbers"])

    @property
    def numbers(self) -> np.ndarray:
        """(n,) atomic numbers."""
        return self.arrays["numbers"]

    @property
    def positions(self) -> np.ndarray:
        """(n, 3) Å."""
        return self.arrays["positions"]

    def get(self, name: str) -> np.ndarray:
        """A field's value, or its declared "not known" value where the conformation does not carry it."""
        if name in self.arrays:
            return self.arrays[name]
        declared = FIELDS[name]
        lead = (len(self),) if declared.scope == "atom" else ()
        return np.full((*lead, *declared.shape), declared.missing, dtype=declared.stored)

    @classmethod
    def from_atoms(cls, atoms: ase.Atoms, level: str = "") -> System:
        """From ase.Atoms: positions, cell, pbc; energy, forces and stress where a calculator holds results.

        Charge and spin multiplicity as ``charge_spin`` finds them: by ``atoms.info``, e.g. "charge" and "spin", and by initial
        charges and, of a molecule, magnetic moments. Raises InputError for impossible values and statements that differ.
        """
        arrays: dict[str, Any] = {"numbers": atoms.numbers, "positions": atoms.positions}
        if atoms.pbc.any():
            arrays |= {"cell": np.asarray(atoms.cell), "pbc": atoms.pbc}
        arrays |= charge_and_spin(atoms.info, *initial_of(atoms), "ase.Atoms")
        results = atoms.calc.results if atoms.calc is not None else {}
        for name in ("energy", "forces"):
            if name in results:
                arrays[name] = results[name]
        if "stress" in results:
            from ase.stress import voigt_6_to_full_3x3_stress

            stress = np.asarray(results["stress"])  # ASE allows both forms
            arrays["stress"] = stress if stress.shape == (3, 3) else voigt_6_to_full_3x3_stress(stress)
        # A Block checks shapes and ranges: a charge of 200 would wrap around to -56. Copies, since Atoms are moved in place.
        arrays = {name: np.array(value) if name in ATOM_FIELDS else np.array(value)[None] for name, value in arrays.items()}
        return Block(np.array([len(atoms)]), arrays, level=level).system(0)

    def to_atoms(self) -> ase.Atoms:
        """As ase.Atoms, with the labels it carries in a SinglePointCalculator."""
        import ase
        from ase.calculators.singlepoint import SinglePointCalculator

        info = {name: int(self.arrays[name]) for name in ("charge", "spin") if name in self.arrays}
        atoms = ase.Atoms(self.numbers, self.positions, cell=self.get("cell"), pbc=self.get("pbc"), info=info)
        known = {name: self.arrays[name] for name in ("energy", "forces", "stress") if name in self.arrays}
        labels = {
            name: (float(value) if name == "energy" else np.asarray(value, dtype=np.float64))
            for name, value in known.items()
            if np.isfinite(value).all()
        }
        if labels:
            atoms.calc = SinglePointCalculator(atoms, **labels)
        return atoms


def initial_of(atoms: ase.Atoms) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Initial charges and magnetic moments, for ``charge_and_spin``; moments of molecules only: those of a crystal are a guess."""
    return atoms.arrays.get("initial_charges"), None if atoms.pbc.any() else atoms.arrays.get("initial_magmoms")


def block_of(systems: Sequence[System] | Iterable[System]) -> Block:
    """One Block of several Systems; a field that any of them carries is filled with "not known" in the others."""
    systems = list(systems)
    carried = [name for name in FIELDS if any(name in system.arrays for system in systems)]
    counts = np.array([len(system) for system in systems])
    arrays = {}
    for name in carried:
        values = [system.get(name) for system in systems]
        arrays[name] = np.stack(values) if name in MOLECULE_FIELDS else np.concatenate(values)
    names = sorted({key for system in systems for key in system.properties})
    properties = {key: np.array([system.properties.get(key, np.nan) for system in systems]) for key in names}
    sources, levels, engines = ({getattr(system, name) for system in systems} for name in ("source", "level", "engine"))
    return Block(
        counts,
        arrays,
        source=sources.pop() if len(sources) == 1 else "",
        level=levels.pop() if len(levels) == 1 else "",
        molecule=np.array([system.molecule for system in systems], dtype=object),
        smiles=np.array([system.smiles for system in systems], dtype=object),
        properties=properties,
        engine=engines.pop() if len(engines) == 1 else "",
    )


def consecutive(counts: Sequence[int] | np.ndarray, atoms: int) -> list[slice]:
    """Groups of conformations that follow each other, with at most ``atoms`` of their numbers of atoms together, or one that has more."""
    parts, start, total = [], 0, 0
    for k, count in enumerate(np.asarray(counts).tolist()):
        if k > start and total + count > atoms:
            parts.append(slice(start, k))
            start, total = k, 0
        total += count
    return [*parts, slice(start, len(counts))] if len(counts) else []
