"""Are there energies and forces at all, or does the file call them something that is not read?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from forcewell.doctor.findings import Finding
from forcewell.sources.unread import missing_labels
from forcewell.store import Dataset


def label_findings(dataset: Dataset, where: str, source: str, path: Path, options: Mapping[str, Any]) -> Iterator[Finding]:
    """A warning where energies or forces are missing that the file could hold under other names, a note where it has energies alone.

    source, path, options: what was read. Minima and data with other properties may do without both.
    """
    minima = "equilibrium" in dataset.fields and bool((dataset.column("equilibrium") == 1).any())
    said = missing_labels(source, path, dataset.fields, options, needed=not minima and not dataset.properties)
    if said:
        yield Finding("warning", "labels", said, where)
    elif "energy" in dataset.fields and "forces" not in dataset.fields and not minima:
        yield Finding("note", "labels", "no forces: these data teach energies alone (objectives=joint)", where)
