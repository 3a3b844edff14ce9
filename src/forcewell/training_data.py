"""From a run's configuration to its training and validation sources and its objectives."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np

from forcewell import bonds, leakage, split
from forcewell.bundled import bundled_set
from forcewell.config import DataConfig, RunConfig
from forcewell.display import say
from forcewell.doctor import glance
from forcewell.errors import InputError, nearest
from forcewell.importing import import_source
from forcewell.loader import Source
from forcewell.objectives import PRESETS, FractionalDenoising, Objective, PropertyMatching, build
from forcewell.overlap import geometry_hashes
from forcewell.store import Dataset, MemoryData, Store, open_data
from forcewell.system import Block
from forcewell.teaching import LOOKED_AT, applies, labels_left, minima_are_open, serves


def bundled(name: str, folder: Path) -> Path:
    """The store of a bundled data set in ``folder``, imported there the first time.

    The four benchmark molecules are left out, except where the data set is one's own trajectory.
    """
    source, files, benchmark = bundled_set(name)
    store = folder / f"{name}.fw"
    if not ((store / "manifest.json").is_file() and Store(store).complete):
        with resources.as_file(resources.files("forcewell.bundled")) as place:
            import_source(source, [place / file for file in files], store, exclude="none" if benchmark else "benchmark")
    return store


def open_source(path: str, folder: Path) -> Dataset:
    """A data set by path, or ``bundled:NAME``."""
    return open_data(bundled(path.removeprefix("bundled:"), folder) if path.startswith("bundled:") else path)


def gather(
    config: RunConfig, folder: Path, exclude: str, quiet: bool = False
) -> tuple[tuple[Objective, ...], list[Source], list[Source], list[str]]:
    """Objectives, training sources, validation sources and levels of theory of a run.

    exclude "benchmark" leaves the four benchmark molecules out of every source. Raises InputError for data that
    cannot be used with the objectives.
    """
    datasets = [_open(entry, folder, config.level) for entry in config.data]
    own = None
    if config.validation.path is not None:
        if any(entry.objectives is not None for entry in config.data):
            raise InputError("validation.path cannot be combined with data.*.objectives: what would it be judged by? Leave one out")
        own = _open(DataConfig(path=config.validation.path), folder, config.level)
    if not quiet:
        files = [(entry.path, dataset) for entry, dataset in zip(config.data, datasets, strict=True)]
        warn_of_units(files if own is None else [*files, (str(config.validation.path), own)])
    names = [Path(entry.path.removeprefix("bundled:")).stem for entry in config.data]
    objectives = build(config.objectives, _restrictions(config))
    levels: list[str] = []
    for dataset in datasets:
        levels += [level for level in dataset.levels if level not in levels]
    if own is not None:  # in front: the last level is the one that predictions are made at
        levels = [level for level in own.levels if level not in levels] + levels
    training, validation = [], []
    for number, (entry, name, dataset) in enumerate(zip(config.data, names, datasets, strict=True)):
        held, kept = _hold_out(config, entry, dataset, _usable(dataset, entry, name, exclude, quiet))
        kept = _share(kept, entry.fraction, config.seed, number)
        copies = _copies(dataset, objectives, number)
        serves(dataset, kept, [objective for objective in objectives if applies(objective, number)], name, entry.path)
        order = np.array([levels.index(level) for level in dataset.levels], dtype=np.int64)
        extras = _extras(dataset, objectives)
        training.append(Source(name, dataset, kept, _weight(config, entry, len(kept)), copies, order, *extras))
        # Also where nothing is held out: a source's place in the list is its number, which objectives may be limited to.
        validation.append(Source(name, dataset, held, entry.weight, copies, order, *extras))
        if not quiet:
            stated = ", ".join(level or "level of theory not stated" for level in dataset.levels)
            held_out = "" if own is not None else f", {len(held)} to validate on"
            say(f"{name}: {len(kept)} conformations to train on{_labelled(dataset, kept)}{held_out}; {stated}")
    labels_left(objectives, training)
    if own is not None:
        validation = [_own_validation(config, own, levels, objectives)]
        if not quiet:
            _say_validation(config, validation[0], datasets)
    if not any(len(source.rows) for source in validation):
        raise InputError("no conformations to validate on; raise validation.fraction or give validation.path")
    for sources in (training, validation):
        minima_are_open(objectives, sources)
    return objectives, training, validation, levels


def _labelled(dataset: Dataset, rows: np.ndarray) -> str:
    """In words, how many of the conformations have labels, where that is not all of them (of the first ones, of a large data set)."""
    some = rows[:LOOKED_AT]
    told = []
    for name in ("forces", "energy"):
        if name in dataset.fields and len(some):
            block = dataset.block(some)
            known = np.isfinite(block.arrays[name])
            if name == "forces":
                known = np.logical_and.reduceat(known.all(axis=1), block.offsets[:-1])
            if not known.all():
                told.append(f"{int(known.sum())} of {'the first ' if len(some) < len(rows) else ''}{len(some)} with {name}")
    return f" ({', '.join(told)})" if told else ""


def _say_validation(config: RunConfig, source: Source, datasets: Sequence[Dataset]) -> None:
    """How many conformations there are, and whether some of them are trained on."""
    hashes = geometry_hashes(source.data.block(source.rows))
    trained = np.concatenate([geometry_hashes(dataset.block(np.arange(min(len(dataset), LOOKED_AT)))) for dataset in datasets])
    shared = int(np.isin(hashes, trained).sum())
    say(
        f"{config.validation.path}: {len(source.rows)} conformations to validate on"
        + (f", {shared} of them in the training data" if shared else "")
    )


def _weight(config: RunConfig, entry: DataConfig, rows: int) -> float:
    """Sampling weight of a source: its own, times a power of its size where a temperature is given."""
    temperature = config.sampling.temperature
    return entry.weight if temperature is None else entry.weight * rows ** (1 / temperature)


def _open(entry: DataConfig, folder: Path, level: str | None) -> Dataset:
    dataset = open_source(entry.path, folder)
    if isinstance(dataset, Store) and not dataset.complete:
        say(f"{entry.path}: its import was not finished; the same `forcewell data import` again brings the rest")
    given = entry.level or level
    if given is None or list(dataset.levels) != [""]:
        if entry.level is not None and list(dataset.levels) != [entry.level]:
            raise InputError(f"{entry.path} states its level of theory ({', '.join(dataset.levels)}); leave its 'level' out")
        return dataset
    dataset.levels = [given]  # of this reading of it alone; nothing is copied or written
    return dataset


def warn_of_units(files: Sequence[tuple[str, Dataset]]) -> None:
    """A line for every error of sign or unit in files; stores were checked when they were imported."""
    for path, dataset in files:
        if isinstance(dataset, MemoryData):
            for finding in glance(dataset, path):
                say(f"warning: {path}: {finding.what}; forcewell data check {path} says more, data import with --unit or --map mends it")


def _restrictions(config: RunConfig) -> dict[str, list[int]] | None:
    """For each objective, the sources it is limited to; None where no source limits anything."""
    if all(entry.objectives is None for entry in config.data):
        return None
    names = list(PRESETS.get(config.objectives, {}) if isinstance(config.objectives, str) else config.objectives)
    for entry in config.data:
        for wanted in entry.objectives or []:
            if wanted not in names:
                raise InputError(f"{entry.path}: the run has no objective {wanted!r}{nearest(wanted, names)} (it has: {', '.join(names)})")
    return {name: [n for n, entry in enumerate(config.data) if entry.objectives is None or name in entry.objectives] for name in names}


def _usable(dataset: Dataset, entry: DataConfig, name: str, exclude: str, quiet: bool) -> np.ndarray:
    """(len(dataset),) True for the rows that a run may use."""
    usable = np.ones(len(dataset), dtype=bool)
    if exclude == "benchmark" and not _import_left_out(dataset, bonds.resolve("benchmark")):
        barred = _benchmark_rows(dataset)
        if barred.any() and not quiet:
            say(f"{name}: {int(barred.sum())} conformations of benchmark molecules left out")
        usable &= ~barred
    if entry.maximum is not None:
        usable[np.flatnonzero(usable)[entry.maximum :]] = False
    if not usable.any():
        raise InputError(f"{entry.path}: no conformations are left to train on; benchmark molecules are left out of pre-training")
    return usable


def _import_left_out(dataset: Dataset, molecules: Sequence[str]) -> bool:
    """Whether the manifest says that the import, or the campaign, looked for these molecules: bond graphs of millions need not be
    made again."""
    if not isinstance(dataset, Store):
        return False
    settings = dataset.manifest["settings"]
    return set(molecules) <= set(settings.get("exclude", settings.get("campaign", {}).get("exclude", [])))


def _benchmark_rows(dataset: Dataset) -> np.ndarray:
    """(len(dataset),) True for conformations of a benchmark molecule, judged by each molecule's first one, and by every one where the
    identifier is but a formula (ANI-1x, Transition1x), which isomers share."""
    codes = leakage.identified(dataset)
    first = leakage.first_rows(codes)
    names = bonds.resolve("benchmark")
    found, shared = [], []
    for rows in np.array_split(first, len(first) // 4096 + 1):
        block = dataset.block(rows)
        found.append(bonds.excluded(block, names))
        shared.append(bonds.could_contain(block, names) & _named_by_formula(block))
    barred = np.concatenate(found)[codes]
    isomers = np.flatnonzero(np.concatenate(shared)[codes])
    for rows in np.array_split(isomers, len(isomers) // 4096 + 1):
        barred[rows] |= bonds.excluded(dataset.block(rows), names, each=True)
    return barred


def _named_by_formula(block: Block) -> np.ndarray:
    """(F,) True where the part of the molecule identifier after the last slash is a formula, such as C2H6O1."""
    assert block.molecule is not None
    return np.array([re.fullmatch(r"([A-Z][a-z]?\d*)+", str(name).rpartition("/")[2]) is not None for name in block.molecule], dtype=bool)


def _hold_out(config: RunConfig, entry: DataConfig, dataset: Dataset, usable: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Validation rows (at most ``maximum`` of them used) and training rows, disjoint."""
    settings = config.validation
    if settings.path is not None:
        return np.arange(0), np.flatnonzero(usable)
    parts = _saved_parts(entry, dataset) if entry.split is not None else _new_parts(config, dataset)
    held, kept = (rows[usable[rows]] for rows in (parts["validation"], parts["train"]))
    if len(held) > settings.maximum:
        held = held[np.linspace(0, len(held) - 1, settings.maximum).astype(int)]
    return held, kept


