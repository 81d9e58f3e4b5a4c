"""What carries messages to nodes and back, and what one site is asked in a message."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fedloom.engine.envelope import Envelope
from fedloom.messages import Assignment

CONTENT = 2**28
"""Bytes of assignments in one message; further ones of the same site go in another."""


class Reply(Protocol):
    """What came back for a message: its content, or why there is none."""

    @property
    def message(self) -> str:
        """The message that it answers."""
        ...

    @property
    def content(self) -> bytes:
        """The answer, as bytes; empty where there is an error."""
        ...

    @property
    def error(self) -> str | None:
        """Why there is no answer."""
        ...


class Renewed(Exception):
    """What carries messages had ended and was started again: nothing that was sent before is answered."""


class Post(Protocol):
    """What carries messages to nodes and back. Every method may raise `Renewed`."""

    def nodes(self) -> Mapping[int, str]:
        """Return which nodes are there, with the name of the site that each one's key is registered for; "" for none."""
        ...

    def send(self, node: int, content: bytes, group: str) -> str | None:
        """Send bytes to a node; return the message's name, or None where it cannot be sent."""
        ...

    def collect(self, messages: Sequence[str]) -> Sequence[Reply]:
        """Return the replies to messages that have come since the last call."""
        ...


@dataclass
class Letter:
    """What one site is asked, until it is answered."""

    site: str
    clients: tuple[int, ...]
    content: bytes
    tries: int = 0
    node: int | None = None


def opened(reply: Reply) -> tuple[Envelope | None, str]:
    """Read a reply, or return why that is not possible."""
    if reply.error is not None:
        return None, reply.error
    try:
        return Envelope.from_bytes(reply.content), ""
    except ValueError as error:
        return None, str(error)


def letters_of(
    kind: str, head: Mapping[str, Any], assignments: Iterable[Assignment], sites: Mapping[int, str]
) -> tuple[list[Letter], int]:
    """Put what clients are asked into one letter for each site, or a few where it is much; return the round, too."""
    parts, round, method = dict[str, list[list[tuple[int, bytes]]]](), 0, ""
    for one in assignments:
        round, method, content = one.round, one.method, one.to_bytes()
        mine = parts.setdefault(sites[one.client], [[]])
        if mine[-1] and sum(len(before) for _, before in mine[-1]) + len(content) > CONTENT:
            mine.append([])
        mine[-1].append((one.client, content))
    return [
        Letter(
            site,
            tuple(client for client, _ in some),
            Envelope(
                kind, {**head, "method": method, "round": round}, tuple(content for _, content in some)
            ).to_bytes(),
        )
        for site, all_of_it in parts.items()
        for some in all_of_it
    ], round
