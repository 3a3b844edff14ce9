"""What a training tells while it runs."""

from __future__ import annotations

import pytest

from forcewell.display import TrainingDisplay

# Validation losses of two fine-tunings of an Equivariant Transformer on 950 frames of aspirin, at a rate that killed it and at half of it.
KILLED = [0.279879, 1.6119564335, 1.6119566127, 1.6119565691, 1.6119564577, 1.6119564335, 1.6119564335, 1.6119564141]
ALIVE = [0.279879, 0.028525, 0.012583, 0.008467, 0.006312, 0.005211, 0.004382, 0.003898]


def told(losses: list[float], capsys: pytest.CaptureFixture[str]) -> list[str]:
    display, best = TrainingDisplay(200 * len(losses)), float("inf")
    for number, loss in enumerate(losses):
        display.report(200 * number, {"kind": "validation", "loss": loss, "best": loss < best})
        best = min(best, loss)
    return capsys.readouterr().out.splitlines()


def test_a_network_that_died_is_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(KILLED, capsys)
    said = [number for number, line in enumerate(lines) if "has not changed since step 200" in line]
    assert said == [5] and len(lines) == len(KILLED) + 1  # once, after the fourth such validation
    assert len(told(ALIVE, capsys)) == len(ALIVE)
    assert len(told([1.0 - 1e-9 * n for n in range(8)], capsys)) == 8  # slow, but every one the best
