"""Pre-training and fine-tuning with every encoder, by the command line, on two steps of real data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import ethanol, log, small_store, succeed, weights

import forcewell as fw
from forcewell.checkpoint import load_model
from forcewell.nn import ENCODERS, encoder_settings
from forcewell.testing import SMALL, check_potential

SHORT = ("training.steps=2", "training.batch_size=2", "validation.by=random", "validation.fraction=0.2", "hardware.accelerator=cpu")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("stores")
    succeed("data", "import", "rmd17", ethanol(place / "rmd17_ethanol.npz"), "--out", place / "ethanol.fw", "--exclude", "none")
    return {"qm9": small_store(place, "qm9", 30), "qm7x": small_store(place, "qm7x", 30), "ethanol": place / "ethanol.fw"}


@pytest.mark.parametrize("name", ENCODERS)
def test_pretrained_and_finetuned(name: str, stores: dict[str, Path], tmp_path: Path) -> None:
    """The quickstart's recipe with another encoder by one word, with charge, spin and level inputs."""
    sizes = {key: value for key, value in SMALL.items() if key in encoder_settings(name)}
    given = [f"model.encoder={name}", "model.encoder.electronic=true", "model.encoder.levels=1"]
    given += [f"model.encoder.{key}={value}" for key, value in sizes.items()]
    given += [*SHORT, f"data=[{{path: {stores['qm9']}}}, {{path: {stores['qm7x']}}}]"]
    succeed("pretrain", "quickstart", *(word for change in given for word in ("--set", change)), "--out", tmp_path / "before")
    before, description = load_model(tmp_path / "before" / "model.safetensors")
    assert before.config["encoder"]["name"] == description["run"]["model"]["encoder"]["name"] == name
    assert len(before.levels) == 2 == len(before.encoder.levels)  # type: ignore[arg-type]
    assert before.encoder.tokens is not None  # et-oreo marks its displaced copies
    tuning = [*SHORT, f"data.0.path={stores['ethanol']}"]
    words = [word for change in tuning for word in ("--set", change)]
    out = succeed(
        "finetune", "quickstart-finetune", *words, "--from", tmp_path / "before" / "model.safetensors", "--out", tmp_path / "after"
    )
    after = fw.load(tmp_path / "after" / "model.safetensors")
    assert "new: none; dropped: none" not in out and "encoder.levels" in out  # a level more than before
    assert after.levels[:2] == before.levels and len(after.encoder.levels) == 3  # type: ignore[arg-type]
    losses = [line["loss"] for run in ("before", "after") for line in log(tmp_path / run)]
    print(f"{name}: losses {', '.join(f'{loss:.3f}' for loss in losses)}")
    assert all(np.isfinite(losses)) and all(
        bool(torch.isfinite(value).all()) for value in weights(tmp_path / "after" / "model.safetensors").values()
    )
    failed = [check for check in check_potential(after, periodic=False) if not check.passed]
    assert failed == []
