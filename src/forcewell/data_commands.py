"""``forcewell data``: the command-line door to sources, import, check and split. No logic of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import cyclopts
from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from forcewell.errors import InputError, nearest
from forcewell.files import write_bytes
from forcewell.split_command import pairs, split_command

app = cyclopts.App(name="data", help="Import data sets into a store, look into it, check it, split it.")


@app.command(name="sources")
def sources_command(name: str | None = None, /) -> None:
    """List the data sets that can be imported: size, level of theory, what to download from where, files, options.

    Example: forcewell data sources

    Example: forcewell data sources spice

    Parameters
    ----------
    name
        Show everything about this one; without it, a line or two about each.
    """
    from forcewell.sources import SOURCES

    if name is None:
        for source in SOURCES.values():
            card = source.CARD
            size = ", ".join(part for part in (card.conformations and f"{card.conformations} conformations", card.size, card.level) if part)
            lines = (card.title, size, card.download or card.page or card.files)
            Console(highlight=False, soft_wrap=True).print(f"[bold]{card.name}[/bold]", *(escape(line) for line in lines), "", sep="\n  ")
        print("All about one, with files, licence and options: forcewell data sources NAME")
        return
    if name not in SOURCES:
        raise InputError(f"unknown source {name!r}{nearest(name, SOURCES)} (known: {', '.join(SOURCES)})")
    card = SOURCES[name].CARD
    rows = {
        "conformations": card.conformations,
        "size": card.size,
        "download": card.download,
        "page": card.page,
        "files": card.files,
        "licence": card.licence,
        "level": card.level,
        "units": card.units,
        "cite": card.citation,
        **{f"property {key}": meaning for key, meaning in card.properties.items()},
        **{f"option {key}": meaning for key, meaning in card.options.items()},
    }
    table = Table(title=f"{name}: {card.title}", title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in rows.items():
        if value:
            table.add_row(escape(key), escape(value))
    Console().print(table)


@app.command(name="import")
def import_command(
    source: str,
    /,
    *paths: Path,
    out: Path,
    exclude: str = "benchmark",
    option: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    map_: Annotated[tuple[str, ...], Parameter(name="--map", negative=())] = (),
    unit: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    unchecked: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Convert files of a data set into a store; the same command continues an import that was interrupted.

    Example: forcewell data import qm9 qm9_minima.npz --out qm9.fw

    Example: forcewell data import spice SPICE-2.0.1.hdf5 --out spice.fw

    Example: forcewell data import hdf5 mine.h5 --map geometry=positions --map gradient=-forces --unit energy=Hartree --out mine.fw

    Parameters
    ----------
    source
        Name of the data set, from `forcewell data sources`.
    paths
        Its files.
    out
        The store to write, e.g. qm9.fw.
    exclude
        Molecules to leave out, found by bond graph: benchmark (aspirin, ethanol, naphthalene, salicylic acid), all
        (those and five more that generated data never contain), none, or names separated by commas.
    option
        An option of the source as key=value; may be repeated.
    map_
        For extxyz, npz, hdf5, asedb, aselmdb: the file's name for a field as key=field, with a minus sign for gradients
        (key=-forces), or property:NAME for any other number; or a YAML file with map: and unit:. May be repeated.
    unit
        With them: a field's unit, e.g. energy=Hartree, forces=Hartree/bohr, positions=bohr, stress=GPa; may be repeated.
    unchecked
        Import also what `forcewell data check` finds an error in, e.g. forces of the wrong sign.
    """
    from forcewell.importing import import_source
    from forcewell.sources.mapping import as_options, stress_unit

    options = as_options(map_, unit) | pairs(option)
    done = import_source(source, paths, out, exclude=exclude, options=options, progress=True, unchecked=unchecked)
    rate = (done.kept + done.left_out - done.resumed) / max(done.seconds, 1e-9)
    print(
        f"{out}: {done.kept} conformations ({done.left_out} left out, {done.resumed} read before) "
        f"in {done.seconds:.1f} s, {rate:,.0f} conformations/s"
    )
    if "stress" in done.store.fields:
        others = "others: --unit stress=UNIT, --map KEY=-stress"
        print(f"stress is taken to be in {stress_unit(options)}, positive under tension ({others}); a virial, in the unit of energies")
    for warning in done.warnings:
        print(warning)


