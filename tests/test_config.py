"""Configurations: recipes, ``--set``, and mistakes that are told with the nearest valid key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from tiny_runs import settings, write_yaml

from forcewell.config import RunConfig, dump_config, load_config, recipes
from forcewell.errors import InputError
from forcewell.nn import ENCODERS, encoder_settings


@pytest.mark.parametrize("name", recipes())
def test_recipes_are_valid_and_round_trip(name: str, tmp_path: Path) -> None:
    config = load_config(name, ["data=my.xyz"] if name == "forces" else [])  # the user's own data
    assert config.data and config.training.steps > 0
    (tmp_path / "c.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(str(tmp_path / "c.yaml")) == config


def test_recipes_are_the_papers() -> None:
    """ET-OREO section 3.5: 256/8/8/64, rate 1e-4, plateau 0.8 after 30, 468,750 steps of 32."""
    assert {"et-ore", "et-oreo", "et-oreo-faithful", "quickstart", "quickstart-finetune"} <= set(recipes())
    for name in ("et-ore", "et-oreo", "et-oreo-faithful"):
        config = load_config(name)
        encoder, optimiser = config.model.encoder, config.optimiser
        assert (encoder.channels, encoder.layers, encoder.heads, encoder.radial) == (256, 8, 8, 64)
        assert (optimiser.learning_rate, optimiser.plateau_factor, optimiser.plateau_patience) == (1e-4, 0.8, 30)
        assert (config.training.steps, config.training.batch_size, config.objectives) == (468_750, 32, name)


@pytest.mark.parametrize(
    ("change", "path", "value"),
    [
        ("training.steps=1000", ("training", "steps"), 1000),
        ("optimiser.learning_rate=1e-3", ("optimiser", "learning_rate"), 1e-3),
        ("optimiser.gradient_clip=null", ("optimiser", "gradient_clip"), None),
        ("new_elements=true", ("new_elements",), True),
        ("model.encoder.cutoff=6", ("model", "encoder", "cutoff"), 6.0),
        ("hardware.devices=4", ("hardware", "devices"), 4),
        ("level=wB97X/6-31G(d)", ("level",), "wB97X/6-31G(d)"),
        ("objectives=et-ore", ("objectives",), "et-ore"),
        ("objectives={forces: {weight: 2.0}}", ("objectives",), {"forces": {"weight": 2.0}}),
        ("validation={by: time, fraction: 0.2}", ("validation", "by"), "time"),
    ],
)
def test_set(change: str, path: tuple[str, ...], value: object) -> None:
    found: object = load_config("quickstart", [change])
    for name in path:
        found = getattr(found, name)
    assert found == value and type(found) is type(value)


def test_set_data() -> None:
    """One file by its name alone; one source of several; a further source at the end; several changes in order."""
    assert [entry.path for entry in load_config("quickstart", ["data=my.xyz"]).data] == ["my.xyz"]
    config = load_config("quickstart", ["data.0.weight=7", "data.1.path=other.fw"])
    as_shipped = load_config("quickstart").data
    assert [(entry.path, entry.weight) for entry in config.data] == [
        ("bundled:qm9", 7.0),
        ("other.fw", as_shipped[1].weight),
        (as_shipped[2].path, as_shipped[2].weight),
    ]
    assert [entry.path for entry in load_config("quickstart", ["data.3={path: fourth.fw}"]).data][3:] == ["fourth.fw"]
    assert load_config("quickstart", ["training.steps=3", "training.steps=4"]).training.steps == 4
    assert [entry.path for entry in load_config("quickstart", ["data=[{path: a.fw}, {path: b.fw, maximum: 9}]"]).data] == ["a.fw", "b.fw"]


@pytest.mark.parametrize("change", ["model.encoder=schnet", "model.encoder.name=schnet", "model={encoder: schnet}"])
def test_another_encoder_is_one_word(change: str, tmp_path: Path) -> None:
    """It comes at its published size, without the settings that the recipe gives its own; further ones apply, in any order."""
    for changes in ([change, "model.encoder.filters=32"], ["model.encoder.filters=32", change]):
        encoder = load_config("quickstart", changes).model.encoder
        assert (encoder.name, encoder.channels, encoder.layers, encoder.radial, encoder.filters) == ("schnet", 256, 5, 32, 32)
        assert not hasattr(encoder, "heads")
    (tmp_path / "c.yaml").write_text(dump_config(load_config("quickstart", changes)), encoding="utf-8")
    assert load_config(str(tmp_path / "c.yaml")) == load_config("quickstart", changes)
    same = load_config("quickstart", ["model.encoder.name=equivariant-transformer"])
    assert same == load_config("quickstart")


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_defaults_are_the_constructors(name: str) -> None:
    """No second list of defaults: the published size is in the encoder alone."""
    given = load_config("quickstart", [f"model.encoder={name}"]).model.encoder.model_dump()
    assert given.pop("name") == name
    settings = encoder_settings(name)
    assert settings.pop("conditions") == (int, 0) and settings.pop("given_forces") == (bool, False)  # decided by the objectives
    assert given == {key: default for key, (_, default) in settings.items()}


def test_data_shorthand_in_a_file(tmp_path: Path) -> None:
    assert load_config(str(write_yaml(tmp_path / "c.yaml", {"data": "my.xyz"}))).data[0].path == "my.xyz"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["trainig.steps=2"], ["unknown key 'trainig'", "did you mean 'training'?"]),
        (["training.stepz=2"], ["unknown key 'training.stepz'", "did you mean 'training.steps'?", "batch_size"]),
        (["model.encoder.chanels=2"], ["did you mean 'model.encoder.channels'?"]),
        (["model.encoder=schnett"], ["model.encoder: unknown encoder 'schnett'; did you mean 'schnet'?"]),
        (["model.encoder=schnet", "model.encoder.heads=4"], ["unknown key 'model.encoder.heads'", "filters, layers"]),
        (["model.encoder.conditions=1"], ["unknown key 'model.encoder.conditions'"]),
        (["model.encoder.elements=200"], ["model.encoder.elements", "less than or equal to 119"]),
        (["model.encoder.levels=-1"], ["model.encoder.levels", "greater than or equal to 0"]),
        (["model.encoder.layers=0"], ["model.encoder.layers", "greater than 0"]),
        (["model.encoder.classes=wnag"], ["model.encoder.classes", "'elements' or 'wang'", "'wnag'"]),
        (["model.head.noise=vectrs"], ["model.head.noise: input should be False, True, 'vectors'"]),
        (["model.head.energy=poled"], ["model.head.energy", "'pooled'"]),
        (["model.head.nose=true"], ["did you mean 'model.head.noise'?"]),
        (["data.0.wieght=2"], ["unknown key 'data.0.wieght'", "did you mean 'data.weight'?"]),
        (["optimizer.learning_rate=1"], ["did you mean 'optimiser'?"]),
        (["training.steps=many"], ["training.steps", "valid integer", "'many'"]),
        (["training.steps=0"], ["training.steps", "greater than 0"]),
        (["training.steps=2.5"], ["training.steps", "2.5"]),
        (["optimiser.learning_rate=-1"], ["optimiser.learning_rate", "greater than 0"]),
        (["hardware.precision=16"], ["hardware.precision", "32-true"]),
        (["exclude=foo"], ["exclude", "benchmark"]),
        (["training=5"], ["training", "5"]),
        (["seed=-1"], ["seed", "greater than or equal to 0"]),
        (["seed=.nan"], ["seed"]),
        (["optimiser.learning_rate=.nan"], ["optimiser.learning_rate"]),
        (["optimiser.learning_rate=.inf"], ["optimiser.learning_rate"]),
        (["data=[]"], ["data", "at least 1"]),
        (["data=5"], ["data", "5"]),
        (["data.7.path=x"], ["'7' is not an entry of a list of 3"]),
        (["training.steps"], ["expected key=value"]),
        (["=3"], ["expected key=value"]),
        (["training.steps=[1"], ["not plain YAML"]),
        (["level=!!python/object/apply:os.system ['echo']"], ["not plain YAML"]),
        (["objectives.forces.weight=2"], ["objectives is 'et-oreo' here", "as a whole"]),
    ],
)
def test_mistakes_are_told_in_one_line(changes: list[str], words: list[str]) -> None:
    with pytest.raises(InputError) as told:
        load_config("quickstart", changes)
    print(told.value)
    assert "\n" not in str(told.value)
    assert [word for word in words if word not in str(told.value)] == []


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words", "", "7", "data: [\n", "data: &a [*a]\n", "\t- x", "1: 2\ndata: x\n"])
def test_files_that_are_no_configuration(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as told:
        load_config(str(tmp_path / "c.yaml"))
    print(told.value)
    assert "c.yaml" in str(told.value)


def test_a_yaml_tag_runs_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    text = f"data: !!python/object/apply:os.system ['touch {marker}']\n"
    yaml.unsafe_load(text)
    assert marker.exists()  # the control: the tag is a working attack
    marker.unlink()
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="not plain YAML"):
        load_config(str(tmp_path / "c.yaml"))
    assert not marker.exists()


def test_missing_files_and_recipes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"did you mean 'quickstart'\?"):
        load_config("quickstat")
    with pytest.raises(InputError, match=r"nope\.yaml does not exist"):
        load_config(str(tmp_path / "nope.yaml"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not text"):
        load_config(str(tmp_path / "binary.yaml"))


def test_the_tiny_configuration_of_these_tests_is_valid(tmp_path: Path) -> None:
    config = load_config(str(write_yaml(tmp_path / "c.yaml", settings("a.fw", training={"steps": 5}))))
    assert isinstance(config, RunConfig) and config.training.steps == 5 and config.training.batch_size == 4


@pytest.mark.parametrize("given", ["a.xyz", "[a.xyz, {path: b.xyz, weight: 2}]"])
def test_data_by_their_paths(given: str) -> None:
    """One path, or a list of paths and entries; each has settings like one that is written out."""
    config = load_config("forces", [f"data={given}", "data.0.split=s.json"])
    assert [(entry.path, entry.split, entry.weight) for entry in config.data] == [("a.xyz", "s.json", 1.0), ("b.xyz", None, 2.0)][
        : len(config.data)
    ]
    assert len(config.data) == 1 + given.count(",", 0, 8)


@pytest.mark.parametrize("earlier", ["data.0.split=s.json", "data=a.xyz"])
def test_what_was_said_of_data_is_not_dropped(earlier: str) -> None:
    """A split that is dropped lets test frames into training."""
    with pytest.raises(InputError, match=r"--set data=b\.xyz: it would replace what an earlier --set says of data"):
        load_config("forces", [*(["data=a.xyz"] if earlier.startswith("data.") else []), earlier, "data=b.xyz"])
