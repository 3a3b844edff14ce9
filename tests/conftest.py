"""Fixtures shared by the tests of the model and of learning: small pieces of the bundled data, as Blocks."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from forcewell.sources import SOURCES
from forcewell.system import Block

# Triton decides when it is imported whether kernels are compiled or run as NumPy programs, and PyTorch may import it any time.
os.environ["TRITON_INTERPRET"] = "1"


def _first(source: str, name: str, rows: int) -> Block:
    return next(iter(SOURCES[source].read([Path(str(files("forcewell"))) / "bundled" / name]))).take(np.arange(rows))


@pytest.fixture(scope="session")
def minima() -> Block:
    """64 QM9 minima: ``equilibrium`` 1, no energies, no forces."""
    return _first("qm9", "qm9_minima_4002.npz", 64)


@pytest.fixture(scope="session")
def labelled() -> Block:
    """64 QM7-X conformations off equilibrium with energies and forces."""
    return _first("qm7x", "qm7x_hand.npz", 64)


@pytest.fixture(scope="session")
def ethanol() -> dict[str, Block]:
    """The bundled rMD17 ethanol frames, 1,000 to "train" on and 1,000 to "test"."""
    return {part: _first("rmd17", f"rmd17_ethanol_{part}_01.npz", 1000) for part in ("train", "test")}
