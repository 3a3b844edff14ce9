"""Broken geometries, atoms on top of each other, fragments, electrons that do not fit charge and spin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from forcewell.doctor.findings import Finding, worst
from forcewell.doctor.scan import Facts
from forcewell.errors import InputError
from forcewell.store import Dataset
from forcewell.system import OVERLAP, Block

# In units of the sum of covalent radii. Over all of nine data sets the closest pair is at 0.74 (QM7-X, strongly distorted).
ON_TOP, TOO_CLOSE = 0.5, 0.65
LONELY = 2.0  # nearest neighbour of an atom; a sodium ion beside ethyne is at 1.1
FRAMES = 3  # of one molecule, from which its usual number of fragments is known


def structure_findings(dataset: Dataset, facts: Facts, where: str) -> Iterator[Finding]:
    """Findings about coordinates, elements, cells and electrons."""
    if len(facts) < facts.asked:
        yield Finding("error", "geometry", "conformations without atoms", where, {"conformations": facts.asked - len(facts)})
    yield from _listed(facts, facts.unknown_element, "error", "geometry", "unknown atomic numbers; expected 1 to 118", where)
    broken = ~facts.sound & ~facts.unknown_element
    yield from _listed(facts, broken, "error", "geometry", "coordinates that are NaN or infinite", where)
    closest, overlap = np.nan_to_num(facts.closest, nan=9.0), np.nan_to_num(facts.overlap, nan=9.0)
    on_top = (closest < ON_TOP) | (overlap < OVERLAP)
    evidence = {"closest_A": float(overlap.min(initial=9.0)), "in_covalent_radii": float(closest.min(initial=9.0))}
    said = "atoms on top of each other; is the length unit right?"
    yield from _listed(facts, on_top, "error", "geometry", said, where, -closest, evidence)
    near = ~on_top & (closest < TOO_CLOSE)
    said = "atoms closer than any bond"
    yield from _listed(facts, near, "warning", "geometry", said, where, -closest, {"in_covalent_radii": float(closest.min(initial=9.0))})
    yield from _fragments(facts, where)
    yield from _cells(dataset, facts, where)
    yield from _electrons(dataset, facts, where)


def _listed(
    facts: Facts, mask: np.ndarray, severity: str, question: str, what: str, where: str,
    badness: np.ndarray | None = None, evidence: Mapping[str, float | int | str] | None = None,
) -> Iterator[Finding]:  # fmt: skip
    """One finding that counts the conformations of ``mask`` and names the worst, nothing where there is none."""
    if mask.any():
        weight = mask[mask] if badness is None else badness[mask]
        counted = {"conformations": int(mask.sum()), **(evidence or {})}
        yield Finding(severity, question, what, where, counted, worst(facts.row[mask], weight))


def _fragments(facts: Facts, where: str) -> Iterator[Finding]:
    """Conformations in more pieces than is usual for their molecule, and atoms far from all others."""
    pieces = np.where(np.isfinite(facts.fragments) & ~facts.periodic, facts.fragments, 0).astype(np.int64)
    known = np.flatnonzero(pieces)
    kind, inverse, number = np.unique(facts.molecule[known], return_inverse=True, return_counts=True)
    wide = pieces.max(initial=0) + 1
    pairs, often = np.unique(inverse.reshape(-1) * wide + pieces[known], return_counts=True)
    usual = np.zeros(len(kind), dtype=np.int64)
    order = np.argsort(often, kind="stable")
    usual[pairs[order] // wide] = pairs[order] % wide  # the most frequent is written last
    apart = np.zeros(len(facts), dtype=bool)
    apart[known] = (pieces[known] > usual[inverse.reshape(-1)]) & (number[inverse.reshape(-1)] >= FRAMES)
    loosest = np.nan_to_num(facts.loosest, nan=0.0, posinf=0.0)
    said = "in more pieces than their molecule usually is: broken, dissociated or torn apart by a cell"
    evidence = {"widest_gap_in_covalent_radii": float(loosest[apart].max(initial=0))}
    yield from _listed(facts, apart, "warning", "geometry", said, where, loosest, evidence)
    lonely = ~facts.periodic & ~apart & (loosest > LONELY)
    said = "atoms that are bonded to nothing"
    evidence = {"widest_gap_in_covalent_radii": float(loosest[lonely].max(initial=0))}
    yield from _listed(facts, lonely, "warning", "geometry", said, where, loosest, evidence)


def _cells(dataset: Dataset, facts: Facts, where: str) -> Iterator[Finding]:
    """The first periodic conformation with an unusable cell, or atoms on top of images."""
    rows = facts.row[facts.periodic & facts.sound & (np.nan_to_num(facts.overlap, nan=9.0) >= OVERLAP)]
    for chunk in np.array_split(rows, len(rows) // 1024 + 1) if len(rows) else []:
        block = dataset.block(chunk)
        if _fault(block, 0) is None:  # all at once, which is much faster than one by one
            continue
        for k in range(len(block)):
            if (said := _fault(block.take([k]), int(chunk[k]))) is not None:
                yield Finding("error", "geometry", said, where, {}, (int(chunk[k]),))
                return


def _fault(block: Block, first: int) -> str | None:
    try:
        block.validate(first)
    except InputError as error:
        return str(error)
    return None


def _electrons(dataset: Dataset, facts: Facts, where: str) -> Iterator[Finding]:
    """An even number of electrons goes with an odd multiplicity, an odd number with an even one."""
    wrong = (facts.electrons + facts.spin) % 2 == 0
    wrong &= ~facts.unknown_element
    stated = [name for name in ("charge", "spin") if name in dataset.fields]
    evidence = {}
    if wrong.any():
        first = int(np.argmax(wrong))
        evidence = {"electrons": int(facts.electrons[first]), "multiplicity": int(facts.spin[first])}
    if len(stated) == 2:
        said, severity = "the number of electrons does not fit the stated charge and spin multiplicity", "error"
    else:
        unsaid = " and ".join(name for name in ("charge", "spin") if name not in stated)
        said, severity = f"an odd number of electrons for singlets: radicals, or ions whose {unsaid} is not stated", "warning"
    lone = wrong & (facts.count == 1)
    yield from _listed(facts, wrong & ~lone, severity, "electrons", said, where, evidence=evidence)
    # Isolated atoms are open-shell by nature, and everybody leaves that unsaid.
    yield from _listed(facts, lone, "note", "electrons", "single atoms with an odd number of electrons, taken for singlets", where)
    few = facts.electrons < 0
    yield from _listed(facts, few, "error", "electrons", "a charge larger than the number of protons", where)
