"""Forcewell: force-centric pre-training, fine-tuning, simulation and evaluation of models of 3D molecules.

>>> import forcewell as fw
>>> encoder = fw.encoder("equivariant-transformer", channels=32, layers=2, heads=4, radial=16)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from forcewell.ase_calculator import calculator
    from forcewell.batch import Batch
    from forcewell.checkpoint import load
    from forcewell.config import encoder
    from forcewell.errors import InputError
    from forcewell.potential import Potential
    from forcewell.store import Store, open_data
    from forcewell.system import Block, System

# Loaded at first use, so that `import forcewell` costs nothing (torch itself takes seconds).
_HOME = {
    "Batch": "batch",
    "Block": "system",
    "InputError": "errors",
    "Potential": "potential",
    "Store": "store",
    "System": "system",
    "calculator": "ase_calculator",
    "encoder": "config",
    "load": "checkpoint",
    "open_data": "store",
}
__all__ = [
    "Batch", "Block", "InputError", "Potential", "Store", "System", "__version__", "calculator", "encoder", "load", "open_data",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'forcewell' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"forcewell.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
