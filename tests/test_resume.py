"""A run that is killed and resumed ends with the bits of one that was not."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import MODEL, command, ethanol, killed_at, log, npz, refuse, settings, small_store, start, succeed, weights, write_yaml

from forcewell import split
from forcewell.checkpoint import load_model, read_tensors, write_tensors
from forcewell.store import open_data

TRAINING = {"steps": 24, "batch_size": 4, "validate_every": 5, "log_every": 2, "save_every": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small stores, a file of ethanol and two configurations."""
    place = tmp_path_factory.mktemp("resume")
    stores = [str(small_store(place, "qm9", 40)), str(small_store(place, "qm7x", 60))]
    write_yaml(place / "pretrain.yaml", settings(*stores, training=TRAINING))
    forces = settings(str(ethanol(place / "ethanol.npz")), objectives="et-ore", training=TRAINING, optimiser={"schedule": "cosine"})
    write_yaml(place / "finetune.yaml", forces)
    return place


def words(folder: Path, kind: str, out: str) -> list[object]:
    extra = ["--from", MODEL] if kind == "finetune" else []
    return [kind, folder / f"{kind}.yaml", *extra, "--out", folder / out]


def kill_at(process: object, run: Path, lines: int, delay: float) -> bool:
    """SIGKILL once the log has more than ``lines`` lines and ``delay`` seconds have passed; False if it had ended before."""
    file = run / "log.jsonl"
    while process.poll() is None and (not file.exists() or file.read_bytes().count(b"\n") <= lines):  # type: ignore[attr-defined]
        time.sleep(0.005)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)  # type: ignore[attr-defined]
    process.communicate()  # type: ignore[attr-defined]
    return process.returncode == -signal.SIGKILL  # type: ignore[attr-defined]


def same(a: Path, b: Path) -> None:
    ours, theirs = weights(a / "model.safetensors"), weights(b / "model.safetensors")
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    first, second = (load_model(run / "model.safetensors")[0].references for run in (a, b))
    references = max(float(np.abs(first[level] - second[level]).max()) for level in first)
    print(f"{len(ours)} tensors, {len(different)} differ; {len(log(a))} lines of log; reference energies within {references:.1e} eV")
    assert different == []
    assert log(a) == log(b)
    # They are fitted once more at the end of every call, to what is then already fitted: equal, but not to the last bit.
    assert references < 1e-8


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """The fine-tuning run, never interrupted."""
    succeed(*words(folder, "finetune", "finetune-whole"))
    return folder / "finetune-whole"


@pytest.mark.parametrize(("kind", "kills"), [("pretrain", 2), ("finetune", 1)])
def test_killed_runs_end_with_the_same_bits(kind: str, kills: int, folder: Path, whole: Path) -> None:
    """Real processes killed while training, the second before it gets as far as the first; the last resume here."""
    if kind == "pretrain":
        succeed(*words(folder, kind, "pretrain-whole"))
    moments, run, killed = random.Random(7), folder / f"{kind}-killed", 0
    for number in range(kills):
        process = start(*words(folder, kind, run.name), *(["--resume"] if number else []))
        killed += kill_at(process, run, lines=moments.randrange(2, 9), delay=moments.uniform(0, 0.1))
        print(f"{kind}: killed after {len((run / 'log.jsonl').read_bytes().splitlines())} lines of log")
    (run / "state" / ".state.safetensors.partial").write_bytes(b"half a state")
    (run / ".model.safetensors.partial").write_bytes(b"half a model")
    with open(run / "log.jsonl", "ab") as file:
        file.write(b'{"step": 23, "kind": "tr')  # half a line
    assert killed >= 1
    succeed(*words(folder, kind, run.name), "--resume")
    same(folder / f"{kind}-whole", run)


def test_killed_before_the_first_save(folder: Path, whole: Path) -> None:
    """Neither "already holds a run" nor "nothing to resume": --resume starts it from the beginning."""
    run = folder / "early"
    run.mkdir()
    (run / "config.yaml").write_bytes((whole / "config.yaml").read_bytes())
    (run / "log.jsonl").write_bytes((whole / "log.jsonl").read_bytes()[:700])
    assert "already holds a run" in refuse(*words(folder, "finetune", "early"))
    assert "stopped before its first save" in succeed(*words(folder, "finetune", "early"), "--resume")
    same(whole, run)


def test_a_finished_run_stays_as_it_is(folder: Path, whole: Path) -> None:
    before = weights(whole / "model.safetensors"), log(whole)
    succeed(*words(folder, "finetune", whole.name), "--resume")
    after = weights(whole / "model.safetensors"), log(whole)
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0]) and before[1] == after[1]


