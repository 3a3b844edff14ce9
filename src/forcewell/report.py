"""Results as one ``report.json`` and one ``report.html`` that opens from disk, with nothing fetched from anywhere."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from forcewell.errors import InputError
from forcewell.files import write_bytes


def write_report(results: Mapping[str, Any], directory: Path) -> Path:
    """Write ``report.json`` and ``report.html`` into ``directory``, made where it is missing; the page's path.

    ``results`` needs "title"; a section whose key is absent is left out of the page. Energies are in meV, forces in meV/Å (parity: eV/Å),
    times in ps; docs/report.md lists every key. NaN and infinities become null. Raises InputError without a title,
    and where numbers of a figure that belong together are not equally many.
    """
    # matplotlib takes 0.5 s to import; only those who write a report pay for it.
    from forcewell.report_page import page

    plain = plain_values(results)
    if not plain.get("title"):
        raise InputError("the report has no title; give results['title'], a line that names the run")
    # The page first: where it cannot be made, neither file is touched.
    text = page(plain)
    directory.mkdir(parents=True, exist_ok=True)
    write_bytes(
        directory / "report.json", (json.dumps(plain, sort_keys=True, allow_nan=False, ensure_ascii=False, indent=1) + "\n").encode()
    )
    write_bytes(directory / "report.html", text.encode())
    return directory / "report.html"


def run_report(run: Path) -> Path:
    """Write the report of a training run's folder, from its ``config.yaml`` and ``log.jsonl``, into that folder; the page's path.

    Raises InputError where there is no log to report on, or a line of it or the configuration cannot be read.
    """
    log = run / "log.jsonl"
    if (run / "replica-000.xyz").is_file():  # beside it is a log.jsonl, too
        raise InputError(f"{run}: the folder of a simulation, whose results are in summary.json; expected the folder of a training run")
    if not log.is_file():
        raise InputError(f"{run}: no log.jsonl in it; expected the folder of a training run (what --out named)")
    records = _read_log(log)
    if not records:
        raise InputError(f"{log}: no record in it yet; a report needs at least one step")
    results: dict[str, Any] = {"title": f"Training run {run.resolve().name}", "charts": _charts(records)}
    config = run / "config.yaml"
    if config.is_file():
        results["settings"] = flatten(_read_settings(config))
    last = max((record["step"] for record in records if _is_number(record.get("step"))), default=None)
    if last is not None:
        results["summary"] = [f"The log reaches step {last:,}."]
    return write_report(results, run)


def plain_values(value: Any) -> Any:
    """The same value of plain JSON types only: arrays as lists, paths as text, NaN and infinities as None."""
    if isinstance(value, Mapping):
        return {str(key): plain_values(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_values(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy arrays and scalars, torch tensors
        return plain_values(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level of dotted names.

    >>> flatten({"optim": {"lr": 0.1}, "seed": 1})
    {'optim.lr': 0.1, 'seed': 1}
    """
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _read_settings(path: Path) -> dict[str, Any]:
    import yaml

    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:  # the second: bytes that are not UTF-8, dates and numbers that cannot be
        raise InputError(f"{path}: not readable as YAML ({str(error).splitlines()[0]})") from None
    if settings is not None and not isinstance(settings, dict):
        raise InputError(f"{path}: expected a mapping of settings, as training writes it, got a {type(settings).__name__}")
    return settings or {}


def _whole(digits: str) -> int:
    """A whole number of JSON. Raises ValueError for one that no figure could show."""
    if len(digits) > 300:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _read_log(path: Path) -> list[dict[str, Any]]:
    """The log's records. A last line cut short by a kill is left out; any other bad line is an error."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line, parse_int=_whole)
        except json.JSONDecodeError:
            if number == len(lines):
                break
            raise InputError(f"{path}: line {number} is not JSON; expected one record per line, as training writes them") from None
        except ValueError as error:
            raise InputError(f"{path}: line {number} has {error}, which is nothing that a training measures") from None
        if not isinstance(record, dict):
            raise InputError(f"{path}: line {number} is not a record; expected an object with 'kind' and 'step'")
        records.append(record)
    return records


def _charts(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One chart for every quantity that the log follows over the steps, training and validation in the same one."""
    curves: dict[str, dict[str, tuple[list[Any], list[Any]]]] = {}
    for record in records:
        kind, step = str(record.get("kind", "train")), record.get("step")
        if not _is_number(step):
            continue
        for name, value in flatten(record).items():
            if name not in ("kind", "step", "seconds") and _is_number(value):
                x, y = curves.setdefault(name, {}).setdefault(kind, ([], []))
                x.append(step)
                y.append(value)
    return [
        {"title": name.replace("_", " "), "x_label": "step", "lines": [{"label": kind, "x": x, "y": y} for kind, (x, y) in kinds.items()]}
        for name, kinds in curves.items()
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
