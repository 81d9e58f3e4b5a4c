"""Measure how much time each activity takes."""

from __future__ import annotations

import time
from collections.abc import Mapping


class Clock:
    """A stopwatch that adds every interval to the name given at its end, so that the names add up to the whole.

    Example:
        >>> clock = Clock()
        >>> clock.lap("forward")
        >>> list(clock.seconds)
        ['forward']
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Add the time since the last lap to `name`."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now

    def skip(self) -> None:
        """Begin the next interval now, without counting the time since the last lap."""
        self._last = time.perf_counter()

    def add(self, seconds: Mapping[str, float]) -> None:
        """Add seconds by name that were measured elsewhere."""
        for name, value in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + value

    def take(self) -> dict[str, float]:
        """Return seconds by name since the last `take`, and start again from zero."""
        seconds, self.seconds = self.seconds, {}
        self._last = time.perf_counter()
        return seconds
