"""Put the answers of a backend, which arrive in any order, into the order in which clients were asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from tempfile import TemporaryFile
from typing import IO

from fedloom.params import Layout
from fedloom.wire.messages import Answer, Missing, Update, unsendable_reason

SILENT = "it did not answer"
"""The reason for which a client is missing if a backend yielded nothing for it."""

WAITING_BYTES = 2**28
"""Most bytes of updates that wait in memory for those before them; further updates wait in a file."""


def in_order(
    answers: Iterable[Answer],
    clients: Sequence[int],
    stray: Callable[[Answer, str], None],
    waiting_bytes: int = WAITING_BYTES,
) -> Iterator[Answer]:
    """Yield one answer for each client, in the order of `clients`, as soon as it and those before it have arrived.

    Args:
        answers: The answers of a backend, in any order.
        clients: The clients that were asked; no client twice.
        stray: Called with each answer that nobody asked for, or that is not a client's first, and the reason why it does not
            count.
        waiting_bytes: Most bytes of updates that wait in memory.

    Yields:
        An update, or why there is none; a client without an answer when the backend has ended is `Missing`.

    Example:
        >>> answers = in_order([Missing(4, "it broke"), Missing(3, "it slept")], [3, 4, 5], print)
        >>> [f"{answer.client}: {answer.reason}" for answer in answers]
        ['3: it slept', '4: it broke', '5: it did not answer']
    """
    turns, turn = {client: k for k, client in enumerate(clients)}, 0
    with _Waiting(waiting_bytes) as waiting:
        for answer in answers:
            own = turns.get(answer.client)
            if own is None:
                stray(answer, "nobody asked this client")
            elif own < turn or own in waiting:
                stray(answer, "the client had answered already; its first answer counts")
            elif own > turn:
                waiting.put(own, answer)
            else:
                yield answer
                turn += 1
                while turn in waiting:
                    yield waiting.take(turn)
                    turn += 1
            del answer  # keeps no reference to an answer that was yielded
        for left in range(turn, len(clients)):
            yield waiting.take(left) if left in waiting else Missing(clients[left], SILENT)


class _Waiting:
    """Answers that arrived before their turn: in memory, and beyond `most` bytes in a temporary file."""

    def __init__(self, most: int) -> None:
        self._most, self._bytes = most, 0
        self._in_memory: dict[int, Answer] = {}
        self._in_file: dict[int, tuple[int, int, Layout]] = {}
        self._file: IO[bytes] | None = None

    def __enter__(self) -> _Waiting:
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()

    def __contains__(self, turn: int) -> bool:
        return turn in self._in_memory or turn in self._in_file

    def put(self, turn: int, answer: Answer) -> None:
        size = 0 if isinstance(answer, Missing) else answer.delta.flat.nbytes
        fits = self._bytes + size <= self._most
        if isinstance(answer, Missing) or fits or (message := _message(answer)) is None:
            self._in_memory[turn] = answer
            self._bytes += size
            return
        if self._file is None:
            self._file = TemporaryFile()
        self._in_file[turn] = self._file.seek(0, 2), len(message), answer.delta.layout
        self._file.write(message)

    def take(self, turn: int) -> Answer:
        if turn in self._in_memory:
            answer = self._in_memory.pop(turn)
            self._bytes -= 0 if isinstance(answer, Missing) else answer.delta.flat.nbytes
            return answer
        start, length, layout = self._in_file.pop(turn)
        assert self._file is not None
        self._file.seek(start)
        message = self._file.read(length)
        if not self._in_file:  # so that the file does not grow with updates that no longer wait
            self._file.truncate(0)
        return Update.from_bytes(message, layout)


def _message(update: Update) -> bytes | None:
    """Return an update as a message, or None if no message can hold it; admission refuses such an update."""
    try:
        return None if update.delta.flat.dim() != 1 or unsendable_reason(update.extras) else update.to_bytes()
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError):
        return None
