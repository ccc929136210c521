"""Progress while the demo runs, on stderr, and the table at its end, for stdout.

Three displays with the same methods: live (a terminal), plain (a file or a pipe: one line an event) and
silent (`--json`). Neither torch, matplotlib nor rich is imported with this module, so the first line appears
before the slow imports begin. All methods are called from one thread.
"""

import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TextIO

from hansa.demo.result import DemoResult
from hansa.demo.wording import (
    ARMS,
    delta_text,
    epsilon_text,
    gain_text,
    layer_of,
    printable,
    score_text,
    seconds_text,
)

if TYPE_CHECKING:
    from rich.console import Group
    from rich.live import Live
    from rich.progress import Progress, TaskID
    from rich.text import Text

Mode = Literal["auto", "live", "plain", "silent"]
_BARS = "▁▂▃▄▅▆▇█"


class Display(Protocol):
    """What the demo tells while it runs.

    `finish` may come at any time, also twice, and leaves the terminal as it was.
    """

    def start(self, title: str, facts: Mapping[str, str]) -> None:
        """Say what is about to run; the first sign of life."""

    def phase(self, name: str, total: int | None = None) -> None:
        """Begin a phase of `total` units of work, None if their number is not known; the last one is done."""

    def advance(self, n: int = 1, note: str = "") -> None:
        """Count `n` units of the phase as done; `note` is the step that runs now, and may come with n = 0."""

    def round_done(
        self, round: int, rounds: int, auc: float | None, epsilon: float, seconds: float, note: str = ""
    ) -> None:
        """Report round `round` (from 1) of `rounds`; the phase stands at `round` units then. `note`: what was unusual."""

    def finish(self) -> None:
        """Stop, whether all is done or not."""


def make_display(mode: Mode = "auto", *, stream: TextIO | None = None) -> Display:
    """Choose a display; `auto` is live on a terminal and plain elsewhere. `stream` is stderr by default."""
    stream = sys.stderr if stream is None else stream
    if mode == "silent":
        return SilentDisplay()
    if mode == "live" or (mode == "auto" and stream.isatty() and os.environ.get("TERM") != "dumb"):
        return LiveDisplay(stream)
    return PlainDisplay(stream)


class SilentDisplay:
    """Shows nothing."""

    def start(self, title: str, facts: Mapping[str, str]) -> None:
        """Show nothing."""

    def phase(self, name: str, total: int | None = None) -> None:
        """Show nothing."""

    def advance(self, n: int = 1, note: str = "") -> None:
        """Show nothing."""

    def round_done(
        self, round: int, rounds: int, auc: float | None, epsilon: float, seconds: float, note: str = ""
    ) -> None:
        """Show nothing."""

    def finish(self) -> None:
        """Show nothing."""


class PlainDisplay:
    """One flushed line an event, with the seconds since the start; no control characters.

    Guarantees:
        - A phase with a known total prints at most four lines of progress, whatever the total.
    """

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._began = clock()
        self._name = ""
        self._total: int | None = None
        self._done = 0

    def _line(self, text: str) -> None:
        elapsed = self._clock() - self._began
        self._stream.write(f"[{elapsed:6.1f} s] {printable(text)}\n")
        self._stream.flush()

    def start(self, title: str, facts: Mapping[str, str]) -> None:
        """Print the title and one line a fact."""
        self._line(title)
        for name, value in facts.items():
            self._line(f"  {name}: {value}")

    def phase(self, name: str, total: int | None = None) -> None:
        """Print the name of the phase."""
        self._name, self._total, self._done = name, total, 0
        self._line(name)

    def advance(self, n: int = 1, note: str = "") -> None:
        """Print a line at every quarter of the phase; notes are too many for a log."""
        before, self._done = self._done, self._done + n
        if self._total and 4 * before // self._total < 4 * self._done // self._total:
            self._line(f"{self._name}: {self._done}/{self._total}")

    def round_done(
        self, round: int, rounds: int, auc: float | None, epsilon: float, seconds: float, note: str = ""
    ) -> None:
        """Print the round, and the time that the rest will take at this pace."""
        self._done = round
        score = "" if auc is None else f", AUC {score_text(auc)}"
        left = f", {_left((rounds - round) * seconds)}" if round < rounds else ""
        self._line(
            f"round {round}/{rounds}{score}, epsilon {epsilon_text(epsilon)}, {seconds_text(seconds)}{left}"
            + (f"; {note}" if note else "")
        )

    def finish(self) -> None:
        """Nothing is left to stop."""


