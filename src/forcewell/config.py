"""The configuration of a training run: YAML in, validated values out. Unknown keys are errors."""

from __future__ import annotations

import difflib
import itertools
import types
import typing
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model, model_validator

from forcewell import nn
from forcewell.errors import InputError
from forcewell.fields import ELEMENTS
from forcewell.nn import ENCODERS, encoder_settings
from forcewell.nn.heads import ENERGY_HEADS, NOISE_HEADS


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# Not a user's to set: the objectives of a run decide how many conditioning tokens it needs, and whether forces are given.
_DECIDED = ("conditions", "given_forces")


def _encoder_section(name: str) -> type[_Section]:
    """The settings of an encoder, from its constructor: a number whose default is above zero must be so, too."""
    fields: dict[str, Any] = {"name": (Literal[name], name)}  # type: ignore[valid-type]
    for key, (kind, default) in encoder_settings(name).items():
        bounds: dict[str, Any] = {} if kind not in (int, float) else {"gt": 0} if default > 0 else {"ge": 0}
        if key == "elements":
            bounds = {"gt": 1, "le": ELEMENTS}
        if key not in _DECIDED:
            fields[key] = (kind, Field(default=default, **bounds))
    return create_model("".join(word.title() for word in name.split("-")) + "Config", __base__=_Section, **fields)


ENCODER_SECTIONS = {name: _encoder_section(name) for name in ENCODERS}


def _named(value: Any) -> Any:
    """``encoder: schnet`` is short for ``encoder: {name: schnet}``; without a name it is the Equivariant Transformer."""
    if isinstance(value, str):
        value = {"name": value}
    if isinstance(value, dict):
        value = {"name": "equivariant-transformer", **value}
        encoder_settings(str(value["name"]))  # refuses an unknown name
    return value


if TYPE_CHECKING:
    EncoderConfig = Any
else:
    EncoderConfig = Annotated[Union[tuple(ENCODER_SECTIONS.values())], Field(discriminator="name"), BeforeValidator(_named)]  # noqa: UP007


def encoder_config(settings: Mapping[str, Any]) -> _Section:
    """The section of an encoder's settings, such as those in a model file; what is not a user's to set is left out."""
    given = {key: value for key, value in settings.items() if key not in _DECIDED}
    return ENCODER_SECTIONS[given.get("name", "equivariant-transformer")](**given)


def encoder(name: str, **settings: Any) -> nn.Encoder:
    """``nn.encoder`` with values that are checked as those of a configuration are.

    Raises InputError for an unknown name or setting, and for a value of another type or out of range.

    >>> encoder("schnet", channels=16, layers=2, radial=8).channels
    16
    """
    known = encoder_settings(name)
    given = {key: value for key, value in settings.items() if key in known and key not in _DECIDED}
    try:
        checked = ENCODER_SECTIONS[name](**given)
    except ValidationError as error:
        first = error.errors()[0]
        said = first["msg"][0].lower() + first["msg"][1:]
        raise InputError(f"encoder {name}: {'.'.join(map(str, first['loc']))}: {said}, got {first['input']!r}") from None
    return nn.encoder(name, **{**settings, **{key: getattr(checked, key) for key in given}})


class HeadConfig(_Section):
    """How energy and noise are read from the encoder's features; the defaults are the encoder's own (nn/heads.py)."""

    energy: Literal[tuple(ENERGY_HEADS)] | None = None  # type: ignore[valid-type]
    noise: Literal[False, True, *NOISE_HEADS] = False  # type: ignore[valid-type]
    level_scale: bool = False  # a learned factor of energies and forces for each level of theory


def head_config(settings: Mapping[str, Any]) -> HeadConfig:
    """The section of a model file's heads; what the objectives decided is left out."""
    return HeadConfig(**{key: value for key, value in settings.items() if key in HeadConfig.model_fields})


class ModelConfig(_Section):
    """The network of a pre-training run; fine-tuning takes it from the model file. Default: the published 6.86 M-parameter
    Equivariant Transformer."""

    encoder: EncoderConfig = ENCODER_SECTIONS["equivariant-transformer"]()
    head: HeadConfig = HeadConfig()


class DataConfig(_Section):
    """One source of training data. ``path``: a store, extended XYZ or MD17-style .npz, or ``bundled:NAME``."""

    path: str
    weight: float = Field(default=1.0, gt=0)
    objectives: list[str] | None = None  # None: all that its labels allow
    level: str | None = None  # level of theory, where the file does not say
    split: str | None = None  # JSON of `forcewell data split`; its parts train and validation are used
    maximum: int | None = Field(default=None, gt=0)  # only the first so many conformations
    fraction: float = Field(default=1.0, gt=0, le=1)  # random share of what is trained on; a smaller one is part of a larger one


