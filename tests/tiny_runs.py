"""What the tests of training runs share: the command line in this process, a tiny configuration, small data files."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from forcewell.checkpoint import read_tensors
from forcewell.step_path import StepPath

MUSEUM = Path(__file__).parent / "museum"
MODEL = MUSEUM / "format-1.safetensors"  # H, C, N, O, S, Cl; 8 channels; pre-trained, with a conditioning token
ENCODER = {"channels": 16, "layers": 1, "heads": 2, "radial": 8, "cutoff": 3.0}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
PROGRAM = Path(sys.executable).with_name("forcewell")


class Killed(Exception):
    """As good as a signal, in this process."""


@contextlib.contextmanager
def killed_at(step: int) -> Iterator[None]:
    """The training or simulation in it is killed when its step number ``step`` ends."""
    end, steps = StepPath.end, 0

    def killed(self: StepPath) -> None:
        nonlocal steps
        steps += 1
        if steps == step:
            raise Killed
        end(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepPath, "end", killed)
        try:
            yield
        except Killed:
            return
        pytest.fail(f"it ended before step {step}")


@dataclasses.dataclass
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


def command(*words: Any) -> Done:
    """``forcewell WORDS`` in this process, on one thread. An exception other than SystemExit (a traceback) gets out."""
    from forcewell import cli

    torch.set_num_threads(1)
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main([str(word) for word in words])
        except SystemExit as end:
            code = int(end.code or 0)
    return Done(code, out.getvalue(), err.getvalue())


def succeed(*words: Any) -> str:
    """The output of a command that must succeed."""
    done = command(*words)
    assert done.code == 0, done.err
    return done.out


def refuse(*words: Any) -> str:
    """The one line of a command that must be refused: exit code 2, nothing else on stderr."""
    done = command(*words)
    print(f"{' '.join(map(str, words[:2]))} ... -> {done.err.strip()}")
    assert done.code == 2, (done.code, done.out[-300:])
    lines = done.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.err
    return lines[0]


def start(*words: Any) -> subprocess.Popen[str]:
    """The real program as a process of its own."""
    arguments = [str(PROGRAM), *map(str, words)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def npz(name: str) -> dict[str, np.ndarray]:
    """The arrays of a bundled file."""
    with resources.as_file(resources.files("forcewell.bundled") / name) as path, np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def ethanol(path: Path, frames: int = 40, **changes: Any) -> Path:
    """The first frames of the bundled rMD17 ethanol test set (kcal/mol) as a file of the same layout, with changes."""
    arrays = npz("rmd17_ethanol_test_01.npz")
    short = {key: value[:frames] if len(value) == len(arrays["coords"]) else value for key, value in arrays.items()}
    np.savez(path, **{**short, **changes})  # type: ignore[arg-type]
    return path


def settings(*data: dict[str, Any] | str, **changes: Any) -> dict[str, Any]:
    """A configuration whose run takes a second or two; ``changes`` by section."""
    tree: dict[str, Any] = {
        "seed": 3,
        "model": {"encoder": dict(ENCODER)},
        "objectives": "et-oreo",
        "data": [{"path": entry} if isinstance(entry, str) else entry for entry in data],
        "validation": {"fraction": 0.1, "by": "random", "maximum": 6},
        "optimiser": {"learning_rate": 2e-3, "warmup_steps": 3, "schedule": "plateau", "plateau_patience": 1, "average": 0.9},
        "training": {"steps": 12, "batch_size": 4, "validate_every": 4, "log_every": 2, "save_every": 3},
        "hardware": {"accelerator": "cpu"},
    }
    for section, values in changes.items():
        tree[section] = {**tree[section], **values} if isinstance(values, dict) and isinstance(tree.get(section), dict) else values
    return tree


def write_yaml(path: Path, tree: Any) -> Path:
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def log(run: Path) -> list[dict[str, Any]]:
    """The log without timings."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key not in ("seconds", "molecules_per_second")} for line in lines]


def weights(model: Path) -> dict[str, torch.Tensor]:
    """All tensors of a model file."""
    return read_tensors(model, "model file")[0]


def files(folder: Path) -> dict[str, int]:
    """Every file and folder below, with sizes: what a failed command must leave as it was."""
    return {path.relative_to(folder).as_posix(): path.stat().st_size if path.is_file() else -1 for path in sorted(folder.rglob("*"))}


def small_store(folder: Path, source: str, rows: int) -> Path:
    """A store of the first conformations of the bundled QM9 minima or QM7-X, imported by the command line."""
    name = {"qm9": "qm9_minima_4002.npz", "qm7x": "qm7x_hand.npz"}[source]
    arrays = npz(name)
    counts = arrays.get("natoms")
    frames = len(counts) if counts is not None else len(arrays["pos"])
    atoms = int(counts[:rows].sum()) if counts is not None else rows
    total = int(counts.sum()) if counts is not None else frames
    cut = {key: value[:rows] if len(value) == frames else value[:atoms] if len(value) == total else value for key, value in arrays.items()}
    np.savez(folder / f"{source}.npz", **cut)  # type: ignore[arg-type]
    succeed("data", "import", source, folder / f"{source}.npz", "--out", folder / f"{source}.fw")
    return folder / f"{source}.fw"
