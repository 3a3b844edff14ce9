"""Two processes (gloo, on the CPU) train as one does on the same global batches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import ENVIRONMENT, MODEL, PROGRAM, ethanol, files, log, settings, small_store, start, succeed, weights, write_yaml

from forcewell.config import load_config
from forcewell.loader import Loader
from forcewell.training_data import gather


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Minima in one source, forces in the other, and a configuration whose global batches have two conformations."""
    place = tmp_path_factory.mktemp("two")
    stores = [str(small_store(place, "qm9", 30)), str(small_store(place, "qm7x", 30))]
    training = {"steps": 10, "batch_size": 2, "validate_every": 5, "log_every": 1, "save_every": 5}
    write_yaml(place / "c.yaml", settings(*stores, training=training))
    return place


def compare(one: Path, two: Path) -> None:
    ours, theirs = weights(one / "model.safetensors"), weights(two / "model.safetensors")
    difference = max(float((ours[name].double() - theirs[name].double()).abs().max()) for name in ours)
    losses = [[line["loss"] for line in log(run)] for run in (one, two)]
    off = max(abs(a / b - 1) for a, b in zip(*losses, strict=True))
    print(f"one process and two: weights within {difference:.1e}, {len(losses[0])} losses within {off:.1e} relative")
    assert difference < 1e-5  # float32 sums in another order, carried through ten steps of AdamW
    assert off < 1e-5


def test_two_processes_where_one_lacks_a_term(folder: Path) -> None:
    """Each process has one conformation: of QM9 it has no labelled forces, of QM7-X it has no minimum and no copies."""
    config = load_config(str(folder / "c.yaml"))
    objectives, training, _, _ = gather(config, folder / "data", exclude="benchmark", quiet=True)
    loaders = [Loader(training, 2, 4096, config.seed, rank=rank, world=2) for rank in (0, 1)]
    shares = [[int(loader.next().source[0]) for loader in loaders] for _ in range(10)]
    lacking = sum(len(set(pair)) == 2 for pair in shares)
    print(f"in {lacking} of 10 steps the processes have different terms; sources of both: {shares}")
    assert len(objectives) == 3 and lacking >= 3 and [0, 0] in shares

    succeed("pretrain", folder / "c.yaml", "--out", folder / "one")
    process = start("pretrain", folder / "c.yaml", "--out", folder / "two", "--set", "hardware.devices=2")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "MEMBER: 2/2" in err
    assert out.count("best model") == 1  # the second process says nothing
    compare(folder / "one", folder / "two")


def test_torchrun(folder: Path) -> None:
    """The other common way to start processes, here of a fine-tuning run with an odd batch size (three and two)."""
    data = str(ethanol(folder / "ethanol.npz"))
    training = {"steps": 8, "batch_size": 5, "validate_every": 4, "log_every": 1, "save_every": 4}
    config = write_yaml(folder / "f.yaml", settings(data, objectives="et-ore", training=training))
    succeed("finetune", config, "--from", MODEL, "--out", folder / "f-one")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={29500 + os.getpid() % 1000}"]
    words = ["finetune", config, "--from", MODEL, "--out", folder / "f-two"]
    done = subprocess.run([*command, str(PROGRAM), *map(str, words)], capture_output=True, text=True, env=ENVIRONMENT, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    compare(folder / "f-one", folder / "f-two")


def test_a_mistake_is_told_once(folder: Path) -> None:
    """An infinite label in the share of either process stops both, which name it once and leave no process behind."""
    forces = np.zeros((40, 9, 3))
    forces[:, 0] = np.inf
    data = str(ethanol(folder / "bad.npz", forces=forces, energies=np.zeros(40)))
    (folder / "bad").mkdir()
    config = write_yaml(folder / "b.yaml", settings(data, objectives="et-ore"))
    process = start("pretrain", config, "--out", folder / "bad" / "run", "--set", "hardware.devices=2", "--set", "exclude=none")
    _, err = process.communicate(timeout=120)
    told = [line for line in err.splitlines() if line.startswith("error:")]
    print(told)
    assert process.returncode == 2
    assert len(told) == 1 and "Traceback" not in err
    assert "step 0: the loss is not finite; conformations: bad #" in told[0]
    assert sum(name.startswith("run/nonfinite-step-0-process-") for name in files(folder / "bad")) >= 1
