"""Every recipe runs: two steps at batch size 2, its data replaced by small stores and its encoder by a tiny one."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import MODEL, ethanol, log, small_store, succeed

from forcewell.config import load_config, recipes
from forcewell.nn import encoder_settings
from forcewell.objectives import build
from forcewell.potential import Potential
from forcewell.sources import SOURCES
from forcewell.store import StoreWriter, open_data

SHORT = ("training.steps=2", "training.batch_size=2", "validation.by=random", "validation.fraction=0.2", "hardware.accelerator=cpu")
TINY = {"channels": 16, "layers": 1, "heads": 2, "radial": 8, "degrees": 2, "divisor": 2, "cutoff": 3.0}
# Parameters with one energy head at full size: TorchMD-Net's, GemNet's and Wang et al.'s own counts are tested elsewhere.
FULL = {"et-oreo-faithful": 6_864_898, "gao-forcefield": 1_892_294, "gao-forcefield-no-force-norm": 1_892_294}


def text(name: str) -> str:
    return (resources.files("forcewell.recipes") / f"{name}.yaml").read_text(encoding="utf-8")


def own_data(name: str) -> list[str]:
    """What a recipe for the user's own data lacks."""
    return [] if "\ndata:" in text(name) else ["data=my.xyz"]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By the file names that the recipes use; QM7-X stands in for every data set with forces, made-up labels for properties."""
    place = tmp_path_factory.mktemp("recipes")
    succeed("data", "import", "rmd17", ethanol(place / "rmd17_ethanol.npz", 30), "--out", place / "ethanol.fw", "--exclude", "none")
    bundled = {"qm9": small_store(place, "qm9", 24), "ethanol": place / "ethanol.fw", "qm7x": small_store(place, "qm7x", 24)}
    block = open_data(bundled["qm9"]).block(np.arange(20))
    block.properties = {"homo": np.linspace(-7, -5, 20), "expt": np.linspace(-9, 1, 20)}
    writer = StoreWriter(place / "labelled.fw")
    writer.append(block)
    writer.finish()
    return bundled | {"bundled qm9": bundled["qm9"], "qm9": place / "labelled.fw", "freesolv": place / "labelled.fw"}


@pytest.mark.parametrize("name", recipes())
def test_recipe(name: str, stores: dict[str, Path], tmp_path: Path) -> None:
    config = load_config(name, own_data(name))
    first = text(name).splitlines()[0]
    assert first.split("#")[1].split()[:3] in (["forcewell", kind, name] for kind in ("pretrain", "finetune")) or name == "forces"
    encoder = config.model.encoder
    known = encoder_settings(encoder.name)
    fine = " finetune " in text(name).split("seed:")[0]
    changes = [*SHORT, *own_data(name)]
    if not fine:  # which keeps the network of its model
        changes += [f"model.encoder.{key}={value}" for key, value in TINY.items() if key in known]
    if own_data(name):
        changes.append(f"data={stores['ethanol']}")
    for number, entry in enumerate(config.data if not own_data(name) else []):
        stem = Path(entry.path.removeprefix("bundled:")).stem
        stem = "bundled qm9" if entry.path == "bundled:qm9" else stem
        changes.append(f"data.{number}.path={stores.get(stem, stores['qm7x'])}")
    words = [word for change in changes for word in ("--set", change)]
    out = succeed(*(["finetune", name, "--from", MODEL] if fine else ["pretrain", name]), *words, "--out", tmp_path / "run")
    losses = [line["loss"] for line in log(tmp_path / "run")]
    print(f"{name}: losses {', '.join(f'{loss:.3f}' for loss in losses)}")
    assert "best model" in out
    assert losses and all(0 < loss < 1e5 for loss in losses)
    assert log(tmp_path / "run")[-1]["step"] == 2


def test_imports_that_recipes_name_exist() -> None:
    named = {source for name in recipes() for source in re.findall(r"forcewell data import (\S+)", text(name).replace("\n# ", " "))}
    assert len(named) >= 10 and named <= set(SOURCES)


def test_twins() -> None:
    """Every published experiment has a small twin that asks for the same, of another size."""
    large = [name for name in recipes() if not name.endswith("-small") and not name.startswith(("quickstart", "forces"))]
    assert len(large) >= 25
    for name in large:
        full, small = load_config(name), load_config(f"{name}-small")
        assert build(full.objectives) == build(small.objectives) and full.model.encoder.name == small.model.encoder.name
        assert small.training.steps <= 2000 and [entry.path for entry in full.data] == [entry.path for entry in small.data]


@pytest.mark.parametrize("name", FULL)
def test_full_sizes(name: str) -> None:
    model = load_config(name).model
    with torch.device("meta"):
        potential = Potential({"encoder": model.encoder.model_dump(), "head": model.head.model_dump()})
    count = sum(parameter.numel() for parameter in potential.parameters())
    print(f"{name}: {count} parameters")
    assert count == FULL[name]


@pytest.mark.parametrize("name", sorted({name for name in recipes() if "\nmodel:" in text(name)}))
def test_models_of_recipes_can_be_built(name: str) -> None:
    """At the size in the file, without memory for the numbers."""
    model = load_config(name, own_data(name)).model
    with torch.device("meta"):
        Potential({"encoder": model.encoder.model_dump(), "head": {**model.head.model_dump(), "noise": True}})
