"""Campaigns: many jobs, each done once, whatever is killed in between.

The campaign's folder is the store that it writes, with two more things in it: ``journal.jsonl``, one line for each job whose fate
is settled in the store, and ``jobs/``, where a finished job waits until its turn. Frames enter the store in the order of the
jobs, not of their completion, so that the store does not depend on the number of workers or on what was killed when.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from forcewell.display import Counting
from forcewell.engines import Engine, engine
from forcewell.errors import InputError
from forcewell.generate.executors import Executor, JobFailure, Result, make_executor
from forcewell.generate.journal import Journal

# The functions that a job may call, as ``work({**settings, **arguments})`` in a worker process. They return a list of Systems, or
# that and a dict of what was left out, by reason; they raise JobFailure where a job cannot be done. Fixed here:
# nothing that a user's file names is ever called.
WORK = {
    "forcewell.generate.label:label",
    "forcewell.generate.sampling:molecule",
    "forcewell.generate.polymers:polymer",
}
__all__ = ["WORK", "Job", "JobFailure", "Summary", "engine_of", "engine_settings", "run"]
NAMED = 5  # failed jobs of each reason
ATTEMPTS = 2  # of a job whose worker process dies; a third would kill a third worker by the same lack of memory


@dataclass(frozen=True, slots=True)
class Job:
    """One unit of work. kind: a word for the journal ("molecule"). arguments: plain JSON values."""

    kind: str
    arguments: dict[str, Any]

    def key(self, settings: Mapping[str, Any]) -> str:
        """SHA-256 of kind, arguments and the campaign's settings: the job's address."""
        content = json.dumps([self.kind, self.arguments, dict(settings)], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Summary:
    """done, failed, left: jobs. frames: of the jobs that are done. cpu_seconds: of all jobs together, failed ones included.

    reasons: failed jobs by reason. failures: what the failed jobs of each reason were about, a SMILES say. left_out: frames that
    were dropped in jobs that are done, by reason.
    """

    done: int
    failed: int
    left: int
    frames: int
    cpu_seconds: float
    reasons: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    failures: dict[str, list[str]] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """What to tell a person."""
        hours, per_frame = self.cpu_seconds / 3600, self.cpu_seconds / max(1, self.frames)
        cost = f"{hours:.2f} CPU hours" if hours >= 1 else f"{self.cpu_seconds:.1f} CPU seconds"
        first = f"jobs: {self.done} done, {self.failed} failed, {self.left} left; {self.frames} frames"
        lines = [f"{first}; {cost} ({per_frame:.3g} s per frame)"]
        for counted, told in ((self.reasons, "failed"), (self.left_out, "frames left out")):
            often = sorted(counted.items(), key=lambda item: -item[1])
            lines += [f"  {count} {told}: {reason}{self._which(reason)}" for reason, count in often[:10]]
            lines += [f"  and {len(often) - 10} more reasons, in journal.jsonl"] if len(often) > 10 else []
        return lines

    def _which(self, reason: str) -> str:
        names = self.failures.get(reason, [])
        more = f" and {len(names) - NAMED} more, in journal.jsonl" if len(names) > NAMED else ""
        return f" ({', '.join(names[:NAMED])}{more})" if names else ""

    def check(self) -> None:
        """Raises InputError where not one frame was made: what failed first, and why."""
        if not self.frames:
            reason = next(iter({**self.reasons, **self.left_out}), "there is nothing to do")
            raise InputError(f"nothing was made: {self.failed} failed, 0 done; {reason}{self._which(reason)}")


def engine_settings(chosen: Engine) -> dict[str, Any]:
    """The part of a campaign's settings that says which engine labels: name, version and the engine's own settings."""
    return {"engine": chosen.name, "version": chosen.version, "engine_settings": dict(chosen.settings)}


def engine_of(arguments: Mapping[str, Any]) -> Engine:
    """The engine of a job's arguments, from ``engine_settings``; made once in each worker process."""
    return _engine(arguments["engine"], json.dumps(arguments["engine_settings"], sort_keys=True))


@functools.lru_cache(maxsize=4)
def _engine(name: str, settings: str) -> Engine:
    return engine(name, **json.loads(settings))


