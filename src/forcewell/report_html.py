"""Pieces of the report's HTML: escaped text, numbers, tables, figures. Whoever calls these escapes nothing twice."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from forcewell.report_plots import COLOURS, dashes

Results = Mapping[str, Any]


def line_key(index: int, label: str) -> str:
    """A sample of a model's line and its name (already escaped)."""
    return sample_line(f'stroke="var(--model-{index % COLOURS})" stroke-width="3" stroke-dasharray="{dashes(index)}"', label)


def sample_line(stroke: str, label: str) -> str:
    line = f'<line x1="0" y1="3" x2="26" y2="3" {stroke}/>'
    return f'<span class="key"><svg width="26" height="6" aria-hidden="true">{line}</svg>{label}</span>'


def figure_grid(cards: str) -> str:
    return f'<div class="figures">{cards}</div>' if cards else ""


def figure_card(title: str, svg: str, keys: str, note: str = "") -> str:
    below = f'<span class="note">{escape(note)}</span>' if note else ""
    return f'<figure class="card"><figcaption><h3>{escape(title)}</h3>{keys}{below}</figcaption>{svg}</figure>'


def scroll_box(name: str, table: str) -> str:
    """A table in a box of its own that scrolls sideways (also by keyboard), so that the page never does."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(name)}"><table>{table}</table></div>'


def record_table(name: str, records: Sequence[Results], headings: Mapping[str, str]) -> str:
    """A table of records; the columns are ``headings`` first, then any other key, and none that every record lacks."""
    known = dict.fromkeys(key for record in records for key in record)
    keys = [*(key for key in headings if key in known), *(key for key in known if key not in headings)]
    if not keys:
        return ""
    numeric = {key for key in keys if all(isinstance(record.get(key), (int, float, type(None))) for record in records)}
    style = {key: ' class="number"' if key in numeric else "" for key in keys}
    head = "".join(f'<th scope="col"{style[key]}>{escape(headings.get(key, key.replace("_", " ")))}</th>' for key in keys)
    rows = "".join("<tr>" + "".join(f"<td{style[key]}>{text_of(record.get(key))}</td>" for key in keys) + "</tr>" for record in records)
    return scroll_box(name, f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>")


def definition_card(facts: Results) -> str:
    """Names and values as a card; nothing where there are none."""
    if not facts:
        return ""
    # Settings are what someone typed: 2000 and 0.0004, not rounded and without separators.
    numbers = {name: item for name, item in facts.items() if isinstance(item, (int, float)) and not isinstance(item, bool)}
    shown = {**facts, **{name: str(number).removesuffix(".0") for name, number in numbers.items()}}
    items = "".join(f"<div><dt>{escape(str(name))}</dt><dd>{text_of(item)}</dd></div>" for name, item in shown.items())
    return f'<div class="card" style="margin-top:16px"><dl style="margin:0">{items}</dl></div>'


def text_of(item: Any) -> str:
    """Any plain value as escaped text."""
    if isinstance(item, bool):
        return "yes" if item else "no"
    if item is None or isinstance(item, (int, float)):
        return number_text(item)
    if isinstance(item, list) and all(isinstance(part, (str, int, float)) for part in item):
        return escape(", ".join(str(part) for part in item)) or "–"
    return escape(item if isinstance(item, str) else json.dumps(item, ensure_ascii=False))


def number_text(number: float | None) -> str:
    """A number with three significant digits; integers whole.

    >>> number_text(42.1234), number_text(6864898), number_text(-0.00123), number_text(2e-7), number_text(None)
    ('42.1', '6,864,898', '−0.00123', '2.0e−7', '–')
    """
    if number is None:
        return "–"
    if isinstance(number, int):
        text = f"{number:,}"
    elif number and abs(number) < 1e-4:
        mantissa, exponent = f"{number:.1e}".split("e")
        text = f"{mantissa}e{int(exponent)}"
    elif abs(number) >= 100:
        text = f"{number:,.0f}"
    else:
        text = f"{number:#.3g}" if abs(number) >= 0.1 else f"{number:.3g}"
    return text.replace("-", "−")


def percent_text(relative: float) -> str:
    return f"{relative:+.0%}".replace("-", "−").replace("%", " %") if abs(relative) < 10 else f"×{relative + 1:.0f}"


def asset(name: str) -> str:
    return files("forcewell").joinpath("assets", name).read_text(encoding="utf-8").replace("</script", "<\\/script").strip()
