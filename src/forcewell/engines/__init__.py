"""Labels by xTB, density functional theory, any ASE calculator or a Forcewell model, behind one small interface."""

from __future__ import annotations

from typing import Any

from forcewell.engines.base import Engine, EngineFailure, Labels, labelled
from forcewell.errors import InputError, nearest

__all__ = ["Engine", "EngineFailure", "Labels", "engine", "labelled"]

FORMS = "gfn2, gfn1, pyscf:METHOD/BASIS[+d3bj|+d4], ase:MODULE.CLASS, or a Forcewell model (.safetensors)"


def engine(name: str, **settings: Any) -> Engine:
    """The engine of that name, ready to label.

    name: ``gfn2``, ``gfn1``; ``pyscf:METHOD/BASIS`` with ``+d3bj`` or ``+d4``, e.g. ``pyscf:PBE/def2-SVP+d3bj``;
    ``ase:MODULE.CLASS``; the path or packaged name of a Forcewell model. settings: plain values, of the engine's class.

    Raises InputError for an unknown engine or setting, and where its program is not installed (it names the extra).
    """
    from forcewell.engines.xtb import METHODS, XTB

    if name in METHODS:
        return _made(XTB, name, settings)
    raise InputError(f"unknown engine {name!r}{nearest(name, METHODS)}; expected {FORMS}")


def _made(kind: Any, name: str, settings: dict[str, Any]) -> Engine:
    import inspect

    known = [key for key in inspect.signature(kind).parameters if key != "name"]
    for key in settings:
        if key not in known:
            raise InputError(f"engine {name!r} has no setting {key!r}{nearest(key, known)} (it has: {', '.join(known)})")
    return kind(name, **settings)
