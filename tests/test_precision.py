"""Products in bfloat16: those of the network, never those of geometry; in trainings, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ase
import pytest
import torch
from tiny_runs import ethanol, log, settings, succeed, write_yaml

from forcewell.batch import Batch
from forcewell.graph import neighbours
from forcewell.nn import ENCODERS
from forcewell.potential import Potential
from forcewell.static_batch import StaticBatch
from forcewell.system import System
from forcewell.testing import batch_of, small_potential


def crystal() -> Batch:
    fractions = [[0, 0, 0], [0.4, 0.1, 0.2], [0.2, 0.6, 0.7], [0.7, 0.5, 0.3]]
    box = ase.Atoms("CNOH", cell=[[3.9, 0, 0], [0.6, 3.4, 0], [-0.5, 0.7, 4.1]], scaled_positions=fractions, pbc=True)
    return Batch.from_systems([System.from_atoms(box)])


BATCHES = {"molecules": lambda: batch_of("water", "methanol").to(dtype=torch.float32), "crystal": crystal}
ALLOWED = (
    0.1  # of the largest force; seen: 0.005 (SchNet) to 0.02 (SE(3)-Transformer), and 0.08 to 0.26 in the crystal with rounded geometry
)


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("name", ENCODERS)
def test_forces_with_products_in_bfloat16(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Potential, "kernels", lambda *_: None)
    batch, potential = BATCHES[kind](), small_potential(name)
    right = potential(batch).forces
    potential.precision = "bfloat16"
    static = StaticBatch.of(batch, potential.cutoff)
    assert static is not None
    for given in (batch, static):
        forces = potential(given).forces
        error = float((forces - right).abs().max() / right.abs().max())
        print(f"{name}, {kind}: {error:.1e}")
        assert forces.dtype == torch.float32 and 1e-5 < error < ALLOWED


def test_geometry_is_exact() -> None:
    batch = crystal()
    right = neighbours(batch, 5.0)
    with torch.autocast("cpu", torch.bfloat16):
        found = neighbours(batch, 5.0)
        control = right.vectors[0] @ batch.cell[0]
    assert torch.equal(found.vectors, right.vectors) and torch.equal(found.sender, right.sender)
    assert control.dtype == torch.bfloat16


@pytest.mark.parametrize("encoder", ["equivariant-transformer", "schnet"])
def test_a_training_in_mixed_precision(encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sees the coordinates as they are, and its losses are those of float32 to a few per cent."""
    seen: list[torch.Tensor] = []
    forward = Potential.forward

    def watched(self: Potential, batch: Batch, **asked: Any) -> Any:
        seen.append(batch.positions.detach())
        return forward(self, batch, **asked)

    monkeypatch.setattr(Potential, "forward", watched)
    sizes = {"name": encoder, "channels": 16, "layers": 1, "radial": 8, "cutoff": 3.0} | ({"heads": 2} if "transformer" in encoder else {})
    training = {"steps": 6, "batch_size": 4, "validate_every": 6, "log_every": 1, "save_every": 6}
    data, losses = ethanol(tmp_path / "ethanol.npz", 20), {}
    for precision in ("32-true", "bf16-mixed"):
        tree = settings(str(data), objectives="et-ore", exclude="none", model={"encoder": sizes}, training=training)
        tree["hardware"] = {"accelerator": "cpu", "precision": precision}
        succeed("pretrain", write_yaml(tmp_path / f"{precision}.yaml", tree), "--out", tmp_path / precision)
        losses[precision] = [line["loss"] for line in log(tmp_path / precision) if line["kind"] == "train"]
        assert all(not torch.equal(positions, positions.bfloat16().float()) for positions in seen)
        seen.clear()
    apart = max(abs(b / a - 1) for a, b in zip(losses["32-true"], losses["bf16-mixed"], strict=True))
    print(f"{encoder}: losses within {apart:.1e}")
    assert 0 < apart < 0.05
