"""Energies after reference fit: outliers, and levels of theory that are mixed within one molecule."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from forcewell.doctor.findings import Finding, worst
from forcewell.doctor.scan import Facts
from forcewell.store import Dataset

DEVIATIONS = 12.0  # robust standard deviations; real data are not Gaussian: 10 are met in QM7-X and SPICE
LEAST = 0.05  # eV per atom: 0.02 is the spread of one molecule at 500 K
FRAMES = 8  # of a molecule, from which they are judged among themselves
APART = 4.0  # gap between two groups of energies of one molecule over the wider group's standard deviation


def energy_findings(dataset: Dataset, facts: Facts, where: str) -> Iterator[Finding]:
    """Findings for each level of theory and source."""
    for level, source, places in facts.kinds():
        mine = places[np.isfinite(facts.energy[places])]
        if len(mine) < FRAMES:
            continue
        label = " ".join(part for part in (where, dataset.sources[source], dataset.levels[level]) if part)
        molecule, deviation, centre = _by_molecule(facts, mine)
        yield from _outliers(facts.row[mine], molecule, deviation, centre, label)
        yield from _two_groups(facts.row[mine], molecule, facts.energy[mine], label)


def unknown_energies(facts: Facts, where: str) -> Iterator[Finding]:
    """A note where some conformations have energies and others have none."""
    known = np.isfinite(facts.energy)
    if known.any() and not known.all():
        missing = facts.row[~known]
        said = "conformations without energy (absent or NaN)"
        yield Finding("note", "labels", said, where, {"conformations": len(missing)}, worst(missing, np.zeros(len(missing))))


def residuals(compositions: np.ndarray, index: np.ndarray, energies: np.ndarray) -> np.ndarray:
    """(k,) eV per atom that least-squares references leave of ``energies`` (k,) of conformations whose composition is
    ``compositions[index]``, (U, 119) and (k,). Robust: fitted again without what lies ten median deviations off, as long as
    the rest still fixes every element: minimum norm would leave a thousand eV on those of a rare one."""
    used = compositions[np.unique(index)]
    elements = np.flatnonzero(used.any(axis=0))
    design, keep = compositions[:, elements].astype(np.float64)[index], np.ones(len(energies), dtype=bool)
    left, size, full = energies, design.sum(axis=1), 0
    for _ in range(3):
        fitted, _, rank, _ = np.linalg.lstsq(design[keep], energies[keep], rcond=None)
        if rank < full:
            break
        left, full = (energies - design @ fitted) / size, rank
        middle = np.median(left)
        keep = np.abs(left - middle) <= max(10 * 1.4826 * np.median(np.abs(left - middle)), 1e-9)
    return left


def _by_molecule(facts: Facts, mine: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(k,) each: molecule, deviation from the molecule's median, and that median's own residual, in eV per atom.

    A molecule is told by identifier, composition and charge. Those with few frames have deviation NaN, and their own residual.
    """
    keys = np.stack([facts.molecule[mine], facts.composition[mine], facts.electrons[mine]], axis=1)
    _, molecule = np.unique(keys, axis=0, return_inverse=True)
    molecule = molecule.reshape(-1)
    energy, size = facts.energy[mine], facts.count[mine]
    number = np.bincount(molecule)
    order = np.lexsort((energy, molecule))
    starts = np.concatenate([[0], np.cumsum(number)[:-1]])
    middle = energy[order][starts + number // 2]
    many = number[molecule] >= FRAMES
    deviation = np.where(many, (energy - middle[molecule]) / size, np.nan)
    centre = residuals(facts.compositions, facts.composition[mine], np.where(many, middle[molecule], energy))
    return molecule, deviation, centre


def _outliers(rows: np.ndarray, molecule: np.ndarray, deviation: np.ndarray, centre: np.ndarray, label: str) -> Iterator[Finding]:
    for values, said in (
        (deviation, "energies far from those of the same molecule"),
        (np.where(np.isfinite(deviation), np.nan, centre), "energies far from what their elements explain (after reference fit)"),
    ):
        known = np.flatnonzero(np.isfinite(values))
        if len(known) < 20:
            continue
        middle = np.median(values[known])
        spread = 1.4826 * np.median(np.abs(values[known] - middle))
        far = known[np.abs(values[known] - middle) > max(DEVIATIONS * spread, LEAST)]
        if len(far):
            evidence = {
                "conformations": len(far),
                "largest_eV_per_atom": float(np.abs(values[far] - middle).max()),
                "usual_spread_eV_per_atom": float(spread),
            }
            yield Finding("warning", "outliers", said, label, evidence, worst(rows[far], np.abs(values[far] - middle)))


def _two_groups(rows: np.ndarray, molecule: np.ndarray, energy: np.ndarray, label: str) -> Iterator[Finding]:
    """Molecules whose energies fall into two groups with a gap between: two levels of theory, or two zeros of energy."""
    order = np.lexsort((energy, molecule))
    found, gaps = [], []
    for part in np.split(order, np.flatnonzero(np.diff(molecule[order])) + 1):
        least = max(3, len(part) // 20)  # of a group: a few outliers are no level
        if len(part) < 2 * least:
            continue
        values = energy[part]
        steps = np.diff(values)[least - 1 : len(part) - least]
        cut = int(np.argmax(steps)) + least
        spread = max(values[:cut].std(), values[cut:].std())
        if steps.max() > APART * spread and steps.max() > 0.02:
            found.append((rows[part[cut - 1]], rows[part[cut]], len(part)))
            gaps.append(float(steps.max()))
    # One molecule of many with such a gap can be two conformers or a bond broken; a level mixed in shows in most.
    if found and 2 * len(found) >= max(1, _judged(molecule)):
        worst_one = int(np.argmax(gaps))
        evidence = {"molecules": len(found), "gap_eV": gaps[worst_one], "frames": sum(one[2] for one in found)}
        said = "energies of one molecule fall into two groups: two levels of theory or two zeros of energy under one name"
        yield Finding("warning", "levels", said, label, evidence, (int(found[worst_one][0]), int(found[worst_one][1])))


def _judged(molecule: np.ndarray) -> int:
    """Molecules with enough frames to see two groups."""
    return int((np.bincount(molecule) >= 6).sum())
