"""Reference energies of every source, and whether sources that claim one level of theory are at one.

Energies of different levels have different zeros, by 0.1 to 2 eV per atom between usual functionals and basis sets.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from forcewell.bonds import graph_hashes
from forcewell.doctor.findings import Finding
from forcewell.doctor.scan import Facts, rows_to_examine, scan
from forcewell.store import Dataset, ReferenceFit, fit_references

SAME_MOLECULE = 0.1  # eV per atom: at 1000 K a molecule is up to 0.08 above its minimum; PBE is 0.09 from PBE0 in benzene
SAME_LEVEL = 0.02  # eV per atom: the scatter of one molecule at 500 K
LEAST, DEVIATIONS = 0.15, 3.0  # eV per atom, and spreads of a source about its own references, for other molecules
MOLECULES = 200  # compositions in common whose bond graphs are compared
EXAMINED = 20_000  # conformations per source


@dataclass(slots=True)
class Entry:
    """One source at one level: mean energies [eV] of its K compositions of two atoms or more, and least-squares references.

    compositions: (K, 119). rows: (K, up to 5) one-dimensional arrays of conformations of each. values: (119,) eV.
    inverse: (119, 119) pseudo-inverse of the compositions' Gram matrix. span: (119, 119) projector on their space.
    """

    name: str
    level: str
    dataset: Dataset
    compositions: np.ndarray
    mean: np.ndarray
    rows: list[np.ndarray]
    energy: dict[int, float]
    values: np.ndarray
    inverse: np.ndarray
    span: np.ndarray
    spread: float

    @property
    def label(self) -> str:
        """Name and level as one phrase."""
        return f"{self.name} ({self.level or 'level not stated'})"


def entries(name: str, dataset: Dataset, facts: Facts) -> list[Entry]:
    """Of every source and level with energies of molecules."""
    found = []
    for level, source, places in facts.kinds():
        mine = places[np.isfinite(facts.energy[places]) & (facts.count[places] > 1)]
        if not len(mine):
            continue
        used, inverse = np.unique(facts.composition[mine], return_inverse=True)
        compositions = facts.compositions[used].astype(np.float64)
        mean = np.bincount(inverse.reshape(-1), weights=facts.energy[mine]) / np.bincount(inverse.reshape(-1))
        order = np.argsort(inverse.reshape(-1), kind="stable")
        rows = [facts.row[mine[part[:5]]] for part in np.split(order, np.cumsum(np.bincount(inverse.reshape(-1)))[:-1])]
        gram = np.linalg.pinv(compositions.T @ compositions, rcond=1e-10, hermitian=True)
        values = gram @ (compositions.T @ mean)
        left = (mean - compositions @ values) / compositions.sum(axis=1)
        kept = np.concatenate(rows)
        energy = dict(zip(kept.tolist(), facts.energy[np.searchsorted(facts.row, kept)].tolist(), strict=True))
        label = " ".join(part for part in (name, dataset.sources[source] if len(dataset.sources) > 1 else "") if part)
        span = gram @ (compositions.T @ compositions)
        spread = float(np.sqrt((left**2).sum() / max(1, len(left) - round(np.trace(span)))))
        found.append(Entry(label, dataset.levels[level], dataset, compositions, mean, rows, energy, values, gram, span, spread))
    return found


def level_findings(dataset: Dataset, facts: Facts, where: str) -> Iterator[Finding]:
    """The references of every level, and contradictions between the data's own sources."""
    for level in np.unique(facts.level):
        mine = np.flatnonzero((facts.level == level) & np.isfinite(facts.energy))
        if len(mine):
            fit = fit_references(facts.compositions, facts.composition[mine], facts.energy[mine])
            label = f"{where} {dataset.levels[level]}".strip()
            yield Finding("note", "references", "reference energies per element, by least squares", label, evidence_of(fit))
    if len(dataset.levels) > 1:
        counts = {name or "not stated": int((facts.level == k).sum()) for k, name in enumerate(dataset.levels)}
        yield Finding("note", "levels", "several levels of theory", where, counts)
    yield from compare(entries(where, dataset, facts))


def evidence_of(fit: ReferenceFit) -> dict[str, float | int | str]:
    """A fit in numbers: rank, mean and spread per atom before and after."""
    return {
        "conformations": fit.conformations,
        "rank": fit.rank,
        "elements": len(fit.elements),
        "before_mean_eV_per_atom": fit.before.mean,
        "before_spread_eV_per_atom": fit.before.spread,
        "after_mean_eV_per_atom": fit.after.mean,
        "after_spread_eV_per_atom": fit.after.spread,
    }


def compare(several: Sequence[Entry]) -> Iterator[Finding]:
    """Sources of one declared level whose energies are not at one, and one level under two names."""
    for one, two in combinations(several, 2):
        same, alike = one.level == two.level, _spelt(one.level) == _spelt(two.level)
        pair = f"{one.label} and {two.label}"
        offset, molecules = _by_molecule(one, two)
        if molecules:
            evidence: dict[str, float | int | str] = {"offset_eV_per_atom": offset, "molecules_in_common": molecules}
            differ, equal = abs(offset) > SAME_MOLECULE, abs(offset) < SAME_LEVEL
        else:
            offset, limit = max((_by_references(one, two), _by_references(two, one)), key=lambda pair: abs(pair[0]) / pair[1])
            evidence = {"offset_eV_per_atom": offset, "beyond": limit}
            differ, equal = abs(offset) > limit, False
        if alike and differ:
            said = "declared at one level of theory" if one.level else "neither states its level of theory"
            said += ", but energies have different zeros: they are of different levels or settings"
            yield Finding("warning", "levels", said, pair, evidence)
        elif alike and not same:
            said = "probably one level of theory under two names; give them one name"
            yield Finding("note", "levels", said, pair, evidence if molecules else {})
        elif equal and not same:
            yield Finding("note", "levels", "energies agree: perhaps one level of theory under two names", pair, evidence)


