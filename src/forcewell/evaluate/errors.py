"""How far are a model's energies and forces from their labels?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from forcewell.batch import Batch
from forcewell.potential import Potential
from forcewell.store import Dataset
from forcewell.system import consecutive

MILLI = 1000.0


def evaluate(
    potential: Potential,
    data: Dataset,
    *,
    rows: np.ndarray | None = None,
    level: str | None = None,
    batch_atoms: int = 4096,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Errors over all conformations of a data set, or over those at ``rows`` (integers, one part of a split).

    Those of a level of theory that the model knows are evaluated at that one, others at ``level``, at the one of the data's that it
    knows, or at its last; with ``level``, all at that one.

    force_mae, force_rmse (meV/Å, over components), force_cosine (mean over atoms with a force above 1e-3 eV/Å),
    per_element (force MAE by symbol), per_source; energy_mae and energy_rmse (meV per molecule), None where there is
    no energy label or, for compositions with a single frame, nothing to compare: force-trained energies have a free
    constant per composition, which is fitted away (``energy_shift``). n_conformations, n_atoms count all that was evaluated,
    energy_labels those of them with an energy.
    energy_total_mae and energy_total_rmse are without that shift, by the model's own reference energies; None where it has none
    at the conformations' own level. unknown_levels: the data's levels that the model does not know. properties: of a model
    trained on some, by name {"mae", "rmse"} in the data's units or, for classes, {"roc_auc"} (None where only one class is labelled).
    ``parity`` holds all labelled force components with their predictions as arrays (eV/Å).
    Raises InputError for elements that the model never saw.
    """
    potential.check_elements(np.array(data.elements))
    table = _levels(potential, data, level)
    rows = np.arange(len(data)) if rows is None else rows
    levels = data.column("level")[rows]
    forces, labels, numbers, owners, energies, properties = [], [], [], [], [], []
    done = 0
    for part in consecutive(data.counts[rows], batch_atoms):
        chunk, at = rows[part], table[levels[part]]
        batch = Batch.from_block(data.block(chunk), dtype=potential.dtype, level=at).to(potential.device)
        out = potential(batch, properties=bool(potential.properties))
        assert out.forces is not None
        forces.append(out.forces.double().cpu().numpy())
        labels.append(batch.targets.forces.double().cpu().numpy())
        numbers.append(batch.numbers.cpu().numpy())
        owners.append(np.repeat(chunk, data.counts[chunk]))
        energies.append(potential.total_energy(out, batch).detach().cpu().numpy())
        if potential.properties:
            properties.append(potential.property_values(out).cpu().numpy())
        done += len(chunk)
        progress(done)
    result: dict[str, Any] = {
        "n_conformations": len(rows),
        "n_atoms": int(data.counts[rows].sum()),
        "level": ", ".join(potential.levels[index] for index in np.unique(table[levels])) if potential.levels else "",
        "unknown_levels": [data.levels[index] for index in np.unique(levels) if data.levels[index] not in potential.levels],
    }
    result |= _force_errors(np.concatenate(forces), np.concatenate(labels), np.concatenate(numbers), np.concatenate(owners), data)
    result |= _energy_errors(np.concatenate(energies), data, rows, _referenced(potential, data, table, stated=level is not None)[levels])
    if properties:
        result["properties"] = property_errors(potential, np.concatenate(properties), data, rows)
    return result


def _levels(potential: Potential, data: Dataset, level: str | None) -> np.ndarray:
    """For each of the data's levels of theory the index of that at which it is evaluated."""
    known = [name for name in data.levels if name in potential.levels]
    fallback = potential.level_index(level if level is not None or len(known) != 1 else known[0])
    own = [potential.levels.index(name) if level is None and name in known else fallback for name in data.levels]
    return np.array(own or [fallback], dtype=np.int64)


def _referenced(potential: Potential, data: Dataset, table: np.ndarray, stated: bool) -> np.ndarray:
    """For each of the data's levels (bool): is it evaluated at that one, and has the model reference energies of it?

    stated: the level of evaluation was named, which then holds for data that name none.
    """
    if not potential.levels:
        return np.zeros(len(table), dtype=bool)
    names = [potential.levels[index] for index in table]
    own = [name == theirs or (stated and not theirs) for name, theirs in zip(names, data.levels, strict=True)]
    return np.array(own) & [bool(potential.references[name][data.elements].all()) for name in names]


def _force_errors(forces: np.ndarray, labels: np.ndarray, numbers: np.ndarray, owners: np.ndarray, data: Dataset) -> dict[str, Any]:
    from ase.data import chemical_symbols

    known = np.isfinite(labels).all(axis=1)
    if not known.any():
        return {"force_mae": None, "force_rmse": None}
    forces, labels, numbers, owners = forces[known], labels[known], numbers[known], owners[known]
    error = forces - labels
    length = np.linalg.norm(labels, axis=1)
    strong = length > 1e-3
    norms = np.linalg.norm(forces[strong], axis=1) * length[strong]
    cosine = (forces[strong] * labels[strong]).sum(1) / np.maximum(norms, 1e-12)
    source = data.column("source")[owners]
    return {
        "force_mae": _mean(error),
        "force_rmse": float(np.sqrt((error**2).mean()) * MILLI),
        "force_cosine": float(cosine.mean()) if len(cosine) else None,
        "per_element": {chemical_symbols[z]: _mean(error[numbers == z]) for z in np.unique(numbers)},
        "per_source": {data.sources[s] or "not stated": {"force_mae": _mean(error[source == s])} for s in np.unique(source)},
        "parity": {"reference": labels.ravel(), "predicted": forces.ravel()},
    }


