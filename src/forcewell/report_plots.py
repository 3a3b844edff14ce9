"""Figures of the report as SVG text to put inside an HTML page.

The page colours them: a figure is drawn in placeholder colours that are then replaced by the page's CSS variables, so one drawing
serves light and dark. Text stays text, in the page's font. Every line also has a dash pattern of its own, for readers
who do not tell the colours apart.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from forcewell.errors import InputError

COLOURS = 6  # as many as the style sheet declares; a seventh model reuses the first colour with another dash pattern
DASHES = ("", "5 2", "1.5 1.5", "7 2 1.5 2")
POINTS = 1500  # points kept of one line: a figure is about 500 pixels wide
NOISY = 20  # a line that travels up and down as many times its range is drawn thin
INK, FAINT = "#010203", "#040506"  # placeholders of text and of grid lines

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "forcewell",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "text.color": INK,
    "text.parse_math": False,  # names come from users: a $ in one is no mathematics
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "axes.formatter.use_mathtext": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
}


@dataclass(slots=True)
class Line:
    """One curve: ``x`` and ``y`` of equal length, NaN or None where unknown. colour: index, or None for the ink of the text."""

    label: str
    x: Sequence[float | None]
    y: Sequence[float | None]
    colour: int | None = 0


def dashes(index: int) -> str:
    """SVG dash pattern of the index-th model; "" is a solid line."""
    return DASHES[(index + index // COLOURS) % len(DASHES)]


@mpl.rc_context(_STYLE)
def lines(name: str, curves: Sequence[Line], x_label: str, y_label: str, *, logarithmic: bool = False) -> str:
    """Curves over one axis. ``name`` prefixes the SVG's ids, so that two figures of a page never share one."""
    figure, (axes,) = _figure(1)
    for curve in curves:
        _draw(axes, curve)
    if logarithmic:
        _logarithmic(axes)
    _label(axes, x_label, y_label)
    described = f"{y_label} against {x_label}: {', '.join(curve.label for curve in curves)}"
    return _svg(figure, name, described)


@mpl.rc_context(_STYLE)
def parity(name: str, reference: Sequence[float | None], predicted: Sequence[float | None], label: str, colour: int) -> str:
    """Predicted against reference force components [eV/Å]; the diagonal is perfect agreement.

    Raises InputError where there are not as many of both.
    """
    figure, (axes,) = _figure(1, height=3.9)
    x, y = _numbers(reference), _numbers(predicted)
    if x.shape != y.shape:
        raise InputError(f"parity of {label}: {len(x)} reference forces and {len(y)} predicted ones; give as many of both, in one order")
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    limit = 1.05 * max(float(np.abs(np.concatenate([x, y])).max(initial=0.0)), 1e-3)
    axes.plot([-limit, limit], [-limit, limit], color=INK, linewidth=0.8, dashes=(4, 3))
    # One path of zero-length strokes with round caps: a tenth of the bytes of one marker element per point.
    vertices = np.repeat(np.stack([x, y], axis=1), 2, axis=0)
    path = Path(vertices, [Path.MOVETO, Path.LINETO] * len(x))
    path.should_simplify = False  # it would drop strokes of no length
    dots = PathPatch(path, fill=False, edgecolor=_placeholder(colour), linewidth=2.4, alpha=0.6, capstyle="round", snap=False)
    axes.add_patch(dots)
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    _label(axes, "reference force (eV/Å)", "predicted force (eV/Å)")
    return _svg(figure, name, f"Predicted against reference force components of {label}, {len(x)} points around the diagonal")


@mpl.rc_context(_STYLE)
def distances(name: str, r: Sequence[float | None], reference: Line, curves: Sequence[Line]) -> str:
    """h(r) of the reference and of each model above, the models' difference from the reference below.

    Raises InputError for a curve of another length than the reference.
    """
    figure, (top, bottom) = _figure(2, height=4.1, ratios=(2, 1))
    base = _numbers(reference.y)
    for curve in curves:
        if len(curve.y) != len(base):
            raise InputError(f"h(r) of {curve.label}: {len(curve.y)} values, and {len(base)} of the reference; give as many of both")
    known = np.flatnonzero(np.nan_to_num(base) > 0)
    for curve in [reference, *curves]:
        _draw(top, curve)
    for curve in curves:
        _draw(bottom, Line(curve.label, curve.x, (_numbers(curve.y) - base).tolist(), curve.colour))
    bottom.axhline(0, color=INK, linewidth=0.8)
    if len(known):
        radii = _numbers(r)
        bottom.set_xlim(max(0.0, float(radii[known[0]]) - 0.4), float(radii[known[-1]]) + 0.4)
    _label(top, "", "h(r) (1/Å)")
    _label(bottom, "distance r (Å)", "difference")
    return _svg(figure, name, f"Distribution of interatomic distances, h(r), of the reference and of {', '.join(c.label for c in curves)}")


