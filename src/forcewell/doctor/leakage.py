"""Do parts of a split know each other? Same molecule, same stretch of a trajectory, same geometry.

Also between data sets that are checked together, where one may be meant to test what was trained on the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from forcewell import split as splits
from forcewell.doctor.duplicates import groups
from forcewell.doctor.findings import Finding, worst
from forcewell.doctor.scan import Facts, joined, scan
from forcewell.leakage import WHAT, Leak, molecule_leaks, trajectory_leaks
from forcewell.store import Dataset
from forcewell.system import Block, System, block_of

MOLECULES = 100_000  # whose bond graphs are perceived: about 10 s
ROWS = 100_000  # of a part whose geometries are compared with the other parts'
NEIGHBOURS = 200  # pairs of trajectory neighbours that are measured
RELATED = 0.5  # neighbours in time closer than this share of the distance of random frames are one stretch of trajectory
BORDERS = 0.02  # share of neighbours in different parts that borders between blocks of time may make


def split_files(path: Path) -> list[Path]:
    """Split files kept in a store's folder."""
    return sorted(path.glob("split*.json")) if path.is_dir() else []


def leak_findings(dataset: Dataset, file: Path) -> Iterator[Finding]:
    """Findings about the split in ``file``. Raises InputError where it is none, or was made for other data."""
    split = splits.Split.load(file, dataset, leaky=True)
    rng, where = np.random.default_rng(0), str(file)
    parts = {name: rows for name, rows in split.parts.items() if len(rows)}
    shared = molecule_leaks(dataset, parts, MOLECULES)
    wrong = split.ruled_out(shared)
    found = [_finding(leak, "error" if leak in wrong else "note", where) for leak in shared]
    # Whether neighbours in time matter is measured below, unless the split promised a gap between them.
    promised = split.ruled_out(trajectory_leaks(dataset, parts, ordered=split.method == "time"))
    found += [_finding(leak, "error", where) for leak in promised]
    found += [*_geometries(dataset, _sampled(parts, ROWS, rng), where)]
    found += [*_trajectories(dataset, parts, where, rng)]
    yield from found
    if max(map(len, parts.values())) > ROWS:
        said = f"geometries of {ROWS} random conformations of each part, and {MOLECULES} molecules, were compared"
        yield Finding("note", "sample", said, where, {name: len(rows) for name, rows in parts.items()})
    if not found:
        said = "no molecule, stretch of trajectory or geometry is in two parts"
        yield Finding("note", "leakage", said, where, {name: len(rows) for name, rows in parts.items()})


def _finding(leak: Leak, severity: str, where: str) -> Finding:
    evidence = {"parts": ", ".join(leak.parts), "number": leak.number, "first": f"{leak.rows[1]} and {leak.rows[0]}"}
    return Finding(severity, "leakage", WHAT[leak.kind], where, evidence, (leak.rows[1],))


