"""What a run makes of the model it is given, and what it says of that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_runs import MODEL, settings, small_store, succeed, write_yaml

import forcewell as fw
from forcewell.store import StoreWriter


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models")
    small_store(place, "qm7x", 40)
    small_store(place, "qm9", 40)
    return place


def test_normalised_noise_is_judged_alike_before_and_after(folder: Path) -> None:
    """Before anything was seen the deviation is that of noise without rigid motion; whatever was seen confirms it."""
    for preset, known in (("noisynode-faithful", 0.04), ("noisynode", None)):
        run = folder / f"moments-{preset}"
        config = write_yaml(folder / "moments.yaml", settings(str(folder / "qm9.fw"), objectives=preset))
        succeed("pretrain", config, "--out", run)
        model = fw.load(run / "model.safetensors")
        expected = model.config["head"]["normalise"]["deviation"]
        seen = float(model.noise_normaliser.square.mean()) ** 0.5
        print(f"{preset}: expected {expected:.5f} Å, seen {seen:.5f}")
        assert seen == pytest.approx(expected, rel=0.1) and (expected == known or expected < 0.038)


def test_a_trained_model_is_told_of_its_factor(folder: Path) -> None:
    config = write_yaml(folder / "factor.yaml", settings(str(folder / "qm7x.fw"), objectives={"energy": {"standardised": True}}))
    words = ("finetune", config, "--from", MODEL, "--out")
    assert "energies and forces of the model file are multiplied by" in succeed(*words, folder / "factor")
    words = ("finetune", config, "--from", folder / "factor" / "model.safetensors", "--out")
    assert "the factor of the model file stays" in succeed(*words, folder / "factor again")


def test_charges_that_the_encoder_does_not_see_are_named(folder: Path) -> None:
    block = fw.Store(folder / "qm7x.fw").block(range(40))
    block.arrays["charge"] = (np.arange(40) < 15).astype(np.int8)
    block.arrays["spin"] = block.arrays["charge"].astype(np.uint8) + 1
    writer = StoreWriter(folder / "ions.fw")
    writer.append(block)
    writer.finish()
    tree = settings(str(folder / "ions.fw"), objectives="et-ore")
    tree["validation"] = {"path": str(folder / "qm7x.fw"), "maximum": 4}
    out = succeed("pretrain", write_yaml(folder / "ions.yaml", tree), "--out", folder / "ions")
    assert "15 conformations to train on are charged or not singlets" in out
    words = ("--set", "model.encoder.electronic=true", "--out", folder / "electronic")
    assert "not singlets" not in succeed("pretrain", folder / "ions.yaml", *words)
