"""What a person sees while something runs: progress with throughput and time left, and single lines."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

CONSOLE = Console(highlight=False, soft_wrap=True)
STANDING = 4  # validations with the same loss, after which the user is told


def say(text: str) -> None:
    """One line to the person at the terminal."""
    CONSOLE.print(text, markup=False)


class Counting:
    """A bar over things that are counted (``unit``), with their rate and the time left; silent without a terminal."""

    def __init__(self, title: str, total: int, unit: str) -> None:
        self._unit, self._began = unit, time.monotonic()
        columns = (TextColumn("[bold]{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn())
        rest = (TextColumn("{task.fields[rate]}"), TextColumn("left"), TimeRemainingColumn())
        self._progress = Progress(*columns, *rest, console=CONSOLE, disable=not CONSOLE.is_terminal)
        self._task = self._progress.add_task(title, total=total, rate="")

    def __enter__(self) -> Counting:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, done: int) -> None:
        """``done`` of them so far."""
        rate = done / max(1e-9, time.monotonic() - self._began)
        self._progress.update(self._task, completed=done, rate=f"{rate:.0f} {self._unit}/s")


class TrainingDisplay:
    """A progress bar with steps, molecules per second, loss, validation error and time left.

    Where the output is not a terminal it prints one plain line per validation instead.
    """

    def __init__(self, steps: int, enabled: bool = True) -> None:
        self.steps, self.enabled = steps, enabled
        self._rate = 0.0
        self._unchanged: list[tuple[int, float]] = []  # steps and losses of the last validations, as long as they are alike
        columns = (
            TextColumn("[bold]training"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=CONSOLE, disable=not (enabled and CONSOLE.is_terminal))
        self._task = self._progress.add_task("training", total=steps, status="")

    def __enter__(self) -> TrainingDisplay:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def report(self, step: int, line: dict[str, Any]) -> None:
        """Shows how far it is, and one line of the log (kind "train" or "validation"; "step" is only progress)."""
        if not self.enabled:
            return
        self._progress.update(self._task, completed=step)
        if line["kind"] == "step":
            return
        if line["kind"] == "train":
            self._rate = line["molecules_per_second"]
            status = f"{self._rate:.0f} molecules/s  loss {line['loss']:.4g}"
            self._progress.update(self._task, status=status)
            return
        forces = f"  forces {line['force_mae']:.1f} meV/Å" if "force_mae" in line else ""
        energies = f"  energies {line['energy_mae']:.1f} meV" if "energy_mae" in line else ""
        best = "  (best)" if line["best"] else ""
        throughput = f"  {self._rate:.0f} molecules/s" if self._rate else ""
        say(f"step {step:>6}/{self.steps}  validation loss {line['loss']:.5f}{forces}{energies}{throughput}{best}")
        self._watch(step, line)

    def _watch(self, step: int, line: dict[str, Any]) -> None:
        """Says it once when the loss stands still, none of it the best: seen of networks that the first steps' high rate had killed,
        whose losses then differed by 1e-7."""
        if line["best"] or (self._unchanged and abs(line["loss"] - self._unchanged[0][1]) > 1e-6 * line["loss"]):
            self._unchanged = []
        self._unchanged.append((step, line["loss"]))
        if len(self._unchanged) == STANDING and not line["best"]:
            say(
                f"the validation loss has not changed since step {self._unchanged[0][0]}: the network learns nothing, and may give the "
                "same for every conformation; a lower learning rate (optimiser.learning_rate) may keep it alive"
            )
