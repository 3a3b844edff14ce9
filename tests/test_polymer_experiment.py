"""The extrapolation experiment of benchmarks/polymers.py runs from beginning to end at its tiny size, and goes on where it stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import ENVIRONMENT

ROOT = Path(__file__).resolve().parents[1]


def run(out: Path, *words: str) -> str:
    """What the script printed."""
    command = [sys.executable, ROOT / "benchmarks" / "polymers.py", out, "--size", "tiny", *words]
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


def test_the_experiment_at_its_tiny_size(tmp_path: Path) -> None:
    pytest.importorskip("tblite")
    run(tmp_path, "--parts", "training-data", "test-5")
    begun = (tmp_path / "polymers.json").read_text(encoding="utf-8")
    assert set(json.loads(begun)) == {"family", "size", "engine", "temperature", "training-data", "test-5"}
    printed = run(tmp_path)
    assert "test-5 {" not in printed and "test-15 {" in printed  # what was done is not done again
    result = json.loads((tmp_path / "polymers.json").read_text(encoding="utf-8"))
    assert result["training-data"]["atoms"] == [12, 24] and result["training-data"]["frames"] == 8
    tuned, before = result["errors"]["forcewell-small"], result["errors"]["forcewell-small, not fine-tuned"]
    scratch = result["errors"]["scratch"]
    print({name: one["test-15"]["force_mae"] for name, one in result["errors"].items() if isinstance(one, dict)})
    # Pre-trained forces are of the right kind (cosine 0.8) before any fine-tuning; four steps from scratch give nothing.
    assert before["test-15"]["force_cosine"] > 0.6 > 0.4 > scratch["test-15"]["force_cosine"]
    assert tuned["test-15"]["frames"] == 2
    for arm in ("forcewell-small", "scratch"):
        assert result["dynamics"][arm]["of"] == 1 and result["dynamics"][arm]["along_dynamics"]["frames"] == 2
