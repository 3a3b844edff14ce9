"""What an ase.Atoms says of its total charge and spin multiplicity: by keys, and by initial charges and magnetic moments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from forcewell.errors import InputError
from forcewell.fields import FIELDS

# Without case, "_", "-" and spaces. "spin" is the multiplicity by custom (OMol25, MACE); some write S or 2S, so a multiplicity goes first.
CHARGE_KEYS = ("charge", "totalcharge", "netcharge")
MULTIPLICITY_KEYS = ("multiplicity", "spinmultiplicity", "mult")
SPIN_KEYS = ("spin", "totalspin")
WHOLE = 1e-3  # what a sum of formal charges or moments may be off by a whole number
NEUTRAL = 0.05  # e: partial charges of a neutral molecule, rounded to two digits each, add up to less


def charge_and_spin(
    info: Mapping[str, Any], charges: np.ndarray | None, moments: np.ndarray | None, where: str, asked: Mapping[str, str] | None = None
) -> dict[str, int]:
    """The fields charge and spin (multiplicity), each where it is stated.

    info: keys and values. charges, moments: (n,) initial ones of each atom, None where there are none. where: for messages.
    asked: field -> the one key that is read for it, and nothing else. A sum of moments is the number of unpaired electrons. Fractions
    that add up to nothing, and any next to a key unless their sum is whole, are partial charges or a guess of moments: no statement.

    Raises InputError for a value or sum that is no whole number, a multiplicity below 1, and two statements that differ.
    """
    asked = asked or {}
    found: dict[str, int] = {}
    for field, values in (("charge", charges), ("spin", moments)):
        if field in asked:
            found[field] = _whole(info.get(asked[field]), where, asked[field], field)
            continue
        stated = _of_keys(info, where, field)
        total = _total(values, where, field, stated is not None)
        if total is not None and field == "spin":
            total = abs(total) + 1
        if stated is not None and total is not None and total != stated[1]:
            of = "initial charges add up to" if field == "charge" else "initial magnetic moments are those of multiplicity"
            raise InputError(f"{where}: {stated[0]} is {stated[1]}, but its {of} {total}; expected both to say the same")
        if stated is not None or total is not None:
            found[field] = stated[1] if stated is not None else int(total or 0)
    return found


def _of_keys(info: Mapping[str, Any], where: str, field: str) -> tuple[str, int] | None:
    """The key that states a field, and its value."""
    if field == "charge":
        return _same(info, CHARGE_KEYS, where, field)
    multiplicity = _same(info, MULTIPLICITY_KEYS, where, field)
    return multiplicity if multiplicity is not None else _same(info, SPIN_KEYS, where, field)


def _same(info: Mapping[str, Any], names: tuple[str, ...], where: str, field: str) -> tuple[str, int] | None:
    stated = [(str(key), value) for key, value in info.items() if _plain(key) in names]
    values = [(key, _whole(value, where, key, field)) for key, value in stated]
    if len({value for _, value in values}) > 1:
        told = " and ".join(f"{key}={value}" for key, value in values)
        raise InputError(f"{where}: {told} contradict each other")
    return values[0] if values else None


def _plain(key: Any) -> str:
    return str(key).lower().replace("_", "").replace("-", "").replace(" ", "")


def _whole(value: Any, where: str, key: str, field: str) -> int:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    limits = np.iinfo(FIELDS[field].stored)
    least, most = 1 if field == "spin" else int(limits.min), int(limits.max)
    if not abs(number - np.round(number)) <= WHOLE or not least <= round(number) <= most:
        meant = "" if field == "charge" else ", the multiplicity 2S + 1 (1 for a singlet)"
        raise InputError(f"{where}: {key} is {value}; expected a whole number from {least} to {most}{meant}")
    return round(number)


def _total(values: np.ndarray | None, where: str, field: str, stated: bool) -> int | None:
    """The sum over atoms, or None where they say nothing."""
    if values is None or not np.any(values):
        return None
    name = "initial charges" if field == "charge" else "initial magnetic moments"
    values = np.asarray(values, dtype=np.float64)
    total = float(values.sum())
    whole = bool(abs(total - np.round(total)) <= WHOLE) and values.ndim == 1
    fractions = bool((np.abs(values - np.round(values)) > WHOLE).any())
    if fractions and ((values.ndim == 1 and abs(total) <= NEUTRAL) or (stated and not whole)):
        return None
    if not whole:
        key = "charge" if field == "charge" else "multiplicity"
        raise InputError(f"{where}: {name} add up to {total:.3f}; expected a whole number, or the key {key} that says what is meant")
    return round(total)
