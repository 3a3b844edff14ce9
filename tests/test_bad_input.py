"""A user's mistake gives one line on stderr beginning "error:", exit code 2, and nothing half-written."""

from __future__ import annotations

import os
import pickle
import resource
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import ENVIRONMENT, MODEL, PROGRAM, ethanol, files, npz, refuse, settings, small_store, succeed, weights, write_yaml

COORDINATES, NUMBERS = "coords", "nuclear_charges"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good file, a good store, a good configuration and a finished run."""
    place = tmp_path_factory.mktemp("bad")
    ethanol(place / "good.npz")
    small_store(place, "qm7x", 30)
    config = settings(str(place / "good.npz"), objectives="et-ore", exclude="none", training={"steps": 4})
    succeed("pretrain", write_yaml(place / "good.yaml", config), "--out", place / "run")
    return place


def refused(folder: Path, *words: Any) -> str:
    """The message of a command that must be refused and leave every file below ``folder`` as it was."""
    before = files(folder)
    line = refuse(*words)
    after = files(folder)
    assert after == before, set(after.items() ^ before.items())
    return line


def test_the_package_is_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """``python -m forcewell``: the same commands, the same messages."""
    monkeypatch.setattr(sys, "argv", ["forcewell", "data", "sources"])
    runpy.run_module("forcewell", run_name="__main__", alter_sys=True)
    assert "qm7x" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["forcewell", "pretrain", "quikstart", "--out", "none"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("forcewell", run_name="__main__", alter_sys=True)
    assert ended.value.code == 2 and "did you mean 'quickstart'" in capsys.readouterr().err


def damaged_structures() -> dict[str, tuple[dict[str, np.ndarray], str]]:
    """Changes to the good file, and what must be said of them."""
    arrays = npz("rmd17_ethanol_test_01.npz")
    coordinates = arrays[COORDINATES][:40]
    nan, infinite, overlapping = coordinates.copy(), coordinates.copy(), coordinates.copy()
    nan[3, 2, 1], infinite[3, 2, 1] = np.nan, np.inf
    overlapping[3, 2] = overlapping[3, 1] + 0.01

    def first(number: int) -> np.ndarray:
        return np.array([number, *arrays[NUMBERS][1:]], dtype=np.int64)

    return {
        "nan": ({COORDINATES: nan}, "conformation 3 has coordinates that are NaN or infinite"),
        "infinite": ({COORDINATES: infinite}, "conformation 3 has coordinates that are NaN or infinite"),
        "overlap": ({COORDINATES: overlapping}, "conformation 3 has two atoms on top of each other"),
        "element-0": ({NUMBERS: first(0)}, "unknown atomic number 0"),
        "element-119": ({NUMBERS: first(119)}, "unknown atomic number 119"),
        "element-300": ({NUMBERS: first(300)}, "300"),  # not wrapped around to 44
    }


@pytest.mark.parametrize("name", damaged_structures())
def test_impossible_structures(name: str, folder: Path) -> None:
    changes, said = damaged_structures()[name]
    data = ethanol(folder / f"{name}.npz", **changes)  # type: ignore[arg-type]
    config = write_yaml(folder / f"{name}.yaml", settings(str(data), objectives="et-ore", exclude="none"))
    assert said in refused(folder, "evaluate", MODEL, data, "--json", folder / "never.json")
    assert said in refused(folder, "data", "import", "rmd17", data, "--out", folder / "never.fw", "--exclude", "none")
    # The check goes on after the first, and names all by index.
    shorter = {"nan": "NaN or infinite", "infinite": "NaN or infinite", "overlap": "atoms on top of each other", "element-300": "300"}
    line = refused(folder, "data", "check", data)
    assert shorter.get(name, "unknown atomic numbers") in line and ("element" in name or line.endswith("conformation 3)"))
    assert said in refused(folder, "pretrain", config, "--out", folder / "never")
    assert said in refused(folder, "finetune", config, "--from", MODEL, "--out", folder / "never")


@pytest.mark.parametrize("name", ["nan", "overlap", "element-0", "element-300"])
def test_impossible_structures_to_simulate(name: str, folder: Path) -> None:
    """The first frame is the one that is simulated."""
    changes, said = damaged_structures()[name]
    changes = {key: value[3:] if key == COORDINATES else value for key, value in changes.items()}
    arrays = npz("rmd17_ethanol_test_01.npz")
    np.savez(folder / "start.npz", **{NUMBERS: arrays[NUMBERS], COORDINATES: arrays[COORDINATES][:40], **changes})
    words = ("--temperature", 300, "--time", 0.002, "--out", folder / "never")
    assert said.replace("conformation 3", "conformation 0") in refused(folder, "simulate", MODEL, folder / "start.npz", *words)


def test_unseen_element(folder: Path) -> None:
    numbers = npz("rmd17_ethanol_test_01.npz")[NUMBERS].copy()
    numbers[2] = 5
    data = ethanol(folder / "boron.npz", nuclear_charges=numbers)
    config = write_yaml(folder / "boron.yaml", settings(str(data), objectives="et-ore", exclude="none"))
    for words in (
        ("evaluate", MODEL, data),
        ("simulate", MODEL, data, "--temperature", 300, "--time", 0.002, "--out", folder / "never"),
        ("finetune", config, "--from", MODEL, "--out", folder / "never"),
    ):
        assert "the model never saw B; it was trained on H, C, N, O, S, Cl" in refused(folder, *words)


def test_tf32_without_a_gpu(folder: Path) -> None:
    words = ("--temperature", 300, "--time", 0.002, "--precision", "tf32", "--out", folder / "never")
    assert "--precision tf32 is of GPUs; on the CPU there are float32 and bfloat16" in refused(
        folder, "simulate", MODEL, folder / "good.npz", *words
    )


def test_a_charge_that_the_model_would_pass_over(folder: Path) -> None:
    words = ("--temperature", 300, "--time", 0.002, "--charge", 1, "--spin", 2, "--out", folder / "never")
    said = refused(folder, "simulate", MODEL, folder / "good.npz", *words)
    assert "the model does not know of charge 1 and spin 2" in said


def test_a_file_where_a_run_folder_should_be(folder: Path) -> None:
    for words in (("pretrain", folder / "good.yaml"), ("finetune", folder / "good.yaml", "--from", MODEL)):
        assert "good.npz is a file; --out takes a folder" in refused(folder, *words, "--out", folder / "good.npz")


def test_missing_files(folder: Path) -> None:
    good, config, absent = folder / "good.npz", folder / "good.yaml", folder / "absent"
    for words, said in (
        (("evaluate", absent, good), "absent does not exist; expected a model file"),
        (("evaluate", MODEL, absent), "absent does not exist; give a store"),
        (("finetune", config, "--from", absent, "--out", folder / "never"), "absent does not exist; expected a model file"),
        (("pretrain", folder / "absent.yaml", "--out", folder / "never"), "absent.yaml does not exist"),
        (("pretrain", config, "--set", f"data={absent}.xyz", "--out", folder / "never"), "absent.xyz does not exist"),
        (("pretrain", config, "--set", "data=bundled:qm10", "--out", folder / "never"), "did you mean 'qm9'?"),
        (("pretrain", config, "--set", f"validation.path={absent}.xyz", "--out", folder / "never"), "absent.xyz does not exist"),
        (("data", "import", "rmd17", absent, "--out", folder / "never.fw"), "absent does not exist"),
        (("data", "check", absent), "absent does not exist"),
        (("data", "info", absent), "absent is not a Forcewell store"),
        (("simulate", MODEL, absent, "--temperature", 300, "--time", 1, "--out", folder / "never"), "absent: no such file"),
        (("report", absent), "absent"),
    ):
        assert said in refused(folder, *words)


def test_folders_given_for_files(folder: Path, tmp_path: Path) -> None:
    good, config, empty, out = folder / "good.npz", folder / "good.yaml", tmp_path / "empty", ("--out", folder / "never")
    empty.mkdir()
    lacking = "empty is a folder without a model.safetensors; expected a model file, or the folder of a run"
    for words, said in (
        (("evaluate", empty, good), lacking),
        (("bench", empty), lacking),
        (("finetune", config, "--from", empty, *out), lacking),
        (("simulate", empty, good, "--temperature", 300, "--time", 1, *out), lacking),
        (("simulate", MODEL, empty, "--temperature", 300, "--time", 1, *out), "empty: is a folder; STRUCTURE is a file"),
        (("convert", empty, *out), "empty is a folder; expected a checkpoint"),
    ):
        assert said in refused(folder, *words)


def test_the_folder_of_a_simulation_is_no_training_run(folder: Path, tmp_path: Path) -> None:
    succeed("simulate", MODEL, folder / "good.npz", "--temperature", 300, "--time", 0.002, "--out", tmp_path / "md")
    before = files(tmp_path / "md")
    said = refused(folder, "report", tmp_path / "md")
    assert "md: the folder of a simulation, whose results are in summary.json; expected the folder of a training run" in said
    assert files(tmp_path / "md") == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["trainig.steps=2"], "did you mean 'training'?"),
        (["model.encoder.heads=3"], "channels (16) must be a multiple of heads (3)"),
        (["model.encoder.name=equivarient-transformer"], "did you mean 'equivariant-transformer'?"),
        (["model.encoder.elements=8"], "it must be above the data's atomic number 8"),
        (["objectives=et-orea"], "did you mean 'et-ore'?"),
        (["objectives={forces: {wieght: 2}}"], "did you mean 'weight'?"),
        (["objectives={force: {}}"], "did you mean 'forces'?"),
        (["data.0.objectives=[force]"], "did you mean 'forces'?"),
        (["training.max_atoms=5"], "more than max_atoms = 5"),
        (["hardware.accelerator=tpu"], "cannot be used here"),
        (["hardware.accelerator=graphics"], "cannot be used here"),
        (["hardware.precision=tf32", "hardware.accelerator=cpu"], "tf32 is of GPUs"),
        (["exclude=benchmark"], "no conformations are left to train on"),
        (["validation.fraction=0.001"], "validation"),
    ],
)
def test_settings_that_only_show_with_the_data(changes: list[str], said: str, folder: Path) -> None:
    words = [word for change in changes for word in ("--set", change)]
    assert said in refused(folder, "pretrain", folder / "good.yaml", *words, "--out", folder / "never")


def test_wrong_values_of_objectives(folder: Path) -> None:
    for setting in ("weight: heavy", "weight: -1", "sigma: x"):
        kind = "force-denoising" if "sigma" in setting else "forces"
        change = f"objectives={{{kind}: {{{setting}}}, forces: {{}}}}" if kind != "forces" else f"objectives={{forces: {{{setting}}}}}"
        assert setting.split(":")[0] in refused(folder, "pretrain", folder / "good.yaml", "--set", change, "--out", folder / "never")


def test_run_folders(folder: Path) -> None:
    good = ("pretrain", folder / "good.yaml")
    assert "already holds a run; add --resume" in refused(folder, *good, "--out", folder / "run")
    assert "is not a run (no config.yaml)" in refused(folder, *good, "--out", folder / "never", "--resume")
    assert "good.npz" in refused(folder, *good, "--out", folder / "good.npz")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(folder: Path) -> None:
    (folder / "locked").mkdir(mode=0o555)
    assert "ermission denied" in refused(folder, "pretrain", folder / "good.yaml", "--out", folder / "locked" / "run")


def test_wrong_signs_and_units_are_found(tmp_path: Path) -> None:
    """The whole test set: forces turned around, and energies multiplied as if kcal/mol had been converted once too often."""
    arrays = npz("rmd17_ethanol_test_01.npz")
    flipped = ethanol(tmp_path / "flipped.npz", 1000, forces=-arrays["forces"])
    energies = ethanol(tmp_path / "energies.npz", 1000, energies=arrays["energies"] * 23.06)
    assert "not fit for training" in (line := refused(tmp_path, "data", "check", flipped)) and "sign" in line
    assert "kcal/mol" in refused(tmp_path, "data", "check", energies)
    succeed("data", "check", ethanol(tmp_path / "right.npz", 1000))  # the control


def flip(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]


def test_damaged_stores(folder: Path, tmp_path: Path) -> None:
    """Single bytes all over a shard; a shard cut short; a manifest cut short or without its list of shards."""
    store = shutil.copytree(folder / "qm7x.fw", tmp_path / "store.fw")
    shard, manifest = store / "shard-00000.arrow", store / "manifest.json"
    whole, text = shard.read_bytes(), manifest.read_bytes()
    for place in np.random.default_rng(1).integers(0, len(whole), 12):
        shard.write_bytes(flip(whole, int(place)))
        assert "SHA-256" in refused(tmp_path, "evaluate", MODEL, store)
    shard.write_bytes(whole[: len(whole) // 2])
    assert "bytes long, not" in refused(tmp_path, "evaluate", MODEL, store)
    shard.write_bytes(whole)
    for broken in (text[:100], b"", b"[]", b"{}", text.replace(b'"shards"', b'"shads"'), b"\xff" + text):
        manifest.write_bytes(broken)
        assert "manifest.json" in refused(tmp_path, "evaluate", MODEL, store)
    manifest.write_bytes(text)
    shard.unlink()
    assert "is missing" in refused(tmp_path, "evaluate", MODEL, store)


def test_damaged_files(folder: Path, tmp_path: Path) -> None:
    data = (folder / "good.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(data[: len(data) // 2])
    (tmp_path / "cut.xyz").write_text("9\nProperties=species:S:1:pos:R:3\nC 0 0 0\n", encoding="utf-8")
    (tmp_path / "cut.safetensors").write_bytes(MODEL.read_bytes()[:5000])
    np.savez(tmp_path / "objects.npz", z=np.array([{}], dtype=object), pos=np.zeros((1, 1, 3)))
    assert "not a whole .npz file" in refused(tmp_path, "evaluate", MODEL, tmp_path / "cut.npz")
    assert "not a whole extended XYZ frame" in refused(tmp_path, "evaluate", MODEL, tmp_path / "cut.xyz")
    assert "pickled Python objects" in refused(tmp_path, "evaluate", MODEL, tmp_path / "objects.npz")
    for path in (tmp_path / "cut.safetensors", folder / "good.npz"):
        assert "is not a readable model file" in refused(tmp_path, "evaluate", path, folder / "good.npz")
    assert "not a model file" in refused(tmp_path, "evaluate", folder / "run" / "state" / "state.safetensors", folder / "good.npz")


class Bomb:
    """Unpickling this writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.write_text, (self.marker, "executed")


