"""The HTML of a report: sections from the results that are there, style, script and 3D viewer inside the one file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from html import escape
from typing import Any

from forcewell import report_plots as plots
from forcewell.report_html import (
    asset,
    definition_card,
    figure_card,
    figure_grid,
    line_key,
    number_text,
    percent_text,
    record_table,
    sample_line,
    scroll_box,
)
from forcewell.report_plots import COLOURS, Line
from forcewell.report_verdict import KEY_MEASURES, OTHER_MEASURES, Measure, baseline, change, value, verdicts

Results = Mapping[str, Any]
# What the page may do: run its own script and style, show images it carries. It can fetch nothing.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'"
MD_NAMES = {
    "ensemble": "Ensemble",
    "temperature": "Temperature (K)",
    "length_ps": "Length (ps)",
    "replicas": "Replicas",
    "timestep_fs": "Time step (fs)",
    "degrees_of_freedom": "Degrees of freedom",
    "nve_length_ps": "Length of NVE (ps)",
}


def page(results: Results) -> str:
    """The whole report. ``results`` holds plain JSON values; keys as docs/report.md lists them."""
    models: Results = results.get("models") or {}
    made: list[tuple[str, str, str]] = []
    for anchor, title, build in SECTIONS:
        body = build(results)
        if body:
            made.append((anchor, title, body))
    links = "".join(f'<a href="#{anchor}">{title}</a>' for anchor, title, _ in made)
    body = "".join(f'<section id="{anchor}"><h2>{title}</h2>{text}</section>' for anchor, title, text in made)
    scripts = ""
    trajectories = {key: model["trajectory"] for key, model in models.items() if model.get("trajectory")}
    if trajectories:
        # "<" as \u003c: no text in the data can close the script element.
        data = json.dumps(trajectories, ensure_ascii=False).replace("<", "\\u003c")
        scripts = f'<script type="application/json" id="trajectories">{data}</script>'
        scripts += f"<script>{asset('3Dmol-min.js')}</script><script>{asset('report.js')}</script>"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escape(str(results["title"]))}</title>
<link rel="icon" href="data:,">
<style>{asset("report.css")}</style>
</head>
<body>
<main>
{_top(results)}
<nav aria-label="Sections">{links}</nav>
{body}
</main>
<footer>{_footer(results, bool(trajectories))}</footer>
{scripts}
</body>
</html>
"""


def _top(results: Results) -> str:
    models: Results = results.get("models") or {}
    found = verdicts(models, _floor(results))
    title = escape(str(results["title"]))
    if found:
        head = f"<h1>{title}</h1>"
        for verdict in found:
            head += f'<p class="verdict">{escape(verdict.headline)}</p><p class="reason">{escape(verdict.reason)}</p>'
    else:
        head = f'<h1 class="verdict" style="color:inherit">{title}</h1>'
    sentences = "".join(f"<li>{escape(str(sentence))}</li>" for sentence in results.get("summary") or [])
    summary = f'<ul class="summary">{sentences}</ul>' if sentences else ""
    tiles = "".join(_tile(measure, results) for measure in KEY_MEASURES)
    return f'<header class="top"><p class="brand">Forcewell report</p>{head}{summary}</header>' + (
        f'<div class="tiles">{tiles}</div>' if tiles else ""
    )


def _tile(measure: Measure, results: Results) -> str:
    """One key measure: every model's number with a bar on a common scale."""
    models: Results = results.get("models") or {}
    values = {key: value(model, measure.key) for key, model in models.items()}
    known = [number for number in values.values() if number is not None]
    if not known:
        return ""
    floor = _floor(results) if measure.key == "hr_error" else None
    largest = max([*known, floor or 0.0]) or 1.0
    rows = ""
    for index, (key, number) in enumerate(values.items()):
        width = max(0.0, 100 * (number or 0.0) / largest)
        bar = f'<i style="width:{width:.1f}%;background:var(--model-{index % COLOURS})"></i>'
        tag = _tag(measure, results, key)
        rows += f'<div class="meter"><div class="row"><span>{_label(models, key)}</span><b>{number_text(number)}</b></div>'
        rows += f'<div class="track">{bar}</div>{tag}</div>'
    foot = ""
    if floor is not None:
        foot = f'<p class="foot">statistical floor {number_text(floor)}</p>'
    if measure.key == "stability" and (length := (results.get("md") or {}).get("length_ps")):
        foot = f'<p class="foot">each run lasts {number_text(length)} ps</p>'
    return f'<div class="card tile"><h3>{measure.name}</h3><p class="unit">{_explained(measure)}</p>{rows}{foot}</div>'


