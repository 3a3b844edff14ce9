"""Are forces forces (and not gradients), and are energies, forces and lengths in the units they claim?

Four kinds of evidence, each of which can be missing: the slope of energies against forces (``slopes``), the force on
stretched and compressed X-H bonds, the size of total energies, and the length of bonds. Together they tell which label is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from forcewell.doctor.findings import Finding, worst
from forcewell.doctor.scan import HARMONIC, Facts
from forcewell.doctor.slopes import Slope, slopes
from forcewell.store import Dataset
from forcewell.units import BOHR, HARTREE, KCAL_PER_MOL, KJ_PER_MOL

SAME = 0.15  # relative; slopes of correct data are within 0.05, and no two units differ by less than 1.8
# How many times too large a value of each unit is when it passes for eV, eV/Å or Å.
ENERGY_UNITS = {"kcal/mol": 1 / KCAL_PER_MOL, "kJ/mol": 1 / KJ_PER_MOL, "Hartree": 1 / HARTREE, "meV": 1000.0}
FORCE_UNITS = {
    **{f"{unit}/Å": value for unit, value in ENERGY_UNITS.items()},
    **{f"{unit}/bohr": value * BOHR for unit, value in {"Hartree": 1 / HARTREE, "kcal/mol": 1 / KCAL_PER_MOL, "eV": 1.0}.items()},
}
LENGTH_UNITS = {"bohr": 1 / BOHR, "nm": 0.1, "pm": 100.0}
# eV/Å² at 300 to 500 K and 0 K alike, over twelve molecules of rMD17, SPICE, 3BPA and water: C-H 30.7 to 34.4, N-H 42 to 46,
# O-H 44 to 48 (25 to 33 in strong hydrogen bonds).
STIFFNESS = {6: 32.0, 7: 43.0, 8: 46.0}
STIFF = (0.62, 1.6)  # share of the expected stiffness that is no error of unit
FEWEST_BONDS, BOND_CORRELATION, NARROWEST = 100, 0.8, 0.01  # Å: relaxed bonds of different kinds scatter by 0.007


def unit_findings(dataset: Dataset, facts: Facts, where: str) -> Iterator[Finding]:
    """The verdict for every level of theory and source by itself."""
    length = yield from _length(facts, where)
    for level, source, places in facts.kinds():
        label = " ".join(part for part in (where, dataset.sources[source], dataset.levels[level]) if part)
        total = _total_energies(facts, places)
        energies = _size_of_energies(total, label) if total is not None else None
        if energies is not None:
            yield energies
        if not facts.labelled[places].any():
            continue
        bonds = _bond_forces(facts, places, length, label)
        yield from [bonds[1]] if bonds[1] else []
        usable = places[facts.labelled[places] & np.isfinite(facts.energy[places])]
        slope, each = slopes(dataset, facts.row[usable], facts.molecule[usable]) if len(usable) else (Slope(np.nan, 0.0, 0), [])
        agreed = slope.counts or bonds[0] is not None
        yield _pairs_verdict(slope, bonds[0], label, len(usable) > 0)
        if energies is not None and energies.severity == "error" and slope.counts and abs(slope.value - 1) < SAME:
            yield Finding("error", "slope", "forces agree with the energies, so their unit is wrong, too", label, {"slope": slope.value})
        yield from _odd_molecules(slope, each, label)
        if not agreed and not any(one.counts for one in each):
            yield Finding("note", "units", "inconclusive: neither close pairs nor X-H bonds tell the sign and unit of the forces", label)


def _length(facts: Facts, where: str) -> Iterator[Finding]:
    """Yields a finding where bonds are too long or short by a unit; returns by how much lengths are too large."""
    typical = facts.typical[np.isfinite(facts.typical)]
    if len(typical) < 3:
        return 1.0
    middle = float(np.median(typical))  # 0.93 to 1.03 in all of nine data sets
    evidence = {"median_nearest_neighbour_in_covalent_radii": middle, "conformations": len(typical)}
    if 0.8 < middle < 1.3:
        return 1.0
    unit = min(LENGTH_UNITS, key=lambda name: abs(np.log(middle / LENGTH_UNITS[name])))
    if abs(np.log(middle / LENGTH_UNITS[unit])) < SAME:
        yield Finding("error", "lengths", f"bonds are as long as if the coordinates were in {unit}, not in Å", where, evidence)
        return LENGTH_UNITS[unit]
    if abs(np.log(middle / BOHR)) < SAME:
        yield Finding("error", "lengths", "bonds are as short as if Å had been taken for bohr", where, evidence)
        return BOHR
    yield Finding("warning", "lengths", "nearest neighbours are not at the distance of bonds; is the length unit right?", where, evidence)
    return 1.0


def _bond_forces(facts: Facts, places: np.ndarray, length: float, label: str) -> tuple[float | None, Finding | None]:
    """By how much forces are too large (negative: of the wrong sign), None where bonds do not tell; and what to say of it."""
    bonds = facts.bonds[np.isin(facts.bonds[:, 0].astype(np.int64), places)]
    stretch, pull = [], []
    for element, stiffness in STIFFNESS.items():
        mine = bonds[bonds[:, 1] == element]
        if len(mine) >= FEWEST_BONDS // 4:
            off = (mine[:, 2] - np.median(mine[:, 2])) / length
            near = np.abs(off) < HARMONIC
            stretch.append(stiffness * (off[near] - off[near].mean()))
            pull.append(mine[near, 3] - mine[near, 3].mean())
    x, y = (np.concatenate([np.zeros(0), *parts]) for parts in (stretch, pull))
    if len(x) < FEWEST_BONDS or not y.any():
        return None, None
    factor = -float(x @ y / (x @ x))
    correlation = -float(x @ y / np.sqrt((x @ x) * (y @ y)))
    evidence = {"stiffness_over_expected": factor, "correlation": correlation, "bonds": len(x)}
    if abs(correlation) < BOND_CORRELATION or x.std() / 40.0 < NARROWEST:
        said = "X-H bonds do not tell the sign and unit of the forces: too little stretched"
        return None, Finding("note", "bonds", said, label, evidence)
    reasons = ["forces push stretched bonds further apart: they have the wrong sign (they are gradients)"] if factor < 0 else []
    unit = None if STIFF[0] < abs(factor) < STIFF[1] else min(FORCE_UNITS, key=lambda name: abs(np.log(abs(factor) / FORCE_UNITS[name])))
    if unit is not None:
        known = abs(np.log(abs(factor) / FORCE_UNITS[unit])) < 0.4
        said = f"the size they have in {unit}, not in eV/Å" if known else "a size that no unit explains"
        reasons.append(f"forces along bonds have {said}")
    exact = FORCE_UNITS[unit] if unit is not None else 1.0
    if not reasons:
        said = "forces along stretched and compressed X-H bonds have the right sign and size"
        return exact, Finding("note", "bonds", said, label, evidence)
    return float(np.sign(factor)) * exact, Finding("error", "bonds", "; ".join(reasons), label, evidence)


def _pairs_verdict(slope: Slope, forces: float | None, label: str, labelled: bool) -> Finding:
    """From the slope over the closest pairs; forces: by how much bonds say that they are too large, None where they do not."""
    if not labelled:
        return Finding("note", "slope", "inconclusive: no energies to compare the forces with", label)
    evidence = {"slope": slope.value, "correlation": slope.correlation, "pairs": slope.pairs}
    if not slope.counts:
        evidence = evidence if np.isfinite(slope.value) else {"pairs": slope.pairs}
        said = "inconclusive: too few conformations are close enough to compare energies with forces"
        return Finding("note", "slope", said, label, evidence)
    if abs(slope.value - 1) < SAME:
        return Finding("note", "slope", "forces and energies agree in sign and unit", label, evidence)
    reasons = ["the forces have the wrong sign (they are gradients)"] if slope.value < 0 else []
    if abs(abs(slope.value) - 1) >= SAME:
        reasons.append(_named(abs(slope.value), None if forces is None else abs(forces)))
    return Finding("error", "slope", "; ".join(reasons), label, evidence, slope.rows)


def _named(slope: float, forces: float | None) -> str:
    """What makes energies ``slope`` times too large beside forces that are ``forces`` times too large (None: not known)."""

    def near(value: float, other: float) -> bool:
        return abs(np.log(value / other)) < SAME

    if forces is not None:
        energy = next((unit for unit, factor in ENERGY_UNITS.items() if near(slope * forces, factor)), None)
        if near(slope * forces, 1.0):
            unit = next(name for name, factor in FORCE_UNITS.items() if factor == forces)
            return f"forces are in {unit} where the energies are in eV"
        if energy is not None and forces == 1.0:
            return f"energies are in {energy} where the forces are in eV/Å"
    # Alone, a slope fits an energy that is too large and a force that is too small: labels in Hartree are the likelier.
    for unit, factor in ENERGY_UNITS.items():
        if near(slope, factor):
            return f"energies are in {unit} where the forces are in eV/Å"
    for unit, factor in FORCE_UNITS.items():
        if near(slope, 1 / factor):
            return f"forces are in {unit} where the energies are in eV"
    if near(slope, BOHR):
        return "forces are per Å where the coordinates are in bohr"
    return "the units of energies and forces do not fit together"


def _odd_molecules(slope: Slope, each: list[Slope], label: str) -> Iterator[Finding]:
    """Molecules that contradict the rest, or all of them where the closest pairs of all together say nothing."""
    if slope.counts and not 1 - SAME < slope.value < 1 + SAME:
        return
    # Molecules' own slopes are less exact than that of the closest pairs of all: 0.77 to 1.17 in QM7-X.
    odd = [one for one in each if not 0.6 < one.value < 1.7]
    if not odd:
        return
    first = max(odd, key=lambda one: abs(np.log(abs(one.value))) + (10 if one.value < 0 else 0))
    evidence = {"molecules": len(odd), "of": len(each), "molecule": first.molecule, "slope": first.value, "correlation": first.correlation}
    rows = tuple(row for one in odd for row in one.rows)[:10]
    sign = "the wrong sign (they are gradients)" if first.value < 0 else "another unit than its energies"
    yield Finding("error", "slope", f"in some molecules the forces have {sign}", label, evidence, rows)


def _atom_energies() -> np.ndarray:
    """(119,) eV: non-relativistic energies of neutral atoms by Schwinger's series in Z^(1/3) (Phys. Rev. A 24, 2353
    (1981)): -0.7687 Z^(7/3) + Z²/2 - 0.2699 Z^(5/3) Hartree; within 8 % for hydrogen, 1 % from carbon on."""
    z = np.arange(119.0)
    return HARTREE * (-0.7687 * z ** (7 / 3) + 0.5 * z**2 - 0.2699 * z ** (5 / 3))


def _total_energies(facts: Facts, places: np.ndarray) -> tuple[float, np.ndarray] | None:
    """Median of energies over their atoms' energies, and the rows; None where there is nothing to compare.

    All-electron total energies have a known size, which gives their unit away even where forces share the mistake.
    """
    known = places[np.isfinite(facts.energy[places])]
    # Beyond krypton relativity and pseudopotentials make the estimate useless.
    heavy = np.asarray(facts.compositions[:, 37:].sum(axis=1)) > 0
    light = known[~heavy[facts.composition[known]]]
    if not len(light):
        return None
    expected = (facts.compositions @ _atom_energies())[facts.composition[light]]
    return float(np.median(facts.energy[light] / expected)), facts.row[light]


def _size_of_energies(total: tuple[float, np.ndarray], label: str) -> Finding:
    ratio, rows = total
    evidence = {"ratio_to_atoms_total_energy_in_eV": ratio}
    unit = next((unit for unit, value in ENERGY_UNITS.items() if abs(ratio / value - 1) < 0.04), None)
    if unit is not None:
        # Too large cannot be anything else; a pseudopotential can make an energy in eV as small as one in Hartree.
        severity = "warning" if unit == "Hartree" else "error"
        said = f"total energies have the size they have in {unit}, not in eV"
        return Finding(severity, "energies", said, label, evidence, worst(rows, rows * 0))
    if abs(ratio - 1) < 0.04:
        return Finding("note", "energies", "total energies have the size of all-electron energies in eV", label, evidence)
    return Finding("note", "energies", "energies are no all-electron totals, so their size does not tell their unit", label, evidence)
