"""Campaigns: thousands of jobs, each labelled once, whatever is killed in between."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# The functions that a job may call, by the name of the work: called in a worker process as
# ``work({**settings, **arguments}) -> list[System]``. Never taken from a user's file.
WORK = {
    "forcewell.generate.label:label",
    "forcewell.generate.sampling:molecule",
    "forcewell.generate.polymers:polymer",
}


class JobFailure(Exception):
    """A job that cannot be done; the message is the reason. It is kept, and the job is not repeated unless asked."""


@dataclass(frozen=True, slots=True)
class Job:
    """One unit of work. kind: what it is ("molecule"). arguments: plain JSON values."""

    kind: str
    arguments: dict[str, Any]

    def key(self, settings: Mapping[str, Any]) -> str:
        """SHA-256 of kind, arguments and the campaign's settings: the job's address."""
        content = json.dumps([self.kind, self.arguments, dict(settings)], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Summary:
    """done, failed, left: jobs. reasons: failed jobs by reason. frames: in the store. cpu_seconds: of all jobs together."""

    done: int
    failed: int
    left: int
    frames: int
    cpu_seconds: float
    reasons: dict[str, int] = field(default_factory=dict)


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
) -> Summary:
    """Does every job that is not done yet and appends its frames to the store ``out``."""
    raise NotImplementedError