def _explained(measure: Measure) -> str:
    direction = {True: "lower is better", False: "higher is better", None: ""}[measure.lower_is_better]
    return ", ".join(part for part in (measure.unit, direction) if part)


def _tag(measure: Measure, results: Results, key: str) -> str:
    """How a model differs from the baseline in one measure, in words and sign as well as in colour."""
    models: Results = results["models"]
    base = baseline(models)
    if key == base:
        return ""
    outcome, relative = change(measure, value(models[base], measure.key), value(models[key], measure.key), _floor(results))
    if not outcome:
        return ""
    word = "no clear difference" if outcome == "same" else outcome
    amount = "" if relative is None or abs(relative) < 0.005 else f"{percent_text(relative)} "
    return f'<span class="tag {outcome}">{amount}{word}</span>'


def _measures(results: Results) -> str:
    models: Results = results.get("models") or {}
    columns = 2 * len(models) - 1  # every model's number, and for all but the baseline how it compares
    rows = ""
    for heading, measures in (("Key measures", KEY_MEASURES), ("Also measured", OTHER_MEASURES)):
        group = ""
        for measure in measures:
            values = {key: value(model, measure.key) for key, model in models.items()}
            if all(number is None for number in values.values()):
                continue
            cells = ""
            for key, number in values.items():
                compared = "" if key == baseline(models) else f"<td>{_tag(measure, results, key)}</td>"
                cells += f'<td class="number">{number_text(number)}</td>{compared}'
            group += _row(measure.name, _explained(measure), cells)
            floor = _floor(results)
            if measure.key == "hr_error" and floor is not None:
                cell = f'<td class="number">{number_text(floor)}</td><td colspan="{columns - 1}"></td>'
                group += _row("h(r) statistical floor", "the reference against itself", cell)
        if group:
            rows += f'<tr class="group"><th colspan="{columns + 1}" scope="rowgroup">{heading}</th></tr>{group}'
    if not rows:
        return ""
    head = ""
    for key in models:
        compared = "" if key == baseline(models) else f'<th scope="col">against {_label(models, baseline(models))}</th>'
        head += f'<th scope="col" class="number">{_label(models, key)}</th>{compared}'
    return scroll_box("Measures", f'<thead><tr><th scope="col">Measure</th>{head}</tr></thead><tbody>{rows}</tbody>')


def _row(name: str, explained: str, cells: str) -> str:
    return f'<tr><th scope="row">{name}<br><span class="soft small">{explained}</span></th>{cells}</tr>'


def _data(results: Results) -> str:
    names = {"name": "Data set", "role": "Role", "conformations": "Conformations", "molecules": "Molecules", "level": "Level of theory"}
    return record_table("Data", results.get("data") or [], names | {"licence": "Licence"})


