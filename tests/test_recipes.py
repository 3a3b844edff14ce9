"""Every recipe runs: two steps at batch size 2, its data replaced by small stores and its encoder by a tiny one."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import ENCODER, MODEL, ethanol, log, small_store, succeed

from forcewell.config import load_config, recipes

SHORT = ("training.steps=2", "training.batch_size=2", "validation.by=random", "validation.fraction=0.2", "hardware.accelerator=cpu")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By the file names that the recipes use; QM7-X stands in for every data set with forces."""
    place = tmp_path_factory.mktemp("recipes")
    succeed("data", "import", "rmd17", ethanol(place / "rmd17_ethanol.npz"), "--out", place / "ethanol.fw", "--exclude", "none")
    return {"qm9": small_store(place, "qm9", 30), "ethanol": place / "ethanol.fw", "qm7x": small_store(place, "qm7x", 30)}


@pytest.mark.parametrize("name", recipes())
def test_recipe(name: str, stores: dict[str, Path], tmp_path: Path) -> None:
    config = load_config(name)
    changes = list(SHORT) + [f"model.encoder.{key}={value}" for key, value in ENCODER.items()]
    for number, entry in enumerate(config.data):
        stem = Path(entry.path.removeprefix("bundled:")).stem
        changes.append(f"data.{number}.path={stores.get(stem, stores['qm7x'])}")
    words = [word for change in changes for word in ("--set", change)]
    command = ["finetune", name, "--from", MODEL] if "finetune" in name else ["pretrain", name]
    out = succeed(*command, *words, "--out", tmp_path / "run")
    losses = [line["loss"] for line in log(tmp_path / "run")]
    print(f"{name}: losses {', '.join(f'{loss:.3f}' for loss in losses)}")
    assert "best model" in out
    assert losses and all(0 < loss < 1e4 for loss in losses)
    assert log(tmp_path / "run")[-1]["step"] == 2