class LiveDisplay:
    """A panel of facts, one bar a phase with the time left, the step that runs, and AUC and ε so far."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live: Live | None = None
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._note = ""
        self._scores: list[float] = []
        self._epsilon: float | None = None

    def start(self, title: str, facts: Mapping[str, str]) -> None:
        """Print the panel and start the live part below it."""
        from rich import progress
        from rich.console import Console
        from rich.live import Live
        from rich.panel import Panel
        from rich.table import Table
        from rich.text import Text

        console = Console(file=self._stream, highlight=False, markup=False)
        table = Table.grid(padding=(0, 2))
        for name, value in facts.items():
            table.add_row(Text(printable(name), style="dim"), Text(printable(value)))
        heading = Text(f" {printable(title)} ", style="bold")
        console.print(
            Panel(table, title=heading, title_align="left", expand=False, border_style="cyan", padding=(1, 2))
        )
        self._progress = progress.Progress(
            progress.SpinnerColumn(finished_text="[green]✓[/green]"),
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(bar_width=28, complete_style="cyan", finished_style="green"),
            progress.TextColumn("{task.fields[count]}", justify="right", markup=False),
            progress.TimeElapsedColumn(),
            progress.TextColumn("{task.fields[left]}", style="dim", markup=False),
            console=console,
        )
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=6)
        self._live.start()

    def phase(self, name: str, total: int | None = None) -> None:
        """Add a bar; the bar before is complete."""
        if self._progress is None:
            return
        self._complete()
        self._note = ""
        self._task = self._progress.add_task(printable(name), total=total, count="", left="")

    def _complete(self) -> None:
        if self._progress is not None and self._task is not None:
            done = self._progress.tasks[-1].completed
            total = self._progress.tasks[-1].total or done or 1
            self._progress.update(self._task, total=total, completed=total, left="")

    def advance(self, n: int = 1, note: str = "") -> None:
        """Move the bar; show the note below it."""
        self._note = printable(note)
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task, n)
            self._count()

    def _count(self) -> None:
        if self._progress is None or self._task is None:
            return
        task = self._progress.tasks[-1]
        count = "" if task.total is None else f"{task.completed:.0f}/{task.total:.0f}"
        left = "" if task.time_remaining is None or task.finished else _left(task.time_remaining)
        self._progress.update(self._task, count=count, left=left)

    def round_done(
        self, round: int, rounds: int, auc: float | None, epsilon: float, seconds: float, note: str = ""
    ) -> None:
        """Set the bar to this round and extend the curves."""
        if auc is not None:
            self._scores.append(auc)
        self._epsilon, self._note = epsilon, printable(note)
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, total=rounds, completed=round)
            self._count()

    def _render(self) -> "Group":
        from rich.console import Group

        parts: list[Progress | Text] = [] if self._progress is None else [self._progress]
        return Group(*parts, self._state())

    def _state(self) -> "Text":
        from rich.text import Text

        text = Text("  ")
        if self._scores:
            text.append("AUC ", style="dim")
            text.append(score_text(self._scores[-1]), style="bold cyan")
            text.append(f" {sparkline(self._scores)}   ", style="cyan")
        if self._epsilon is not None:
            text.append("ε ", style="dim")
            text.append(f"{epsilon_text(self._epsilon)}   ", style="bold")
        text.append(self._note, style="dim")
        return text

    def finish(self) -> None:
        """Draw the last state and give the terminal back."""
        if self._live is not None:
            self._note = ""
            self._live.stop()
            self._live = None


def _left(seconds: float) -> str:
    # A forecast: hundredths would pretend to a precision that it does not have.
    return f"{math.ceil(seconds)} s left" if seconds < 59 else f"{seconds_text(seconds)} left"


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """Draw the last `width` values as bars between their least and largest."""
    shown = values[-width:]
    least, span = min(shown), max(shown) - min(shown)
    return "".join(_BARS[round((value - least) / span * 7) if span else 3] for value in shown)


def summary(result: DemoResult, paths: Sequence[Path], next_command: str) -> str:
    """Lay out the final tables: aligned columns without lines, units in the headings.

    Args:
        result: The finished run.
        paths: Files that were written.
        next_command: What to run next.

    Returns:
        Text that ends with the paths and the next command, for stdout.

    Guarantees:
        - ASCII without control characters, whatever names the result holds; the paths keep their letters.
        - Every arm and every layer has a row, one that was not run or is off included.
    """
    traffic, spent, seconds = result.traffic, result.epsilon, result.seconds
    scores = [
        (arm.name, score_text(result.auc.get(arm.key)), score_text(result.own_auc.get(arm.key)))
        for arm in ARMS
    ]
    privacy = (
        gain_text(result.gain_over_local_only).removesuffix(" %"),
        gain_text(result.gain_over_same_network).removesuffix(" %"),
        epsilon_text(spent.max),
        f"{spent.limit:g}",
        delta_text(spent.delta),
    )
    cost = (
        *(
            f"{count / 1000:.1f}"
            for count in (traffic.uplink_bytes, traffic.downlink_bytes, traffic.fp32_bytes)
        ),
        f"{traffic.uplink_bytes_per_parameter:.2f}",
        f"{seconds.total:.0f}",
        f"{seconds.per_round:.1f}",
    )
    layers = [
        (printable(layer_of(key).name), "on" if on else "OFF") for key, on in result.protections.items()
    ]
    blocks = [
        _columns(("MODEL", "AUC TEST SET", "AUC OWN CUSTOMERS"), scores),
        _columns(
            ("GAIN OVER LOCAL ONLY (%)", "OVER SAME NETWORK (%)", "EPSILON", "LIMIT", "DELTA"), [privacy]
        ),
        _columns(
            (
                "UP (KB/BANK/ROUND)",
                "DOWN (KB)",
                "FP32 (KB)",
                "UP (BYTES/PARAMETER)",
                "TOTAL (S)",
                "ROUND (S)",
            ),
            [cost],
        ),
        _columns(("PROTECTION", "STATE"), layers),
    ]
    tables = "\n\n".join(blocks).replace("\N{MINUS SIGN}", "-").encode("ascii", "replace").decode()
    ending = [*(f"wrote {printable(str(path))}" for path in paths), f"next: {next_command}"]
    return "\n".join([tables, "", *ending, ""])


def _columns(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Align a table: columns of text to the left, columns whose cells begin as numbers do to the right."""
    table = [headings, *rows]
    lines = [""] * len(table)
    for place in range(len(headings)):
        column = [row[place] for row in table]
        right = all(cell[:1] in "0123456789+-\N{MINUS SIGN}" or cell == "not run" for cell in column[1:])
        width = max(map(len, column))
        for line, cell in enumerate(column):
            lines[line] += (cell.rjust(width) if right else cell.ljust(width)) + "   "
    return "\n".join(line.rstrip() for line in lines)