def _training(results: Results) -> str:
    figures = ""
    curves = {key: model["curve"] for key, model in (results.get("models") or {}).items() if model.get("curve")}
    for name, x_label, factor in (("step", "training step", 1.0), ("seconds", "training time (min)", 1 / 60)):
        drawn = [
            Line(str(key), [point[name] * factor for point in known], [point.get("force_mae") for point in known], _index(results, key))
            for key, curve in curves.items()
            if (known := [point for point in curve if point.get(name) is not None])
        ]
        if drawn:
            svg = plots.lines(f"curve-{name}", drawn, x_label, "force MAE (meV/Å)", logarithmic=_wide(drawn))
            title = "Validation force error by step" if name == "step" else "The same by training time"
            figures += figure_card(title, svg, _keys(results, curves))
    pretraining: Results = results.get("pretraining") or {}
    if curve := pretraining.get("curve"):
        terms = list(dict.fromkeys(name for point in curve for name in point.get("terms") or {}))
        steps = [point["step"] for point in curve]
        drawn = [Line("loss", steps, [point.get("loss") for point in curve], 0)]
        drawn += [Line(name, steps, [(point.get("terms") or {}).get(name) for point in curve], k + 1) for k, name in enumerate(terms)]
        svg = plots.lines("pretraining", drawn, "pre-training step", "loss", logarithmic=_wide(drawn))
        figures += figure_card("Pre-training", svg, _line_keys(drawn))
    for k, chart in enumerate(results.get("charts") or []):
        drawn = [Line(line["label"], line["x"], line["y"], j) for j, line in enumerate(chart["lines"])]
        svg = plots.lines(f"chart-{k}", drawn, chart.get("x_label", "step"), chart.get("y_label", chart["title"]), logarithmic=_wide(drawn))
        figures += figure_card(chart["title"], svg, _line_keys(drawn))
    return figure_grid(figures + record_table("Pre-training", pretraining.get("table") or [], {}))


def _forces(results: Results) -> str:
    models: Results = results.get("models") or {}
    figures = ""
    for key, model in models.items():
        if points := model.get("parity"):
            k = _index(results, key)
            svg = plots.parity(f"parity-{k}", points["reference"], points["predicted"], str(model.get("label") or key), k)
            error = f"force MAE {number_text(value(model, 'force_mae'))} meV/Å; " if value(model, "force_mae") is not None else ""
            figures += figure_card(f"Parity, {model.get('label') or key}", svg, "", f"{error}the dashed line is perfect agreement")
    per_element = {key: model["per_element"] for key, model in models.items() if model.get("per_element")}
    if per_element:
        elements = list(dict.fromkeys(element for values in per_element.values() for element in values))
        series = [(key, [values.get(element) for element in elements], _index(results, key)) for key, values in per_element.items()]
        figures += figure_card(
            "Error by element", plots.bars("elements", elements, series, "force MAE (meV/Å)"), _keys(results, per_element)
        )
        rows = [{"": element} | {key: values.get(element) for key, values in per_element.items()} for element in elements]
        headings = {"": "Force MAE (meV/Å)"} | {key: str(models[key].get("label") or key) for key in per_element}
        figures += record_table("Force error by element", rows, headings)
    return figure_grid(figures)


def _dynamics(results: Results) -> str:
    models: Results = results.get("models") or {}
    figures = ""
    hr: Results = results.get("hr") or {}
    with_hr = {key: model["hr"] for key, model in models.items() if model.get("hr")}
    if hr.get("r") and hr.get("reference"):
        drawn = [Line(key, hr["r"], values, _index(results, key)) for key, values in with_hr.items()]
        svg = plots.distances("hr", hr["r"], Line("reference", hr["r"], hr["reference"], None), drawn)
        floor = f"; {number_text(_floor(results))} is what the reference's own statistics allow" if _floor(results) is not None else ""
        note = f"The distribution of all interatomic distances during MD. Below: model minus reference{floor}."
        figures += figure_card("Distances, h(r)", svg, _keys(results, with_hr, reference=True), note)
    wanted = (
        ("md", "temperature", "Temperature during MD", "temperature (K)"),
        ("md", "energy", "Potential energy during MD", "energy − first (eV)"),
        ("nve", "energy", "Total energy in NVE", "energy − first (eV)"),
    )
    for run, name, title, y_label in wanted:
        found = {key: model[run] for key, model in models.items() if (model.get(run) or {}).get(name)}
        drawn = [Line(key, series["time"], _relative(series[name], name), _index(results, key)) for key, series in found.items()]
        if drawn:
            figures += figure_card(title, plots.lines(f"{run}-{name}", drawn, "time (ps)", y_label), _keys(results, found))
    conditions = {MD_NAMES.get(str(key), str(key)): item for key, item in (results.get("md") or {}).items()}
    return definition_card(conditions) + figure_grid(figures)


