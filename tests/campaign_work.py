"""Work for the tests of campaigns: frames that are a function of their seed, and a way to be slow, to fail and to die."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

from forcewell.generate.campaign import JobFailure
from forcewell.system import System


def frames(arguments: dict[str, Any]) -> list[System]:
    """``count`` water molecules. fail: raise that reason. die: a file to remove before killing this process (then not again)."""
    if "log" in arguments:  # which job ran, how often: a line in one write
        with open(arguments["log"], "a", encoding="utf-8") as log:
            log.write(f"{arguments['seed']} {os.environ['OMP_NUM_THREADS']}\n")
    time.sleep(arguments.get("seconds", 0.0))
    if "die" in arguments and Path(arguments["die"]).exists():
        if not arguments.get("always"):
            Path(arguments["die"]).unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    if "fail" in arguments and Path(arguments["fail"]).exists():
        raise JobFailure("the file is there")
    rng = np.random.default_rng(arguments["seed"])
    return [
        System(
            {
                "numbers": np.array([8, 1, 1], dtype=np.uint8),
                "positions": np.array([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]]) + rng.normal(0, 0.05, (3, 3)),
                "energy": np.float64(rng.normal()),
                "forces": rng.normal(size=(3, 3)).astype(np.float32),
            },
            source="minima" if k == 0 else "displaced",
            level="demo",
            molecule=f"water {arguments['seed']}",
            engine='{"engine": "demo"}',
            properties={"seed": float(arguments["seed"])},
        )
        for k in range(arguments.get("count", 3))
    ]
