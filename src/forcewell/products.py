"""How exact matrix products are: those of the network as a potential is told (Potential.precision), those of geometry always."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch

Precision = Literal["float32", "tf32", "bfloat16"]


@contextlib.contextmanager
def products(precision: Precision) -> Iterator[None]:
    """float32 matrix products on a GPU as TF32 where asked for; what was set before comes back."""
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    if precision == "tf32":
        settings.fp32_precision = "tf32"
    try:
        yield
    finally:
        settings.fp32_precision = before


@contextlib.contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Products in the dtype of their factors, for geometry: 5 Å in bfloat16 are off by 0.016 Å, and forces with them by up to a quarter."""
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    half = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    if before != "tf32" and not half:
        yield
        return
    settings.fp32_precision = "ieee"
    try:
        with torch.autocast(device.type, enabled=False) if half else contextlib.nullcontext():
            yield
    finally:
        settings.fp32_precision = before
