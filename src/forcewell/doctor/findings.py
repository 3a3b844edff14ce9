"""What a check says: findings with a severity, what is wrong, where, which conformations, and the numbers that show it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

NAMED = 10  # conformations listed by index in a finding; all of them are counted
ORDER = {"error": 0, "warning": 1, "note": 2}


@dataclass(frozen=True, slots=True)
class Finding:
    """severity: "error" (do not train on this), "warning" or "note". question: which check found it. what, where: sentences.

    conformations: indices of up to ``NAMED`` of those concerned, the worst first. evidence: numbers by name.
    """

    severity: str
    question: str
    what: str
    where: str
    evidence: Mapping[str, float | int | str] = field(default_factory=dict)
    conformations: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.severity}: {self.where}: {self.what}" + (f" ({self.numbers})" if self.numbers else "")

    @property
    def numbers(self) -> str:
        """The evidence and the conformations' indices as one phrase."""
        parts = [
            f"{key.replace('_', ' ')} {value:.4g}" if isinstance(value, float) else f"{key.replace('_', ' ')} {value}"
            for key, value in self.evidence.items()
        ]
        if self.conformations:
            parts.append(f"indices {', '.join(map(str, self.conformations))}")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Report:
    """All findings about ``conformations`` conformations, the gravest first. examined: how many were looked at."""

    conformations: int
    findings: tuple[Finding, ...]
    examined: int

    @property
    def ok(self) -> bool:
        """True where nothing is an error."""
        return not any(finding.severity == "error" for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return {
            "ok": self.ok,
            "conformations": self.conformations,
            "examined": self.examined,
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
        }


def report(conformations: int, findings: list[Finding], examined: int) -> Report:
    """A report with its findings in order of severity."""
    return Report(conformations, tuple(sorted(findings, key=lambda finding: ORDER[finding.severity])), examined)


def worst(rows: np.ndarray, badness: np.ndarray) -> tuple[int, ...]:
    """The ``NAMED`` of ``rows`` (K,) with the largest ``badness`` (K,), for ``Finding.conformations``."""
    return tuple(rows[np.argsort(-np.asarray(badness, dtype=np.float64), kind="stable")[:NAMED]].tolist())