def _molecule(results: Results) -> str:
    models: Results = results.get("models") or {}
    shown = [key for key, model in models.items() if model.get("trajectory")]
    if not shown:
        return ""
    choices = ""
    for key in shown:
        checked = " checked" if key == shown[0] else ""
        sample = line_key(_index(results, key), _label(models, key))
        choices += f'<label><input type="radio" name="model" value="{escape(key)}"{checked}>{sample}</label>'
    return f"""<p class="soft">The run of each model, frame by frame. Drag to turn, scroll to zoom.</p>
<div class="card">
<p class="notice" id="molecule-notice">This browser shows no 3D graphics (WebGL is off), so the molecule is left out.
All numbers are on this page.</p>
<div id="molecule-body" hidden>
<fieldset class="choice"><legend hidden>Model</legend>{choices}</fieldset>
<div class="stage" id="stage" role="img" aria-label="The molecule in 3D"></div>
<div class="controls"><button type="button" class="play" id="play">Play</button>
<input type="range" id="frame" min="0" max="0" value="0" aria-label="Frame"><output id="frame-label" for="frame"></output></div>
</div></div>"""


def _settings(results: Results) -> str:
    return definition_card(results.get("settings") or {})


def _reproduce(results: Results) -> str:
    command = f"<pre tabindex=0><code>{escape(str(results['command']))}</code></pre>" if results.get("command") else ""
    facts = {name.capitalize(): results[name] for name in ("version", "commit", "created", "hardware") if results.get(name)}
    if results.get("seconds") is not None:
        facts["Time taken"] = str(timedelta(seconds=round(results["seconds"])))
    return command + definition_card(facts)


SECTIONS: tuple[tuple[str, str, Callable[[Results], str]], ...] = (
    ("measures", "Measures", _measures),
    ("molecule", "The molecule in motion", _molecule),
    ("training", "Training", _training),
    ("forces", "Forces", _forces),
    ("dynamics", "Molecular dynamics", _dynamics),
    ("data", "Data", _data),
    ("settings", "Settings", _settings),
    ("reproduce", "How to reproduce", _reproduce),
)


def _footer(results: Results, molecule: bool) -> str:
    made = f"Forcewell {results['version']}" if results.get("version") else "Forcewell"
    viewer = " The 3D viewer is 3Dmol.js 2.5.5, © University of Pittsburgh and contributors, BSD-3-Clause." if molecule else ""
    return f"Made by {escape(made)}. The numbers of this page are in report.json beside it; the page needs no network.{viewer}"


def _floor(results: Results) -> float | None:
    floor = (results.get("hr") or {}).get("floor")
    return floor if isinstance(floor, (int, float)) else None


def _index(results: Results, key: str) -> int:
    return list(results["models"]).index(key)


def _label(models: Results, key: str) -> str:
    return escape(str(models[key].get("label") or key))


def _relative(series: list[Any], name: str) -> list[float]:
    """Energies from the first known one on: absolute energies of -4000 eV would hide a drift of 0.01 eV."""
    if name != "energy":
        return series
    first = next((number for number in series if number is not None), 0.0)
    return [float("nan") if number is None else number - first for number in series]


def _wide(curves: Iterable[Line]) -> bool:
    """Whether a logarithmic axis shows more: all values positive and over a decade apart."""
    known = [number for curve in curves for number in curve.y if number is not None]
    return bool(known) and min(known) > 0 and max(known) > 10 * min(known)


def _keys(results: Results, shown: Iterable[str], *, reference: bool = False) -> str:
    first = sample_line('stroke="currentColor" stroke-width="4" opacity=".45"', "reference") if reference else ""
    return first + "".join(line_key(_index(results, key), _label(results["models"], key)) for key in shown)


def _line_keys(curves: list[Line]) -> str:
    return "".join(line_key(curve.colour or 0, escape(str(curve.label))) for curve in curves) if len(curves) > 1 else ""
