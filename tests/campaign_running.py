"""How tests run a campaign in a process of its own, so that it can be killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from forcewell.generate.campaign import Job

TESTS = Path(__file__).parent
PROGRAM = TESTS / "campaign_program.py"
WORK = "campaign_work:frames"


def start(executor: str, out: Path, jobs: list[Job]) -> subprocess.Popen[str]:
    """A campaign in a process of its own."""
    listed = out.parent / "jobs.json"
    listed.write_text(json.dumps([{"kind": job.kind, "arguments": job.arguments} for job in jobs]), encoding="utf-8")
    path = os.pathsep.join([str(TESTS), str(TESTS.parent / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, str(PROGRAM), executor, str(out), str(listed)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finished(process: subprocess.Popen[str]) -> str:
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said
    return said
