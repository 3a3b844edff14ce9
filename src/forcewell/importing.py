"""Importing a source into a store: converted, checked, without the benchmark molecules, and resumable after a kill."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forcewell.bonds import excluded, resolve
from forcewell.doctor import check, label_findings
from forcewell.errors import InputError, nearest
from forcewell.sources import SOURCES, files_of, refuse_trajectory
from forcewell.sources.card import Paths, count_conformations
from forcewell.sources.mapping import comma_separated
from forcewell.store import Store, StoreWriter
from forcewell.store.shards import MANIFEST
from forcewell.system import Block


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did. left_out: conformations excluded by molecule. resumed: conformations that were already there.

    warnings: what the check of a sample found that does not forbid training, and labels that are missing.
    """

    store: Store
    kept: int
    left_out: int
    resumed: int
    seconds: float
    warnings: tuple[str, ...] = ()


def import_source(
    source: str,
    paths: Paths,
    out: str | Path,
    *,
    exclude: str | Sequence[str] = "benchmark",
    options: Mapping[str, Any] | None = None,
    shard_bytes: int | None = None,
    progress: bool = False,
    unchecked: bool = False,
) -> Imported:
    """Reads ``paths`` with a source and writes the store ``out``; an interrupted import of the same settings is continued.

    exclude: "benchmark" (aspirin, ethanol, naphthalene, salicylic acid), "all", "none", or names. options: of the source.
    shard_bytes: a fixed shard size instead of the growing one. progress: show a bar with throughput and time left.
    unchecked: keep data in which ``check`` finds an error, such as forces that are gradients or in another unit.

    Raises InputError for unusable data (NaN positions, unknown elements, overlapping atoms), for a store that is complete
    or was begun differently, and when nothing is left after the exclusion. A store begun by a call that fails on bad
    input is removed; one that was there before stays as it was.
    """
    if source not in SOURCES:
        raise InputError(f"unknown source {source!r}{nearest(source, SOURCES)} (known: {', '.join(SOURCES)})")
    files = [Path(path) for path in paths]
    for file in files:
        if file.is_dir():
            inside = files_of(file)
            raise InputError(f"{file} is a folder; give its files{f', as in {inside}' if inside else ''}")
        refuse_trajectory(file)
        if not file.is_file():
            raise InputError(f"{file} does not exist; give the data set's files (see `forcewell data sources`)")
    if not files:
        raise InputError(f"no file given for source {source!r}: {SOURCES[source].CARD.files}")
    names, out = resolve(exclude), Path(out)
    settings = _settings(source, files, names, options or {})
    began = time.perf_counter()
    fresh = not (out / MANIFEST).is_file()
    writer = (StoreWriter if fresh else StoreWriter.resume)(out, settings=settings, shard_bytes=shard_bytes)
    resumed = writer.consumed
    try:
        bar = _bar(source, files) if progress else contextlib.nullcontext(lambda count: None)
        left_out = _copy(_read(source, files, options or {}), writer, _filter(names, SOURCES[source].CARD.isomers), bar)
        if not writer.conformations:
            raise InputError(_nothing_left(source, left_out, names))
        writer.flush()
        # Before the store is marked complete.
        warnings = () if unchecked else _warnings(Store(out), files, source, options or {})
        store = writer.finish()
    except InputError:
        if fresh:
            shutil.rmtree(out)
        raise
    finally:
        writer.close()
    return Imported(store, len(store), int(store.manifest["left_out"]), resumed, time.perf_counter() - began, warnings)


