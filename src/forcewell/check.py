"""Is this data what it says? Signs and units of forces and energies, minima, net forces, overlaps, duplicates.

The central verdict needs no model: for two conformations of one molecule that are close, the difference of the energies
is minus the forces along the displacement. The slope of one against the other is 1 where sign and units agree, -1 where
gradients were stored as forces, 23.06 where energies in kcal/mol pass for eV, and so on.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from forcewell.errors import InputError
from forcewell.overlap import geometry_hashes
from forcewell.store import Dataset, open_data
from forcewell.system import Block
from forcewell.units import BOHR, HARTREE, KCAL_PER_MOL, KJ_PER_MOL

CLOSEST_PAIRS, FEWEST_PAIRS = 15, 8  # pairs that decide; on the ten molecules of rMD17, 40 are already too far apart
CORRELATION = 0.98  # below it, pairs are too far apart (or labels too noisy) to say anything
CANDIDATES = 2000  # pairs per molecule that are aligned
FRAMES_OF_A_MOLECULE, FRAMES_IN_ALL = 2000, 20_000
SAME_SLOPE = 0.15  # relative; slopes of correct data are within 0.05, and no two units differ by less than 1.8
ROWS = 8192  # conformations read at a time
SLOPES = {
    1 / KCAL_PER_MOL: "energies are in kcal/mol where the forces are in eV/Å",
    KCAL_PER_MOL: "forces are in kcal/mol/Å where the energies are in eV",
    1 / KJ_PER_MOL: "energies are in kJ/mol where the forces are in eV/Å",
    KJ_PER_MOL: "forces are in kJ/mol/Å where the energies are in eV",
    HARTREE: "forces are in Hartree/Å where the energies are in eV",
    1 / HARTREE: "energies are in Hartree where the forces are in eV/Å",
    HARTREE / BOHR: "forces are in Hartree/bohr where the energies are in eV",
    1 / BOHR: "forces are per bohr where the coordinates are in Å",
    BOHR: "forces are per Å where the coordinates are in bohr",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """severity: "error" (do not train on this), "warning" or "note". what, where and evidence are sentences."""

    severity: str
    what: str
    where: str
    evidence: Mapping[str, float | int | str] = field(default_factory=dict)

    def __str__(self) -> str:
        numbers = ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in self.evidence.items())
        return f"{self.severity}: {self.where}: {self.what}" + (f" ({numbers})" if numbers else "")


@dataclass(frozen=True, slots=True)
class Report:
    """All findings about ``conformations`` conformations."""

    conformations: int
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """True where nothing is an error."""
        return not any(finding.severity == "error" for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return {"ok": self.ok, "conformations": self.conformations, "findings": [dataclasses.asdict(item) for item in self.findings]}


def check_path(path: str | os.PathLike[str], **options: Any) -> Report:
    """``check`` of a store or file; damage that keeps it from being opened is a finding, too.

    Raises InputError where there is nothing at ``path``.
    """
    if not Path(path).exists():
        raise InputError(f"{path} does not exist; give a store, an extended XYZ file or an .npz file")
    try:
        return check(open_data(path, **options), where=str(path))
    except InputError as error:
        return Report(0, (Finding("error", str(error), str(path)),))


def check(dataset: Dataset, where: str = "data") -> Report:
    """Every check on every conformation; the slope of energies against forces on the closest pairs of each source."""
    findings = list(_cheap(dataset, where))
    if not any(finding.severity == "error" for finding in findings):
        findings += _consistency(dataset, where)
        findings += _total_energies(dataset, where)
    order = {"error": 0, "warning": 1, "note": 2}
    return Report(len(dataset), tuple(sorted(findings, key=lambda finding: order[finding.severity])))


@dataclass(slots=True)
class _Sums:
    """What one pass over the data collects."""

    squared: float = 0.0
    components: int = 0
    largest: float = 0.0
    net: float = 0.0
    net_row: int = -1
    minima: int = 0
    moving: int = 0
    moving_force: float = 0.0
    unlabelled: int = 0
    hydrogen: list[np.ndarray] = field(default_factory=list)
    hashes: list[np.ndarray] = field(default_factory=list)


def _cheap(dataset: Dataset, where: str) -> Iterator[Finding]:
    sums, loose = _Sums(), 0
    for start in range(0, len(dataset), ROWS):
        block = dataset.block(np.arange(start, min(start + ROWS, len(dataset))))
        try:
            block.validate(start)
        except InputError as error:
            yield Finding("error", str(error), where)
            return
        _collect_forces(block, start, sums)
        sums.hashes.append(geometry_hashes(block))
        if loose < 2000:  # conformations whose X-H distances are looked at
            sums.hydrogen.append(_hydrogen_distances(block.take(np.arange(min(len(block), 500)))))
            loose += 500
    yield from _judge_forces(sums, where)
    duplicates = len(dataset) - len(np.unique(np.concatenate(sums.hashes)))
    if duplicates:
        yield Finding("warning", "conformations that are there more than once", where, {"duplicates": duplicates})
    bonded = np.concatenate(sums.hydrogen) if sums.hydrogen else np.zeros(0)
    # X-H bonds are 0.92 to 1.35 Å long; in bohr the same molecules give 1.74 to 2.55.
    if len(bonded) >= 10 and 1.6 < (middle := float(np.median(bonded))) < 2.6:
        yield Finding(
            "error", "hydrogens are as far from their neighbours as if coordinates were in bohr", where, {"median_distance": middle}
        )


def _collect_forces(block: Block, start: int, sums: _Sums) -> None:
    forces = block.arrays.get("forces")
    if forces is None:
        sums.unlabelled += len(block)
        return
    first = block.offsets[:-1]
    known = np.minimum.reduceat(np.isfinite(forces).all(axis=1), first)
    sums.unlabelled += int((~known).sum())
    exact = np.where(np.isfinite(forces), forces, 0.0).astype(np.float64)
    sums.squared += float((exact**2).sum())
    sums.components += 3 * int(block.counts[known].sum())
    largest = np.maximum.reduceat(np.linalg.norm(exact, axis=1), first)
    sums.largest = max(sums.largest, float(largest.max()))
    net = np.linalg.norm(np.add.reduceat(exact, first), axis=1)
    if net.max() > sums.net:
        sums.net, sums.net_row = float(net.max()), start + int(net.argmax())
    minima = known & (block.arrays["equilibrium"] == 1) if "equilibrium" in block.arrays else np.zeros(len(block), dtype=bool)
    sums.minima += int(minima.sum())
    # Optimisers stop at about 0.02 eV/Å (4e-4 Hartree/bohr); five times that is no minimum.
    moving = minima & (largest > 0.1)
    sums.moving += int(moving.sum())
    sums.moving_force = max(sums.moving_force, float(largest[moving].max(initial=0.0)))


def _judge_forces(sums: _Sums, where: str) -> Iterator[Finding]:
    if sums.moving:
        evidence = {"conformations": sums.moving, "of_minima": sums.minima, "largest_force_eV_per_A": sums.moving_force}
        yield Finding("error", "declared minima whose forces are not zero", where, evidence)
    if not sums.components:
        return
    rms = float(np.sqrt(sums.squared / sums.components))
    scale = {"rms_component_eV_per_A": rms, "largest_eV_per_A": sums.largest}
    if rms == 0.0 and not sums.minima:
        yield Finding("error", "all forces are exactly zero", where)
    elif rms > 5.0:  # at 500 K the components' root mean square is 1.0 to 1.3 eV/Å
        yield Finding("warning", "forces are very large; is their unit right?", where, scale)
    else:
        yield Finding("note", "force scale", where, scale)
    if sums.unlabelled:
        yield Finding("note", "conformations without forces", where, {"conformations": sums.unlabelled})
    if sums.net > 1e-3:
        # Integration grids leave up to 0.03 eV/Å; more means that some atoms' forces are missing or mixed up.
        severity = "warning" if sums.net > 0.3 else "note"
        yield Finding(
            severity, "forces do not add up to zero", where, {"largest_net_force_eV_per_A": sums.net, "conformation": sums.net_row}
        )


def _hydrogen_distances(block: Block) -> np.ndarray:
    """Å from each hydrogen to its nearest neighbour."""
    found = [np.zeros(0)]
    for k in range(len(block)):
        system = block.system(k)
        hydrogens = np.flatnonzero(system.numbers == 1)
        if len(system) > 1 and len(hydrogens):
            distances = np.linalg.norm(system.positions[hydrogens[:8], None] - system.positions, axis=-1)
            found.append(np.where(distances > 0, distances, np.inf).min(axis=1))
    return np.concatenate(found)


def _consistency(dataset: Dataset, where: str) -> Iterator[Finding]:
    """The verdict on energies against forces, for every source and level of theory by itself."""
    if not {"energy", "forces"} <= set(dataset.fields):
        return
    level, source, molecule = dataset.column("level"), dataset.column("source"), dataset.molecule_codes()
    labelled = np.isfinite(dataset.column("energy"))
    for kind in np.unique(np.stack([level, source], axis=1), axis=0):
        rows = np.flatnonzero((level == kind[0]) & (source == kind[1]) & labelled)
        label = " ".join(part for part in (where, dataset.sources[kind[1]], dataset.levels[kind[0]]) if part)
        yield _verdict(*_closest_pairs(dataset, rows, molecule[rows]), label)


def _verdict(work: np.ndarray, difference: np.ndarray, where: str) -> Finding:
    """From -F·dR and dE (P,) of the closest pairs."""
    if len(work) < FEWEST_PAIRS or not work.any() or not difference.any():
        return Finding("note", "inconclusive: too few close pairs to compare energies with forces", where, {"pairs": len(work)})
    slope = float(work @ difference / (work @ work))
    correlation = float(work @ difference / np.sqrt((work @ work) * (difference @ difference)))
    evidence = {"slope": slope, "correlation": correlation, "pairs": len(work)}
    if abs(correlation) < CORRELATION:
        return Finding("note", "inconclusive: conformations are too far apart to compare energies with forces", where, evidence)
    if abs(slope - 1) < SAME_SLOPE:
        return Finding("note", "forces and energies agree in sign and unit", where, evidence)
    reasons = ["the forces have the wrong sign (they are gradients)"] if slope < 0 else []
    if abs(abs(slope) - 1) >= SAME_SLOPE:
        factor = min(SLOPES, key=lambda value: abs(np.log(abs(slope) / value)))
        known = abs(np.log(abs(slope) / factor)) < SAME_SLOPE
        reasons.append(SLOPES[factor] if known else "the units of energies and forces do not fit together")
    return Finding("error", "; ".join(reasons), where, evidence)


def _closest_pairs(dataset: Dataset, rows: np.ndarray, molecule: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """-F·dR (trapezoidal, aligned) and dE (P,) of the closest pairs among ``rows``, at most ``CLOSEST_PAIRS``."""
    frame = dataset.column("property:frame")[rows] if "frame" in dataset.properties else rows
    order = np.lexsort((frame, molecule))
    groups = np.split(rows[order], np.flatnonzero(np.diff(molecule[order])) + 1)
    found, budget = [np.zeros((0, 3))], FRAMES_IN_ALL
    for group in sorted(groups, key=len, reverse=True):
        if len(group) < 2 or budget <= 0:
            break
        block = dataset.block(group[:FRAMES_OF_A_MOLECULE])
        budget -= len(block)
        if (block.counts == block.counts[0]).all() and block.counts[0] > 1:
            found.append(_pairs_of(block))
    pairs = np.concatenate(found)
    pairs = pairs[np.argsort(pairs[:, 0])[:CLOSEST_PAIRS]]
    return pairs[:, 1], pairs[:, 2]


def _pairs_of(block: Block) -> np.ndarray:
    """(P, 3) root mean square distance after alignment [Å], -F·dR [eV] and dE [eV] of one molecule's closest pairs."""
    frames, atoms = len(block), int(block.counts[0])
    numbers = block.arrays["numbers"].reshape(frames, atoms)
    forces = block.arrays["forces"].reshape(frames, atoms, 3).astype(np.float64)
    usable = (numbers == numbers[0]).all(axis=1) & np.isfinite(forces).all(axis=(1, 2))
    positions, forces = block.arrays["positions"].reshape(frames, atoms, 3)[usable], forces[usable]
    energy = block.arrays["energy"][usable]
    one, two = _candidates(positions)
    a, b = (positions[k] - positions[k].mean(axis=1, keepdims=True) for k in (one, two))
    rotation = kabsch(a, b)
    step = b @ rotation - a
    work = -0.5 * ((forces[one] + forces[two] @ rotation) * step).sum(axis=(1, 2))
    distance = np.sqrt((step**2).sum(axis=(1, 2)) / atoms)
    pairs = np.stack([distance, work, energy[two] - energy[one]], axis=1)
    # Closer than 1e-4 Å is the same conformation, whose energy difference is rounding.
    pairs = pairs[distance > 1e-4]
    return pairs[np.argsort(pairs[:, 0])[:CLOSEST_PAIRS]]


