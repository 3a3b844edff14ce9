"""Plots of what benchmarks/evidence.py found: error against number of frames, and validation error while fine-tuning.

    .venv/bin/python benchmarks/evidence_plots.py docs/evidence --arms scratch et-ore token-0.05-10-long et-oreo-faithful

FOLDER holds the result files ARM-SEED.json; the plots are written beside them as frames.svg and curves.svg, or, of another number of
steps, frames-STEPS.svg and curves-STEPS.svg. All seeds are drawn, those of one arm in one colour.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from evidence import SIZES, best_row

FRAMES = (50, 100, 300, 950)
MOLECULES = SIZES["small"].molecules


def panels(width: float) -> tuple[Any, Any]:
    """One plot for each molecule."""
    figure, axes = plt.subplots(1, len(MOLECULES), figsize=(width, 3.2), layout="constrained")
    for one, molecule in zip(axes, MOLECULES, strict=True):
        one.set(title=molecule, ylabel="force MAE, meV/Å")
        one.grid(alpha=0.3)
    return figure, axes


def against_frames(results: list[dict[str, Any]], path: Path, steps: int) -> None:
    """Test error of the learning rate that validation prefers."""
    figure, axes = panels(7)
    for one, molecule in zip(axes, MOLECULES, strict=True):
        for number, result in enumerate(results):
            rows = [row for count in FRAMES if (row := best_row(result, molecule, count, steps))]
            label = result["arm"] if result["seed"] == 0 else None
            x, y = [row["frames"] for row in rows], [row["force_mae"] for row in rows]
            one.loglog(x, y, "o-", color=_colour(results, number), label=label)
        one.set(xlabel="frames of training", xticks=FRAMES, xticklabels=FRAMES)
        one.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        _plain(one)
    axes[0].legend(fontsize=7)
    figure.savefig(path, metadata={"Date": None})


def curves(results: list[dict[str, Any]], path: Path, steps: int, fewer: int) -> None:
    """Validation error while fine-tuning on ``fewer`` (dashed) and 950 frames."""
    figure, axes = panels(7)
    for one, molecule in zip(axes, MOLECULES, strict=True):
        for number, result in enumerate(results):
            for count, line in ((fewer, "--"), (950, "-")):
                if row := best_row(result, molecule, count, steps):
                    x, y = zip(*row["curve"][1:], strict=True)
                    label = result["arm"] if result["seed"] == 0 and count == 950 else None
                    one.semilogy(x, y, line, color=_colour(results, number), linewidth=1, label=label)
        one.set(xlabel="step of fine-tuning")
        _plain(one)
    axes[0].legend(fontsize=7)
    figure.savefig(path, metadata={"Date": None})


def _plain(axes: Any) -> None:
    """Errors as 20 and 30, not as powers of ten."""
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")


def _colour(results: list[dict[str, Any]], number: int) -> str:
    arms = list(dict.fromkeys(result["arm"] for result in results))
    return f"C{arms.index(results[number]['arm'])}"


def main() -> None:
    """Reads the results and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--arms", nargs="+", required=True)
    parser.add_argument("--steps", type=int, default=SIZES["small"].steps)
    parser.add_argument("--fewer", type=int, choices=FRAMES[:-1], default=100, help="frames of the dashed curves, beside those of 950")
    given = parser.parse_args()
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "forcewell"  # the same file for the same numbers
    files = [file for arm in given.arms for file in sorted(given.folder.glob(f"{arm}-[0-9].json"))]
    results = [json.loads(file.read_text()) for file in files]
    of = "" if given.steps == SIZES["small"].steps else f"-{given.steps}"
    against_frames(results, given.folder / f"frames{of}.svg", given.steps)
    curves(results, given.folder / f"curves{of}.svg", given.steps, given.fewer)


if __name__ == "__main__":
    main()