def test_the_seed_matters(folder: Path, whole: Path) -> None:
    """The control of all the equalities above: another seed gives other weights."""
    succeed(*words(folder, "finetune", "seed"), "--set", "seed=4", "--set", "training.steps=5")
    ours, theirs = weights(folder / "seed" / "model.safetensors"), weights(whole / "model.safetensors")
    assert not torch.equal(ours["model.head.blocks.0.mix.weight"], theirs["model.head.blocks.0.mix.weight"])
    assert [line["loss"] for line in log(folder / "seed")][1] != [line["loss"] for line in log(whole)][1]


def test_resume_needs_its_own_settings(folder: Path) -> None:
    succeed(*words(folder, "finetune", "settings"), "--set", "training.steps=4")
    assert "started with other settings: training.steps was 4 and is 8; resume with the same ones (" in refuse(
        *words(folder, "finetune", "settings"), "--resume", "--set", "training.steps=8"
    )
    kept = folder / "settings" / "config.yaml"
    same_file = folder / ".." / folder.name / "ethanol.npz"
    succeed(*words(folder, "finetune", "settings"), "--resume", "--set", "training.steps=4", "--set", f"data.0.path={same_file}")
    succeed("finetune", kept, "--from", MODEL, "--out", folder / "settings", "--resume", "--set", "hardware.compile=never")
    older = kept.read_text().replace("    fraction: 1.0\n", "").replace("  fraction: 1.0\n", "")
    assert older != kept.read_text()
    kept.write_text(older)  # begun by a version that did not have this setting: its default is meant
    succeed(*words(folder, "finetune", "settings"), "--resume", "--set", "training.steps=4")
    assert "is not a run (no config.yaml); start without --resume" in refuse(*words(folder, "finetune", "absent"), "--resume")
    assert not (folder / "absent").exists()


def test_an_interrupt_says_how_to_go_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("forcewell.runs.train", interrupt)
        done = command(*words(folder, "finetune", "interrupted"))
    assert done.code == 130 and "--resume continues a run" in done.err


def test_other_data_are_not_resumed_on(folder: Path) -> None:
    """Another split of other rows: what was validated on would be trained on. A state that does not say goes on."""
    data, kept, place = ethanol(folder / "changing.npz", 20), ethanol(folder / "kept.npz", 20), folder / "changing"
    config = write_yaml(folder / "changing.yaml", settings(str(data), objectives="et-ore", exclude="none", training=TRAINING))
    with killed_at(7):
        command("pretrain", config, "--out", place)
    ethanol(data, 33)
    line = refuse("pretrain", config, "--out", place, "--resume")
    assert f"changing: the data are not those that {place} began with (18 conformations used, now 30); put those back to resume" in line
    ethanol(data, 20, coords=npz("rmd17_ethanol_test_01.npz")["coords"][20:40])
    assert "changing: the data are not those" in refuse("pretrain", config, "--out", place, "--resume")
    state = place / "state" / "state.safetensors"
    tensors, facts = read_tensors(state, "state")
    write_tensors(state, tensors, {name: value for name, value in facts.items() if name != "data"})
    succeed("pretrain", config, "--out", place, "--resume")
    write_tensors(state, tensors, facts)
    data.write_bytes(kept.read_bytes())
    succeed("pretrain", config, "--out", place, "--resume")


def test_another_split_is_not_resumed_on(folder: Path) -> None:
    data, saved, place = ethanol(folder / "parted.npz"), folder / "parted.json", folder / "parted"
    fractions = {"train": 0.5, "validation": 0.25, "test": 0.25}
    split.random(open_data(data), fractions, seed=1).save(saved)
    source = {"path": str(data), "split": str(saved)}
    config = write_yaml(folder / "parted.yaml", settings(source, objectives="et-ore", exclude="none", training=TRAINING))
    with killed_at(7):
        command("pretrain", config, "--out", place)
    saved.unlink()
    split.random(open_data(data), fractions, seed=2).save(saved)
    assert "parted: the parts of its split are not those that" in refuse("pretrain", config, "--out", place, "--resume")


def test_a_best_model_that_is_gone_is_told_at_once(folder: Path) -> None:
    """Not at the last step, where no later model was better."""
    data, place = ethanol(folder / "best.npz"), folder / "best"
    config = write_yaml(folder / "best.yaml", settings(str(data), objectives="et-ore", exclude="none", training=TRAINING))
    with killed_at(7):
        command("pretrain", config, "--out", place)
    model, lines = place / "model.safetensors", (place / "log.jsonl").read_bytes()
    kept = model.read_bytes()
    model.unlink()
    said = f"{place} has a state, but not model.safetensors, its best model so far; put that back to resume"
    assert said in refuse("pretrain", config, "--out", place, "--resume")
    model.write_bytes(kept[:-100])
    assert "model.safetensors is not a readable model file" in refuse("pretrain", config, "--out", place, "--resume")
    assert (place / "log.jsonl").read_bytes() == lines
    model.write_bytes(kept)
    succeed("pretrain", config, "--out", place, "--resume")
