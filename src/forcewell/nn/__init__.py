"""Encoders by name. Each is a file of this package; heads.py has what reads energies and noise from their features."""

import inspect
import math
import typing
from typing import Any

from forcewell.errors import InputError, nearest
from forcewell.nn.egnn import EGNN
from forcewell.nn.embedding import Encoder
from forcewell.nn.equivariant_transformer import EquivariantTransformer
from forcewell.nn.features import Features
from forcewell.nn.gemnet import GemNetT
from forcewell.nn.heads import EquivariantScalar, EquivariantVector
from forcewell.nn.schnet import SchNet
from forcewell.nn.se3_transformer import SE3Transformer

ENCODERS: dict[str, type[Encoder]] = {
    "equivariant-transformer": EquivariantTransformer,
    "schnet": SchNet,
    "egnn": EGNN,
    "gemnet-t": GemNetT,
    "se3-transformer": SE3Transformer,
}

__all__ = [
    "EGNN",
    "ENCODERS",
    "Encoder",
    "EquivariantScalar",
    "EquivariantTransformer",
    "EquivariantVector",
    "Features",
    "GemNetT",
    "SE3Transformer",
    "SchNet",
    "encoder",
    "encoder_settings",
]


def encoder(name: str, **settings: Any) -> Encoder:
    """An encoder by name with its settings, freshly initialised. Settings left out have the published full size.

    Raises InputError for an unknown name or setting, and for sizes that no such encoder can have.

    >>> encoder("equivariant-transformer", channels=32, layers=2, heads=4, radial=16).channels
    32
    """
    known = encoder_settings(name)
    for key, value in settings.items():
        if key not in known:
            raise InputError(f"encoder {name}: unknown setting {key!r}{nearest(key, known)} (known: {', '.join(known)})")
        kind, default = known[key]
        if kind in (int, float) and isinstance(value, (int, float)):
            # As in a configuration: a number whose default is above zero must be so, too.
            least = "a number above 0" if default > 0 else "0 or more"
            if not math.isfinite(value) or value < 0 or (value == 0 and default > 0):
                raise InputError(f"encoder {name}: {key} is {value}; expected {least}")
    return ENCODERS[name](**settings)


def encoder_settings(name: str) -> dict[str, tuple[Any, Any]]:
    """Type and default of each setting of an encoder, those of every encoder (see ``Encoder``) last.

    Raises InputError for an unknown name.

    >>> encoder_settings("schnet")["channels"]
    (<class 'int'>, 256)
    """
    if name not in ENCODERS:
        raise InputError(f"unknown encoder {name!r}{nearest(name, ENCODERS)} (known: {', '.join(ENCODERS)})")
    found: dict[str, tuple[Any, Any]] = {}
    for kind in (ENCODERS[name], Encoder):
        hints = typing.get_type_hints(kind.__init__)
        for key, parameter in inspect.signature(kind).parameters.items():
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD and key not in found:
                found[key] = (hints[key], parameter.default)
    return found
