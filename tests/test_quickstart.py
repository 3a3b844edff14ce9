"""The whole quickstart at a tiny size: what it leaves, that it continues after a kill, that it does not run twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_runs import ENCODER, ENVIRONMENT, command, log, settings, succeed, weights

from forcewell import quickstart
from forcewell.checkpoint import load_model
from forcewell.config import RunConfig
from forcewell.errors import InputError
from forcewell.quickstart_report import Plan

PROGRAM = "import sys, pathlib, forcewell.quickstart as q; out = pathlib.Path(sys.argv[1]); "
PROGRAM += "q.run(out, q.Plan.model_validate_json(pathlib.Path(sys.argv[2]).read_text()))"


def tiny_plan(out: Path) -> Plan:
    """The same stages with a tiny encoder, few steps, few conformations and 20 fs of MD."""
    training = {"steps": 20, "batch_size": 4, "validate_every": 10, "log_every": 5, "save_every": 5}
    sources = [{"path": str(out / "data" / f"{name}.fw"), "maximum": 60} for name in ("qm9", "qm7x")]
    before = settings(*sources, training=training)
    after = settings({"path": str(out / "data" / "ethanol.fw"), "maximum": 40}, objectives="et-ore", exclude="none", training=training)
    plans = {name: RunConfig.model_validate(tree) for name, tree in (("pretraining", before), ("finetuning", after))}
    return Plan(**plans, replicas=2, langevin_ps=0.02, nve_ps=0.01)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Killed with everything that it started while the arms train, then run again to the end."""
    place = tmp_path_factory.mktemp("quickstart")
    out, plan = place / "out", place / "plan.json"
    plan.write_text(tiny_plan(out).model_dump_json(), encoding="utf-8")
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(out), str(plan)], env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    while process.poll() is None and not any((out / arm / "state" / "state.safetensors").exists() for arm in ("scratch", "et-oreo")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)  # of the parent alone: its two arms must end with it
    process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not (out / "report.json").exists()
    deadline = time.monotonic() + 20
    while (left := processes_of(out)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []
    os.environ["OMP_NUM_THREADS"] = "1"
    quickstart.run(out, tiny_plan(out))
    return out


def processes_of(out: Path) -> list[str]:
    """Command lines of processes that name the folder (none is looked for where there is no /proc)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(out) in text and "forcewell.quickstart" in text:
            found.append(text)
    return found


def test_it_leaves_a_report_and_both_models(finished: Path) -> None:
    results = json.loads((finished / "report.json").read_text(encoding="utf-8"))
    assert set(results["models"]) == {"scratch", "et-oreo"}
    for name, model in results["models"].items():
        figures = {key: model[key] for key in ("force_mae", "stability", "hr_error", "energy_drift")}
        print(f"{name}: {figures}")
        assert all(isinstance(value, float) for value in figures.values())
        assert 10 < figures["force_mae"] < 3000 and 0 <= figures["stability"] <= 0.02 and 0 <= figures["hr_error"] < 100
        potential, _ = load_model(finished / name / "model.safetensors")
        assert potential.encoder.channels == ENCODER["channels"]
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html") and "ethanol" in page


def test_both_arms_have_the_same_budget_and_frames(finished: Path) -> None:
    scratch, tuned = (load_model(finished / name / "model.safetensors")[1] for name in ("scratch", "et-oreo"))
    assert scratch["run"]["training"] == tuned["run"]["training"] and scratch["run"]["optimiser"] == tuned["run"]["optimiser"]
    assert scratch["data"] == tuned["data"]
    assert scratch["ancestry"] == [] and len(tuned["ancestry"]) == 1
    assert [line["step"] for line in log(finished / "scratch")] == [line["step"] for line in log(finished / "et-oreo")]
    assert log(finished / "scratch")[0]["loss"] != log(finished / "et-oreo")[0]["loss"]


def test_a_killed_arm_ends_with_the_bits_of_one_that_was_not(finished: Path, tmp_path: Path) -> None:
    from forcewell import runs

    torch.set_num_threads(1)
    plan = tiny_plan(finished)
    runs.finetune(plan.finetuning, finished / "pretraining" / "model.safetensors", tmp_path / "again")
    ours, theirs = weights(tmp_path / "again" / "model.safetensors"), weights(finished / "et-oreo" / "model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert log(tmp_path / "again") == log(finished / "et-oreo")


def test_running_again_says_that_it_is_there(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert "report.html is there already" in succeed("quickstart", "--out", finished)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_another_plan_is_refused(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes((finished / "plan.json").read_bytes())
    done = command("quickstart", "--out", tmp_path)
    assert done.code == 2 and "holds a quickstart of another version or plan" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    with pytest.raises(InputError, match="another version or plan"):
        quickstart.run(tmp_path, tiny_plan(tmp_path))


def test_an_arm_that_fails_is_told_in_one_line(tmp_path: Path) -> None:
    """Nothing to fine-tune from: the arm's own last line is the message. The other arm counts as done."""
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "results.json").write_text("{}", encoding="utf-8")
    (tmp_path / "plan.json").write_text(tiny_plan(tmp_path).model_dump_json(indent=1), encoding="utf-8")
    with pytest.raises(InputError, match=r"the arm 'et-oreo' stopped: error: .* does not exist"):
        quickstart._run_arms(tmp_path, tiny_plan(tmp_path))