def test_planted_pickles_are_never_opened(folder: Path, tmp_path: Path) -> None:
    run, marker = shutil.copytree(folder / "run", tmp_path / "run"), tmp_path / "marker"
    bomb = pickle.dumps(Bomb(marker))
    resume = ("pretrain", folder / "good.yaml", "--out", run, "--resume")
    state = run / "state" / "state.safetensors"
    for name in ("optimiser.pt", "extra.pkl"):
        (run / "state" / name).write_bytes(bomb)
        assert f"{name} is not part of a run's state" in refused(tmp_path, *resume)
        (run / "state" / name).unlink()
    good = state.read_bytes()
    state.write_bytes(bomb)
    assert "state.safetensors is not a readable run state" in refused(tmp_path, *resume)
    state.write_bytes(flip(good, len(good) // 2))
    assert "is damaged" in refused(tmp_path, *resume)
    state.write_bytes(MODEL.read_bytes())
    assert "is not a run's state" in refused(tmp_path, *resume)
    state.write_bytes(good)
    (run / "model.safetensors").write_bytes(bomb)
    assert "is not a readable model file" in refused(tmp_path, "evaluate", run / "model.safetensors", folder / "good.npz")
    assert not marker.exists()


def limited(size: int) -> Callable[[], None]:
    """For a child process: no file may grow beyond ``size`` bytes, which fails like a full disk."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def on_full_disk(size: int, *words: Any) -> str:
    arguments = [str(PROGRAM), *map(str, words)]
    done = subprocess.run(arguments, capture_output=True, text=True, env=ENVIRONMENT, preexec_fn=limited(size), timeout=120)
    lines = done.stderr.splitlines()
    print(lines)
    assert done.returncode == 2 and len(lines) == 1 and lines[0].startswith("error: "), done.stderr[-2000:]
    return lines[0]


def test_a_full_disk_leaves_whole_files(folder: Path, tmp_path: Path) -> None:
    """A run whose state no longer fits: what was saved before stays, and with room the run ends as if nothing had been."""
    config, run = folder / "good.yaml", tmp_path / "run"
    size = (folder / "run" / "model.safetensors").stat().st_size
    assert size + 1000 < (folder / "run" / "state" / "state.safetensors").stat().st_size  # the model fits, the state does not
    assert "File too large" in on_full_disk(size + 1000, "pretrain", config, "--out", run)
    left = files(run)
    assert sorted(left) == ["config.yaml", "log.jsonl", "model.safetensors", "state"]
    weights(run / "model.safetensors")  # intact
    succeed("pretrain", config, "--out", run, "--resume")
    ours, theirs = weights(run / "model.safetensors"), weights(folder / "run" / "model.safetensors")
    assert all(np.array_equal(ours[name].numpy(), theirs[name].numpy()) for name in ours)


def test_a_full_disk_during_an_import(folder: Path, tmp_path: Path) -> None:
    line = on_full_disk(20_000, "data", "import", "qm7x", folder / "qm7x.npz", "--out", tmp_path / "s.fw")
    assert "File too large" in line
    assert [name for name in files(tmp_path) if name.endswith((".tmp", ".arrow"))] == []


def test_import_refuses_forces_of_the_wrong_sign(tmp_path: Path) -> None:
    """As the check does; nothing of the store is left, and --unchecked imports the same file."""
    with np.load(resources.files("forcewell.bundled") / "rmd17_ethanol_train_01.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays["forces"] = -arrays["forces"]
    np.savez(tmp_path / "rmd17_ethanol.npz", **arrays)
    words = ["data", "import", "rmd17", str(tmp_path / "rmd17_ethanol.npz"), "--exclude", "none", "--out", str(tmp_path / "a.fw")]
    assert "wrong sign" in refuse(*words)
    assert not (tmp_path / "a.fw").exists()
    succeed(*words, "--unchecked")
    assert (tmp_path / "a.fw" / "manifest.json").is_file()