def _mean(error: np.ndarray) -> float:
    """Mean absolute error in milli-units."""
    return float(np.abs(error).mean() * MILLI)


def _energy_errors(energies: np.ndarray, data: Dataset, rows: np.ndarray, referenced: np.ndarray) -> dict[str, Any]:
    """Energy errors after removing, per composition, the constant that forces cannot fix; total ones where ``referenced`` (rows,)."""
    if "energy" not in data.fields:
        return {"energy_mae": None, "energy_rmse": None}
    labels = data.column("energy")[rows]
    known = np.flatnonzero(np.isfinite(labels))
    level = data.column("level")[rows]  # levels of theory have zeros of their own
    formulas: dict[tuple[int, bytes], list[int]] = {}
    for start in range(0, len(known), 4096):
        some = known[start : start + 4096]
        block = data.block(rows[some])
        parts = np.split(block.arrays["numbers"], block.offsets[1:-1])
        for place, part in zip(some, parts, strict=True):
            formulas.setdefault((int(level[place]), np.sort(part).tobytes()), []).append(int(place))
    whole = (energies - labels)[np.isfinite(labels) & referenced]
    result: dict[str, Any] = {"energy_total_mae": None, "energy_total_rmse": None, "energy_labels": len(known)}
    if len(whole):
        result |= {"energy_total_mae": _mean(whole), "energy_total_rmse": float(np.sqrt((whole**2).mean()) * MILLI)}
    errors = [energies[places] - labels[places] for places in formulas.values() if len(places) > 1]
    if not errors:
        return {"energy_mae": None, "energy_rmse": None, **result}
    shifted = np.concatenate([error - error.mean() for error in errors])
    return {
        "energy_mae": float(np.abs(shifted).mean() * MILLI),
        "energy_rmse": float(np.sqrt((shifted**2).mean()) * MILLI),
        "energy_shift": "mean error of each composition and level of theory removed",
        "energy_conformations": len(shifted),
        **result,
    }


def property_errors(potential: Potential, values: np.ndarray, data: Dataset, rows: np.ndarray) -> dict[str, dict[str, float | None]]:
    """Errors of properties (len(rows), P) that the conformations at ``rows`` have labels of, by name."""
    classes = potential.config["head"]["properties"]["classes"]
    found: dict[str, dict[str, float | None]] = {}
    for name, column in zip(potential.properties, values.T, strict=True):
        if name not in data.properties:
            continue
        labels = data.column(f"property:{name}")[rows]
        known = np.isfinite(labels)
        if classes:
            found[name] = {"roc_auc": roc_auc(labels[known] > 0.5, column[known])}
        elif known.any():
            error = column[known] - labels[known]
            found[name] = {"mae": float(np.abs(error).mean()), "rmse": float(np.sqrt((error**2).mean()))}
    return found


def roc_auc(positive: np.ndarray, scores: np.ndarray) -> float | None:
    """Probability that a positive scores above a negative, ties counted half; None where one of them is missing."""
    from scipy.stats import rankdata

    count = int(positive.sum())
    others = len(positive) - count
    if count == 0 or others == 0:
        return None
    return float((rankdata(scores)[positive].sum() - count * (count + 1) / 2) / (count * others))


@dataclass(slots=True)
class EnergyErrors:
    """Energy errors of labelled conformations (eV), gathered batch by batch, by composition and level of theory."""

    groups: dict[tuple[int, bytes], list[float]] = field(default_factory=dict)

    def add(self, batch: Batch, errors: Tensor) -> None:
        """errors (M,): NaN where there is no label."""
        offsets, numbers = batch.offsets.tolist(), batch.numbers.cpu().numpy().astype(np.uint8)
        for m, (level, error) in enumerate(zip(batch.level.tolist(), errors.tolist(), strict=True)):
            if np.isfinite(error):
                key = (level, np.sort(numbers[offsets[m] : offsets[m + 1]]).tobytes())
                self.groups.setdefault(key, []).append(error)

    @classmethod
    def of(cls, parts: Sequence[EnergyErrors]) -> EnergyErrors:
        """Those of several processes together."""
        joined = cls()
        for part in parts:
            for key, errors in part.groups.items():
                joined.groups.setdefault(key, []).extend(errors)
        return joined

    def summary(self, trained: bool) -> dict[str, float]:
        """{"energy_mae": meV per molecule}; nothing where it cannot be known. Unless energies were trained, forces leave
        each composition a constant, which is taken off."""
        parts = [np.array(errors) for errors in self.groups.values() if trained or len(errors) > 1]
        if not parts:
            return {}
        return {"energy_mae": _mean(np.concatenate([part if trained else part - part.mean() for part in parts]))}


def thinned(result: dict[str, Any], points: int = 4000) -> dict[str, Any]:
    """The result with at most ``points`` parity points as lists, ready for JSON."""
    if "parity" not in result:
        return result
    total = len(result["parity"]["reference"])
    kept = np.unique(np.linspace(0, total - 1, min(points, total)).astype(int))
    return {**result, "parity": {name: np.round(values[kept], 5).tolist() for name, values in result["parity"].items()}}
