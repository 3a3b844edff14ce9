"""Labels by xTB, density functional theory, any ASE calculator or a Forcewell model, behind one small interface."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

from forcewell.engines.base import Engine, EngineFailure, Labels, atoms_of, labelled
from forcewell.errors import InputError, nearest

__all__ = ["Engine", "EngineFailure", "Labels", "atoms_of", "engine", "labelled"]

FORMS = "gfn2, gfn1, pyscf:METHOD/BASIS[+d3bj|+d4], ase:MODULE.CLASS, or a Forcewell model (.safetensors, or a run's folder)"
MODELS = sorted(file.stem for file in Path(__file__).parents[1].joinpath("models").glob("*.safetensors"))


def engine(name: str, **settings: Any) -> Engine:
    """The engine of that name, ready to label.

    name: ``gfn2``, ``gfn1``; ``pyscf:METHOD/BASIS`` with ``+d3bj`` or ``+d4``, e.g. ``pyscf:PBE/def2-SVP+d3bj``;
    ``ase:MODULE.CLASS``; the path, run folder or packaged name of a Forcewell model. settings: plain values, of the engine's class.

    Raises InputError for an unknown engine or setting, and where its program is not installed (it names the extra).
    """
    from forcewell.engines import dft, others
    from forcewell.engines.xtb import METHODS, XTB

    if name in METHODS:
        return _made(XTB, name, settings)
    if name.startswith(dft.PREFIX):
        return _made(dft.DFT, name, settings)
    if name.startswith(others.PREFIX):
        return _made(others.AnyASE, name, settings)
    if name.endswith(".safetensors") or name in MODELS or Path(name).is_dir():
        return _made(others.Model, name, settings)
    raise InputError(f"unknown engine {name!r}{nearest(name, [*METHODS, *MODELS])}; expected {FORMS}")


def _made(kind: Any, name: str, settings: dict[str, Any]) -> Engine:
    parameters = inspect.signature(kind).parameters
    known = [key for key in parameters if key != "name"]
    for key in settings:
        if key not in known and "settings" not in known:
            raise InputError(f"engine {name!r} has no setting {key!r}{nearest(key, known)} (it has: {', '.join(known)})")
    for key, value in settings.items():
        default = parameters[key].default if key in parameters else None
        usable = isinstance(value, (bool, int, float)) and isinstance(value, bool) == isinstance(default, bool) and math.isfinite(value)
        if isinstance(default, (bool, int, float)) and not usable:
            raise InputError(f"engine {name!r}: {key} is {value!r}; expected a value like {default!r}")
    return kind(name, **settings)