def _share(rows: np.ndarray, fraction: float, seed: int, number: int) -> np.ndarray:
    """A random share of a source's training rows, at least one, in their order. What is held out does not depend on it."""
    if fraction == 1:
        return rows
    order = np.random.default_rng([seed, number]).permutation(len(rows))
    return rows[np.sort(order[: max(1, round(fraction * len(rows)))])]


def _saved_parts(entry: DataConfig, dataset: Dataset) -> dict[str, np.ndarray]:
    """The parts of a split made with ``forcewell data split``; other parts than train and validation stay unused."""
    assert entry.split is not None
    parts = split.Split.load(entry.split, dataset).parts
    for needed in ("train", "validation"):
        if needed not in parts:
            raise InputError(f"{entry.split} has no part {needed!r} (it has: {', '.join(parts)})")
    return parts


def _new_parts(config: RunConfig, dataset: Dataset) -> dict[str, np.ndarray]:
    settings = config.validation
    fractions = {"train": 1 - settings.fraction, "validation": settings.fraction}
    try:
        if settings.by == "time":
            return split.by_time_block(dataset, fractions, blocks=max(10, round(2 / settings.fraction)), seed=config.seed).parts
        if settings.by == "random":
            return split.random(dataset, fractions, config.seed).parts
        # Only steers the training, so identifiers will do: looking for the same molecule under two names takes bond graphs.
        return split.by_molecule(dataset, fractions, config.seed, merge=False).parts
    except InputError as error:
        way = "a larger validation.fraction, or validation.path" if settings.by == "random" else "validation.by=time, or random"
        raise InputError(f"{error} (--set {way})") from None


