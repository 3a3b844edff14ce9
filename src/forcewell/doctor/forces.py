"""The forces by themselves: their scale, missing ones, net force and torque, minima that are none, outliers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from forcewell.doctor.findings import Finding, worst
from forcewell.doctor.scan import Facts

RESIDUE = 1e-3  # eV/Å: labels printed with four decimals add up to less
GRID = 0.05  # eV/Å: DFT grids leave up to 0.03 (SPICE); more means that some atoms' forces are missing or mixed up
# Optimisers stop at about 0.02 eV/Å (4e-4 Hartree/bohr); five times that is no minimum.
AT_REST = 0.1
TYPICAL = (0.02, 5.0)  # eV/Å: at 500 K the components' root mean square is 1.0 to 1.3; of relaxed dimers 0.1
DEVIATIONS, FACTOR = 8.0, 5.0  # of the largest force's logarithm from the median, and the least ratio to it


def force_findings(facts: Facts, where: str) -> Iterator[Finding]:
    """Findings about forces, nothing where there are none."""
    labelled = facts.labelled
    if not labelled.any():
        return
    yield from _minima(facts, where)
    components = 3 * int(facts.count[labelled].sum())
    rms, largest = float(np.sqrt(facts.squared[labelled].sum() / components)), float(facts.largest[labelled].max())
    scale = {"rms_component_eV_per_A": rms, "largest_eV_per_A": largest}
    at_rest = bool(facts.minimum[labelled].all())
    if rms == 0.0 and not at_rest:
        yield Finding("error", "force scale", "all forces are exactly zero", where)
    elif rms > TYPICAL[1]:
        yield Finding("warning", "force scale", "forces are very large; is their unit right?", where, scale)
    elif rms < TYPICAL[0] and not at_rest:
        yield Finding("warning", "force scale", "forces are very small; is their unit right, or are these minima?", where, scale)
    else:
        yield Finding("note", "force scale", "forces have a usual size", where, scale)
    if not labelled.all():
        missing = facts.row[~labelled]
        said = "conformations without forces (absent or NaN)"
        yield Finding("note", "labels", said, where, {"conformations": len(missing)}, worst(missing, np.zeros(len(missing))))
    yield from _still(facts, where, at_rest)
    yield from _rigid(facts, "net", "forces do not add up to zero", labelled, where)
    said = "forces have a net torque: they would turn the molecule"
    yield from _rigid(facts, "twist", said, labelled & ~facts.periodic, where)
    yield from _outliers(facts, where)


def _minima(facts: Facts, where: str) -> Iterator[Finding]:
    moving = facts.labelled & facts.minimum & (facts.largest > AT_REST)
    if moving.any():
        evidence = {
            "conformations": int(moving.sum()),
            "of_minima": int(facts.minimum.sum()),
            "largest_force_eV_per_A": float(facts.largest[moving].max()),
        }
        rows = worst(facts.row[moving], facts.largest[moving])
        yield Finding("error", "minima", "declared minima whose forces are not zero", where, evidence, rows)


def _still(facts: Facts, where: str, at_rest: bool) -> Iterator[Finding]:
    """Forces of exactly zero among others that are not: filled in for missing ones."""
    zero = facts.labelled & (facts.squared == 0) & (facts.count > 1) & ~facts.minimum
    if not at_rest and zero.any() and not zero[facts.labelled].all():
        said = "all forces are exactly zero in some conformations: missing labels must be NaN or left out"
        yield Finding("error", "force scale", said, where, {"conformations": int(zero.sum())}, worst(facts.row[zero], facts.count[zero]))


def _rigid(facts: Facts, name: str, said: str, mask: np.ndarray, where: str) -> Iterator[Finding]:
    """Net force, or torque divided by the root of the summed squared distances to the centre; both vanish for an isolated molecule."""
    size = np.where(mask, np.nan_to_num(getattr(facts, name)), 0.0)
    above = size > RESIDUE
    if above.any():
        evidence = {"largest_eV_per_A": float(size.max()), "conformations": int((size > GRID).sum() or above.sum())}
        severity = "warning" if size.max() > GRID else "note"
        rows = worst(facts.row[above], size[above])
        yield Finding(severity, "net force" if name == "net" else "torque", said, where, evidence, rows)


def _outliers(facts: Facts, where: str) -> Iterator[Finding]:
    """Largest forces far above what the same source has, on a logarithmic scale by median and median deviation."""
    for _, _, places in facts.kinds():
        mine = places[facts.labelled[places] & (facts.largest[places] > 0)]
        if len(mine) < 20:
            continue
        size = np.log(facts.largest[mine])
        middle = np.median(size)
        deviation = 1.4826 * np.median(np.abs(size - middle))
        far = size > middle + max(DEVIATIONS * deviation, np.log(FACTOR))
        if far.any():
            evidence = {
                "conformations": int(far.sum()),
                "largest_force_eV_per_A": float(np.exp(size.max())),
                "median_of_largest_eV_per_A": float(np.exp(middle)),
            }
            rows = worst(facts.row[mine[far]], size[far])
            yield Finding("warning", "outliers", "forces far larger than the others'", where, evidence, rows)
