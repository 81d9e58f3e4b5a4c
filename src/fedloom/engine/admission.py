"""Decide which updates are admitted to the aggregate, with reasons for refusing others, and gather figures for the record."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from math import inf, isfinite
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from fedloom.algorithms.algorithm import Extra
from fedloom.engine.update_bounds import ClientBounds, UpdateBounds, norm
from fedloom.params import Layout, Part
from fedloom.system.timing import Clock
from fedloom.types import Tensors
from fedloom.wire.messages import Answer, Assignment, Missing, Update

if TYPE_CHECKING:
    from fedloom.config.schema import Limits

BUFFERED_UPDATES = 16
"""Number of a round's first updates whose norms count toward the usual norm."""

REMEMBERED = 1024
"""Number of norms of accepted updates that are kept from round to round."""

MAX_LISTED = 1000
"""Maximum number of clients of a round whose own figures are recorded; those of the others count only in the totals."""


class Admission:
    """The admission of one round's updates, which arrive as a stream in client-id order.

    An admitted update has passed two checks of its norm. (1) The norm is at most the largest that honest training can
    produce (`fedloom.engine.update_bounds`); this needs no history. (2) The norm is at most `max_ratio` times the usual norm:
    the median over the updates accepted in earlier rounds and the well-formed ones among this round's first
    `BUFFERED_UPDATES`, so that no more than those are held in memory. If a client's amount of training normally gives a norm
    above that median, that norm is used instead. `max_norm`, if it is set, replaces the bound of (1).

    Args:
        expected: The bounds on updates.
        norms: Norms of updates accepted in earlier rounds.
        settings: Limits on norms.

    Attributes:
        bytes_up: Bytes of the updates that arrived.
        bytes_down: Bytes of the assignments that were sent.
        refused: Client → the reason for which its update was refused.
        missing: Client → the reason for which there is no update.
        clients_with_memory: Clients whose update was admitted and that keep memory of this round at their site.
    """

    def __init__(self, expected: UpdateBounds, norms: Sequence[float], settings: Limits) -> None:
        self._expected, self._settings = expected, settings
        self._norms: deque[float] = deque(norms, maxlen=REMEMBERED)
        self._loss = self._weight = 0.0
        self._clients: list[dict[str, Any]] = []
        self._reported: dict[Part | None, None] = {}
        self.bytes_up = self.bytes_down = 0
        self.refused: dict[Any, str] = {}
        self.missing: dict[int, str] = {}
        self.clients_with_memory: list[int] = []

    @property
    def norms(self) -> tuple[float, ...]:
        """Norms of the last accepted updates, including this round's; at most `REMEMBERED`."""
        return tuple(self._norms)

    @property
    def reported(self) -> Part:
        """The union of the parts that admitted updates report; at least one was admitted."""
        whole = Part.whole(self._expected.layout.size)
        union, *others = [part or whole for part in self._reported]
        for part in others:
            union = union | part
        return union

    def count_sent(self, assignment: Assignment) -> Assignment:
        """Count the bytes of an assignment, and return the assignment."""
        self.bytes_down += assignment.length
        return assignment

    def refuse_stray(self, answer: Answer, reason: str) -> None:
        """Count the bytes of an answer that nobody asked for, and note why it is refused."""
        if isinstance(answer, Update):
            self.bytes_up += _message_bytes(answer)
        self.refused.setdefault(answer.client, reason)

    def admit(self, answers: Iterable[Answer], clock: Clock | None = None) -> Iterator[Update]:
        """Yield the updates that are admitted.

        Args:
            answers: Updates and missing clients, in client-id order.
            clock: Counts the time.
        """
        clock = clock or Clock()
        for update, reason in self.check(self._updates(answers)):
            if len(self._clients) < MAX_LISTED:
                own = {"client": update.client, "weight": update.weight}
                self._clients.append(own | {**update.metrics} | own)  # a metric cannot take their names
            if reason is not None:
                self.refused[update.client] = reason
                continue
            if isfinite(loss := update.metrics.get("loss", 0.0)):
                self._loss += update.weight * loss
                self._weight += update.weight
            if update.keeps:
                self.clients_with_memory.append(update.client)
            self._reported[update.up] = None
            clock.lap("aggregate")
            yield update

    def figures(self) -> dict[str, Any]:
        """Return the figures of the round's updates for the record."""
        unused = {
            name: [
                {"client": client, "reason": reason}
                for client, reason in sorted(reasons.items(), key=_by_client)
            ]
            for name, reasons in (("refused", self.refused), ("missing", self.missing))
        }
        loss = self._loss / self._weight if self._weight else None
        return {
            "loss": loss,
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "clients": self._clients,
            **unused,
        }

    def check(self, updates: Iterable[Update]) -> Iterator[tuple[Update, str | None]]:
        """Yield each update with the reason for which it is refused, or None."""
        measured = map(self._measure, updates)
        first = deque(islice(measured, BUFFERED_UPDATES))
        norms = [*self._norms, *(size for _, size, _, reason in first if reason is None)]
        usual = median(norms or [0.0])
        # Taken out one by one, so that no reference to a checked update is left.
        waiting = (first.popleft() for _ in range(len(first)))
        for update, size, common, reason in chain(waiting, measured):
            reason = reason or self._unusual(size, max(usual, common))
            if reason is None:
                self._norms.append(size)
            yield update, reason

    def _updates(self, answers: Iterable[Answer]) -> Iterator[Update]:
        """Yield the updates that arrive, and note which clients are missing."""
        for answer in answers:
            if isinstance(answer, Missing):
                self.missing[answer.client] = answer.reason
            else:
                self.bytes_up += _message_bytes(answer)
                yield answer

    def _measure(self, update: Update) -> tuple[Update, float, float, str | None]:
        """Return an update, its norm, a norm that is common for such work, and why it is refused by itself, or None."""
        bounds = self._expected.of(update.client)
        reason = malformed(update, self._expected.layout, bounds)
        size = 0.0 if reason else norm(bounds.own_change(update.delta))
        return update, size, bounds.usual, reason or self._outsized(update, size, bounds)

    def _outsized(self, update: Update, size: float, bounds: ClientBounds) -> str | None:
        most = self._settings.max_norm
        received = size if bounds.scale == 1 else norm(update.delta.flat)
        if not isfinite(size):
            return "delta holds values that are not finite"
        if not bounds.up.is_zero_outside(update.delta.flat):
            return "delta changes values that are not exchanged"
        if most is not None and received > most:
            return f"norm {received:.4g} is above admission.max_norm {most:.4g}"
        if most is None and size > bounds.most:
            return f"norm {size:.4g} is above {bounds.most:.4g}, the largest norm that honest training can produce"
        return None

    def _unusual(self, size: float, usual: float) -> str | None:
        ratio = self._settings.max_ratio
        if usual > 0 and size > ratio * usual:
            return f"norm {size:.4g} is {size / usual:.1f} times the usual {usual:.4g}; admission.max_ratio is {ratio:.4g}"
        return None


