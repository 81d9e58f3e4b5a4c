"""Put the answers of a backend, which come in any order, into the order in which clients were asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from tempfile import TemporaryFile
from typing import IO

from fedloom.params import Layout
from fedloom.wire.messages import Answer, Missing, Update, unsendable_reason

SILENT = "it did not answer"
"""The reason of a missing client for which a backend yielded nothing."""

HELD = 2**28
"""Bytes of updates that may wait in memory for those before them; further ones wait in a file."""


def in_order(
    answers: Iterable[Answer], clients: Sequence[int], stray: Callable[[Answer, str], None], held: int = HELD
) -> Iterator[Answer]:
    """Yield one answer for each client that was asked, in their order, as soon as it and those before it are there.

    Args:
        answers: What a backend yields, in any order.
        clients: Who was asked; no client twice.
        stray: Called with each answer that nobody asked for, or that is not a client's first, and why it does not count.
        held: Bytes of updates that may wait in memory.

    Yields:
        An update, or why there is none; a client without an answer when the backend has ended is `Missing`.

    Example:
        >>> found = in_order([Missing(4, "it broke"), Missing(3, "it slept")], [3, 4, 5], print)
        >>> [f"{one.client}: {one.reason}" for one in found]
        ['3: it slept', '4: it broke', '5: it did not answer']
    """
    due, at = {client: place for place, client in enumerate(clients)}, 0
    with _Waiting(held) as waiting:
        for answer in answers:
            place = due.get(answer.client)
            if place is None:
                stray(answer, "nobody asked this client")
            elif place < at or place in waiting:
                stray(answer, "the client had answered already; its first answer counts")
            elif place > at:
                waiting.put(place, answer)
            else:
                yield answer
                at += 1
                while at in waiting:
                    yield waiting.take(at)
                    at += 1
            del answer  # no reference is left to what was yielded
        for place in range(at, len(clients)):
            yield waiting.take(place) if place in waiting else Missing(clients[place], SILENT)


class _Waiting:
    """Answers that came before their turn: in memory, and beyond `most` bytes in a temporary file."""

    def __init__(self, most: int) -> None:
        self._most, self._bytes = most, 0
        self._here: dict[int, Answer] = {}
        self._there: dict[int, tuple[int, int, Layout]] = {}
        self._file: IO[bytes] | None = None

    def __enter__(self) -> _Waiting:
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()

    def __contains__(self, place: int) -> bool:
        return place in self._here or place in self._there

    def put(self, place: int, answer: Answer) -> None:
        size = 0 if isinstance(answer, Missing) else answer.delta.flat.nbytes
        fits = self._bytes + size <= self._most
        if isinstance(answer, Missing) or fits or (message := _message(answer)) is None:
            self._here[place] = answer
            self._bytes += size
            return
        if self._file is None:
            self._file = TemporaryFile()
        self._there[place] = self._file.seek(0, 2), len(message), answer.delta.layout
        self._file.write(message)

    def take(self, place: int) -> Answer:
        if place in self._here:
            answer = self._here.pop(place)
            self._bytes -= 0 if isinstance(answer, Missing) else answer.delta.flat.nbytes
            return answer
        start, length, layout = self._there.pop(place)
        assert self._file is not None
        self._file.seek(start)
        message = self._file.read(length)
        if not self._there:  # so that the file takes what waits, not what has waited
            self._file.truncate(0)
        return Update.from_bytes(message, layout)


def _message(update: Update) -> bytes | None:
    """Write an update that can be read again, or return None: admission refuses what no message can hold."""
    try:
        return None if update.delta.flat.dim() != 1 or unsendable_reason(update.extras) else update.to_bytes()
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError):
        return None
