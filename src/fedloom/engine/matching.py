"""Match what a backend yields to the clients that were asked; who did not answer is missing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from fedloom.client.train import Answer
from fedloom.types import Missing

SILENT = "it did not answer"
"""Why a client is missing for whom a backend yields nothing."""


def matched(answers: Iterable[Answer], clients: Sequence[int]) -> Iterator[Answer]:
    """Yield one answer for each client that was asked, in their order; who was passed over is `Missing`.

    An answer in the name of a later client means that those before are passed over, unless one of them still answers: then
    it came in a false name. It is yielded in its own place, where admission refuses it for its name.

    Args:
        answers: What a backend yields: in the order of `clients`, and for some of them perhaps nothing.
        clients: Who was asked.

    Example:
        >>> [one.reason for one in matched([Missing(4, "it broke")], [3, 4, 5])]
        ['it did not answer', 'it broke', 'it did not answer']
    """
    coming, at = iter(answers), 0
    waiting = next(coming, None)
    while at < len(clients):
        answer, place = waiting, at
        if answer is not None:
            waiting = None
            if _name(answer) != clients[at]:
                waiting = next(coming, None)
                place = _place(clients, at, answer, waiting)
        yield from (Missing(one, SILENT) for one in clients[at : len(clients) if answer is None else place])
        if answer is None:
            return
        yield answer
        at = place + 1
        waiting = next(coming, None) if waiting is None else waiting


def _name(answer: Answer) -> int:
    return answer.client if isinstance(answer, Missing) else answer[0].client


def _place(clients: Sequence[int], at: int, answer: Answer, after: Answer | None) -> int:
    """Return whose place an answer takes that is not in the name of the client that is due, `clients[at]`."""
    later = clients[at:]
    if _name(answer) not in later:
        return at
    ahead = later.index(_name(answer))
    honest = after is None or _name(after) not in later[: ahead + 1]
    return at + ahead if honest else at
