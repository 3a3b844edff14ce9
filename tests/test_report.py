"""The report's files and its verdict: what is written follows from the numbers, and nothing else is."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from report_samples import sample_results

from forcewell.errors import InputError
from forcewell.report import run_report, write_report
from forcewell.report_html import definition_card
from forcewell.report_verdict import KEY_MEASURES, change, verdicts

VOID = {"meta", "link", "br", "input", "img"}


class Nesting(HTMLParser):
    """Checks that tags close in order, and collects ids and every attribute that could fetch something."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.stack.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "data", "srcset", "action"):
                self.links.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.stack.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.stack, f"</{tag}> closes nothing"
        assert self.stack.pop() == tag


def written(results: dict[str, Any], directory: Path) -> tuple[str, dict[str, Any]]:
    write_report(results, directory)
    text = (directory / "report.json").read_text(encoding="utf-8")
    return (directory / "report.html").read_text(encoding="utf-8"), json.loads(text, parse_constant=lambda name: pytest.fail(name))


def test_page_is_well_formed_and_refers_to_nothing_outside(tmp_path: Path) -> None:
    page, _ = written(sample_results(), tmp_path)
    checked = Nesting()
    checked.feed(page)
    checked.close()
    assert checked.stack == []
    assert len(checked.ids) == len(set(checked.ids))
    assert all(link.startswith("#") or link == "data:," for link in checked.links), checked.links
    for name in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page):
        assert "".join(name) in checked.ids
    figures = re.findall(r'<svg role="img".*?</svg>', page, flags=re.S)
    print(f"{len(page):,} characters, {len(figures)} figures")
    assert len(figures) == 10
    for figure in figures:
        assert ElementTree.fromstring(figure).get("aria-label")
        assert not re.search(r"#(0a0b|010203|040506|ffffff)", figure)  # every colour is one of the page's
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_json_keeps_every_number_and_has_no_nan(tmp_path: Path) -> None:
    results = sample_results()
    results["models"]["scratch"]["energy_mae"] = float("nan")
    results["models"]["scratch"]["md"]["temperature"][3] = np.inf
    results["settings"]["out"] = Path("runs/first")
    page, stored = written(results, tmp_path)
    assert stored["models"]["scratch"]["energy_mae"] is None
    assert stored["models"]["scratch"]["md"]["temperature"][3] is None
    assert stored["settings"]["out"] == str(Path("runs/first"))
    assert stored["hr"]["reference"] == results["hr"]["reference"].tolist()
    assert list(stored) == sorted(stored)
    assert "nan" not in page.split("<script", 1)[0].lower()
    assert written(results, tmp_path / "again")[0] == page


def test_parity_points_are_drawn_where_the_numbers_say(tmp_path: Path) -> None:
    """The figure read back: as many dots as finite pairs, and on the diagonal when predictions are exact."""
    results = sample_results()
    exact = np.linspace(-3, 3, 50)
    results["models"]["scratch"]["parity"] = {"reference": exact, "predicted": np.append(exact[:-1], np.nan)}
    page, _ = written(results, tmp_path)
    figure = page[page.index('id="parity-0-figure_1"') :]
    dots = re.findall(r"M ([\d.]+) ([\d.]+) L", max(re.findall(r'd="([^"]*)"', figure[: figure.index("</svg>")]), key=len))
    points = np.array(dots, dtype=float)
    assert len(points) == 49
    error = np.abs(np.diff(points[:, 0]) + np.diff(points[:, 1])).max()  # y points down in SVG
    print(f"largest departure from the diagonal {error:.3f} points")
    assert error <= 0.03  # two coordinates, each rounded to 0.01


@pytest.mark.parametrize("missing", ["models", "pretraining", "hr", "md", "data", "settings", "summary", "command"])
def test_an_absent_section_is_left_out(tmp_path: Path, missing: str) -> None:
    results = sample_results()
    for model in results["models"].values():  # without its figures, for speed: their absence is the other tests' matter
        for figure in ("curve", "parity", "per_element", "md", "nve", "trajectory"):
            del model[figure]
    del results[missing]
    page, stored = written(results, tmp_path)
    assert missing not in stored
    assert "None" not in page.split("<script", 1)[0]


