"""The interface of a transport, which carries messages to nodes and back, and the requests that go to one site."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fedloom.client.site import Question
from fedloom.engine.remote_site import question_to_bytes
from fedloom.wire.messages import Assignment
from fedloom.wire.site_messages import SiteMessage

MESSAGE_BYTES = 2**28
"""Largest number of bytes of assignments in one message; a site gets further ones in another message."""


LEAVE_SECONDS = 15.0
"""Seconds within which sites should confirm that the run is over."""


class Reply(Protocol):
    """The reply to a message: its content, or the reason why there is none."""

    @property
    def message(self) -> str:
        """The identifier of the message that it answers."""
        ...

    @property
    def content(self) -> bytes:
        """The answer, as bytes; empty if there is an error."""
        ...

    @property
    def error(self) -> str | None:
        """The reason why there is no answer, or None."""
        ...


class TransportRestarted(Exception):
    """The transport ended and was started again; no message that was sent before is answered."""


class Transport(Protocol):
    """A transport of messages to nodes and back. Every method may raise `TransportRestarted`."""

    def nodes(self) -> Mapping[int, str]:
        """Return the number of each connected node → the site for which its key is registered, or ""."""
        ...

    def send(self, node: int, content: bytes, group: str) -> str | None:
        """Send bytes to a node; return the message's identifier, or None if it cannot be sent."""
        ...

    def collect(self, messages: Sequence[str]) -> Sequence[Reply]:
        """Return the replies to messages that arrived since the last call."""
        ...


@dataclass
class Silence:
    """When a message that is not answered is sent again: after a minute, and each time four times as long after the last.

    A transport may lose a message: Flower delivers each at most once, and if the connection breaks meanwhile, not at all.
    A site that is working on the first answers the second without working again, so a repetition changes no result.

    Attributes:
        since: When it was sent last, in seconds.
        patience: Seconds after which it is sent again.
    """

    since: float
    patience: float = 60.0

    def again(self, now: float) -> bool:
        """Return whether it is time to send the message again, and if so, begin to wait anew."""
        if now - self.since < self.patience:
            return False
        self.since, self.patience = now, 4 * self.patience
        return True


@dataclass
class SiteRequest:
    """A request to one site.

    Attributes:
        site: The site's name.
        clients: The clients that it concerns.
        content: Its bytes.
        tries: How often it was sent, not counting repetitions to a node that is silent.
        node: The node to which it was sent last, or None.
        silence: When it is sent again if that node stays silent.
    """

    site: str
    clients: tuple[int, ...]
    content: bytes
    tries: int = 0
    node: int | None = None
    silence: Silence | None = None


def read_reply(reply: Reply) -> tuple[SiteMessage | None, str]:
    """Return the message of a reply, or None and the reason why there is none."""
    if reply.error is not None:
        return None, reply.error
    try:
        return SiteMessage.from_bytes(reply.content), ""
    except ValueError as error:
        return None, str(error)


def site_requests(
    kind: str, head: Mapping[str, Any], assignments: Iterable[Assignment], sites: Mapping[int, str]
) -> tuple[list[SiteRequest], int]:
    """Combine assignments into one request for each site, or a few if they are large; return the round as well."""
    parts, round, method = dict[str, list[list[tuple[int, bytes]]]](), 0, ""
    for assignment in assignments:
        round, method, content = assignment.round, assignment.method, assignment.to_bytes()
        own = parts.setdefault(sites[assignment.client], [[]])
        if own[-1] and sum(len(before) for _, before in own[-1]) + len(content) > MESSAGE_BYTES:
            own.append([])
        own[-1].append((assignment.client, content))
    return [
        SiteRequest(
            site,
            tuple(client for client, _ in some),
            SiteMessage(
                kind, {**head, "method": method, "round": round}, tuple(content for _, content in some)
            ).to_bytes(),
        )
        for site, messages in parts.items()
        for some in messages
    ], round


def answer_requests(
    questions: Iterable[tuple[int, Question]], sites: Mapping[int, str]
) -> tuple[list[SiteRequest], list[list[int]]]:
    """Return a request to each site for the answers of its clients' own models, and the places of its questions.

    Args:
        questions: Place and question, each about a client's own model.
        sites: Client → its site.
    """
    by_site = dict[str, list[tuple[int, Question]]]()
    for place, one in questions:
        by_site.setdefault(sites[one.client or 0], []).append((place, one))
    requests = list[SiteRequest]()
    for site, mine in by_site.items():
        content = SiteMessage("answer", {}, tuple(question_to_bytes(one) for _, one in mine)).to_bytes()
        requests.append(SiteRequest(site, tuple(dict.fromkeys(one.client or 0 for _, one in mine)), content))
    return requests, [[place for place, _ in mine] for mine in by_site.values()]


def evaluation_requests(
    questions: Mapping[int | None, Question], clients: Mapping[str, tuple[int, ...]]
) -> list[SiteRequest]:
    """Return a request to each site to score a model on its own examples.

    Args:
        questions: The global model under None, or each client's own model.
        clients: Site → its clients; it has one if models are clients' own.
    """
    requests = list[SiteRequest]()
    for site, own in clients.items():
        question = questions.get(None) or questions[own[0]]
        head = {"method": question.method, "part": question.test}
        content = SiteMessage("evaluate", head, (question_to_bytes(question),)).to_bytes()
        requests.append(SiteRequest(site, own, content))
    return requests


def announce_end(
    transport: Transport, nodes: Iterable[int], now: Callable[[], float], pause: Callable[[], None]
) -> set[int]:
    """Tell nodes that the run is over, and return those that confirmed it within `LEAVE_SECONDS`."""
    end, content, told = now() + LEAVE_SECONDS, SiteMessage("end").to_bytes(), set[int]()
    try:
        sent = {transport.send(node, content, "end"): node for node in sorted(nodes)}
        while (names := [name for name in sent if name is not None]) and now() < end:
            answered = {reply.message: reply.error is None for reply in transport.collect(names)}
            told |= {sent[name] for name, confirmed in answered.items() if confirmed}
            sent = {name: node for name, node in sent.items() if name not in answered}
            pause()
    except TransportRestarted:
        pass
    return told
