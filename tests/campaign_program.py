"""What the tests of campaigns run and kill: ``campaign_program.py EXECUTOR OUT JOBS`` or ``... everywhere FOLDER``."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from forcewell.generate import campaign, executors, journal
from forcewell.store import Store

WORK = "campaign_work:frames"
campaign.WORK.add(WORK)


class Inline:
    """Does each job at once, in this process."""

    slots = 1
    lost = ()
    broken: tuple[type[BaseException], ...] = ()

    def submit(self, work: str, arguments: dict[str, Any]) -> Future[executors.Result]:
        future: Future[executors.Result] = Future()
        future.set_result(executors.execute(work, arguments))
        return future

    def __enter__(self) -> Inline:
        return self

    def __exit__(self, *_: object) -> None: ...


def jobs(folder: Path) -> list[campaign.Job]:
    (folder / "fails").touch()
    plain = [campaign.Job("water", {"seed": k, "count": 4}) for k in range(5)]
    return [*plain[:3], campaign.Job("water", {"seed": 99, "fail": str(folder / "fails")}), *plain[3:]]


def die_at(call: int) -> None:
    """Kills this process just before its ``call``-th change to the names of files, which is just after the one before."""
    counted = itertools.count(1)

    def dying(real: Any) -> Any:
        def change(*arguments: Any, **keywords: Any) -> Any:
            number = next(counted)
            if number == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **keywords)

        return change

    for name in ("replace", "unlink"):
        setattr(os, name, dying(getattr(os, name)))
    Path.unlink = lambda self, missing_ok=False: os.unlink(self) if self.exists() or not missing_ok else None  # type: ignore[method-assign]


def everywhere(folder: Path) -> None:
    """One campaign killed at every change it makes to the disk, once each, and gone on with; prints what came of each."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.fsync = lambda _: None  # against power cuts, of which there are none here
    campaign.make_executor = lambda *_: Inline()
    journal.SMALLEST = 600  # bytes: several shards
    for call in itertools.count(0):
        out = folder / f"killed-{call}"
        child = os.fork()
        if child == 0:
            if call:
                die_at(call)
            campaign.run(jobs(folder), WORK, out, {})
            os._exit(0)
        killed = os.waitpid(child, 0)[1] == signal.SIGKILL
        if call and not killed:  # it has fewer changes than that
            return
        summary = campaign.run(jobs(folder), WORK, out, {})
        store = Store(out)
        line = {"call": call, "fingerprint": store.fingerprint, "references": store.manifest["references"], "files": files(out)}
        keys = [json.loads(text)["key"] for text in (out / "journal.jsonl").read_text(encoding="utf-8").splitlines()]
        print(json.dumps({**line, "done": summary.done, "failed": summary.failed, "frames": len(store), "keys": keys}))


def files(out: Path) -> list[str]:
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*"))


if __name__ == "__main__":
    # What a shell starts in the background ignores Ctrl-C, and so would this program.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.argv[1] == "everywhere":
        everywhere(Path(sys.argv[2]))
    else:
        asked = [campaign.Job(**job) for job in json.loads(Path(sys.argv[3]).read_text(encoding="utf-8"))]
        print("\n".join(campaign.run(asked, WORK, sys.argv[2], {"a": 1}, executor=sys.argv[1], workers=2).lines()))
