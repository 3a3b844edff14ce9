"""The training loop: it learns, it logs, missing labels teach nothing, and what is not finite stops it by name."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from tiny_runs import ethanol, files, log, npz, refuse, settings, small_store, succeed, weights, write_yaml

from forcewell.checkpoint import load_model

FRAMES = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("train")
    small_store(place, "qm9", 30)
    small_store(place, "qm7x", 40)
    return place


def run(folder: Path, name: str, data: Path, *changes: str, **sections: object) -> Path:
    config = write_yaml(folder / f"{name}.yaml", settings(str(data), objectives="et-ore", exclude="none", **sections))
    succeed("pretrain", config, "--out", folder / name, *(word for change in changes for word in ("--set", change)))
    return folder / name


def labels(frames: int = FRAMES) -> np.ndarray:
    return npz("rmd17_ethanol_test_01.npz")["forces"][:frames].astype(np.float64)


def test_training_lowers_the_force_error(folder: Path) -> None:
    """100 steps on 40 ethanol frames; a prediction of zero is the yardstick."""
    data = ethanol(folder / "learn.npz")
    training = {"steps": 100, "batch_size": 4, "validate_every": 50, "log_every": 50, "save_every": 100}
    lines = [line for line in log(run(folder, "learn", data, training=training)) if line["kind"] == "validation"]
    maes = [line["force_mae"] for line in lines]
    print(f"validation force MAE at steps 0, 50, 100: {', '.join(f'{mae:.0f}' for mae in maes)} meV/Å")
    assert maes[-1] < 0.75 * maes[0]
    assert [line["step"] for line in lines] == [0, 50, 100]


def test_log_and_run_folder(folder: Path) -> None:
    stores = [str(folder / "qm9.fw"), str(folder / "qm7x.fw")]
    succeed("pretrain", write_yaml(folder / "log.yaml", settings(*stores)), "--out", folder / "log")
    lines = log(folder / "log")
    assert sorted(files(folder / "log")) == ["config.yaml", "log.jsonl", "model.safetensors", "state", "state/state.safetensors"]
    assert lines[0]["kind"] == "validation" and lines[0]["step"] == 0
    assert [line["step"] for line in lines if line["kind"] == "train"] == [2, 4, 6, 8, 10, 12]
    for line in lines:
        weighted = line["terms"]["forces"] + line["terms"]["zero-force"] + 2.0 * line["terms"]["force-denoising"]
        assert line["loss"] == pytest.approx(weighted, rel=1e-12)
    best = min((line["loss"], line["step"]) for line in lines if line["kind"] == "validation")
    assert load_model(folder / "log" / "model.safetensors")[1]["training"]["step"] == best[1]


def test_the_saved_model_is_the_average_of_the_weights(folder: Path) -> None:
    """decay d = min(0.9, (1 + step) / (10 + step)), recomputed from the weights of the single steps."""
    data, training = ethanol(folder / "ema.npz", 20), {"validate_every": 4, "save_every": 1, "log_every": 1}

    def state(average: float | None, steps: int) -> dict[str, torch.Tensor]:
        optimiser = {"schedule": "constant", "average": average}
        place = run(folder, f"ema-{average}-{steps}", data, f"training.steps={steps}", training=training, optimiser=optimiser)
        return weights(place / "state" / "state.safetensors")

    name, trail = "head.blocks.0.mix.weight", [state(None, steps) for steps in range(1, 5)]
    expected, saved = state(0.9, 1)[f"average.{name}"], state(0.9, 4)
    for step in range(1, 4):  # the first update was step 0
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * trail[step][f"model.{name}"]
    error = float((saved[f"average.{name}"] - expected).abs().max())
    moved = float((saved[f"average.{name}"] - saved[f"model.{name}"]).abs().max())
    print(f"average recomputed within {error:.1e}; it is {moved:.1e} away from the last weights")
    assert error < 1e-7 < moved


def test_missing_labels_teach_nothing_and_spoil_nothing(folder: Path) -> None:
    """NaN forces of some atoms: the run goes on, and what their values were before makes no difference."""
    missing, other = labels(), labels()
    missing[::2, 4] = np.nan
    other[::2, 4] = np.nan
    other[::2, 4, 0] = 1e3  # one component known, two missing: still not a force
    runs = [
        run(folder, name, ethanol(folder / f"{name}.npz", FRAMES, forces=forces)) for name, forces in (("nan", missing), ("partly", other))
    ]
    first, second = (weights(place / "model.safetensors") for place in runs)
    assert all(bool(torch.isfinite(value).all()) for value in first.values())
    assert all(torch.equal(first[name], second[name]) for name in first if name != "geometry_hashes")
    whole = weights(run(folder, "whole", ethanol(folder / "whole.npz")) / "model.safetensors")
    assert not torch.equal(first["model.head.blocks.0.mix.weight"], whole["model.head.blocks.0.mix.weight"])  # the control


@pytest.mark.parametrize("value", [np.inf, 1e30])
def test_an_impossible_label_stops_the_run_by_name(value: float, folder: Path) -> None:
    """Infinite, or so large that its square is: only that conformation is named and saved."""
    name, forces = f"label-{value:g}", labels()
    forces[17, 2, 1] = value
    data = ethanol(folder / f"{name}.npz", FRAMES, forces=forces)
    config = write_yaml(folder / f"{name}.yaml", settings(str(data), objectives="et-ore", exclude="none"))
    line = refuse("pretrain", config, "--out", folder / name)
    assert "the loss is not finite" in line and f"conformations: {name} #17; saved to" in line
    saved = list((folder / name).glob("nonfinite-step-*.xyz"))
    assert len(saved) == 1 and str(saved[0]) in line
    frames = ase.io.read(saved[0], index=":")
    assert [frame.info["sample"] for frame in frames] == [f"{name} #17"]  # type: ignore[union-attr]
    expected = npz("rmd17_ethanol_test_01.npz")["coords"][17]
    difference = np.abs(frames[0].positions - expected).max()  # type: ignore[union-attr]
    print(f"saved geometry within {difference:.1e} Å of the data's")
    assert difference < 1e-5


def test_an_exploding_run_stops(folder: Path) -> None:
    data = ethanol(folder / "explode.npz", FRAMES)
    optimiser = {"learning_rate": 1e18, "warmup_steps": 0, "schedule": "constant", "gradient_clip": None}
    config = write_yaml(folder / "explode.yaml", settings(str(data), objectives="et-ore", exclude="none", optimiser=optimiser))
    line = refuse("pretrain", config, "--out", folder / "explode")
    assert "lower optimiser.learning_rate" in line and "conformations: explode #" in line
    step = int(line.split("step ")[1].split(":")[0])
    print(f"stopped at step {step}")
    assert step <= 4
    assert (folder / "explode" / f"nonfinite-step-{step}.xyz").is_file()
    best, description = load_model(folder / "explode" / "model.safetensors")  # what was best before is still good
    assert description["training"]["step"] == 0 and all(bool(torch.isfinite(p).all()) for p in best.parameters())


def test_a_log_shorter_than_the_state_says(folder: Path) -> None:
    """What is missing is not made up of zeros."""
    place = run(folder, "shorter", ethanol(folder / "shorter.npz", 20))
    whole = (place / "log.jsonl").read_bytes()
    (place / "log.jsonl").write_bytes(whole[:60])
    assert "log.jsonl: shorter than the state file says" in refuse("pretrain", folder / "shorter.yaml", "--out", place, "--resume")
    assert (place / "log.jsonl").read_bytes() == whole[:60]


def test_double_precision_runs_and_stays(folder: Path) -> None:
    place = run(folder, "double", ethanol(folder / "double.npz", 20), "hardware.precision=64-true", "training.steps=2")
    assert {value.dtype for name, value in weights(place / "model.safetensors").items() if name != "geometry_hashes"} == {torch.float64}


def test_objectives_can_be_limited_to_sources(folder: Path) -> None:
    """QM7-X without its forces objective is refused; minima without zero force have that term at zero throughout."""
    stores = [{"path": str(folder / "qm9.fw"), "objectives": ["force-denoising"]}, {"path": str(folder / "qm7x.fw")}]
    succeed("pretrain", write_yaml(folder / "limited.yaml", settings(*stores)), "--out", folder / "limited")
    terms = [line["terms"] for line in log(folder / "limited")]
    assert all(line["zero-force"] == 0.0 for line in terms)
    assert max(line["force-denoising"] for line in terms) > 0 < max(line["forces"] for line in terms)
    stores[1]["objectives"] = ["zero-force"]
    line = refuse("pretrain", write_yaml(folder / "useless.yaml", settings(*stores)), "--out", folder / "useless")
    assert "qm7x: nothing to learn here with zero-force" in line
    assert not (folder / "useless").exists()
