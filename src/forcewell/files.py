"""Files that are whole at any moment, and files that grow beside a saved state."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from forcewell.errors import InputError


def write_bytes(path: Path, data: Any) -> None:
    """Writes a file (of bytes, or anything that lies in memory as such) completely or not at all, with its folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def sizes(paths: Sequence[Path]) -> list[int]:
    """Bytes in each file (0 where absent), flushed to the disk, so that a state which names them is never ahead of them."""
    found = []
    for path in paths:
        if not path.exists():
            found.append(0)
            continue
        with path.open("rb+") as file:
            os.fsync(file.fileno())
            found.append(file.seek(0, os.SEEK_END))
    return found


def cut(path: Path, size: int) -> None:
    """Shortens a file to ``size`` bytes, dropping what was written after the restored state.

    Raises InputError where it is absent or already shorter, i.e. was changed by hand.
    """
    length = path.stat().st_size if path.exists() else -1
    if length < size:
        raise InputError(f"{path}: {'missing' if length < 0 else 'shorter than the state file says'}; it cannot be continued")
    os.truncate(path, size)
