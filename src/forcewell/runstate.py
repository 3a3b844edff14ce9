"""What a run needs to continue as if it had never stopped: ``RUN/state/``, safetensors and JSON only."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from forcewell.checkpoint import read_tensors, write_tensors
from forcewell.errors import InputError
from forcewell.files import sizes
from forcewell.loader import Source

if TYPE_CHECKING:
    from forcewell.train import Trainer

NAME = "state.safetensors"


def save_state(run: Trainer) -> None:
    """Writes weights, their average, the optimiser, schedule, position in the data and log into one file.

    One file renamed into place: a kill at any moment leaves the old state or the new one.
    """
    if not run.fabric.is_global_zero:
        return
    tensors: dict[str, Tensor] = {f"model.{name}": value for name, value in run.potential.state_dict().items()}
    if run.average is not run.potential:
        tensors |= {f"average.{name}": value for name, value in run.average.state_dict().items()}
    names = [name for name, _ in run.potential.named_parameters()]
    for key, value in run.optimiser.state_dict()["state"].get(0, {}).items():
        parts = run.weights.split(value) if value.dim() else [value] * len(names)
        tensors |= {f"optimiser.{name}.{key}": part for name, part in zip(names, parts, strict=True)}
    sizes([run.directory / "log.jsonl"])  # on the disk before the state that counts its bytes
    write_tensors(run.directory / "state" / NAME, tensors, _facts(run))


def _facts(run: Trainer) -> dict[str, Any]:
    return {
        "kind": "run state",
        "step": run.step,
        "best": run.best,
        "seconds": run.seconds,
        "log_bytes": run.log_bytes,
        "loader": run.loader.state(),
        "schedule": run.schedule.state(),
        "path": run.path.state(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "world_size": run.fabric.world_size,
        "data": run.data,
    }


def identity_of(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """What tells each source's data, and the rows of them that a run uses, from any others."""
    return [
        {
            "name": source.name,
            "conformations": len(source.rows),
            "fingerprint": source.data.fingerprint,
            "rows": hashlib.sha256(source.rows.astype(np.int64).tobytes()).hexdigest(),
        }
        for source in sources
    ]


def _same_data(run: Trainer, before: Sequence[dict[str, Any]]) -> None:
    """Raises InputError where the data have changed: what was validated on could now be trained on, or the reverse."""
    for was, now in zip(before, run.data, strict=True):
        if was == now:
            continue
        what = "the data are not those" if was["fingerprint"] != now["fingerprint"] else "the parts of its split are not those"
        then, today = was["conformations"], now["conformations"]
        numbers = f" ({then} conformations used, now {today})" if then != today else ""
        raise InputError(f"{now['name']}: {what} that {run.directory} began with{numbers}; put those back to resume, or use another --out")


def has_state(directory: Path) -> bool:
    """Whether there is a state to resume. Raises InputError where ``directory/state`` holds anything that a run does not write."""
    state = directory / "state"
    for entry in sorted(state.iterdir()) if state.is_dir() else []:
        # A kill while writing leaves the partial file, which the next save replaces.
        if entry.name not in (NAME, f".{NAME}.partial"):
            raise InputError(f"{entry} is not part of a run's state (expected only {NAME}) and is not read; remove it to resume")
    return (state / NAME).is_file()


def load_state(run: Trainer) -> None:
    """Restores a run in place. Raises InputError for a missing, damaged or foreign state, and for other data than it began with."""
    path = run.directory / "state" / NAME
    tensors, facts = read_tensors(path, "run state")
    if facts.get("kind") != "run state":
        raise InputError(f"{path} is not a run's state; restore it from a copy")
    if "data" in facts:  # earlier versions did not write it
        _same_data(run, facts["data"])

    def under(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    try:
        run.potential.load_state_dict(under("model."))
        if run.average is not run.potential:
            run.average.load_state_dict(under("average."))
    except RuntimeError as error:
        raise InputError(f"{path} belongs to another model ({str(error).splitlines()[0]})") from None
    saved = under("optimiser.")
    names = [name for name, _ in run.potential.named_parameters()]
    entry: dict[str, Tensor] = {}
    for key in sorted({name.removeprefix(f"{names[0]}.") for name in saved if name.startswith(f"{names[0]}.")}):
        parts = [saved[f"{name}.{key}"] for name in names]
        entry[key] = torch.cat([part.reshape(-1) for part in parts]) if key != "step" else parts[0]
    current = run.optimiser.state_dict()
    run.optimiser.load_state_dict({"state": {0: entry} if entry else {}, "param_groups": current["param_groups"]})
    run.loader.restore(facts["loader"])
    run.schedule.restore(facts["schedule"])
    run.path.restore(facts.get("path"))
    run.step, run.best, run.seconds, run.log_bytes = (
        int(facts["step"]),
        float(facts["best"]),
        float(facts["seconds"]),
        int(facts["log_bytes"]),
    )
    if facts["threads"] != torch.get_num_threads() and run.fabric.is_global_zero:
        print(
            f"resuming with {torch.get_num_threads()} threads, saved with {facts['threads']}: weights will agree, but not to the last bit"
        )
