"""What a run wrote down: an append-only file of JSON lines, files that appear whole or not at all, and where time went."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


class Clock:
    """Where time goes: every stretch of it belongs to the name it ended under, so the names add up to the whole.

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
        """Begin the next stretch now: the time since the last lap is counted elsewhere."""
        self._last = time.perf_counter()

    def add(self, seconds: Mapping[str, float]) -> None:
        """Count time by name that was measured elsewhere."""
        for name, value in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + value

    def take(self) -> dict[str, float]:
        """Return seconds by name since the last `take`, and start afresh."""
        taken, self.seconds = self.seconds, {}
        self._last = time.perf_counter()
        return taken


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, sync it, rename it, and sync the folder.

    The temporary name is this thread's own: several may write the same file at once, and the last one stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_native_id()}.tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def to_json(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON that every parser reads: figures that are not finite become null.

    Example:
        >>> to_json({"loss": float("nan"), "steps": 3})
        '{"loss": null, "steps": 3}'
    """
    return json.dumps(_without_nan(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _without_nan(one) for key, one in value.items()}
    return [_without_nan(one) for one in value] if isinstance(value, list | tuple) else value


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all; figures that are not finite become null."""
    write_atomic(path, (to_json(value, 2) + "\n").encode())


class Record:
    """The run's log: one JSON object a line, only ever appended to.

    A line cut short by a crash is dropped when the file is opened again; whole lines are never changed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            content = path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            if len(whole) < len(content):
                write_atomic(path, whole)

    def append(self, kind: str, values: Mapping[str, Any]) -> None:
        """Add one line `{"kind": kind, …}` and flush it to the operating system."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(to_json({"kind": kind, **values}) + "\n")

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self.path.exists():
            # A file is split at newlines only; str.splitlines also splits at U+2028 and others inside texts.
            with open(self.path, encoding="utf-8", newline="\n") as file:
                yield from map(json.loads, file)