@app.command(name="info")
def info_command(store: Path) -> None:
    """Show what a store holds: counts, elements, fields, levels of theory, reference energies.

    Example: forcewell data info qm9.fw
    """
    from forcewell.store import Store

    if store.is_file():
        raise InputError(f"{store} is a file; data info shows what a store holds, and forcewell data check {store} looks into a file")
    opened = Store(store)
    manifest = opened.manifest
    table = Table(show_header=False, box=None)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")  # a fingerprint that is cut short cannot be compared
    table.add_row("conformations", f"{len(opened)}" + ("" if opened.complete else " (not finished; repeat the command that makes it)"))
    table.add_row("left out", str(manifest["left_out"]))
    table.add_row("atoms", str(manifest["atoms"]))
    if opened.elements:
        table.add_row("elements", ", ".join(map(str, opened.elements)))
    for kind in filter(manifest.get, ("fields", "properties")):
        # Escaped, since rich takes [eV] for a style.
        table.add_row(kind, ", ".join(escape(f"{name} [{unit}]") if unit else name for name, unit in manifest[kind].items()))
    if opened.levels:
        table.add_row("levels", ", ".join(opened.levels))
    for engine in filter(None, opened.engines):
        table.add_row("engine", escape(engine))
    for level, fit in manifest["references"].items():
        energies = ", ".join(f"{element}: {value:.4f}" for element, value in fit["energies"].items())
        fitted = f"rank {fit['rank']} of {len(fit['energies'])}, minimum norm; {fit['conformations']} energies"
        table.add_row(escape(f"references {level} [eV]"), f"{energies} ({'isolated atoms' if fit.get('isolated') else fitted})")
        for when, values in fit.get("per_atom", {}).items():  # stores made before 0.2 lack them
            table.add_row(f"  {when} them", escape(f"{values['mean']:.4f} ± {values['spread']:.4f} eV per atom"))
    files = [name for name, _ in manifest["settings"].get("files", [])]
    source = manifest["settings"].get("source") or escape(", ".join(filter(None, opened.sources)))
    if source or files:
        table.add_row("source", " ".join([source, *files]))
    table.add_row("fingerprint", opened.fingerprint)
    Console().print(table)


@app.command(name="check")
def check_command(
    *data: Path,
    json_file: Annotated[Path | None, Parameter(name="--json")] = None,
    split: Annotated[tuple[Path, ...], Parameter(negative=())] = (),
    option: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    map_: Annotated[tuple[str, ...], Parameter(name="--map", negative=())] = (),
    unit: Annotated[tuple[str, ...], Parameter(negative=())] = (),
) -> None:
    """Find what is wrong with data before a model is trained on them, and name it with conformations and numbers.

    Gradients taken for forces; wrong units of energy, force or length; net forces and torques; duplicates; outliers; electrons
    that do not fit charge and spin; broken geometries; minima with forces; mixed levels of theory; leaks between the parts of a
    split and between data sets checked together. Exits with 2 where an error is found; warnings and notes do not matter to that.

    Example: forcewell data check qm9.fw rmd17_ethanol.npz --json findings.json

    Example: forcewell data check mine.h5 --map geometry=positions --unit energy=kcal/mol

    Parameters
    ----------
    data
        Each a store, or a file: extended XYZ (.xyz, .extxyz), .npz, HDF5 (.h5, .hdf5) or an ASE database (.db, .aselmdb).
    json_file
        Also write the findings here.
    split
        A split of the data to look for leaks in, besides those in a store's folder; may be repeated.
    option
        For files: an option of the source as key=value, e.g. smiles=elements.json; may be repeated.
    map_
        For files: the file's name for a field as key=field, as in `forcewell data import`; may be repeated.
    unit
        For files: a field's unit, e.g. energy=kcal/mol; may be repeated.
    """
    from forcewell.doctor import check_paths
    from forcewell.doctor.terminal import show
    from forcewell.sources.mapping import as_options

    if not data:
        raise InputError("nothing to check; give a store or files")
    if split and len(data) > 1:
        raise InputError("--split belongs to one data set; check that one by itself")
    reports = check_paths(data, split, **(as_options(map_, unit) | pairs(option)))
    show(reports, Console(highlight=False))
    if json_file is not None:
        write_bytes(json_file, json.dumps({path: report.as_json() for path, report in reports.items()}, indent=1).encode())
    failed = {path: report.findings[0] for path, report in reports.items() if not report.ok}
    if failed:
        path, first = next(iter(failed.items()))
        if first.question == "file":  # it says which
            raise InputError(f"{len(failed)} of {len(reports)} not fit for training; {first.what}")
        which = f" (conformation {first.conformations[0]})" if first.conformations else ""
        raise InputError(f"{len(failed)} of {len(reports)} not fit for training; {path}: {first.what}{which}")


app.command(split_command, name="split")
