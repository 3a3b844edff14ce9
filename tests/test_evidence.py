"""benchmarks/evidence.py and claims.py run from beginning to end at their tiny size, and do nothing twice."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
from tiny_runs import ENVIRONMENT

ROOT = Path(__file__).resolve().parents[1]
FILES = {
    "qm9/qm9_equilibrium.npz": "qm9_minima_4002.npz",
    "qm7x/qm7x_hand.npz": "qm7x_hand.npz",
    "s66x8/s66x8.npz": "s66x8.npz",
    "rmd17/rmd17_ethanol_train_01.npz": "rmd17_ethanol_train_01.npz",
    "rmd17/rmd17_ethanol_test_01.npz": "rmd17_ethanol_test_01.npz",
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder as the scripts want it, of the data in the package and in the tests."""
    folder = tmp_path / "data"
    with resources.as_file(resources.files("forcewell.bundled")) as bundled:
        sources = {name: bundled / file for name, file in FILES.items()}
    sources["spice/spice_replay500.npz"] = ROOT / "tests" / "data" / "spice_170.npz"
    for name, source in sources.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(source)
    return folder


def run(script: str, *words: object) -> str:
    """What the script printed."""
    command = [sys.executable, ROOT / "benchmarks" / script, *map(str, words)]
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


def test_arms_at_their_tiny_size(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = (data, out, "--size", "tiny", "--arms", "scratch", "token-0.05-10", "--molecules", "ethanol", "--frames", "100")
    run("evidence.py", *given, "--stability")
    written = {name: (out / "results" / f"{name}-0.json").read_text(encoding="utf-8") for name in ("scratch", "token-0.05-10")}
    for name, text in written.items():
        result = json.loads(text)
        assert ("pretraining" in result) == (name != "scratch")
        rates = [row["rate"] for row in result["rows"]]
        best = min(result["rows"], key=lambda row: row["validation"])
        print(name, {row["rate"]: round(row["force_mae"], 1) for row in result["rows"]})
        assert len(set(rates)) == len(rates) >= 3 and best["md"]["of"] == 2 and best["curve"][0][0] == 0
    run("evidence.py", *given, "--stability")
    assert all((out / "results" / f"{name}-0.json").read_text(encoding="utf-8") == text for name, text in written.items())
    run("evidence.py", *given, "--steps", "6")
    table = run("evidence.py", data, out, "--table").splitlines()
    assert len(table) == 4 and sum("6 steps" in line for line in table) == 2
    run("evidence_plots.py", out / "results", "--arms", "scratch", "token-0.05-10", "--steps", "4")
    assert all((out / "results" / f"{name}.svg").stat().st_size > 5000 for name in ("frames", "curves"))


def test_several_molecules_at_once_at_their_tiny_size(data: Path, tmp_path: Path) -> None:
    """Ethanol four times over: what is tested is the script."""
    for molecule in ("aspirin", "naphthalene", "salicylic"):
        for part in ("train", "test"):
            (data / f"rmd17/rmd17_{molecule}_{part}_01.npz").symlink_to(data / f"rmd17/rmd17_ethanol_{part}_01.npz")
    run("claims.py", data, tmp_path / "out", "--size", "tiny", "--groups", "several", "--encoders", "et", "--seeds", "0")
    for name in ("et-ore", "joint"):
        result = json.loads((tmp_path / "out" / "results" / f"several-{name}-0.json").read_text(encoding="utf-8"))
        assert len(result["rows"]) >= 3 and all(row["salicylic"]["force_mae"] > 0 for row in result["rows"])


def test_claims_at_their_tiny_size(data: Path, tmp_path: Path) -> None:
    given = (data, tmp_path / "out", "--size", "tiny", "--groups", "encoders", "--encoders", "egnn", "--seeds", "0")
    run("claims.py", *given)
    arms = {json.loads(file.read_text())["arm"] for file in (tmp_path / "out" / "results").glob("*.json")}
    assert arms == {f"egnn-{name}" for name in ("scratch", "wang", "forces", "unified", "force-norm")}
    table = run("claims.py", *given, "--table")
    print(table)
    assert table.count("one seed") == 2 * len(arms)
    run("claims.py", *given[:-1], "1", "--rates-of-first")
    for arm in arms:
        first, second = (json.loads((tmp_path / "out" / "results" / f"{arm}-{seed}.json").read_text(encoding="utf-8")) for seed in (0, 1))
        for row in second["rows"]:
            rivals = [other for other in first["rows"] if other["frames"] == row["frames"]]
            assert row["rate"] == min(rivals, key=lambda other: other["validation"])["rate"]
        assert len(second["rows"]) == 2 and all(row["seed"] == 1 for row in second["rows"])
