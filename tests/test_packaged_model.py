"""The model that comes with the package: what it was trained on, what it can do at once, and fine-tuning from it."""

from importlib import resources
from pathlib import Path

import pytest

import forcewell as fw
from forcewell.checkpoint import find_model, load_model
from forcewell.cli import main
from forcewell.errors import InputError
from forcewell.evaluate.errors import evaluate
from forcewell.store import MemoryData


def test_it_is_small_and_says_where_it_is_from() -> None:
    path = find_model("forcewell-small")
    description = load_model("forcewell-small")[1]
    assert path.stat().st_size < 5e6 and path.with_suffix(".md").is_file()
    assert [source["name"] for source in description["data"]] == ["qm7x", "spice_replay500", "s66x8", "qm9"]
    assert not any("/" in source["path"] for source in description["run"]["data"])


def test_it_knows_forces_it_never_saw() -> None:
    with resources.as_file(resources.files("forcewell.bundled") / "rmd17_ethanol_test_01.npz") as file:
        data = MemoryData([fw.open_data(file).block(range(100))])
    result = evaluate(fw.load("forcewell-small"), data)
    print(f"ethanol: force MAE {result['force_mae']:.0f} meV/Å, cosine {result['force_cosine']:.2f}")
    assert result["force_mae"] < 400 and result["force_cosine"] > 0.8  # 340 on all test frames; zero forces: 823


def test_fine_tuning_from_it(tmp_path: Path) -> None:
    out = tmp_path / "mine"
    changes = ["training.steps=2", "training.batch_size=2", "validation.maximum=4"]
    words = [word for change in changes for word in ("--set", change)]
    main(["finetune", "forces", "--from", "forcewell-small", *words, "--out", str(out)])
    assert fw.load(out / "model.safetensors").levels[-1] == "PBE/def2-SVP"


def test_unknown_names_are_told() -> None:
    with pytest.raises(InputError, match="did you mean 'forcewell-small'"):
        find_model("forcewel-small")
    with pytest.raises(SystemExit) as code:
        main(["finetune", "forces", "--from", "forcewel-small", "--out", "nowhere"])
    assert code.value.code == 2 and not Path("nowhere").exists()
