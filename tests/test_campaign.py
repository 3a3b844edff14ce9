"""Campaigns: killed anywhere and gone on with, they come to the same store; failures are kept; strangers are refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from campaign_running import PROGRAM, TESTS, WORK, finished, start
from tiny_runs import succeed

from forcewell.errors import InputError
from forcewell.generate import campaign, executors
from forcewell.generate.campaign import Job
from forcewell.store import Store


@pytest.fixture(autouse=True)
def test_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "WORK", {WORK})
    monkeypatch.setattr(sys, "path", [str(TESTS), *sys.path])  # worker processes take it over


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs run in this process."""
    from campaign_program import Inline

    monkeypatch.setattr(campaign, "make_executor", lambda *_: Inline())
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def keys(out: Path) -> list[str]:
    return [json.loads(line)["key"] for line in (out / "journal.jsonl").read_text(encoding="utf-8").splitlines()]


def test_killed_at_every_change_of_the_disk(tmp_path: Path) -> None:
    """An uninterrupted campaign and one killed at each of its changes come to the same frames, keys, order and files."""
    path = os.pathsep.join([str(TESTS), str(TESTS.parent / "src")])
    command = [sys.executable, str(PROGRAM), "everywhere", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, timeout=300)
    assert done.returncode == 0, done.stderr
    uninterrupted, *killed = [json.loads(line) for line in done.stdout.splitlines()]
    print(f"killed at {len(killed)} places; {uninterrupted['frames']} frames")
    assert len(killed) > 20 and uninterrupted["frames"] == 20 and (uninterrupted["done"], uninterrupted["failed"]) == (5, 1)
    for other in killed:
        assert {**other, "call": 0} == uninterrupted, other["call"]
    assert uninterrupted["files"] == ["jobs", "journal.jsonl", "manifest.json", "shard-00000.arrow", "shard-00001.arrow"]


def test_sigkill_with_workers_at_work(tmp_path: Path) -> None:
    """Its workers end with it, nothing finished is repeated, and the store is that of a campaign that was never killed."""
    log = tmp_path / "log"
    jobs = [Job("water", {"seed": k, "seconds": 0.1, "log": str(log)}) for k in range(16)]
    process = start("local", tmp_path / "killed.fw", jobs)
    while not log.exists() or len(log.read_text(encoding="utf-8").splitlines()) < 5:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.communicate()
    time.sleep(0.5)  # longer than a job
    before = log.read_text(encoding="utf-8").splitlines()
    time.sleep(0.5)
    assert log.read_text(encoding="utf-8").splitlines() == before, "a worker outlived its campaign"
    assert "16 done, 0 failed, 0 left; 48 frames" in finished(start("local", tmp_path / "killed.fw", jobs))
    runs = Counter(line.split()[0] for line in log.read_text(encoding="utf-8").splitlines())
    print(f"killed after {len(before)} jobs began; run twice: {sum(count > 1 for count in runs.values())}")
    assert len(runs) == 16 and sum(runs.values()) <= 16 + 2, "no more than the two jobs that were running are repeated"
    assert {line.split()[1] for line in before} == {"1"}, "one thread per worker"
    whole = campaign.run(jobs, WORK, tmp_path / "whole.fw", {"a": 1}, workers=1)
    assert (whole.done, whole.frames) == (16, 48)
    assert keys(tmp_path / "killed.fw") == keys(tmp_path / "whole.fw")
    assert Store(tmp_path / "killed.fw").fingerprint == Store(tmp_path / "whole.fw").fingerprint


