"""Every question asked of a data set, in one report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from forcewell.doctor.duplicates import duplicate_findings, groups
from forcewell.doctor.energies import energy_findings, unknown_energies
from forcewell.doctor.findings import Finding, Report, report
from forcewell.doctor.forces import force_findings
from forcewell.doctor.labels import label_findings
from forcewell.doctor.leakage import between, leak_findings, split_files
from forcewell.doctor.levels import compare, entries, level_findings
from forcewell.doctor.scan import Facts, rows_to_examine, scan
from forcewell.doctor.structure import structure_findings
from forcewell.doctor.units import unit_findings
from forcewell.errors import InputError
from forcewell.sources import FORMS, SOURCES, layout_of
from forcewell.store import Dataset, MemoryData, Store

EXAMINED = 500_000  # conformations at most: 16 atoms each take about 60 µs and 700 bytes, so 30 s and 360 MB
IMPORTED = 20_000  # at most, after an import
GLANCED = 2_000  # at most, of a file that a run trains on: about a second
UNFINISHED = "its import was not finished; the same `forcewell data import` again brings the rest"


def check(dataset: Dataset, where: str = "data", thorough: bool = True) -> Report:
    """All findings about a data set; of more than ``EXAMINED`` conformations evenly spread stretches are examined.

    thorough False: what an import can afford whatever its size: ``IMPORTED`` conformations, without the search for duplicates.
    Raises InputError where there is no conformation.
    """
    return _examined(dataset, where, thorough)[0]


def _examined(dataset: Dataset, where: str, thorough: bool) -> tuple[Report, Facts]:
    if not len(dataset):  # an import that was stopped before its first shard, for one
        raise InputError(f"{where} holds no conformation")
    limit = EXAMINED if thorough else IMPORTED
    facts = scan(dataset, rows_to_examine(len(dataset), limit))
    findings = [*structure_findings(dataset, facts, where)]
    if facts.asked < len(dataset):
        evidence = {"examined": facts.asked, "conformations": len(dataset)}
        findings.append(Finding("note", "sample", "a sample was examined: evenly spread stretches of neighbours", where, evidence))
    if len(facts):
        findings += force_findings(facts, where)
        findings += unknown_energies(facts, where)
        findings += unit_findings(dataset, facts, where)
        # A wrong unit would make nonsense of these.
        if not any(finding.severity == "error" for finding in findings):
            findings += energy_findings(dataset, facts, where)
            findings += level_findings(dataset, facts, where)
    if thorough and len(facts):
        group = groups(facts, lambda places: dataset.block(facts.row[places]))
        findings += duplicate_findings(facts, group, where)
    return report(len(dataset), findings, facts.asked), facts


def glance(dataset: Dataset, where: str) -> list[Finding]:
    """Errors of sign and unit in at most ``GLANCED`` conformations: what a run can afford on a file that no import has checked."""
    facts = scan(dataset, rows_to_examine(len(dataset), GLANCED))
    found = unit_findings(dataset, facts, where) if len(facts) else ()
    return [finding for finding in found if finding.severity == "error"]


def check_path(path: str | os.PathLike[str], splits: Sequence[Path] = (), **options: Any) -> Report:
    """``check`` of a store or file, with its splits; damage that keeps it from being opened is a finding, too.

    splits: split files to look for leaks in, besides those in a store's folder. options: of the file's source.
    Raises InputError where there is nothing at ``path``.
    """
    return check_paths([path], splits, **options)[str(path)]


def check_paths(paths: Sequence[str | os.PathLike[str]], splits: Sequence[Path] = (), **options: Any) -> dict[str, Report]:
    """``check_path`` of several, by path; what they share and whether their levels of theory fit goes to the last one's report."""
    for path in (*paths, *splits):
        if not Path(path).exists():
            raise InputError(f"{path} does not exist; give {FORMS}")
    reports: dict[str, Report] = {}
    opened: list[tuple[str, Dataset, Facts]] = []
    for path in paths:
        name = str(path)
        try:
            dataset, source = _opened(Path(path), options)
            found, facts = _examined(dataset, name, thorough=True)
            leaks = [leak for file in (*split_files(Path(path)), *splits) for leak in leak_findings(dataset, file)]
            begun = [Finding("warning", "file", UNFINISHED, name)] if isinstance(dataset, Store) and not dataset.complete else []
            labels = label_findings(dataset, name, source, Path(path), options)
            reports[name] = report(found.conformations, [*found.findings, *labels, *leaks, *begun], found.examined)
            opened.append((name, dataset, facts))
        except InputError as error:
            reports[name] = report(0, [Finding("error", "file", str(error), name)], 0)
    if len(opened) > 1:
        last = reports[name := opened[-1][0]]
        everything = [entry for one in opened for entry in entries(*one)]
        reports[name] = report(last.conformations, [*last.findings, *between(opened), *compare(everything)], last.examined)
    return reports


def _opened(path: Path, options: dict[str, Any]) -> tuple[Dataset, str]:
    """A store, or a file's conformations as they are: ``open_data`` would refuse those that the check is to name.

    The second is the source that read the file, "" for a store.
    """
    if not path.is_dir():
        source = layout_of(path, options)
        return MemoryData(SOURCES[source].read([path], **options), name=str(path)), source
    if options:
        raise InputError(f"{path} is a store; it takes no option ({', '.join(options)})")
    return Store(path), ""
