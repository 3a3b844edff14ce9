"""What the numbers say: which measures a model improved on its baseline, in words that follow from them alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Differences below 3 % are not called an improvement (a convention: one run says nothing of the scatter between seeds).
CLEAR = 0.03
# Drifts below this, in meV/atom/ps, count as none: over one picosecond 0.1 meV/atom is 1/400 of the thermal kinetic
# energy at 300 K, about what a straight line through the energy's ordinary fluctuations gives.
NO_DRIFT = 0.1


@dataclass(frozen=True, slots=True)
class Measure:
    """One number of a model: its key in the results, and which way is better (None: neither)."""

    key: str
    name: str
    unit: str
    lower_is_better: bool | None


KEY_MEASURES = (
    Measure("force_mae", "Force MAE", "meV/Å", True),
    Measure("stability", "Stable MD", "ps", False),
    Measure("hr_error", "h(r) error", "", True),
    Measure("energy_drift", "Energy drift in NVE", "meV/atom/ps", True),
)
OTHER_MEASURES = (
    Measure("energy_mae", "Energy MAE", "meV", True),
    Measure("force_rmse", "Force RMSE", "meV/Å", True),
    Measure("force_cosine", "Force cosine", "", False),
    Measure("stability_fraction", "Replicas stable to the end", "fraction", False),
    Measure("parameters", "Parameters", "", None),
    Measure("steps", "Training steps", "", None),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A model against the baseline: one headline, one line of reasons."""

    headline: str
    reason: str


def value(model: Mapping[str, Any], key: str) -> float | None:
    """A model's number, or None where it has none. A drift counts by its size: losing energy is as bad as gaining it."""
    found = model.get(key)
    if not isinstance(found, (int, float)) or isinstance(found, bool) or not math.isfinite(found):
        return None
    return abs(found) if key == "energy_drift" else found


def baseline(models: Mapping[str, Any]) -> str:
    """The model that the others are compared with: "scratch" where there is one, else the first."""
    return "scratch" if "scratch" in models else next(iter(models))


def change(measure: Measure, before: float | None, after: float | None, floor: float | None = None) -> tuple[str, float | None]:
    """("better", "worse", "same" or "", relative change or None).

    h(r) errors that differ by less than the statistical floor are the same, and so are two drifts below ``NO_DRIFT``.

    >>> change(KEY_MEASURES[0], 40.0, 30.0)
    ('better', -0.25)
    >>> change(KEY_MEASURES[2], 0.010, 0.005, floor=0.02)[0]
    'same'
    """
    if measure.lower_is_better is None or before is None or after is None:
        return "", None
    relative = (after - before) / abs(before) if before else None
    noise = measure.key == "hr_error" and floor is not None and abs(after - before) <= floor
    noise = noise or (measure.key == "energy_drift" and max(before, after) <= NO_DRIFT)
    if noise or before == after or (relative is not None and abs(relative) < CLEAR):
        return "same", relative
    return ("better" if (after < before) == measure.lower_is_better else "worse"), relative


def verdicts(models: Mapping[str, Mapping[str, Any]], floor: float | None = None) -> list[Verdict]:
    """One verdict for every model but the baseline, in order; empty for a single model."""
    if len(models) < 2:
        return []
    base = baseline(models)
    found = []
    for key, model in models.items():
        if key == base:
            continue
        outcomes: dict[str, list[str]] = {"better": [], "worse": [], "same": []}
        for measure in KEY_MEASURES:
            outcome, _ = change(measure, value(models[base], measure.key), value(model, measure.key), floor)
            if outcome:
                outcomes[outcome].append(measure.name if measure.name.startswith("h(r)") else measure.name[0].lower() + measure.name[1:])
        subject = "Pre-training" if base == "scratch" and len(models) == 2 else str(model.get("label") or key)
        compared = str(models[base].get("label") or base)
        found.append(Verdict(f"{subject} {_headline(outcomes)}", f"{_force(models[base], model)}{_reason(outcomes, compared)}"))
    return found


def _headline(outcomes: Mapping[str, list[str]]) -> str:
    better, worse = outcomes["better"], outcomes["worse"]
    if better and worse:
        return "helped in part, and cost something"
    if better:
        return "helped"
    if worse:
        return "did not help: it made things worse"
    return "made no clear difference" if outcomes["same"] else "cannot be judged: no measure was taken for both models"


def _force(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """The first number to look at, spelt out."""
    old, new = value(before, "force_mae"), value(after, "force_mae")
    if old is None or new is None:
        return ""
    percent = f" ({(new - old) / old:+.0%})".replace("-", "−").replace("%", "\N{NO-BREAK SPACE}%") if old else ""
    return f"Force MAE {old:#.3g} → {new:#.3g} meV/Å{percent}. "


def _reason(outcomes: Mapping[str, list[str]], compared: str) -> str:
    words = {"better": "better in", "worse": "worse in", "same": "no clear difference in"}
    parts = [f"{words[outcome]} {_listed(names)}" for outcome, names in outcomes.items() if names]
    return f"Against “{compared}”: {'; '.join(parts)}." if parts else ""


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
