"""Where a campaign's jobs run: in processes of this machine, one per core, or on a cluster through Parsl."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import active_children, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from forcewell.engines import EngineFailure
from forcewell.errors import InputError
from forcewell.process import end_with_parent
from forcewell.system import System

# One thread per process: below about 100 atoms the threads of tblite and PySCF cost more than they bring.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class JobFailure(Exception):
    """A job that cannot be done; the message is the reason. It is kept, and the job is not repeated unless asked."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a job came to: its frames, or the reason why there are none ("" where it succeeded); CPU seconds it took.

    left_out: frames that were dropped, by reason.
    """

    frames: list[System]
    reason: str
    cpu_seconds: float
    left_out: dict[str, list[str]] = field(default_factory=dict)


class Executor(Protocol):
    """slots: how many jobs it takes at once. lost: the exceptions that mean that a worker process died; broken: those that mean
    that it can do no job at all."""

    slots: int
    lost: tuple[type[BaseException], ...]
    broken: tuple[type[BaseException], ...]

    def submit(self, work: str, arguments: dict[str, Any]) -> Future[Result]: ...
    def __enter__(self) -> Executor: ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


def execute(work: str, arguments: dict[str, Any]) -> Result:
    """Does one job in a worker process. An error of any kind is the job's own and becomes its reason."""
    began = time.process_time()
    module, _, name = work.partition(":")
    left_out: dict[str, list[str]] = {}
    try:
        made = getattr(importlib.import_module(module), name)(arguments)
        frames, left_out = made if isinstance(made, tuple) else (made, {})
        reason = ""
    except (JobFailure, EngineFailure, InputError) as error:
        frames, reason = [], " ".join(str(error).split()) or type(error).__name__
    except Exception as error:
        frames, reason = [], " ".join(f"{type(error).__name__}: {error}".split())
    return Result(frames, reason, time.process_time() - began, left_out)


def make_executor(name: str, workers: int | None) -> Executor:
    """The executor of that name: "local" or "parsl:CONFIG". Raises InputError for another, and for a bad configuration."""
    if workers is not None and workers < 1:
        raise InputError(f"--workers is {workers}; expected 1 or more")
    if name == "local":
        return Local(workers or cores())
    if name.startswith("parsl:"):
        from forcewell.generate.cluster import Parsl

        return Parsl(Path(name.removeprefix("parsl:")))
    raise InputError(f"unknown executor {name!r}; expected local, or parsl:CONFIG with a YAML file")


def cores() -> int:
    """Those that this process may use; fewer than the machine's under a scheduler or taskset."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Local:
    """One worker process per slot, started when there is a job for it, each a pool of its own: where one dies, that job alone is
    affected, and it is replaced."""

    lost: tuple[type[BaseException], ...] = (BrokenProcessPool,)
    broken: tuple[type[BaseException], ...] = ()

    def __init__(self, workers: int) -> None:
        self.slots = workers
        self._free: list[ProcessPoolExecutor] = []
        self._busy: dict[Future[Result], ProcessPoolExecutor] = {}
        self._processes: dict[ProcessPoolExecutor, BaseProcess] = {}

    def __enter__(self) -> Local:
        return self

    def _start(self) -> ProcessPoolExecutor:
        pool, before = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=end_with_parent), set(active_children())
        with _quietly():
            pool.submit(os.getpid)  # starts the process
        (self._processes[pool],) = set(active_children()) - before
        return pool

    def submit(self, work: str, arguments: dict[str, Any]) -> Future[Result]:
        """Gives a free worker a job; there must be fewer jobs than slots."""
        for future in [future for future in self._busy if future.done()]:
            self._free.append(self._busy.pop(future))
        pool = self._free.pop() if self._free else self._start()
        try:
            future = pool.submit(execute, work, arguments)
        except BrokenProcessPool:  # its process died, in its last job or since
            del self._processes[pool]
            pool.shutdown()
            pool = self._start()
            future = pool.submit(execute, work, arguments)
        self._busy[future] = pool
        return future

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for pool, process in self._processes.items():
            if kind is not None:  # stopped in the middle: nobody will read what they compute, and some may still be starting
                process.terminate()
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Processes started inside compute with one thread, set before they import anything, and leave Ctrl-C to this one."""
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if threading.current_thread() is threading.main_thread() else None
    os.environ.update(ONE_THREAD)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
        if handler is not None:
            signal.signal(signal.SIGINT, handler)
