"""Encoders and heads by name."""

from typing import Any

from torch import nn

from forcewell.errors import InputError, nearest
from forcewell.nn.equivariant_transformer import EquivariantTransformer
from forcewell.nn.features import Features
from forcewell.nn.heads import EquivariantScalar, EquivariantVector

ENCODERS = {"equivariant-transformer": EquivariantTransformer}

__all__ = ["ENCODERS", "EquivariantScalar", "EquivariantTransformer", "EquivariantVector", "Features", "encoder"]


def encoder(name: str, **settings: Any) -> nn.Module:
    """An encoder by name with its settings, freshly initialised.

    Raises InputError for an unknown name or setting.

    >>> encoder("equivariant-transformer", channels=32, layers=2, heads=4, radial=16).channels
    32
    """
    import inspect

    if name not in ENCODERS:
        raise InputError(f"unknown encoder {name!r}{nearest(name, ENCODERS)} (known: {', '.join(ENCODERS)})")
    known = list(inspect.signature(ENCODERS[name]).parameters)
    for key in settings:
        if key not in known:
            raise InputError(f"encoder {name}: unknown setting {key!r}{nearest(key, known)} (known: {', '.join(known)})")
    return ENCODERS[name](**settings)
