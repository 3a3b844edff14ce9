"""Reading HDF5 files group by group with bounded memory. Used by every source that comes as HDF5.

Groups and data sets are h5py's, typed Any: what a name stands for in a file is known only when it is opened.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from forcewell.errors import InputError


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """The open file. Raises InputError for one that is missing, no HDF5, or breaks off while it is read."""
    import h5py

    if not path.is_file():
        raise InputError(f"{path} does not exist")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not a whole HDF5 file ({reason}); fetch it again") from None


def leaves(group: Any, needed: Sequence[str], path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, group) of every group that holds all ``needed`` data sets, in the order of names, at any depth."""
    import h5py

    if all(name in group for name in needed):
        yield path, group
        return
    for name in group:
        found = group.get(name)
        if isinstance(found, h5py.Group):
            yield from leaves(found, needed, f"{path}/{name}" if path else name)


def first_leaf(group: Any) -> set[str]:
    """Names of the data sets in the first group that holds any, by which a layout is told; empty where there is none."""
    import h5py

    names = {name for name in group if isinstance(group.get(name), h5py.Dataset)}
    for name in () if names else group:
        found = group.get(name)
        if isinstance(found, h5py.Group) and (names := first_leaf(found)):
            break
    return names


def shaped(group: Any, name: str, shape: tuple[int, ...], where: str) -> Any:
    """A data set that must have this shape. Raises InputError naming it where it is absent or has another."""
    import h5py

    found = group.get(name)
    if not isinstance(found, h5py.Dataset):
        raise InputError(f"{where} has no data set {name!r} (it has: {', '.join(group)})")
    if found.shape != shape:
        raise InputError(f"{where}: {name} has shape {found.shape}, expected {shape}")
    return found


def atomic_numbers(values: Any, where: str) -> np.ndarray:
    """(A,) from atomic numbers, or from element symbols as text or bytes. Raises InputError for anything else."""
    from ase.data import atomic_numbers as known

    array = np.asarray(values)
    if array.dtype.kind in "iu":
        return array
    symbols = [value.decode("ascii", "replace") if isinstance(value, bytes) else str(value) for value in array.reshape(-1)]
    unknown = [symbol for symbol in symbols if symbol not in known]
    if unknown:
        raise InputError(f"{where}: {unknown[0]!r} is not an element")
    return np.array([known[symbol] for symbol in symbols]).reshape(array.shape)


def text(value: Any) -> str:
    """A string from a scalar, a one-element array, or an array of single characters (as ANI-1 keeps its SMILES)."""
    parts = [part.decode("utf-8", "replace") if isinstance(part, bytes) else str(part) for part in np.asarray(value).reshape(-1).tolist()]
    return "".join(parts)
