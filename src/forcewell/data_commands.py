"""``forcewell data``: the command-line door to sources, import, check and split. No logic of its own."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import cyclopts
from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from forcewell.errors import InputError
from forcewell.split_command import pairs, split_command

app = cyclopts.App(name="data", help="Import data sets into a store, look into it, check it, split it.")


@app.command(name="sources")
def sources_command() -> None:
    """List the data sets that can be imported, with licence, level of theory, files and options.

    Example: forcewell data sources
    """
    from forcewell.sources import SOURCES

    console = Console()
    for name, source in SOURCES.items():
        card = source.CARD
        rows = {
            "licence": card.licence,
            "level": card.level,
            "units": card.units,
            "files": card.files,
            "page": card.page,
            "cite": card.citation,
            **{f"option {key}": meaning for key, meaning in card.options.items()},
        }
        table = Table(title=f"{name}: {card.title}", title_justify="left", title_style="bold", show_header=False, box=None)
        for key, value in rows.items():
            if value:
                table.add_row(key, escape(value))
        console.print(table, "")


@app.command(name="import")
def import_command(
    source: str,
    /,
    *paths: Path,
    out: Path,
    exclude: str = "benchmark",
    option: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    unchecked: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Convert files of a data set into a store; the same command continues an import that was interrupted.

    Example: forcewell data import qm9 qm9_minima.npz --out qm9.fw

    Example: forcewell data import npz water.npz --out water.fw --option energy_unit=kcal/mol --option level=MP2/def2-TZVP

    Parameters
    ----------
    source
        Name of the data set, from `forcewell data sources`.
    paths
        Its files.
    out
        The store to write, e.g. qm9.fw.
    exclude
        Molecules to leave out, found by bond graph: benchmark (aspirin, ethanol, naphthalene, salicylic acid), none, or
        names separated by commas.
    option
        An option of the source as key=value; may be repeated.
    unchecked
        Import also what `forcewell data check` finds an error in, e.g. forces of the wrong sign.
    """
    from forcewell.importing import import_source

    done = import_source(source, paths, out, exclude=exclude, options=pairs(option), progress=True, unchecked=unchecked)
    print(f"{out}: {done.kept} conformations ({done.left_out} left out, {done.resumed} read before) in {done.seconds:.1f} s")


@app.command(name="info")
def info_command(store: Path) -> None:
    """Show what a store holds: counts, elements, fields, levels of theory, reference energies.

    Example: forcewell data info qm9.fw
    """
    from forcewell.store import Store

    opened = Store(store)
    manifest = opened.manifest
    table = Table(show_header=False, box=None)
    table.add_row("conformations", f"{len(opened)}" + ("" if opened.complete else " (import not finished; repeat its command)"))
    table.add_row("left out", str(manifest["left_out"]))
    table.add_row("atoms", str(manifest["atoms"]))
    table.add_row("elements", ", ".join(map(str, opened.elements)))
    for kind in ("fields", "properties"):
        # Escaped, since rich takes [eV] for a style.
        table.add_row(kind, ", ".join(escape(f"{name} [{unit}]") if unit else name for name, unit in manifest[kind].items()))
    table.add_row("levels", ", ".join(opened.levels))
    for level, fit in manifest["references"].items():
        energies = ", ".join(f"{element}: {value:.4f}" for element, value in fit["energies"].items())
        table.add_row(escape(f"references {level} [eV]"), f"{energies} (rank {fit['rank']})")
    table.add_row(
        "source", " ".join([manifest["settings"].get("source", ""), *(name for name, _ in manifest["settings"].get("files", []))])
    )
    table.add_row("fingerprint", opened.fingerprint)
    Console().print(table)


@app.command(name="check")
def check_command(*data: Path, json_file: Annotated[Path | None, Parameter(name="--json")] = None, option: tuple[str, ...] = ()) -> None:
    """Check stores or files: sign and units of forces and energies, minima, overlaps, duplicates, net forces.

    Exits with 2 where an error is found.

    Example: forcewell data check qm9.fw rmd17_ethanol.npz --json findings.json

    Parameters
    ----------
    data
        Stores, extended XYZ files or .npz files.
    json_file
        Also write the findings here.
    option
        For files: an option of the source as key=value, e.g. energy_unit=kcal/mol; may be repeated.
    """
    from forcewell.check import check_path

    if not data:
        raise InputError("nothing to check; give a store or files")
    reports = {str(path): check_path(path, **pairs(option)) for path in data}
    for path, report in reports.items():
        print(f"{path}: {'ok' if report.ok else 'NOT OK'}, {report.conformations} conformations")
        for finding in report.findings:
            print(f"  {finding}")
    if json_file is not None:
        temporary = json_file.with_name(json_file.name + ".tmp")
        temporary.write_text(json.dumps({path: report.as_json() for path, report in reports.items()}, indent=1), encoding="utf-8")
        os.replace(temporary, json_file)
    failed = {path: report.findings[0].what for path, report in reports.items() if not report.ok}
    if failed:
        path, what = next(iter(failed.items()))
        raise InputError(f"{len(failed)} of {len(reports)} not fit for training; {path}: {what}")


app.command(split_command, name="split")