def _sampled(parts: Mapping[str, np.ndarray], limit: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {name: rows if len(rows) <= limit else np.sort(rng.choice(rows, limit, replace=False)) for name, rows in parts.items()}


def _geometries(dataset: Dataset, parts: Mapping[str, np.ndarray], where: str) -> Iterator[Finding]:
    rows, owner = _flat(parts)
    facts = scan(dataset, rows)
    group = groups(facts, lambda places: dataset.block(facts.row[places]))
    owner = owner[np.isin(rows, facts.row)] if len(facts) < len(rows) else owner
    yield from _shared(group, owner, facts.row, list(parts), where, "error", "the same geometry is in two parts")


def _flat(parts: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate(list(parts.values())), np.repeat(np.arange(len(parts)), [len(rows) for rows in parts.values()])


def _shared(
    code: np.ndarray, owner: np.ndarray, rows: np.ndarray, names: list[str], where: str, severity: str, said: str
) -> Iterator[Finding]:
    """One finding per pair of parts that have a value of ``code`` (n,) in common."""
    for one, two in combinations(range(len(names)), 2):
        mine = np.flatnonzero((owner == two) & np.isin(code, code[owner == one]))
        if len(mine):
            like = np.flatnonzero((owner == one) & (code == code[mine[0]]))[0]
            evidence = {
                "parts": f"{names[one]}, {names[two]}",
                "conformations": len(mine),
                "of": int((owner == two).sum()),
                "first": f"{rows[mine[0]]} = {rows[like]}",
            }
            yield Finding(severity, "leakage", said, where, evidence, worst(rows[mine], np.zeros(len(mine))))


def _trajectories(dataset: Dataset, parts: Mapping[str, np.ndarray], where: str, rng: np.random.Generator) -> Iterator[Finding]:
    """Frames next to each other in time that are in different parts, where such neighbours are alike."""
    rows, owner = _flat(parts)
    codes = dataset.molecule_codes()[rows]
    frame = dataset.column("property:frame")[rows] if "frame" in dataset.properties else rows
    order = np.lexsort((frame, codes))
    before, after = order[:-1], order[1:]
    same = codes[before] == codes[after]
    crossing = np.flatnonzero(same & (owner[before] != owner[after]))
    if len(crossing) < 3 or same.sum() < 20:
        return
    chosen = rng.choice(crossing, min(NEIGHBOURS, len(crossing)), replace=False)
    near = _distances(dataset, rows[before[chosen]], rows[after[chosen]])
    # Random frames of the same molecule: the neighbour's place is taken by a frame further along in the same molecule.
    place = np.arange(len(order))
    starts = np.concatenate([[0], np.flatnonzero(~same) + 1])
    start = starts[np.searchsorted(starts, place, side="right") - 1]
    size = np.append(starts[1:], len(order))[np.searchsorted(starts, place, side="right") - 1] - start
    other = order[start[chosen] + rng.integers(0, size[chosen])]
    far = _distances(dataset, rows[before[chosen]], rows[other])
    far = far[far > 0]
    if not len(far) or np.median(near) > RELATED * np.median(far):
        return
    share = len(crossing) / int(same.sum())
    evidence = {
        "neighbours_in_different_parts": len(crossing),
        "share": share,
        "distance_to_neighbour_A": float(np.median(near)),
        "to_random_frame_A": float(np.median(far)),
    }
    severity = "note" if share < BORDERS else "warning"
    said = "frames next to each other in a trajectory are in different parts" + ("; leave a gap" if share < BORDERS else "; split by time")
    yield Finding(severity, "leakage", said, where, evidence, worst(rows[after[chosen]], -near))


def _distances(dataset: Dataset, one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """(k,) Å root mean square difference of interatomic distances between conformations of one molecule."""
    first, second = dataset.block(one), dataset.block(two)
    found = np.full(len(one), np.inf)
    for k in np.flatnonzero((first.counts == second.counts) & (first.counts > 1)):
        a, b = first.system(int(k)).positions, second.system(int(k)).positions
        i, j = np.triu_indices(len(a), 1)
        change = np.linalg.norm(a[i] - a[j], axis=1) - np.linalg.norm(b[i] - b[j], axis=1)
        found[k] = np.sqrt((change**2).mean())
    return found


def between(named: Sequence[tuple[str, Dataset, Facts]]) -> Iterator[Finding]:
    """Geometries that data sets checked together have in common. Of each, what was examined is compared."""
    together = joined([facts for _, _, facts in named])
    owner = np.repeat(np.arange(len(named)), [len(facts) for _, _, facts in named])

    def fetch(places: np.ndarray) -> Block:
        systems: dict[int, System] = {}
        for number, (_, dataset, _) in enumerate(named):
            mine = np.flatnonzero(owner[places] == number)
            block = dataset.block(together.row[places[mine]])
            systems |= {int(place): block.system(k) for k, place in enumerate(mine)}
        return block_of(systems[k] for k in range(len(places)))

    group = groups(together, fetch)
    said = "geometries that are in both data sets: neither can test what was trained on the other"
    names = [name for name, _, _ in named]
    yield from _shared(group, owner, together.row, names, "between data sets", "warning", said)
