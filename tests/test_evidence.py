"""benchmarks/evidence.py and claims.py run from beginning to end at their tiny size, and do nothing twice."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import resources
from pathlib import Path

import ase.build
import numpy as np
import pytest
from tiny_runs import ENVIRONMENT

ROOT = Path(__file__).resolve().parents[1]
SYMBOLS = {1: "H", 6: "C", 7: "N", 8: "O"}
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

    run("evidence.py", *given[:-1], "50", "--highest-rate", "1e-3")
    rows = json.loads((out / "results" / "scratch-0.json").read_text(encoding="utf-8"))["rows"]
    assert {row["rate"] for row in rows if row["frames"] == 50} == {5e-4, 1e-3}
    run("evidence.py", *given, "--steps", "6")
    table = run("evidence.py", data, out, "--table").splitlines()
    assert len(table) == 4 and sum("6 steps" in line for line in table) == 2
    run("evidence_plots.py", out / "results", "--arms", "scratch", "token-0.05-10", "--steps", "4")
    assert all((out / "results" / f"{name}.svg").stat().st_size > 5000 for name in ("frames-4", "curves-4"))


def test_relatives_at_their_tiny_size(data: Path, tmp_path: Path) -> None:
    """Trajectories of single molecules, methanol's in place of each, beside the rest: they are divided by time."""
    methanol, generator = ase.build.molecule("CH3OH"), np.random.default_rng(0)
    positions, forces = methanol.positions + generator.normal(0, 0.05, (200, 6, 3)), generator.normal(0, 20, (200, 6, 3))
    for molecule in ("azobenzene", "benzene", "paracetamol", "toluene"):
        arrays = {"z": methanol.numbers, "pos": positions, "energy": np.zeros(200), "forces": forces, "md17_index": np.arange(200)}
        np.savez(data / f"rmd17/{molecule}_4895.npz", **arrays)
    out = tmp_path / "out"
    run("evidence.py", data, out, "--size", "tiny", "--arms", "et-ore-relatives", "--molecules", "ethanol", "--frames", "50")
    result = json.loads((out / "results" / "et-ore-relatives-0.json").read_text(encoding="utf-8"))
    print(result["pretraining"])
    assert result["pretraining"]["steps"] == 24 and len(result["rows"]) >= 3
    assert json.loads((out / "data" / "benzene_4895-split.json").read_text(encoding="utf-8"))["method"] == "time"


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


def test_the_data_folder_is_made_from_the_downloads(tmp_path: Path) -> None:
    rmd17, qm9 = tmp_path / "rmd17-npz", tmp_path / "qm9"
    for folder in (rmd17, qm9):
        folder.mkdir()
    with resources.as_file(resources.files("forcewell.bundled")) as bundled:
        parts = {part: dict(np.load(bundled / f"rmd17_ethanol_{part}_01.npz")) for part in ("train", "test")}
        minima = dict(np.load(bundled / "qm9_minima_4002.npz"))
    for molecule in ("ethanol", "aspirin", "naphthalene", "salicylic"):
        for part, arrays in parts.items():
            np.savez(rmd17 / f"rmd17_{molecule}_{part}_01.npz", **{k: v[:9] if len(v) == 1000 else v for k, v in arrays.items()})
    train = parts["train"]
    for molecule in ("azobenzene", "benzene", "paracetamol", "toluene"):
        for split in range(1, 6):  # each shares three frames with the next
            rows = {name: v[5 * split : 5 * split + 8] if len(v) == 1000 else v for name, v in train.items()}
            np.savez(rmd17 / f"rmd17_{molecule}_train_0{split}.npz", **rows)
    # Of QM9's files: one that the measurements use, and 58, which they do not, in the layout in which they were published.
    count, chosen = int(minima["natoms"][0]), int(minima["ids"][0])
    z, points = minima["z"][:count], minima["pos"][:count]
    for index in (chosen, 58):
        atoms = "".join(f"{SYMBOLS[n]}\t{x:.9f}\t{y:.9f}\t{z:.9f}\t0.1\n" for n, (x, y, z) in zip(z.tolist(), points.tolist(), strict=True))
        text = f"{count}\ngdb {index}\t{'1.0	' * 15}\n{atoms}1.0\t2.0\t3.0\nO\tO\nInChI\tInChI\n"
        (qm9 / f"dsgdb9nsd_{index:06d}.xyz").write_text(text, encoding="utf-8")

    run("evidence_data.py", rmd17, qm9, tmp_path / "made")
    made = np.load(tmp_path / "made/qm9/qm9_equilibrium.npz")
    assert made["ids"].tolist() == [chosen] and (made["z"] == z).all() and np.abs(made["pos"] - points).max() < 1e-6
    benzene = np.load(tmp_path / "made/rmd17/benzene_4895.npz")
    assert len(benzene["pos"]) == 28 and (np.diff(benzene["md17_index"]) > 0).all()
    row = int(np.flatnonzero(train["old_indices"] == benzene["md17_index"][11])[0])
    assert (benzene["forces"][11] == train["forces"][row].astype(np.float32)).all() and benzene["energy"][11] == train["energies"][row]
    assert {path.parent.name for path in (tmp_path / "made").rglob("*.npz")} == {"rmd17", "qm9", "qm7x", "s66x8", "spice"}
    (rmd17 / "rmd17_toluene_train_03.npz").unlink()
    with pytest.raises(subprocess.CalledProcessError) as failed:
        run("evidence_data.py", rmd17, qm9, tmp_path / "again")
    assert "rmd17_toluene_train_03.npz: not found" in failed.value.stderr and "Traceback" not in failed.value.stderr
