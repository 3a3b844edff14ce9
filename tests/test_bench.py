"""``forcewell bench`` measures what it says it measures."""

import importlib
import json
import mmap
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from forcewell import bench
from forcewell.batch import Batch
from forcewell.checkpoint import load
from forcewell.cli import main
from forcewell.graph import neighbours
from forcewell.peers import MODELS, Structure


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sizes and two batches, each measured as shortly as can be."""
    monkeypatch.setattr(bench, "COPIES", (1, 4))
    monkeypatch.setattr(bench, "REPLICAS", (1, 3))
    monkeypatch.setattr(bench, "TRAINED", 4)
    original = bench.measure
    monkeypatch.setattr(bench, "measure", lambda potential: original(potential, seconds=0.0))


def test_pairs_given_to_peers_are_our_neighbours() -> None:
    system = bench.ethanols(9)
    batch = Batch.from_systems([system, bench.ethanols(2)])
    given = Structure(batch.numbers.numpy(), batch.positions.double().numpy(), batch.counts.numpy(), 5.0)
    near = neighbours(batch, 5.0)
    own = int(near.mask.sum())
    distances = np.linalg.norm(system.positions[:, None] - system.positions[None], axis=2)[np.triu_indices(81, 1)]
    print(f"{own} neighbours, {given.edges.shape[1]} directed pairs; closest atoms {distances.min():.2f} Å")
    assert own == given.edges.shape[1] > 81 * 8
    assert distances.min() > 0.8  # no two molecules overlap


def test_bench_beside_a_peer(quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A stand-in package that takes 30 ms for whatever it is asked: its figures come out, and those of ours are below."""
    package = types.ModuleType("slowmodels")
    package.__spec__ = __import__("importlib.machinery").machinery.ModuleSpec("slowmodels", None)
    monkeypatch.setitem(sys.modules, "slowmodels", package)
    weight = torch.nn.Linear(1, 1)
    calls = []

    def call(given: Structure) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(len(given.numbers))
        x = torch.rand(300, 300)
        began = bench.time.process_time()
        while bench.time.process_time() - began < 0.03:
            x = x @ x / 300
        return weight(torch.zeros(len(given.counts), 1))[:, 0], weight(given.positions[:, :, None])[..., 0]

    absent = ("no_such_package", MODELS["painn"][1])
    monkeypatch.setattr(bench, "MODELS", {"slow": ("slowmodels", lambda: (weight, 5.0, call)), "absent": absent})
    torch.set_num_threads(1)
    main(["bench", "forcewell-small", "--threads", "1", "--json", str(tmp_path / "bench.json")])
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "bench.json").read_text())
    rows = found["molecular_dynamics"]
    print([(row["atoms"], row["replicas"], round(row["ms_per_step"], 2), row["peers_ms"]) for row in rows])
    assert [(row["atoms"], row["replicas"]) for row in rows] == [(9, 1), (36, 1), (9, 3)]
    assert set(calls) == {9, 36, 27} and found["peers"] == {"slow": 2}
    assert all(row["peers_ms"]["slow"] >= 29 and row["memory_mb"] > 50 for row in rows)
    assert rows[0]["ns_per_day"] == pytest.approx(0.5e-6 * 86400e3 / rows[0]["ms_per_step"])
    assert rows[2]["ns_per_day"] == pytest.approx(3 * 0.5e-6 * 86400e3 / rows[2]["ms_per_step"])
    assert found["training"]["molecules_per_second"] == pytest.approx(4e3 / found["training"]["ms_per_step"])
    assert found["path"] == load("forcewell-small").path and found["path"] in printed and "slow" in printed


@pytest.mark.parametrize(
    ("words", "message"), [(["--threads", "0"], "threads is 0"), (["--device", "abacus"], "abacus"), (["nothing"], "nothing")]
)
def test_mistakes(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["bench", *words])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and message in error and "\n" not in error.strip()


def test_the_loop_around_a_step_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """benchmarks/md.py: a step of the whole loop takes no less than the kernels alone."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    md = importlib.import_module("md")
    potential = load("forcewell-small").eval().requires_grad_(False)
    if not potential.path.startswith("compiled"):
        pytest.skip("no compiled kernels here")
    step, bare, alone = md.measure(md.loop(potential, 1, "langevin", tmp_path / "run"), 1)
    print(f"step {step:.3f} ms, energy + forces {bare:.3f} ms, kernels {alone:.3f} ms")
    assert min(step, bare, alone) > 0


def test_memory_is_that_of_its_row() -> None:
    """Memory that came and went before does not count."""
    device = torch.device("cpu")
    with mmap.mmap(-1, 320_000_000) as held:
        held.write(bytes(320_000_000))
        before = bench.peak_memory(device)
    bench.forget_peak(device)
    after = bench.peak_memory(device)
    print(f"{before:.0f} MB, then {after:.0f} MB")
    assert after < before - 200 or not Path("/proc/self/clear_refs").exists()