def _warnings(store: Store, files: Sequence[Path], source: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    """What the cheap part of the check warns of. Raises InputError with the first error that it finds."""
    where = ", ".join(str(file) for file in files)
    findings = [*check(store, where, thorough=False).findings, *label_findings(store, where, source, files[0], options)]
    for finding in findings:
        if finding.severity == "error":
            raise InputError(f"{str(finding).removeprefix('error: ')}; nothing was imported (--unchecked imports it all the same)")
    return tuple(str(finding) for finding in findings if finding.severity == "warning" or finding.question == "labels")


def _settings(source: str, files: Sequence[Path], exclude: Sequence[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the store's content; files by name and size, so that a moved folder can still be resumed."""
    card = dataclasses.asdict(SOURCES[source].CARD)
    units = card.pop("properties") | comma_separated(str(options.get("property_units", "")), "property_units")
    atoms = getattr(SOURCES[source], "isolated_atoms", None)
    references = {"isolated_atoms": atoms(files)} if atoms else {}
    return references | {
        "source": source,
        "files": [[file.name, file.stat().st_size] for file in files],
        "options": {key: str(value) for key, value in options.items()},
        "exclude": list(exclude),
        "card": {key: value for key, value in card.items() if isinstance(value, str) and value},
        "property_units": units,
    }


def _filter(names: Sequence[str], isomers: bool) -> Callable[[Block], np.ndarray] | None:
    """What tells which conformations of a Block to leave out; None for none.

    isomers: identifiers may stand for several bond graphs, so that every conformation is looked at, not one per identifier.
    """
    return (lambda block: excluded(block, names, each=isomers)) if names else None


def _read(source: str, files: Sequence[Path], options: Mapping[str, Any]) -> Iterator[tuple[Block, str, int]]:
    """Blocks, with what a message calls their origin, and the number of their first conformation in it.

    A user's own files are read one by one, so that a message can name the file. Data sets may need all of theirs at once, and leave
    conformations out: their numbers are those of what was read.
    """
    reader = SOURCES[source]
    own = "map" in reader.CARD.options
    for group in [[file] for file in files] if own else [files]:
        seen = 0
        for block in reader.read(group, **options):
            yield block, f"{group[0]}: " if own else "", seen
            seen += len(block)


def _copy(blocks: Iterator[tuple[Block, str, int]], writer: StoreWriter, leave_out: Callable[[Block], np.ndarray] | None, bar: Any) -> int:
    """Appends what is new and allowed; returns how many conformations were left out by this call. bar: gives ``advance``."""
    skip, left_out = writer.consumed, 0
    with bar as advance:
        for block, origin, first in blocks:
            whole = len(block)
            if skip >= whole:
                skip -= whole
                advance(whole)
                continue
            if skip:  # the source's blocks were cut differently when the import began
                block = block.take(np.arange(skip, whole))
                advance(skip)
                skip = 0
            try:
                block.validate(first + whole - len(block))
            except InputError as error:
                raise InputError(f"{origin}{error}") from None
            mask = leave_out(block) if leave_out else np.zeros(0, dtype=bool)
            kept = block.take(~mask) if mask.any() else block
            left_out += len(block) - len(kept)
            writer.append(kept, consumed=len(block))
            advance(len(block))
    return left_out


def _nothing_left(source: str, left_out: int, names: Sequence[str]) -> str:
    if not left_out:
        return f"source {source!r} gave no conformation"
    which = ", ".join(names)
    return (
        f"nothing is left: all {left_out} conformations are of excluded molecules ({which}), which pre-training data must not contain; "
        "to import them as a benchmark, for fine-tuning and evaluation, add --exclude none"
    )


@contextlib.contextmanager
def _bar(source: str, files: Sequence[Path]) -> Iterator[Any]:
    """A progress bar with throughput and time left; gives ``advance(conformations)``."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    count = getattr(SOURCES[source], "count", count_conformations)
    counts = [count(file) for file in files]
    total = None if None in counts else sum(count or 0 for count in counts)
    speed = TextColumn("{task.fields[speed]}")
    with Progress(TextColumn("importing"), BarColumn(), MofNCompleteColumn(), speed, TextColumn("left"), TimeRemainingColumn()) as progress:
        task = progress.add_task("", total=total, speed="")
        began, done = time.perf_counter(), 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress.update(task, advance=count, speed=f"{done / max(time.perf_counter() - began, 1e-9):,.0f} conformations/s")

        yield advance