def _spelt(level: str) -> str:
    """A level's name without differences of spelling: ωB97X/6-31G* is wB97X/6-31G(d)."""
    name = level.lower().replace("ω", "w").replace("**", "(d,p)").replace("*", "(d)")
    return re.sub(r"[\s_\-]", "", name)


def _by_molecule(one: Entry, two: Entry) -> tuple[float, int]:
    """Median over molecules that both have (same bond graph) of their energies' difference per atom, and how many they are."""
    places = {composition.tobytes(): k for k, composition in enumerate(two.compositions)}
    shared = [(k, places[key]) for k, composition in enumerate(one.compositions) if (key := composition.tobytes()) in places][:MOLECULES]
    gaps = []
    for k, m in shared:
        first, second = _energies(one, one.rows[k]), _energies(two, two.rows[m])
        atoms = one.compositions[k].sum()
        gaps += [(second[graph] - first[graph]) / atoms for graph in first.keys() & second.keys()]
    return (float(np.median(gaps)), len(gaps)) if gaps else (0.0, 0)


def _energies(entry: Entry, rows: np.ndarray) -> dict[int, float]:
    """Lowest energy by bond graph of a few conformations."""
    found: dict[int, float] = {}
    for row, graph in zip(rows.tolist(), graph_hashes(entry.dataset.block(rows)).tolist(), strict=True):
        found[graph] = min(found.get(graph, np.inf), entry.energy[row])
    return found


def _by_references(one: Entry, two: Entry) -> tuple[float, float]:
    """Mean of two's energies from one's references [eV per atom], and the size from which it cannot be chance.

    Only compositions that one's references determine are counted; the limit grows where they are extrapolated.
    """
    size = np.linalg.norm(two.compositions, axis=1)
    inside = np.linalg.norm(two.compositions - two.compositions @ one.span, axis=1) < 1e-6 * size
    if not inside.any() or one.spread < 1e-6:  # a single composition explains itself, and tells no spread
        return 0.0, LEAST
    compositions = two.compositions[inside]
    atoms = compositions.sum(axis=1)
    offset = float(np.mean((two.mean[inside] - compositions @ one.values) / atoms))
    # ``spread`` is per atom; leverage is of rows divided by their atoms, and bounded by those of the mean row.
    scale = one.compositions.sum(axis=1).mean() / atoms
    leverage = (np.einsum("ki,ij,kj->k", compositions, one.inverse, compositions) * scale**2).mean()
    return offset, max(LEAST, DEVIATIONS * max(one.spread, two.spread) * float(np.sqrt(1 + leverage)))


def plan(sources: Iterable[tuple[str, Dataset, np.ndarray]], known: Mapping[str, np.ndarray], energies: bool) -> list[str]:
    """What a fine-tuning run will do with its sources' energies, in lines to print before it starts.

    sources: name, data and rows that are trained on. known: references (119,) of the levels that the model has.
    energies: whether an objective of the run learns energies.
    """
    everything, lines = [], []
    by_level: dict[str, list[tuple[Facts, np.ndarray]]] = {}
    for name, dataset, rows in sources:
        facts = scan(dataset, rows[rows_to_examine(len(rows), EXAMINED)])
        everything += entries(name, dataset, facts)
        for level in np.unique(facts.level):
            mine = np.flatnonzero((facts.level == level) & np.isfinite(facts.energy))
            by_level.setdefault(dataset.levels[level], []).append((facts, mine))
    for level, parts in by_level.items():
        compositions = np.concatenate([facts.compositions[facts.composition[mine]] for facts, mine in parts])
        energy = np.concatenate([facts.energy[mine] for facts, mine in parts])
        lines.append(_planned(level or "level of theory not stated", compositions, energy, level in known and bool(known[level].any())))
    if any(len(mine) for parts in by_level.values() for _, mine in parts):
        lines.append(
            "energies are learned, each less the references of its level"
            if energies
            else "the run learns no energies: they fix the references alone, so that predictions have the right zero"
        )
    return lines + [str(finding) for finding in compare(everything)]


def _planned(level: str, compositions: np.ndarray, energy: np.ndarray, known: bool) -> str:
    if not len(energy):
        return f"{level}: no energies; the model's references stay as they are"
    unique, index = np.unique(compositions, axis=0, return_inverse=True)
    fit = fit_references(unique, index.reshape(-1), energy)
    before, after = (f"{item.mean:.4f} ± {item.spread:.4f}" for item in (fit.before, fit.after))
    do = "known to the model, whose references are shifted" if known else "new to the model, which gets references of its own"
    return (
        f"{level}: {fit.conformations} energies, {before} eV per atom as they are, {after} less references by least squares "
        f"(rank {fit.rank} for {len(fit.elements)} elements, minimum norm); {do} by the minimum-norm fit to E_label - E_model"
    )
