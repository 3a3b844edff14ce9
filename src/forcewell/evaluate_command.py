"""What ``forcewell evaluate`` does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from forcewell.checkpoint import load_model, training_hashes
from forcewell.display import Counting, say
from forcewell.evaluate.errors import evaluate
from forcewell.files import write_bytes
from forcewell.overlap import geometry_hashes, overlap
from forcewell.process import check_device
from forcewell.split import Split
from forcewell.store import open_data


def evaluate_file(model: Path, data: Path, out: Path | None, level: str | None, device: str, split: Path | None, part: str) -> None:
    """Prints the errors of a model on a data set, or on a part of a split of it, and writes them to ``out``.

    Raises InputError for unreadable files, a split of other data or without that part, and for elements that the model never saw.
    """
    potential = load_model(model)[0].to(check_device(device))
    dataset = open_data(data)
    rows = np.arange(len(dataset)) if split is None else Split.load(split, dataset).part(part, split)
    with Counting("evaluating", len(rows), "conformations") as bar:
        result = evaluate(potential, dataset, rows=rows, level=level, progress=bar.update)
    result.pop("parity", None)
    first = dataset.block(rows[:20_000])
    result["training_overlap"] = overlap(geometry_hashes(first), training_hashes(model))
    _print(result)
    if out is not None:
        write_bytes(out, (json.dumps(result, indent=2, ensure_ascii=False) + "\n").encode())


def _print(result: dict[str, object]) -> None:
    say(f"{result['n_conformations']} conformations, {result['n_atoms']} atoms; level of theory: {result['level'] or 'not stated'}")
    for name, unit in (
        ("force_mae", "meV/Å"),
        ("force_rmse", "meV/Å"),
        ("force_cosine", ""),
        ("energy_mae", "meV"),
        ("energy_rmse", "meV"),
    ):
        value = result.get(name)
        say(f"  {name:13s} " + (f"{value:10.3f} {unit}" if isinstance(value, float) else "  no labels to compare with"))
    if isinstance(result.get("energy_total_mae"), float):
        say(f"  energies by the model's own references: MAE {result['energy_total_mae']:.1f}, RMSE {result['energy_total_rmse']:.1f} meV")
    if result.get("energy_shift"):
        say(f"  energy_mae, energy_rmse: {result['energy_shift']}")
    found: dict[str, dict[str, float | None]] = result.get("properties", {})  # type: ignore[assignment]
    for name, errors in found.items():
        say(f"  {name}: " + ", ".join(f"{kind} {value:.4g}" if value is not None else f"{kind} unknown" for kind, value in errors.items()))
    for symbol, value in dict(result.get("per_element", {})).items():  # type: ignore[call-overload]
        say(f"  force_mae {symbol:3s} {value:10.3f} meV/Å")
    share = result["training_overlap"]
    if isinstance(share, float) and share > 0:
        say(f"  {100 * share:.1f} % of these conformations were in the model's training data")
