"""The data card of a generated store: what is in it, what it cost, what the doctor says, in Markdown."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from forcewell.doctor import check
from forcewell.engines.base import mover_of
from forcewell.generate.journal import JOURNAL
from forcewell.store import Store

ROWS = 8192  # conformations read at a time


def data_card(store: Store, title: str) -> str:
    """Markdown: counts by kind and element, temperatures, distribution of forces, energies, costs, verdict of the doctor, SHA-256."""
    facts = _facts(store)
    kinds = np.array(store.sources, dtype=object)[store.column("source")]
    parts = {
        "What is in it": [*_by_kind(store, kinds), "", *_by_element(facts), "", *_by_temperature(store, kinds)],
        "Forces": _by_force(kinds, facts),
        "Energies": _energies(store),
        "Cost": _cost(store.path),
        "Doctor's verdict": _verdict(store),
        "Files": _files(store),
    }
    lines = [f"# {title}", "", _summary(store), ""]
    for heading, text in parts.items():
        lines += [f"## {heading}", "", *text, ""]
    return "\n".join(lines)


def _summary(store: Store) -> str:
    manifest = store.manifest
    molecules = len(np.unique(store.column("molecule").astype(str)))
    engines = "; ".join(_engine(text) for text in store.engines if text)
    left = ", ".join(manifest["settings"].get("campaign", {}).get("exclude", [])) or "nothing"
    return (
        f"{len(store):,} conformations of {molecules:,} molecules and pairs, {manifest['atoms']:,} atoms, {', '.join(store.levels)} "
        f"({engines}). Left out by bond graph: {left}."
    )


def _engine(text: str) -> str:
    entry, mover = json.loads(text), mover_of(text)
    settings = ", ".join(f"{key} {value}" for key, value in entry["settings"].items())
    said = f"{entry['version']}, {settings}" if settings else entry["version"]
    return f"{said}, moved by {mover['level']}" if mover and mover["engine"] != entry["engine"] else said


def _facts(store: Store) -> dict[str, np.ndarray]:
    """(n,) each: largest force [eV/Å], sum of squared components; (119,) each: conformations with the element, atoms of it."""
    largest, squared = [], []
    frames, atoms = np.zeros(119, dtype=np.int64), np.zeros(119, dtype=np.int64)
    for start in range(0, len(store), ROWS):
        block = store.block(np.arange(start, min(start + ROWS, len(store))))
        size = (block.arrays["forces"].astype(np.float64) ** 2).sum(axis=1)
        largest.append(np.sqrt(np.maximum.reduceat(size, block.offsets[:-1])))
        squared.append(np.add.reduceat(size, block.offsets[:-1]))
        atoms += np.bincount(block.arrays["numbers"], minlength=119)
        owner = np.repeat(np.arange(len(block)), block.counts)
        frames += np.bincount(np.unique(np.stack([owner, block.arrays["numbers"]]), axis=1)[1], minlength=119)
    return {"largest": np.concatenate(largest), "squared": np.concatenate(squared), "frames": frames, "atoms": atoms}


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    body = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *body]


def _by_kind(store: Store, kinds: np.ndarray) -> list[str]:
    molecule = store.column("molecule").astype(str)
    rows = []
    for kind in store.sources:
        mine = kinds == kind
        counts = store.counts[mine]
        minima = int((store.column("equilibrium")[mine] == 1).sum())
        spread = f"{counts.min()}-{counts.max()}, mean {counts.mean():.1f}"
        rows.append((kind, f"{mine.sum():,}", f"{len(np.unique(molecule[mine])):,}", spread, f"{minima:,}"))
    return _table(("kind", "conformations", "molecules or pairs", "atoms", "flagged equilibrium"), rows)


def _by_element(facts: dict[str, np.ndarray]) -> list[str]:
    from ase.data import chemical_symbols

    present = np.flatnonzero(facts["atoms"])
    rows = [(chemical_symbols[z], f"{facts['frames'][z]:,}", f"{facts['atoms'][z]:,}") for z in present]
    return _table(("element", "conformations with it", "atoms"), rows)


def _by_temperature(store: Store, kinds: np.ndarray) -> list[str]:
    if "temperature" not in store.properties:
        return ["No temperatures: nothing was sampled at one."]
    temperature = store.column("property:temperature")
    pairs = Counter(zip(kinds.tolist(), temperature.tolist(), strict=True))
    rows = [(kind, f"{t:g}", f"{n:,}") for (kind, t), n in sorted(pairs.items()) if np.isfinite(t)]
    return _table(("kind", "temperature (K)", "conformations"), rows)


def _by_force(kinds: np.ndarray, facts: dict[str, np.ndarray]) -> list[str]:
    rows = []
    for kind in dict.fromkeys(kinds.tolist()):
        largest = facts["largest"][kinds == kind]
        points = np.percentile(largest, [50, 90, 99, 100])
        rows.append((kind, *(f"{value:.3g}" for value in points)))
    points = np.percentile(facts["largest"], [50, 90, 99, 100])
    rms = float(np.sqrt(facts["squared"].sum() / (3 * facts["atoms"].sum())))
    head = ("kind", "median", "90 %", "99 %", "largest")
    said = f"Largest force on any atom of a conformation, eV/Å. Root mean square of all components: {rms:.3g} eV/Å."
    return [said, "", *_table(head, [*rows, ("all", *(f"{value:.3g}" for value in points))])]


def _energies(store: Store) -> list[str]:
    lines = []
    for level, fit in store.manifest["references"].items():
        spread = fit.get("per_atom", {}).get("after", {}).get("spread", float("nan"))
        elements = ", ".join(f"{element}: {value:.3f}" for element, value in fit["energies"].items())
        lines.append(
            f"{level}: least-squares reference energies by atomic number, eV: {elements}; after them {spread:.3f} eV per atom remain."
        )
    return lines


def _cost(folder: Path) -> list[str]:
    """From the campaign's journal: jobs, frames and processor time by kind of job, what failed and which frames were dropped, and why."""
    file = folder / JOURNAL
    if not file.is_file():
        return ["Not known: no campaign made this store."]
    lines = [json.loads(text) for text in file.read_text(encoding="utf-8").splitlines()]
    rows = []
    for kind in dict.fromkeys(line["kind"] for line in lines):
        mine = [line for line in lines if line["kind"] == kind]
        seconds, frames = sum(line["cpu_seconds"] for line in mine), sum(line["frames"] for line in mine)
        done = sum(line["status"] == "done" for line in mine)
        rows.append((kind, done, len(mine) - done, f"{frames:,}", f"{seconds:,.0f}", f"{1e3 * seconds / max(1, frames):.1f}"))
    reasons = Counter(line["reason"] for line in lines if line["status"] == "failed")
    dropped = Counter(reason for line in lines for reason, names in line.get("left_out", {}).items() for _ in names)
    failures = [f"- {number} failed: {reason}" for reason, number in reasons.most_common()]
    failures += [f"- {number} frames dropped: {reason}" for reason, number in dropped.most_common()]
    head = ("jobs", "done", "failed", "conformations", "CPU seconds", "ms per conformation")
    return [*_table(head, rows), *([""] if failures else []), *failures]


def _verdict(store: Store) -> list[str]:
    report = check(store, store.path.name)
    counted = Counter(finding.severity for finding in report.findings)
    said = "fit for training" if report.ok else "NOT fit for training"
    first = f"`forcewell data check`: {said}; {counted['error']} errors, {counted['warning']} warnings, {counted['note']} notes."
    return [first, "", *(f"- {finding}" for finding in report.findings if finding.severity != "note")]


def _files(store: Store) -> list[str]:
    rows = [
        (entry["file"], f"{entry['conformations']:,}", f"{entry['bytes']:,}", f"`{entry['sha256']}`") for entry in store.manifest["shards"]
    ]
    return [f"Fingerprint of the whole: `{store.fingerprint}`.", "", *_table(("file", "conformations", "bytes", "SHA-256"), rows)]