class ValidationConfig(_Section):
    """What is held out of each source, or data of its own."""

    path: str | None = None
    fraction: float = Field(default=0.05, gt=0, lt=1)
    by: Literal["molecule", "time", "random"] = "molecule"
    maximum: int = Field(default=500, gt=0)  # conformations validated on, per source


class SamplingConfig(_Section):
    """A sample comes from a source with probability in proportion to its ``weight``, times n^(1/temperature) if that is given.

    n: the source's conformations in training. 1: in proportion to size; 2: to its square root; larger: ever more evenly.
    """

    temperature: float | None = Field(default=None, ge=0.1)


class OptimiserConfig(_Section):
    """AdamW. Defaults of ET-OREO section 3.5 where it gives them; clipping and averaging are ours."""

    learning_rate: float = Field(default=1e-4, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup_steps: int = Field(default=10_000, ge=0)
    hold_steps: int = Field(default=0, ge=0)  # at the peak between warm-up and cosine
    schedule: Literal["constant", "cosine", "plateau"] = "plateau"
    plateau_factor: float = Field(default=0.8, gt=0, lt=1)
    plateau_patience: int = Field(default=30, gt=0)
    gradient_clip: float | None = Field(default=10.0, gt=0)  # on the norm of all gradients
    average: float | None = Field(default=0.999, gt=0, lt=1)  # decay of the weights' moving average

    @model_validator(mode="after")
    def _hold_before_cosine(self) -> OptimiserConfig:
        if self.hold_steps and self.schedule != "cosine":
            raise ValueError(f"hold_steps is for schedule cosine, and this is {self.schedule}; leave it out")
        return self


class TrainingConfig(_Section):
    """Length, batches and how often things happen, all in optimiser steps."""

    steps: int = Field(default=468_750, gt=0)
    batch_size: int = Field(default=32, gt=0)
    max_atoms: int = Field(default=4096, gt=0)
    validate_every: int = Field(default=500, gt=0)
    log_every: int = Field(default=50, gt=0)
    save_every: int = Field(default=500, gt=0)


class HardwareConfig(_Section):
    """Where a run takes place; several devices or nodes need no other change (Lightning Fabric)."""

    accelerator: str = "auto"
    devices: int = Field(default=1, gt=0)
    nodes: int = Field(default=1, gt=0)
    precision: Literal["32-true", "64-true", "bf16-mixed", "tf32"] = "32-true"  # tf32: matrix products, on a GPU
    compile: Literal["auto", "always", "never"] = "auto"  # training steps of encoders without kernels; auto: where it saves time


class RunConfig(_Section):
    """A pre-training or fine-tuning run."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    model: ModelConfig = ModelConfig()
    objectives: str | dict[str, dict[str, Any] | None] = "et-oreo"
    data: list[DataConfig] = Field(min_length=1)
    sampling: SamplingConfig = SamplingConfig()
    validation: ValidationConfig = ValidationConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    training: TrainingConfig = TrainingConfig()
    hardware: HardwareConfig = HardwareConfig()
    exclude: Literal["benchmark", "none"] | None = None  # benchmark molecules; default: left out of pre-training only
    new_elements: bool = False  # fine-tuning: allow elements that the model never saw
    level: str | None = None  # name of the level of theory of all data of this run, where sources do not say


def recipes() -> list[str]:
    """Names of the recipes in the package."""
    return sorted(
        entry.name.removesuffix(".yaml") for entry in resources.files("forcewell.recipes").iterdir() if entry.name.endswith(".yaml")
    )


def _recipe_names() -> str:
    """For a message: most have a twin for two cores, which goes without saying but once."""
    return ", ".join(name for name in recipes() if not name.endswith("-small")) + "; most also as NAME-small"


_ENCODER_CHANGES = ("model=", "model.encoder=", "model.encoder.name=")


def load_config(name: str, changes: list[str] | None = None) -> RunConfig:
    """A configuration from a YAML file or a recipe's name, with ``key=value`` changes such as
    ``training.steps=1000``, ``data.0.weight=2``, ``data=my.xyz`` (a single source) or ``model.encoder=schnet`` (that
    encoder at its published size, whatever the settings of another one in the file).

    Raises InputError naming the key and, where it is misspelt, the nearest valid one.
    """
    text, where = _text(name)
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{where}: not plain YAML ({' '.join(str(error).split())})") from None
    if not isinstance(tree, dict):
        raise InputError(f"{where}: expected a mapping of settings, e.g. 'data:' and 'training:'")
    _listed(tree)
    # Another encoder first: the settings that follow are its own, wherever they stand.
    ordered = sorted(changes or [], key=lambda change: not change.startswith(_ENCODER_CHANGES))
    for number, change in enumerate(ordered):
        if change.startswith("data=") and any(earlier.startswith(("data=", "data.")) for earlier in ordered[:number]):
            raise InputError(
                f"--set {change}: it would replace what an earlier --set says of data; give data once and first, e.g. "
                "--set data=a.xyz --set data.0.split=s.json, or several as --set 'data=[a.xyz, b.xyz]'"
            )
        _apply(tree, change)
        _listed(tree)
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise InputError(f"{where}: {_explain(error)}") from None


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _text(name: str) -> tuple[str, str]:
    path = Path(name)
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8"), name
        except UnicodeDecodeError:
            raise InputError(f"{name} is not text; expected a YAML configuration") from None
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        raise InputError(f"{name} does not exist; expected a YAML file or a recipe ({_recipe_names()})")
    if name not in recipes():
        from forcewell.errors import nearest

        raise InputError(f"there is no recipe {name!r}{nearest(name, recipes())} (recipes: {_recipe_names()}; or give a YAML file)")
    return (resources.files("forcewell.recipes") / f"{name}.yaml").read_text(encoding="utf-8"), f"recipe {name}"


def _listed(tree: dict[str, Any]) -> None:
    """``data`` may be one path or a list of paths; both become a list of entries, which have settings."""
    data = tree.get("data")
    if isinstance(data, (str, list)):
        tree["data"] = [{"path": entry} if isinstance(entry, str) else entry for entry in ([data] if isinstance(data, str) else data)]


def _apply(tree: dict[str, Any], change: str) -> None:
    """Sets one ``a.b.0.c=value`` in the tree, value read as YAML."""
    key, equals, value = change.partition("=")
    if not equals or not key:
        raise InputError(f"--set {change}: expected key=value, e.g. --set training.steps=1000")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise InputError(f"--set {change}: the value is not plain YAML") from None
    place: Any = tree
    parts = key.split(".")
    for part, following in itertools.pairwise(parts):
        if isinstance(place, list):
            if not part.isdigit() or int(part) >= len(place):
                raise InputError(f"--set {key}: {part!r} is not an entry of a list of {len(place)}")
            place = place[int(part)]
        else:
            if isinstance(place.get(part), str) and part == "objectives":
                raise InputError(f"--set {key}: {part} is {place[part]!r} here and has no entries to change; set {part} as a whole")
            if part == "encoder" and isinstance(place.get(part), str):
                place[part] = {"name": place[part]}
            if not isinstance(place.get(part), (dict, list)):
                place[part] = [] if following.isdigit() else {}
            place = place[part]
    last = parts[-1]
    if isinstance(place, list):
        if not last.isdigit() or int(last) > len(place):
            raise InputError(f"--set {key}: {last!r} is not an entry of a list of {len(place)}")
        place[int(last) : int(last) + 1] = [parsed]
    elif key == "model.encoder.name" and place.get("name", "equivariant-transformer") != parsed:
        place.clear()
        place["name"] = parsed
    else:
        place[last] = parsed


def _explain(error: ValidationError) -> str:
    """The first mistake in one line; a misspelt key with the nearest valid one."""
    first = next((e for e in error.errors() if e["type"] == "extra_forbidden"), error.errors()[0])
    place = [str(part) for part in first["loc"]]
    encoder = place.pop(2) if place[:2] == ["model", "encoder"] and len(place) > 2 else ""  # the union's tag is no key
    path = ".".join(place)
    if first["type"] == "extra_forbidden":
        keys = _keys(RunConfig, encoder)
        close = difflib.get_close_matches(path, [key for key in keys if key.count(".") == _plain(path).count(".")], n=1, cutoff=0.4)
        known = sorted(k.rsplit(".", 1)[-1] for k in keys if k.rpartition(".")[0] == _plain(path).rpartition(".")[0])
        return f"unknown key {path!r}" + (f"; did you mean {close[0]!r}?" if close else "") + f" (known here: {', '.join(known)})"
    if first["type"] == "value_error":  # ours, and a whole sentence
        return f"{path}: {first.get('ctx', {}).get('error', first['msg'])}"
    if first["type"] == "missing":
        return f"the key {path!r} is missing"
    return f"{path}: {first['msg'][0].lower() + first['msg'][1:]}, got {first['input']!r}"


def _plain(path: str) -> str:
    return ".".join(part for part in path.split(".") if not part.isdigit())


def _keys(section: type[BaseModel], encoder: str, prefix: str = "") -> list[str]:
    """All dotted keys of a configuration with that encoder, list indices left out."""
    keys = []
    for name, entry in section.model_fields.items():
        keys.append(prefix + name)
        kinds: list[Any] = [ENCODER_SECTIONS.get(encoder)] if prefix + name == "model.encoder" else [entry.annotation]
        while kinds:
            kind = kinds.pop()
            if isinstance(kind, type) and not isinstance(kind, types.GenericAlias) and issubclass(kind, BaseModel):
                keys += _keys(kind, encoder, f"{prefix}{name}.")
            else:
                kinds += typing.get_args(kind)
    return keys