def _by_client(item: tuple[Any, str]) -> tuple[int, str]:
    client, _ = item  # clients whose name is not a number come last
    return (client, "") if isinstance(client, int) else (2**63, str(client))


def _message_bytes(update: Update) -> int:
    """Return the number of bytes of an update's message; 0 for an update that no message could hold."""
    try:
        return update.length
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError):
        return 0


def malformed(update: Update, layout: Layout, bounds: ClientBounds) -> str | None:
    """Return what is wrong with an update besides its delta's values, or None."""
    if update.delta.layout.names != layout.names:
        odd = sorted(set(update.delta.layout.names) ^ set(layout.names))
        return (
            f"parameter names differ from the global model's, starting with {odd[0]!r}"
            if odd
            else "parameter names are in another order"
        )
    if update.delta.layout.shapes != layout.shapes or update.delta.flat.shape != (layout.size,):
        return "shapes differ from the global model's"
    requested = bounds.up.is_whole if update.up is None else update.up == bounds.up
    if not requested:
        return "it reports parameters that were not requested, or leaves out requested ones"
    if not (_is_number(update.weight) and 1 <= update.weight <= bounds.examples):
        return f"weight {update.weight} is not between 1 and {bounds.examples}, the number of examples this client holds"
    if not all(_is_number(value) for value in update.metrics.values()):
        return "a metric is not a number"
    return _wrong_extras(update.extras, bounds.extras)


def _wrong_extras(extras: Tensors, announced: Mapping[str, Extra]) -> str | None:
    """Return how extras differ from what the algorithm announces, or None."""
    for name in sorted(extras.keys() ^ announced.keys()):
        return f"{name} is missing" if name in announced else f"unexpected extra {name}"
    for name, right in announced.items():
        value = extras[name]
        if value.dtype != torch.float32 or tuple(value.shape) != right.shape:
            content = f"{str(value.dtype).removeprefix('torch.')} values of shape {list(value.shape)}"
            return f"{name} holds {content}, not float32 values of shape {list(right.shape)}"
        size = norm(value)
        if not isfinite(size):
            return f"{name} holds values that are not finite"
        if size > right.most:
            return f"{name} has norm {size:.4g}, above {right.most:.4g}, the largest norm that honest training can produce"
        if right.least > -inf and float(value.amin()) < right.least:
            return f"{name} holds values below {right.least:.4g}"
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)
