"""Show the progress of a run: a bar with the remaining time on a terminal, elsewhere a plain line every few seconds."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO, final

from fedloom.system.terminal import one_line

BAR = 10  # characters; on a terminal of 80 the figures have to fit beside it


@final
class Progress:
    """The progress of one stage after another; beginning a stage ends the one before.

    Args:
        stream: The stream to write to, or None to write nothing.
        bar: Whether to draw a bar with rich instead of writing lines.
        passing: Whether to remove the bar at the end.
        every: Seconds between lines of a stage, besides its first and last.
        clock: Returns the seconds since any fixed point.
        begun: Called with the name and the number of steps of each stage that begins.
    """

    def __init__(
        self,
        stream: TextIO | None,
        *,
        bar: bool = False,
        passing: bool = False,
        every: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        begun: Callable[[str, int], object] | None = None,
    ) -> None:
        self._stream = stream
        self._on_stage = begun
        self._bar, self._passing = _make_bar(stream, passing) if bar else None, passing
        self._every = every
        self._clock = clock
        self._name: str | None = None
        self._task: Any = None
        self._done = self._total = 0
        self._begun = self._told = 0.0
        self._figures: dict[str, float | str] = {}

    def stage(self, name: str, total: int) -> None:
        """Begin a stage of `total` steps."""
        self._end_stage()
        name = one_line(name)
        self._name, self._done, self._total, self._figures = name, 0, total, {}
        self._begun = self._told = self._clock()
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(name, total=total, figures="")
        else:
            self._line(f"{name}: begins, {total} step{'' if total == 1 else 's'}")
        if self._on_stage is not None:
            self._on_stage(name, total)

    def advance(self, n: int = 1, **figures: float | str) -> None:
        """Count `n` steps as done and show figures such as the loss; a text is shown as it is."""
        self._done += n
        self._figures.update(figures)
        if self._bar is not None:
            self._bar.update(self._task, advance=n, figures=self._shown())
        elif self._clock() - self._told >= self._every and self._done < self._total:
            self._told = self._clock()
            left = (self._told - self._begun) / max(self._done, 1) * (self._total - self._done)
            parts = (f"{self._done} of {self._total}", self._shown(), f"about {duration(left)} left")
            self._line(f"{self._name}: {', '.join(part for part in parts if part)}")

    def reach(self, name: str, done: int, total: int) -> None:
        """Begin a stage unless it is the present one, and count steps as done until `done` of them are."""
        if self._name != one_line(name):
            self.stage(name, total)
        self.advance(done - self._done)

    def message(self, text: str) -> None:
        """Write a line of text."""
        if self._bar is not None:
            self._bar.console.print(one_line(text), markup=False, highlight=False, emoji=False)
        else:
            self._line(one_line(text))

    def close(self) -> None:
        """End the last stage and stop drawing; the next stage starts again."""
        self._end_stage()
        if self._bar is not None:
            self._bar.stop()
            for task in self._bar.task_ids if self._passing else ():
                self._bar.remove_task(task)

    def _end_stage(self) -> None:
        if self._name is None:
            return
        finished = self._done >= self._total
        if self._bar is not None:
            self._bar.stop_task(self._task)
        else:
            state = "done" if finished else f"stopped at {self._done} of {self._total},"
            parts = (f"{state} in {duration(self._clock() - self._begun)}", self._shown())
            self._line(f"{self._name}: {', '.join(part for part in parts if part)}")
        self._name = None

    def _shown(self) -> str:
        return ", ".join(
            f"{name} {value if isinstance(value, str) else f'{value:.3g}'}"
            for name, value in self._figures.items()
        )

    def _line(self, text: str) -> None:
        if self._stream is None:
            return
        try:
            print(text, file=self._stream, flush=True)
        except (OSError, UnicodeEncodeError):
            self._stream = None  # nobody reads any more; the work continues


def duration(seconds: float) -> str:
    """Format a duration for people.

    Example:
        >>> duration(7.4), duration(200), duration(7300)
        ('7 s', '3 min 20 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _make_bar(stream: TextIO | None, passing: bool) -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    return Bar(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=BAR),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}", markup=False),
        console=Console(file=stream),
        transient=passing,
    )


def make_progress(quiet: bool, begun: Callable[[str, int], object] | None = None) -> Progress:
    """Return the progress for standard error: none if quiet, a bar on a terminal, plain lines elsewhere.

    Args:
        quiet: Whether to show nothing.
        begun: See `Progress`.
    """
    return Progress(None, begun=begun) if quiet else Progress(sys.stderr, bar=_draws(), begun=begun)


def make_passing_progress(quiet: bool) -> Progress:
    """Return a bar that disappears at the end, or no progress where no bar can be drawn."""
    return Progress(sys.stderr, bar=True, passing=True) if _draws() and not quiet else Progress(None)


def _draws() -> bool:
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