def run(
    jobs: Sequence[Job],
    work: str,
    out: str | Path,
    settings: Mapping[str, Any],
    *,
    executor: str = "local",
    workers: int | None = None,
    retry_failed: bool = False,
    progress: bool = False,
    places: Mapping[str, Any] | None = None,
) -> Summary:
    """Does every job that is not done yet, appends its frames to the store ``out``, and says how the campaign stands.

    work: the function, from ``WORK``. settings: plain JSON values that all jobs share and that, with a job's own arguments,
    decide its frames. executor: "local", one process per core or ``workers`` of them, or "parsl:CONFIG", a YAML file.
    retry_failed: do failed jobs again. progress: show a bar with rate and time left. places: more arguments of all jobs, which
    do not decide frames and may change from call to call, such as where a file is.

    After a kill at any moment the same call continues: a job's frames and its line in the journal are kept together or not
    at all. More jobs may be asked for later; the new ones are done and added.

    Raises InputError where ``out`` holds another campaign or is not one's, and for a bad executor; no new folder is then left.
    """
    if work not in WORK:
        raise ValueError(f"{work!r} is not a work of this package")
    shared = json.loads(json.dumps({"work": work, **settings}))
    keyed = {job.key(shared): job for job in jobs}
    made = make_executor(executor, workers)
    journal = Journal.open(Path(out), shared)
    try:
        journal.check(keyed)
        left = [key for key in keyed if (line := journal.lines.get(key)) is None or (retry_failed and line["status"] == "failed")]
        if left or not journal.complete:
            order = deque(left)
            todo = [key for key in left if not journal.waits(key)]
            with _bar(len(todo), progress) as advance, made as pool:
                _settle(journal, order, keyed)
                for finished, (key, result) in enumerate(_results(pool, todo, keyed, work, {**shared, **(places or {})}), start=1):
                    journal.keep(key, keyed[key], result)
                    _settle(journal, order, keyed)
                    advance(finished)
            journal.finish()
    except InputError:  # of the executor: every job's own became its reason
        journal.discard()
        raise
    finally:
        journal.close()
    return summary(journal, keyed)


def _settle(journal: Journal, order: deque[str], keyed: Mapping[str, Job]) -> None:
    """Moves into the store what is finished and has nothing unfinished before it."""
    while order and journal.waits(order[0]):
        journal.settle(order.popleft())


def _results(
    pool: Executor, todo: Sequence[str], keyed: Mapping[str, Job], work: str, shared: Mapping[str, Any]
) -> Iterator[tuple[str, Result]]:
    """Each job's result as it comes. A job whose worker died is given to another one, and fails when that dies, too.

    Raises InputError where the executor can do no job at all.
    """
    waiting, running, deaths = deque(todo), dict[Future[Result], str](), Counter[str]()
    # Not concurrent.futures.wait: Ctrl-C within it can leave a future locked, on which the end of the pool then waits for ever.
    done = SimpleQueue[Future[Result]]()
    while waiting or running:
        while waiting and len(running) < pool.slots:
            key = waiting.popleft()
            future = pool.submit(work, {**shared, **keyed[key].arguments})
            running[future] = key
            future.add_done_callback(done.put)
        future = done.get()
        key = running.pop(future)
        try:
            result = future.result()
        except pool.lost as error:
            deaths[key] += 1
            if deaths[key] < ATTEMPTS:
                waiting.appendleft(key)
                continue
            result = Result([], f"its worker process died {ATTEMPTS} times ({type(error).__name__}); is there enough memory?", 0.0)
        except pool.broken as error:
            raise InputError(f"the executor cannot start its workers ({' '.join(str(error).split()) or type(error).__name__})") from None
        yield key, result


def summary(journal: Journal, jobs: Mapping[str, Job]) -> Summary:
    """How a campaign of these jobs, by key, stands."""
    lines = [line for key, line in journal.finished.items() if key in jobs]
    failed = [line for line in lines if line["status"] == "failed"]
    failures: dict[str, list[str]] = {}
    for line in failed:
        failures.setdefault(line["reason"], []).append(_named(line["kind"], line["arguments"]))
    left_out = Counter[str]()
    for line in lines:
        left_out.update({reason: len(names) for reason, names in line.get("left_out", {}).items()})
    return Summary(
        done=len(lines) - len(failed),
        failed=len(failed),
        left=len(jobs) - len(lines),
        frames=sum(line["frames"] for line in lines),
        cpu_seconds=journal.cpu_seconds,
        reasons={reason: len(names) for reason, names in failures.items()},
        left_out=dict(left_out),
        failures=failures,
    )


def _named(kind: str, arguments: Mapping[str, Any]) -> str:
    """What to call a job in a message."""
    if "rows" in arguments:
        rows = arguments["rows"]
        return f"conformations {rows[0]} to {rows[-1]}" if len(rows) > 1 else f"conformation {rows[0]}"
    return str(arguments.get("smiles", kind))


@contextlib.contextmanager
def _bar(total: int, progress: bool) -> Iterator[Any]:
    if not progress or not total:
        yield lambda done: None
        return
    with Counting("generating", total, "jobs") as bar:
        yield bar.update