@mpl.rc_context(_STYLE)
def bars(name: str, groups: Sequence[str], series: Sequence[tuple[str, Sequence[float | None], int]], y_label: str) -> str:
    """Grouped bars: ``series`` are (label, one value per group, colour)."""
    figure, (axes,) = _figure(1)
    width = 0.8 / max(len(series), 1)
    for k, (_, values, colour) in enumerate(series):
        axes.bar(np.arange(len(groups)) + (k - (len(series) - 1) / 2) * width, _numbers(values), width * 0.92, color=_placeholder(colour))
    axes.set_xticks(range(len(groups)), groups)
    _label(axes, "", y_label)
    return _svg(figure, name, f"{y_label} by {', '.join(groups)} for {', '.join(label for label, _, _ in series)}")


def _figure(rows: int, *, height: float = 3.1, ratios: Sequence[float] | None = None) -> tuple[Figure, list[Axes]]:
    # 4.7 inches are 338 points: near the width of a phone, where 10-point text is then still 10 pixels high.
    figure = Figure(figsize=(4.7, height), layout="constrained")
    axes = figure.subplots(rows, 1, sharex=rows > 1, squeeze=False, height_ratios=ratios)
    return figure, list(axes[:, 0])


def _draw(axes: Axes, curve: Line) -> None:
    x, y = _numbers(curve.x), _numbers(curve.y)
    count = min(len(x), len(y))
    step = -(-count // POINTS) or 1
    x, y = x[:count:step], y[:count:step]
    # A single known point draws no line; a dot shows that it is there.
    marker = "o" if np.isfinite(y).sum() < 2 else None
    style: dict[str, Any] = {"color": INK, "linewidth": 4.5, "alpha": 0.3}
    if curve.colour is not None:
        # A noisy series is a thin solid line: dashes would read as noise of their own.
        known = y[np.isfinite(y)]
        noisy = len(known) > 1 and float(np.abs(np.diff(known)).sum()) > NOISY * float(np.ptp(known))
        style = {"color": _placeholder(curve.colour), "linewidth": 0.8 if noisy else 1.7, "alpha": 0.75 if noisy else 1.0}
        if (pattern := dashes(curve.colour)) and not noisy:
            style["linestyle"] = (0, tuple(float(part) for part in pattern.split()))
    axes.plot(x, y, marker=marker, **style)


def _logarithmic(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.tick_params(length=2.5, width=0.6)


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _placeholder(colour: int) -> str:
    return f"#0a0b{colour % COLOURS:02x}"


def _svg(figure: Figure, name: str, described: str) -> str:
    """The figure as one <svg> element that scales with its box, its ids prefixed and its colours those of the page."""
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<[^>]+>", lambda tag: _tag(tag.group(), name), text)
    opening = f'<svg role="img" aria-label="{html.escape(described)}" class="plot" '
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', lambda found: f"{opening}{found.group(1)}>", text, count=1)
    return re.sub(r"\s*\n\s*", "\n", text)


def _tag(tag: str, name: str) -> str:
    """One tag, with what matplotlib wrote put in the page's terms; text between tags (users' names) is left alone."""
    edits: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
        (r'\bid="', f'id="{name}-'),
        (r"url\(#", f"url(#{name}-"),
        (r'xlink:href="#', f'href="#{name}-'),
        (r"#0a0b(\d\d)", lambda found: f"var(--model-{int(found.group(1), 16)})"),
        (INK, "currentColor"),
        (FAINT, "var(--line)"),
        (r"font: ([\d.]+px)[^;\"]*", r"font-size: \1; font-family: inherit"),
        (r' d="([^"]*)"', lambda found: f' d="{_compact(found.group(1))}"'),
    ]
    for pattern, replacement in edits:
        tag = re.sub(pattern, replacement, tag)
    return tag


def _compact(path: str) -> str:
    """Path coordinates to a hundredth of a point: a third of the bytes, and no eye sees it."""
    shorter = re.sub(r"-?\d+\.\d+", lambda number: f"{float(number.group()):.2f}".rstrip("0").rstrip("."), path)
    return re.sub(r"\s+", " ", shorter).strip()