def test_title_alone_and_models_without_numbers(tmp_path: Path) -> None:
    page, _ = written({"title": "Nothing yet"}, tmp_path / "title")
    assert "<h2>" not in page
    assert "3Dmol" not in page
    page, _ = written({"title": "Bare", "models": {"a": {}, "b": {"label": "B"}}}, tmp_path / "bare")
    assert "cannot be judged" in page
    with pytest.raises(InputError, match="no title"):
        write_report({}, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_any_number_of_models(tmp_path: Path) -> None:
    results = sample_results()
    model = {name: part for name, part in results["models"]["scratch"].items() if name not in ("md", "nve", "parity")}
    results["models"] = {f"model {k} $x_{k}$": model | {"label": f"Model {k} & <co>", "force_mae": 40.0 - k} for k in range(7)}
    page, _ = written(results, tmp_path)
    assert page.count("Model 6 &amp; &lt;co&gt;") > 5
    assert "Model 6 & <co>" not in page.split("<script", 1)[0]
    assert page.count('class="verdict"') == 6


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({"force_mae": 42.0, "stability": 5.0}, {"force_mae": 31.0, "stability": 10.0}, "helped"),
        ({"force_mae": 31.0, "stability": 10.0}, {"force_mae": 42.0, "stability": 5.0}, "did not help: it made things worse"),
        ({"force_mae": 42.0, "stability": 10.0}, {"force_mae": 31.0, "stability": 5.0}, "helped in part, and cost something"),
        ({"force_mae": 42.0, "stability": 10.0}, {"force_mae": 41.5, "stability": 10.0}, "made no clear difference"),
        ({"energy_drift": -0.9}, {"energy_drift": 0.1}, "helped"),
        ({"energy_drift": 0.1}, {"energy_drift": -0.9}, "did not help: it made things worse"),
    ],
)
def test_verdict_follows_from_the_numbers(before: dict[str, float], after: dict[str, float], expected: str) -> None:
    (verdict,) = verdicts({"scratch": before, "pre-trained": after})
    assert verdict.headline == f"Pre-training {expected}"
    if "force_mae" in before:
        percent = round(100 * (after["force_mae"] / before["force_mae"] - 1))
        assert f"({percent:+d}\N{NO-BREAK SPACE}%)".replace("-", "−") in verdict.reason


def test_distances_within_the_floor_are_the_same() -> None:
    hr_error = KEY_MEASURES[2]
    assert change(hr_error, 0.020, 0.010, floor=0.021)[0] == "same"
    assert change(hr_error, 0.080, 0.010, floor=0.021)[0] == "better"
    assert change(hr_error, 0.010, 0.080, floor=0.021)[0] == "worse"


def test_run_report_draws_what_the_log_says(tmp_path: Path) -> None:
    run = tmp_path / "first"
    run.mkdir()
    with pytest.raises(InputError, match=r"no log\.jsonl"):
        run_report(run)
    records: list[dict[str, Any]] = [{"kind": "validation", "step": 0, "force_mae": 700.0}]
    records += [{"kind": "train", "step": s, "seconds": 0.1 * s, "loss": 1.0 / s, "terms": {"force": 0.5 / s}} for s in range(1, 1201)]
    records += [{"kind": "validation", "step": 1200, "force_mae": 70.0}]
    log = "".join(json.dumps(record) + "\n" for record in records)
    (run / "log.jsonl").write_text(log + '{"kind": "train", "st')  # killed while writing
    (run / "config.yaml").write_text("encoder: {name: schnet, cutoff: 5.0}\nseed: 3\n")
    assert run_report(run) == run / "report.html"
    stored = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert stored["settings"] == {"encoder.name": "schnet", "encoder.cutoff": 5.0, "seed": 3}
    charts = {chart["title"]: chart["lines"] for chart in stored["charts"]}
    assert charts["force mae"] == [{"label": "validation", "x": [0, 1200], "y": [700.0, 70.0]}]
    assert set(charts) == {"force mae", "loss", "terms.force"}
    assert stored["summary"] == ["The log reaches step 1,200."]
    (run / "log.jsonl").write_text("nonsense\n" + log)
    with pytest.raises(InputError, match="line 1 is not JSON"):
        run_report(run)
    (run / "log.jsonl").write_text('{"kind": "train", "step": 1, "loss": 1' + 400 * "0" + "}\n" + log)
    with pytest.raises(InputError, match="line 1 has a number of 401 digits"):
        run_report(run)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"- seed\n- 3\n", "expected a mapping of settings, as training writes it, got a list"),
        (b"seed", "expected a mapping of settings, as training writes it, got a str"),
        (b"seed: \xff\xfe3\n", "not readable as YAML"),
        (b"seed: [\n", "not readable as YAML"),
    ],
)
def test_settings_that_cannot_be_read(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"kind": "train", "step": 1, "loss": 1.0}\n')
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(InputError, match=f"config.yaml: {said}"):
        run_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_settings_are_shown_as_they_were_typed() -> None:
    facts = {"seed": 123456789012345, "rate": 0.0004, "cutoff": 5.0, "weight": 0.123456789012, "huge": 10**400, "compile": True}
    shown = dict(re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", definition_card(facts)))
    assert shown.pop("huge") == "1" + 400 * "0"
    assert shown == {"seed": "123456789012345", "rate": "0.0004", "cutoff": "5", "weight": "0.123456789012", "compile": "yes"}


def test_figures_whose_numbers_do_not_pair_are_refused(tmp_path: Path) -> None:
    for key, wrong, said in (
        ("parity", {"reference": np.zeros(5), "predicted": np.zeros(4)}, "parity of .*: 5 reference forces and 4 predicted ones"),
        ("hr", [0.1, 0.2], r"h\(r\) of scratch: 2 values, and \d+ of the reference"),
    ):
        results = sample_results()
        results["models"]["scratch"][key] = wrong
        with pytest.raises(InputError, match=said):
            write_report(results, tmp_path / "never")
    assert not (tmp_path / "never").exists()
