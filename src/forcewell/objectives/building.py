"""Objectives from names and settings, and named sets of them."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from forcewell.errors import InputError, nearest
from forcewell.nn.heads import PROPERTY_HEADS
from forcewell.objectives.base import Objective
from forcewell.objectives.denoising import CoordinateDenoising, ForceDenoising, FractionalDenoising, NonEquilibriumDenoising
from forcewell.objectives.labels import EnergyMatching, ForceMatching, ForceNorm, PropertyMatching, ZeroForce

OBJECTIVES: dict[str, type[Any]] = {
    kind.name: kind
    for kind in (
        ForceMatching, ZeroForce, ForceDenoising, EnergyMatching, ForceNorm, PropertyMatching, CoordinateDenoising,
        FractionalDenoising, NonEquilibriumDenoising,
    )
}  # fmt: skip

# et-oreo-faithful: the paper's equations at its stated noise, variance 0.04 Å² (σ = 0.2 Å), κ = 1, no weights; -nn: the same
# number read as NoisyNode's, σ = 0.04 Å. et-ore: its ablation without the equilibrium terms. et-oreo: our best-measured form
# (docs/decisions.md). wang, noisynode, frad: denoising alone, as published but for signs and rigid motion that no model can
# find (-faithful: with them). gao: α = 0.1 is our choice, none is given. joint: TorchMD-Net's weights for MD17.
_OREO: dict[str, dict[str, Any]] = {"forces": {}, "zero-force": {}}
_NOISYNODE = {"place": "instead", "sigma": 0.04, "normalise": "isotropic"}
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "et-oreo-faithful": {**_OREO, "force-denoising": {"sigma": 0.2, "kappa": 1.0}},
    "et-oreo-faithful-nn": {**_OREO, "force-denoising": {"sigma": 0.04, "kappa": 1.0}},
    "et-ore": {"forces": {}},
    "et-oreo": {**_OREO, "force-denoising": {"weight": 2.0, "sigma": 0.05, "kappa": 10.0, "conditioned": True}},
    "et-oreo-head": {**_OREO, "force-denoising": {"weight": 2.0, "sigma": 0.05, "kappa": 10.0, "own_head": True}},
    "et-oreo-harmonic": {**_OREO, "force-denoising": {"sigma": 0.04, "target": "harmonic"}},
    "wang": {"coordinate-denoising": {"place": "instead", "summed": True}},
    "wang-faithful": {"coordinate-denoising": {"place": "instead", "summed": True, "published_sign": True, "rigid_motion": True}},
    "noisynode": {"coordinate-denoising": _NOISYNODE},
    "noisynode-faithful": {
        "coordinate-denoising": {**_NOISYNODE, "normalise": "per-component", "published_sign": True, "rigid_motion": True}
    },
    "frad": {"fractional-denoising": {**_NOISYNODE, "dihedral": 2.0}},
    "gao": {"energy": {"weight": 0.9, "form": "mae"}, "force-norm": {"weight": 0.1}},
    "gao-energy": {"energy": {"form": "mae"}},
    "joint": {"energy": {"weight": 0.2}, "forces": {"weight": 0.8}},
    "dens": {"energy": {"weight": 0.2}, "forces": {"weight": 0.8}, "dens": {"weight": 0.1}},
}
_PHYSICAL = ("forces", "zero-force", "energy", "force-norm")  # learned by the potential's own energy; force denoising is, too
_AT_MINIMA = ("zero-force", "force-denoising", "force-norm")


def build(
    description: str | Mapping[str, Mapping[str, Any] | None], sources: Mapping[str, Sequence[int]] | None = None
) -> tuple[Objective, ...]:
    """Objectives from a preset's name or from {name: settings}; ``sources`` restricts an objective to some sources.

    Raises InputError for an unknown preset, objective or setting, and for objectives that exclude each other.
    """
    if isinstance(description, str):
        if description in OBJECTIVES and description not in PRESETS:  # "dens" is both
            way = f"--set 'objectives={{{description}: {{}}}}'"
            raise InputError(f"objectives: {description!r} is one objective, not a named set of them; write {way} to learn it alone")
        if description not in PRESETS:
            raise InputError(f"objectives: unknown preset {description!r}{nearest(description, PRESETS)} (known: {', '.join(PRESETS)})")
        description = PRESETS[description]
    built = []
    for name, settings in description.items():
        if name not in OBJECTIVES:
            raise InputError(f"objectives: unknown objective {name!r}{nearest(name, OBJECTIVES)} (known: {', '.join(OBJECTIVES)})")
        known = {f.name: f.default for f in dataclasses.fields(OBJECTIVES[name]) if f.name != "sources"}
        kinds = typing.get_type_hints(OBJECTIVES[name])
        given = {}
        for key, value in (settings or {}).items():
            if key not in known:
                raise InputError(f"objectives.{name}: unknown setting {key!r}{nearest(key, known)} (known: {', '.join(known)})")
            given[key] = _checked(f"objectives.{name}.{key}", value, kinds[key])
        only = None if sources is None or name not in sources else tuple(sources[name])
        built.append(OBJECTIVES[name](**given, sources=only))
    if not built:
        raise InputError("objectives: at least one is needed, e.g. forces")
    _compatible(built)
    return tuple(built)


def _checked(where: str, value: Any, kind: Any) -> Any:
    """A setting's value, of its declared kind: true or false, a word, words, or a positive number (also as YAML's text "1e-3")."""
    if kind is bool:
        if not isinstance(value, bool):
            raise InputError(f"{where}: expected true or false, got {value!r}")
        return value
    if where.endswith(".names"):
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, (list, tuple)) or not names or not all(isinstance(name, str) for name in names):
            raise InputError(f"{where}: expected a list of names of properties, got {value!r}")
        return tuple(names)
    words = _words(where, kind)
    if words:
        if value not in words:
            raise InputError(f"{where}: unknown {value!r}{nearest(str(value), words)} (possible: {', '.join(words)})")
        return value
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    share = where.endswith((".until", ".probability", ".corrupted"))
    if not 0 < number < math.inf or (share and number > 1):
        raise InputError(f"{where}: expected a {'number above 0 and up to 1' if share else 'positive number'}, got {value!r}")
    return number


def _words(where: str, kind: Any) -> tuple[str, ...]:
    """The words that a setting may be; none for numbers."""
    allowed = {
        ".energy.form": ("mse", "mae", "huber"),
        ".property.form": ("mse", "mae", "huber", "bce"),
        ".property.pool": tuple(PROPERTY_HEADS),
    }
    for end, words in allowed.items():
        if where.endswith(end):
            return words
    return typing.get_args(kind) if typing.get_origin(kind) is Literal else ()


def _meet(one: Objective, other: Objective) -> bool:
    """Whether two objectives share a source."""
    return one.sources is None or other.sources is None or bool(set(one.sources) & set(other.sources))


def _compatible(objectives: Sequence[Objective]) -> None:
    """Raises InputError for objectives that exclude each other, or that cannot stand alone."""
    if all(objective.until is not None for objective in objectives):
        raise InputError("objectives: every weight falls to zero (until); one objective must last, or nothing tells the best model")
    for objective in objectives:
        others = [other for other in objectives if other is not objective]
        physical = [o.name for o in others if o.name in _PHYSICAL or (isinstance(o, ForceDenoising) and not o.own_head)]
        if isinstance(objective, PropertyMatching) and not objective.names:
            raise InputError("objectives.property.names: name the properties to learn, e.g. [homo]")
        if isinstance(objective, CoordinateDenoising):
            _compatible_denoising(objective, others, physical)
        left = [other.name for other in others if other.name in _AT_MINIMA and _meet(objective, other)]
        if isinstance(objective, ForceDenoising) and objective.place == "instead" and left:
            raise InputError(f"objectives.{objective.name}.place 'instead' leaves nothing for {', '.join(left)}; use 'copies'")
        if isinstance(objective, NonEquilibriumDenoising) and not physical:
            raise InputError("objectives: dens is an auxiliary task beside forces or energy; add one of them")
    readers = [objective.name for objective in objectives if "noise" in objective.needs]
    if len(readers) > 1:
        raise InputError(f"objectives: {' and '.join(readers)} would share the one noise head of a model; leave one out")


def _compatible_denoising(objective: CoordinateDenoising, others: Sequence[Objective], physical: Sequence[str]) -> None:
    name = objective.name
    if objective.in_energy and physical:
        raise InputError(
            f"objectives.{name}.in_energy: noise of arbitrary conformations is no physical force, and would spoil the energy that "
            f"{', '.join(physical)} learns; leave in_energy out (a head of its own)"
        )
    if objective.in_energy and objective.normalise != "none":
        raise InputError(f"objectives.{name}: a gradient of the energy has no normalised targets; leave normalise or in_energy out")
    met = [other.name for other in others if _meet(objective, other)]
    if objective.place == "instead" and met:
        raise InputError(f"objectives.{name}.place 'instead' leaves nothing for {', '.join(met)}; use 'copies' (or 'with-labels')")
    if objective.place == "with-labels":
        if isinstance(objective, FractionalDenoising):
            raise InputError(f"objectives.{name}.place 'with-labels' keeps labels of molecules that it turns; use 'copies'")
        spoiled = [other for other in met if other in _AT_MINIMA]
        if spoiled:
            raise InputError(f"objectives.{name}.place 'with-labels' moves the minima that {', '.join(spoiled)} is for; use 'copies'")
        if not met:
            raise InputError(f"objectives.{name}.place 'with-labels' is an auxiliary task; add an objective with labels, or use 'instead'")
