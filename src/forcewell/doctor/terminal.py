"""A report as a person reads it in the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from forcewell.doctor.findings import Report

STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


def show(reports: Mapping[str, Report], console: Console) -> None:
    """Prints each data set's verdict and its findings, the gravest first."""
    for name, report in reports.items():
        verdict = "[green]ok[/]" if report.ok else "[bold red]NOT OK[/]"
        sample = "" if report.examined == report.conformations else f", {report.examined} of them examined"
        console.print(f"[bold]{escape(name)}[/]: {verdict}, {report.conformations} conformations{sample}", soft_wrap=True)
        table = Table(box=None, show_header=False, padding=(0, 1))
        for column in ({"no_wrap": True}, {"no_wrap": True}, {"overflow": "fold"}):
            table.add_column(**column)  # type: ignore[arg-type]
        for finding in report.findings:
            style = STYLES[finding.severity]
            # The path is in the heading; a finding's own place is what follows it.
            place = finding.where.removeprefix(name).strip()
            said = escape(f"{place}: {finding.what}" if place else finding.what)
            numbers = f"\n[dim]{escape(finding.numbers)}[/]" if finding.numbers else ""
            table.add_row(f"[{style}]{finding.severity}[/]", escape(finding.question), said + numbers)
        console.print(table)