def _candidates(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of up to ``CANDIDATES`` pairs of frames with the most similar interatomic distances."""
    atoms = positions.shape[1]
    first, second = np.triu_indices(atoms, 1)
    if len(first) > 500:  # 500 of the distances place a conformation well enough, and bound the memory to 8 MB
        chosen = np.random.default_rng(0).choice(len(first), 500, replace=False)
        first, second = first[chosen], second[chosen]
    distances = np.linalg.norm(positions[:, first] - positions[:, second], axis=-1)
    square = (distances**2).sum(axis=1)
    one, two = np.triu_indices(len(positions), 1)
    gap = (square[:, None] + square - 2 * distances @ distances.T)[one, two]
    if len(gap) > CANDIDATES:
        nearest = np.argpartition(gap, CANDIDATES)[:CANDIDATES]
        one, two = one[nearest], two[nearest]
    return one, two


def kabsch(target: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """(P, 3, 3) rotations R that bring ``moved @ R`` closest to ``target``; both (P, A, 3), centred. No reflections."""
    u, _, vt = np.linalg.svd(np.einsum("pai,paj->pij", moved, target))
    u[:, :, 2] *= np.sign(np.linalg.det(u @ vt))[:, None]
    return u @ vt


def _atom_energies() -> np.ndarray:
    """(119,) eV: non-relativistic energies of neutral atoms by Schwinger's series in Z^(1/3) (Phys. Rev. A 24, 2353
    (1981)): -0.7687 Z^(7/3) + Z²/2 - 0.2699 Z^(5/3) Hartree; within 8 % for hydrogen, 1 % from carbon on."""
    z = np.arange(119.0)
    return HARTREE * (-0.7687 * z ** (7 / 3) + 0.5 * z**2 - 0.2699 * z ** (5 / 3))


def _total_energies(dataset: Dataset, where: str) -> Iterator[Finding]:
    """All-electron total energies have a known size, which gives their unit away even where forces share the mistake."""
    if "energy" not in dataset.fields:
        return
    energies, level = dataset.column("energy"), dataset.column("level")
    for index, name in enumerate(dataset.levels):
        rows = np.flatnonzero((level == index) & np.isfinite(energies))[:ROWS]
        block = dataset.block(rows) if len(rows) else None
        # Beyond krypton relativity and pseudopotentials make the estimate useless.
        if block is None or block.arrays["numbers"].max() > 36:
            continue
        expected = np.add.reduceat(_atom_energies()[block.arrays["numbers"]], block.offsets[:-1])
        ratio = float(np.median(energies[rows] / expected))
        units = {"kcal/mol": 1 / KCAL_PER_MOL, "kJ/mol": 1 / KJ_PER_MOL, "Hartree": 1 / HARTREE}
        unit = next((unit for unit, value in units.items() if abs(ratio / value - 1) < 0.04), None)
        if unit is not None:
            # Too large cannot be anything else; a pseudopotential can make an energy in eV as small as one in Hartree.
            severity = "warning" if unit == "Hartree" else "error"
            label = f"{where} {name}".strip()
            evidence = {"ratio_to_atoms_total_energy_in_eV": ratio}
            yield Finding(severity, f"total energies have the size they have in {unit}, not in eV", label, evidence)