def _own_validation(config: RunConfig, dataset: Dataset, levels: list[str], objectives: Sequence[Objective]) -> Source:
    rows = np.arange(len(dataset))
    if len(rows) > config.validation.maximum:
        rows = np.linspace(0, len(rows) - 1, config.validation.maximum).astype(np.int64)
    order = np.array([levels.index(level) for level in dataset.levels], dtype=np.int64)
    return Source("validation", dataset, rows, 1.0, _copies(dataset, objectives, -1), order, *_extras(dataset, objectives))


def _extras(dataset: Dataset, objectives: Sequence[Objective]) -> tuple[np.ndarray | None, bool]:
    """Columns of the properties that are learned, NaN where the data have none, and whether bonds are turned."""
    rotors = any(isinstance(objective, FractionalDenoising) for objective in objectives)
    for objective in objectives:
        if isinstance(objective, PropertyMatching):
            unknown = np.full(len(dataset), np.nan)
            columns = [dataset.column(f"property:{name}") if name in dataset.properties else unknown for name in objective.names]
            return np.stack(columns, axis=1), rotors
    return None, rotors


def _copies(dataset: Dataset, objectives: Sequence[Objective], number: int) -> np.ndarray:
    """(len(dataset),) copies that the objectives append to each conformation: they count against max_atoms."""
    applied = [objective.copied for objective in objectives if applies(objective, number)]
    copies = np.full(len(dataset), applied.count("all"), dtype=np.int8)
    if "minima" in applied and "equilibrium" in dataset.fields:
        copies += np.int8(applied.count("minima")) * (dataset.column("equilibrium") == 1).astype(np.int8)
    return copies