def test_interrupt_ends_cleanly(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = start("local", tmp_path / "out.fw", [Job("water", {"seed": k, "seconds": 30, "log": str(log)}) for k in range(3)])
    while not log.exists():
        time.sleep(0.02)
    time.sleep(0.5)  # until the next job is submitted, too
    began = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    said = process.communicate(timeout=20)[0]
    print(f"ended after {time.monotonic() - began:.1f} s, exit {process.returncode}")
    assert process.returncode != 0 and said.count("KeyboardInterrupt") == 1, said


def test_a_dying_worker_costs_one_job_at_most(tmp_path: Path) -> None:
    for name in ("once", "always"):
        (tmp_path / name).touch()
    dying = [
        Job("water", {"seed": 50, "die": str(tmp_path / "once")}),
        Job("water", {"seed": 51, "die": str(tmp_path / "always"), "always": 1}),
    ]
    plain = [Job("water", {"seed": k}) for k in range(3)]
    summary = campaign.run([*dying, *plain], WORK, tmp_path / "out.fw", {}, workers=1)
    print("\n".join(summary.lines()))
    assert (summary.done, summary.failed, summary.frames) == (4, 1, 12)
    assert next(iter(summary.reasons)).startswith("its worker process died 2 times")


@pytest.mark.usefixtures("inline")
def test_failures_are_kept_and_repeated_only_when_asked(tmp_path: Path) -> None:
    reason, log = tmp_path / "reason", tmp_path / "log"
    reason.touch()
    jobs = [
        Job("water", {"seed": 0}),
        Job("water", {"seed": 1, "fail": str(reason), "log": str(log)}),
        Job("water", {"seed": 2, "count": "x"}),
    ]
    first = campaign.run(jobs, WORK, tmp_path / "out.fw", {})
    print("\n".join(first.lines()))
    assert (first.done, first.failed, first.left) == (1, 2, 0)
    assert first.reasons["the file is there"] == 1 and any(text.startswith("TypeError: ") for text in first.reasons)
    line = json.loads((tmp_path / "out.fw" / "journal.jsonl").read_text(encoding="utf-8").splitlines()[1])
    assert (line["status"], line["reason"], line["arguments"]) == ("failed", "the file is there", jobs[1].arguments)
    reason.unlink()
    assert campaign.run(jobs, WORK, tmp_path / "out.fw", {}).failed == 2
    assert len(log.read_text(encoding="utf-8").splitlines()) == 1
    again = campaign.run(jobs, WORK, tmp_path / "out.fw", {}, retry_failed=True)
    assert (again.done, again.failed, again.frames) == (2, 1, 6)
    store = Store(tmp_path / "out.fw")
    assert store.complete and store.column("molecule").tolist() == ["water 0"] * 3 + ["water 1"] * 3


@pytest.mark.usefixtures("inline")
def test_more_jobs_are_added(tmp_path: Path) -> None:
    jobs = [Job("water", {"seed": k}) for k in range(4)]
    campaign.run(jobs[:2], WORK, tmp_path / "out.fw", {})
    grown = campaign.run(jobs, WORK, tmp_path / "out.fw", {})
    assert grown.done == 4 and Store(tmp_path / "out.fw").column("molecule").tolist()[::3] == [f"water {k}" for k in range(4)]
    campaign.run(jobs, WORK, tmp_path / "once.fw", {})
    for name in ("positions", "energy"):
        ours, theirs = (Store(tmp_path / folder).block(range(12)).arrays[name] for folder in ("out.fw", "once.fw"))
        assert (ours == theirs).all()


@pytest.mark.usefixtures("inline")
def test_frames_keep_what_they_are(tmp_path: Path) -> None:
    """Level, source, engine and provenance of each frame, through the waiting file and the store, and in `data info`."""
    from campaign_work import frames

    from forcewell.cli import main

    campaign.run([Job("water", {"seed": k}) for k in range(2)], WORK, tmp_path / "out.fw", {})
    store = Store(tmp_path / "out.fw")
    for row, made in enumerate(frames({"seed": 0}) + frames({"seed": 1})):
        found = store[row]
        assert (found.source, found.level, found.engine, found.molecule) == (made.source, made.level, made.engine, made.molecule)
        assert found.properties == made.properties and all((found.arrays[name] == made.arrays[name]).all() for name in made.arrays)
    assert store.engines == ["", '{"engine": "demo"}']
    main(["data", "info", str(tmp_path / "out.fw")])


@pytest.mark.usefixtures("inline")
def test_another_campaigns_folder(tmp_path: Path) -> None:
    jobs = [Job("water", {"seed": k}) for k in range(2)]
    out = tmp_path / "out.fw"
    campaign.run(jobs, WORK, out, {"engine": "gfn2"})
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    refused: list[tuple[list[Job], dict[str, Any], str]] = [
        (
            jobs,
            {"engine": "gfn1"},
            r'holds another campaign \(engine: "gfn2" there, "gfn1" here\); repeat its settings .* or choose another',
        ),
        (jobs[:1], {"engine": "gfn2"}, r"another campaign: 1 of its jobs are not asked for here \(such as water \{\"seed\": 1\}\)"),
    ]
    for asked, settings, message in refused:
        with pytest.raises(InputError, match=message) as caught:
            campaign.run(asked, WORK, out, settings)
        print(caught.value)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").touch()
    with pytest.raises(InputError, match="already exists; choose another name"):
        campaign.run(jobs, WORK, tmp_path / "folder", {})
    from forcewell.store import StoreWriter

    writer = StoreWriter(tmp_path / "imported.fw")
    writer.close()
    with pytest.raises(InputError, match="is a store that no campaign made; choose another --out"):
        campaign.run(jobs, WORK, tmp_path / "imported.fw", {})


@pytest.mark.parametrize(
    ("name", "workers", "message"), [("slurm", None, "unknown executor 'slurm'; expected local"), ("local", 0, "--workers is 0")]
)
def test_bad_executors(name: str, workers: int | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        executors.make_executor(name, workers)


@pytest.mark.parametrize("existed", [False, True])
def test_a_refused_campaign_leaves_nothing(tmp_path: Path, existed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the executor is refused at once, or can do no job when it is asked to; a folder that was there stays as it was."""
    from campaign_program import Inline

    class Broken(Inline):
        broken = (OSError,)

        def submit(self, work: str, arguments: dict[str, Any]) -> Future[executors.Result]:
            future: Future[executors.Result] = Future()
            future.set_exception(OSError("no\nnodes"))
            return future

    out, jobs = tmp_path / "out.fw", [Job("water", {"seed": 0})]
    if existed:
        out.mkdir()
    for options in ({"executor": "foo"}, {"workers": 0}, {"executor": "parsl:absent.yaml"}):
        with pytest.raises(InputError):
            campaign.run(jobs, WORK, out, {}, **options)  # type: ignore[arg-type]
    monkeypatch.setattr(campaign, "make_executor", lambda *_: Broken())
    with pytest.raises(InputError, match=r"cannot start its workers \(no nodes\)"):
        campaign.run(jobs, WORK, out, {})
    assert [path.name for path in tmp_path.rglob("*")] == ["out.fw"] * existed
    monkeypatch.setattr(campaign, "make_executor", lambda *_: Inline())
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert campaign.run(jobs, WORK, out, {}).done == 1
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    monkeypatch.setattr(campaign, "make_executor", lambda *_: Broken())
    with pytest.raises(InputError, match="cannot start its workers"):
        campaign.run([*jobs, Job("water", {"seed": 1})], WORK, out, {})
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.usefixtures("inline")
def test_what_failed_is_named_and_need_not_be_asked_for_again(tmp_path: Path) -> None:
    (tmp_path / "fails").touch()
    bad = [Job("water", {"seed": k, "smiles": "O" * (k + 1), "fail": str(tmp_path / "fails")}) for k in range(7)]
    nothing = campaign.run(bad, WORK, tmp_path / "out.fw", {})
    assert nothing.lines()[1] == "  7 failed: the file is there (O, OO, OOO, OOOO, OOOOO and 2 more, in journal.jsonl)"
    with pytest.raises(InputError, match=r"nothing was made: 7 failed, 0 done; the file is there \(O, OO, "):
        nothing.check()
    rows = [line.split(maxsplit=1) for line in succeed("data", "info", tmp_path / "out.fw").splitlines() if line.strip()]
    assert all(len(row) == 2 or len(row[0]) == 1 for row in rows), "no row is empty (the fingerprint's last letter is on a line of its own)"
    assert rows[0][1].strip() == "0 (not finished; repeat the command that makes it)"
    mended = campaign.run([Job("water", {"seed": 9})], WORK, tmp_path / "out.fw", {})  # they left no frames that could be strange
    assert (mended.done, mended.failed, mended.left, mended.frames) == (1, 0, 0, 3)
    mended.check()


def test_keys_are_addresses_of_content() -> None:
    job = Job("water", {"seed": 1, "count": 2})
    assert job.key({"a": 1, "b": 2}) == Job("water", {"count": 2, "seed": 1}).key({"b": 2, "a": 1})
    others = [Job("ice", job.arguments), Job("water", {"seed": 2, "count": 2})]
    assert len({job.key({"a": 1}), job.key({"a": 2}), *(other.key({"a": 1}) for other in others)}) == 4
    with pytest.raises(ValueError, match="not a work of this package"):
        campaign.run([job], "os:system", "never", {})
