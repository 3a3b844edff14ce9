"""Labelling structures that exist, in a campaign: frames of a store or of files, by any engine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from forcewell.engines import Engine, EngineFailure, labelled
from forcewell.errors import InputError
from forcewell.generate.campaign import Job, JobFailure, Summary, engine_of, engine_settings, run
from forcewell.sources import FORMS
from forcewell.store import Dataset, open_data
from forcewell.system import System, consecutive


def label_data(data: Sequence[Path], out: Path, engine: Engine, *, count: int | None = None, seed: int = 0, **options: Any) -> Summary:
    """Labels the conformations of ``data`` (stores or files) and writes them to the store ``out``, as a campaign.

    count: label so many, chosen at random by ``seed``; None for all. options: of ``campaign.run``. A structure that the engine
    cannot label is left out with its reason. Raises InputError for unusable data, before anything is written where the engine takes
    none of it, and where nothing could be labelled.
    """
    datasets = [open_data(path) for path in data]
    if not datasets:
        raise InputError(f"no data given to label; give {FORMS}")
    owner = np.repeat(np.arange(len(datasets)), [len(dataset) for dataset in datasets])
    row = np.concatenate([np.arange(len(dataset)) for dataset in datasets])
    if count is not None:
        if not 1 <= count <= len(row):
            raise InputError(f"--count is {count}; expected 1 to {len(row)}, the number of conformations")
        chosen = np.sort(np.random.default_rng(seed).choice(len(row), count, replace=False))
        owner, row = owner[chosen], row[chosen]
    _check_any(engine, (datasets[k][int(at)] for k, at in zip(owner.tolist(), row.tolist(), strict=True)))
    atoms = np.concatenate([dataset.counts for dataset in datasets])[chosen if count is not None else slice(None)]
    jobs = []
    for k, dataset in enumerate(datasets):
        mine = np.flatnonzero(owner == k)
        parts = consecutive(atoms[mine], engine.atoms_per_job)
        jobs += [Job("label", {"data": dataset.fingerprint, "rows": row[mine[part]].tolist()}) for part in parts]
    places = {"files": {dataset.fingerprint: str(path.resolve()) for dataset, path in zip(datasets, data, strict=True)}}
    done = run(jobs, "forcewell.generate.label:label", out, engine_settings(engine), places=places, **options)
    if not done.frames:
        raise InputError(f"nothing could be labelled: {next(iter({**done.reasons, **done.left_out}), 'there is no structure')}")
    return done


def _check_any(engine: Engine, structures: Iterable[System]) -> None:
    """Raises InputError, with the reason of the first, where the engine takes none of the structures."""
    reason = ""
    for structure in structures:
        try:
            return engine.check(structure)
        except InputError as error:
            reason = reason or str(error)
    raise InputError(f"nothing could be labelled: {reason}")


def label(arguments: dict[str, Any]) -> tuple[list[System], dict[str, list[str]]]:
    """Work of a campaign: labels rows of a data set. What cannot be labelled is left out with its reason; raises JobFailure where
    that is all of it."""
    chosen, dataset = engine_of(arguments), _opened(arguments["files"][arguments["data"]])
    frames: list[System] = []
    left_out: dict[str, list[str]] = {}
    for row in arguments["rows"]:
        try:
            frames.append(labelled(dataset[row], chosen))
        except (InputError, EngineFailure) as failure:
            left_out.setdefault(str(failure), []).append(f"conformation {row}")
    if not frames:
        raise JobFailure(next(iter(left_out)))
    return frames, left_out


@lru_cache(maxsize=4)
def _opened(path: str) -> Dataset:
    return open_data(path)
