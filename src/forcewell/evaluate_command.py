"""What ``forcewell evaluate`` does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from forcewell.checkpoint import load_model, training_hashes
from forcewell.display import Counting, say
from forcewell.evaluate.errors import evaluate
from forcewell.files import write_bytes
from forcewell.overlap import geometry_hashes, overlap, overlap_lines
from forcewell.potential import UNSEEN_STATE
from forcewell.process import check_device
from forcewell.sources.unread import missing_labels
from forcewell.split import Split
from forcewell.store import MemoryData, open_data
from forcewell.training_data import warn_of_units


def evaluate_file(model: Path, data: Path, out: Path | None, level: str | None, device: str, split: Path | None, part: str) -> None:
    """Prints the errors of a model on a data set, or on a part of a split of it, and writes them to ``out``.

    Raises InputError for unreadable files, a split of other data or without that part, and for elements that the model never saw.
    """
    potential = load_model(model)[0].to(check_device(device)).requires_grad_(False)
    dataset = open_data(data)
    warn_of_units([(str(data), dataset)])
    rows = np.arange(len(dataset)) if split is None else Split.load(split, dataset).part(part, split)
    with Counting("evaluating", len(rows), "conformations") as bar:
        result = evaluate(potential, dataset, rows=rows, level=level, progress=bar.update)
    result.pop("parity", None)
    some = dataset.block(rows[:20_000])
    hashes = geometry_hashes(some)
    shares = [overlap(hashes, sketch) for sketch in training_hashes(model)]
    most = max((share for share in shares if share is not None), default=0.0)
    result["training_overlap"] = None if most == 0 and None in shares else most
    result["training_overlap_each"] = shares
    _print(result)
    if passed_over := potential.states_passed_over(some.arrays):
        say(f"  {passed_over} of {'the first ' if len(some) < len(rows) else ''}{len(some)} conformations are {UNSEEN_STATE}")
    if isinstance(dataset, MemoryData):
        unread = missing_labels(dataset.sources[0], data, dataset.fields, {}, needed=False)
        if unread:
            say(f"  {unread} in forcewell data import {dataset.sources[0]} {data}")
    for line in overlap_lines(shares):
        say(f"  {line}")
    if out is not None:
        write_bytes(out, (json.dumps(result, indent=2, ensure_ascii=False) + "\n").encode())


def _print(result: dict[str, object]) -> None:
    say(f"{result['n_conformations']} conformations, {result['n_atoms']} atoms; level of theory: {_level(result)}")
    labels = result.get("energy_labels")
    for name, unit in (
        ("force_mae", "meV/Å"),
        ("force_rmse", "meV/Å"),
        ("force_cosine", ""),
        ("energy_mae", "meV"),
        ("energy_rmse", "meV"),
    ):
        value = result.get(name)
        lacking = "one frame per composition: nothing to compare" if name.startswith("energy") and labels else "no labels to compare with"
        say(f"  {name:13s} " + (f"{value:10.3f} {unit}" if isinstance(value, float) else f"  {lacking}"))
    if isinstance(result.get("energy_total_mae"), float):
        say(f"  energies by the model's own references: MAE {result['energy_total_mae']:.1f}, RMSE {result['energy_total_rmse']:.1f} meV")
    if result.get("energy_shift"):
        say(f"  energy_mae, energy_rmse: {result['energy_shift']}")
    found: dict[str, dict[str, float | None]] = result.get("properties", {})  # type: ignore[assignment]
    for name, errors in found.items():
        say(f"  {name}: " + ", ".join(f"{kind} {value:.4g}" if value is not None else f"{kind} unknown" for kind, value in errors.items()))
    for symbol, value in dict(result.get("per_element", {})).items():  # type: ignore[call-overload]
        say(f"  force_mae {symbol:3s} {value:10.3f} meV/Å")


def _level(result: dict[str, object]) -> str:
    """At which levels of theory the model was evaluated, after those of the data that it does not know."""
    found, unknown = str(result["level"] or "not stated"), [str(name) for name in result["unknown_levels"]]  # type: ignore[attr-defined]
    if not unknown:
        return found
    named = ", ".join(filter(None, unknown))
    return (f"{named}, which the model does not know" if named else "not stated") + f"; evaluated at {found}"
