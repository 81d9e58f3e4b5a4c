"""Measure how much time each activity takes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any


class Clock:
    """A stopwatch that adds every interval to the name given at its end, so that the names add up to the whole.

    An accelerator works behind the CPU, whose own time says only when work was handed over. So on one, laps are marks in
    the queue of its work; the CPU synchronizes once, when the times are read, and not at every lap.

    Args:
        device: Kind of device that does the work; laps on other accelerators than CUDA's are those of the CPU.

    Example:
        >>> clock = Clock()
        >>> clock.lap("forward")
        >>> list(clock.seconds)
        ['forward']
    """

    def __init__(self, device: str = "cpu") -> None:
        self._device = device
        self._seconds: dict[str, float] = {}
        self._marks: list[tuple[str, Any]] = []
        self._last = self._now()

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by name since the last `take`."""
        if self._marks:
            self._last.synchronize()
            for (_, before), (name, mark) in zip(self._marks, self._marks[1:], strict=False):
                self._count(name, before.elapsed_time(mark) / 1000)
            self._marks = []
        return self._seconds

    def lap(self, name: str) -> None:
        """Add the time since the last lap to `name`."""
        now = self._now()
        if self._device != "cuda":
            self._count(name, now - self._last)
        else:
            self._marks += [(name, now)] if self._marks else [("", self._last), (name, now)]
        self._last = now

    def skip(self) -> None:
        """Begin the next interval now, without counting the time since the last lap."""
        _ = self.seconds
        self._last = self._now()

    def add(self, seconds: Mapping[str, float]) -> None:
        """Add seconds by name that were measured elsewhere."""
        for name, value in seconds.items():
            self._count(name, value)

    def take(self) -> dict[str, float]:
        """Return seconds by name since the last `take`, and start again from zero."""
        seconds, self._seconds = self.seconds, {}
        self._last = self._now()
        return seconds

    def _count(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def _now(self) -> Any:
        """Return the present moment: seconds, or a mark behind all work that an accelerator has been given."""
        if self._device != "cuda":
            return time.perf_counter()
        import torch

        mark = torch.cuda.Event(enable_timing=True)
        mark.record()
        return mark
