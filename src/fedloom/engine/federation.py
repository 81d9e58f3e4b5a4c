"""Train at sites on other machines: enroll them, send each its clients' assignments, and wait for answers until a deadline.

The backend works over any `Transport` of bytes to nodes and back. Nodes come and go, and their numbers have no meaning;
sites have names, and each holds clients of its own. A site that comes back under another number gets its requests again, and
its earlier answers are not counted twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fedloom.client.site import Profile, Question
from fedloom.engine.in_process import ignore
from fedloom.engine.participation import JoinedSite, WaitingTerms, clients_at, unfit
from fedloom.engine.rounds import Backend
from fedloom.engine.site_statements import read_answers, read_joined, read_judged, read_scores, read_statement
from fedloom.engine.site_transport import (
    Reply,
    Silence,
    SiteRequest,
    Transport,
    TransportRestarted,
    announce_end,
    answer_requests,
    evaluation_requests,
    read_reply,
    site_requests,
)
from fedloom.params import Layout, Params
from fedloom.system.errors import UserError
from fedloom.system.timing import Clock
from fedloom.tasks.score_answers import Answers
from fedloom.wire.messages import Answer, Assignment, Missing, Update
from fedloom.wire.site_messages import SiteMessage

TRIES = 3
"""Number of tries of a request to a site before its clients are missing."""

NODES_EVERY = 2.0
"""Seconds between queries for the connected nodes."""

REPLIES_EVERY = 0.1
"""Seconds between queries for replies."""


@dataclass
class Federation:
    """A backend whose clients are at sites on other machines.

    Attributes:
        transport: Carries messages.
        begin: The message that a site gets when it joins.
        clients: Number of clients of the run.
        terms: How long the server waits.
        note: Called with the kind and the figures of each event at sites.
        own_data: Whether each site brings data of its own, and is one client.
        methods: The methods for which a site states profiles of its clients.
        now: Returns seconds since any fixed point; they do not depend on the time of day.
        pause: Waits for a number of seconds.
        sites: Name → site that has joined.
    """

    transport: Transport
    begin: SiteMessage
    clients: int
    terms: WaitingTerms
    note: Callable[[str, Mapping[str, Any]], None]
    own_data: bool = False
    methods: Sequence[str] = ()
    now: Callable[[], float] = time.monotonic
    pause: Callable[[float], None] = time.sleep
    sites: dict[str, JoinedSite] = field(default_factory=dict[str, JoinedSite])
    _local: Backend | None = None
    _layout: Layout | None = None
    _trained: Callable[[Update], None] = ignore
    _joining: dict[str, int] = field(default_factory=dict[str, int])
    _silent: dict[int, Silence] = field(default_factory=dict[int, Silence])
    _names: Mapping[int, str] = field(default_factory=dict[int, str])
    _known: set[int] = field(default_factory=set[int])
    _refused: dict[int, str] = field(default_factory=dict[int, str])
    _sent: dict[str, SiteRequest] = field(default_factory=dict[str, SiteRequest])
    _nodes_read: float = float("-inf")

    def enroll(self) -> None:
        """Wait until the joined sites hold every client, or, with data of their own, until there is one for each client.

        Raises:
            UserError: They did not join in time; the message names what is missing.
        """
        end = self.now() + self.terms.join
        while missing := self._missing():
            if self.now() > end:
                joined = ", ".join(sorted(self.sites)) or "none"
                why = "".join(
                    f"; a site was refused: {reason}" for reason in sorted({*self._refused.values()})
                )
                raise UserError(
                    f"{missing} joined within {self.terms.join:g} seconds (sites that did: {joined}{why}); start one with "
                    "`fedloom site`, or wait longer with --join"
                )
            self._update_nodes()
            self._collect()
            self.pause(REPLIES_EVERY)

    def _missing(self) -> str | None:
        if self.own_data:
            return None if len(self.sites) >= self.clients else f"fewer than {self.clients} sites have"
        missing = sorted(set(range(self.clients)) - set(clients_at(self.sites)))
        return f"no site that holds client {missing[0]}" if missing else None

    def number_clients(self, clients: Mapping[str, int]) -> None:
        """Assign to each site with data of its own the number of its client."""
        for name, client in clients.items():
            self.sites[name].clients = (client,)

    def attach(self, local: Backend, layout: Layout, trained: Callable[[Update], None] = ignore) -> None:
        """Attach the federation to a run, before its first round.

        Args:
            local: The server's own backend, for the start of a method and for answers with global models.
            layout: Names and shapes of the exchanged parameters.
            trained: Called with every update, to show progress.
        """
        self._local, self._layout, self._trained = local, layout, trained

    def start(self, method: str) -> Params:
        """Return the parameters of a method's first round."""
        return self._here.start(method)

    def describe(self, method: str) -> Sequence[Profile]:
        """Return the profile of each client, by its number."""
        profiles = dict[int, Profile]()
        for site in self.sites.values():
            of_site = zip(site.clients, site.profiles[method], strict=True)
            profiles |= {client: Profile(*fields) for client, fields in of_site}
        return [profiles[client] for client in range(self.clients)]

    def train(self, assignments: Iterable[Assignment], clock: Clock) -> Iterator[Answer]:
        """Let clients train, and yield answers as they arrive; see `WaitingTerms` for missing ones."""
        for answer in self._ask_clients("train", {}, assignments):
            clock.lap("site")
            if isinstance(answer, Update):
                self._trained(answer)
            yield answer

    def measure(self, assignments: Iterable[Assignment], probe: str) -> Iterator[Answer]:
        """Run a probe of `fedloom.client.client_measurements` at each client."""
        return self._ask_clients("measure", {"probe": probe}, assignments)

    def answer(self, questions: Sequence[Question]) -> list[Answers]:
        """Answer questions: with a client's own model at its site, with a global model here.

        Raises:
            UserError: A site did not answer.
        """
        own = [(place, one) for place, one in enumerate(questions) if one.client is not None]
        if not own:
            return self._here.answer(questions)
        requests, places = answer_requests(own, clients_at(self.sites))
        answers = dict[int, Answers]()
        for number, reply, reason in self._answers(requests, "answer"):
            read = partial(read_judged, count=len(places[number]))
            judged, reason = (None, reason) if reply is None else read_statement(read, reply.head)
            if judged is None:
                raise UserError(
                    f"site {requests[number].site} did not answer about its clients' models: {reason}"
                )
            answers |= dict(zip(places[number], judged, strict=True))
        rest = [place for place in range(len(questions)) if place not in answers]
        here = self._here.answer([questions[place] for place in rest]) if rest else []
        answers |= dict(zip(rest, here, strict=True))
        return [answers[place] for place in range(len(questions))]

    def evaluate(self, questions: Mapping[int | None, Question]) -> dict[str, Mapping[str, Any]]:
        """Let sites with data of their own score models on their own test or validation parts.

        Args:
            questions: The global model under None, or each client's own model, which stays at its site.

        Returns:
            Site → the number of examples and the scores, or under "reason" why there are none.
        """
        requests = evaluation_requests(
            questions, {name: self.sites[name].clients for name in sorted(self.sites)}
        )
        about = next(iter(questions.values()))
        scores = dict[str, Mapping[str, Any]]()
        for number, reply, reason in self._answers(requests, "evaluate"):
            site = requests[number].site
            values, reason = (None, reason) if reply is None else read_statement(read_scores, reply.head)
            scores[site] = {"reason": reason} if values is None else values
            figures = {"site": site, "method": about.method, "part": about.test, **scores[site]}
            self.note("site evaluation", figures)
        return scores

    @property
    def _here(self) -> Backend:
        assert self._local is not None, "attach() comes first"
        return self._local

    @property
    def _needed(self) -> Layout:
        assert self._layout is not None, "attach() comes first"
        return self._layout

    def leave(self) -> list[str]:
        """Tell every site, also those that were refused, that the run is over; return those of the run that did not confirm."""
        there = {one.node for one in self.sites.values() if one.node is not None}
        nodes = there | (self._refused.keys() & self._known)
        told = announce_end(self.transport, nodes, self.now, lambda: self.pause(REPLIES_EVERY))
        return sorted(name for name, one in self.sites.items() if one.node not in told)

    def _ask_clients(
        self, kind: str, head: Mapping[str, Any], assignments: Iterable[Assignment]
    ) -> Iterator[Answer]:
        """Send assignments to the sites of their clients; yield an answer for each client."""
        requests, round = site_requests(kind, head, assignments, clients_at(self.sites))
        left = {number: set(request.clients) for number, request in enumerate(requests)}
        for number, reply, reason in self._answers(requests, f"{kind} {round}"):
            clients = requests[number].clients
            for answer in read_answers(reply, clients, self._needed) if reply is not None else ():
                if answer.client in left[number]:
                    left[number].remove(answer.client)
                    yield answer
            for client in sorted(left.pop(number)):
                yield Missing(client, reason or "its site did not answer for it")

    def _answers(
        self, requests: Sequence[SiteRequest], group: str
    ) -> Iterator[tuple[int, SiteMessage | None, str]]:
        """Yield for each request its number, and its reply or the reason why there is none, as they arrive."""
        waiting, begun, got = dict(enumerate(requests)), self.now(), 0
        limit = self.terms.deadline
        while waiting:
            self._deliver(waiting.values(), group)
            self._update_nodes()
            for number, reply, reason in self._arrived(waiting):
                request = waiting.pop(number)
                got += len(request.clients) if reply is not None else 0
                yield number, reply, reason
            if waiting and limit is not None and self.now() - begun > limit:
                lacking = got < min(
                    self.terms.quorum, got + sum(len(one.clients) for one in waiting.values())
                )
                if lacking and self.terms.policy == "stop":
                    raise UserError(
                        f"{group}: {got} clients answered within {limit:g} seconds, and {self.terms.quorum} must; "
                        "the same command goes on from the last round that was committed"
                    )
                if not lacking or self.terms.policy == "proceed":
                    for number, request in waiting.items():
                        yield number, None, f"site {request.site} did not answer within {limit:g} seconds"
                    return
            if waiting:
                self.pause(REPLIES_EVERY)

    def _deliver(self, requests: Iterable[SiteRequest], group: str) -> None:
        """Send the requests that were not sent yet, or to a node that its site has left, or that may be lost."""
        for request in requests:
            member = self.sites.get(request.site)
            if member is None or member.node is None:
                continue
            again = request.node == member.node
            if again and not (request.silence and request.silence.again(self.now())):
                continue
            try:
                name = self.transport.send(member.node, request.content, group)
            except TransportRestarted:
                self._forget_sent()
                return
            if name is not None:
                self._sent[name] = request
                if not again:
                    request.node, request.tries = member.node, request.tries + 1
                    request.silence = Silence(self.now())

    def _arrived(self, waiting: Mapping[int, SiteRequest]) -> Iterator[tuple[int, SiteMessage | None, str]]:
        """Yield the replies to requests, and note replies that come too late."""
        numbers = {id(request): number for number, request in waiting.items()}
        for reply in self._collect():
            request = self._sent.pop(reply.message, None)
            if request is None:  # another answer to it has just been read
                continue
            number = numbers.get(id(request))
            message, reason = read_reply(reply)
            if message is not None or number is None:  # no other answer to it is of use
                self._sent = {name: one for name, one in self._sent.items() if one is not request}
            if number is None:
                self.note(
                    "late", {"site": request.site, "clients": list(request.clients), "error": reply.error}
                )
                continue
            if message is not None and message.kind != "refused":
                del numbers[id(request)]
                yield number, message, ""
            elif message is not None:
                del numbers[id(request)]
                yield number, None, f"site {request.site} refused: {message.head.get('reason')}"
            else:
                self._nodes_read = float("-inf")
                self._update_nodes()
                request.node = None  # so that it is sent again
                if self.sites[request.site].node is None:
                    continue  # it may come back before the deadline
                self.note("failed", {"site": request.site, "reason": reason})
                if request.tries >= TRIES:
                    del numbers[id(request)]
                    yield number, None, f"site {request.site} failed: {reason}"

    def _collect(self) -> list[Reply]:
        """Return the replies to requests that have arrived; replies of joining sites are handled here."""
        try:
            replies = list(self.transport.collect([*self._joining, *self._sent]))
        except TransportRestarted:
            self._forget_sent()
            return []
        for reply in replies:
            if reply.message in self._joining:
                node = self._joining[reply.message]
                self._joining = {name: one for name, one in self._joining.items() if one != node}
                self._joined(node, reply)
        return [reply for reply in replies if reply.message in self._sent]

    def _update_nodes(self) -> None:
        """Ask new nodes to join, and note sites whose nodes have gone."""
        if self.now() - self._nodes_read < NODES_EVERY:
            return
        self._nodes_read = self.now()
        try:
            self._names = self.transport.nodes()
            there = set(self._names)
            silent = {node for node in self._joining.values() if self._silent[node].again(self.now())}
            for node in sorted(there & silent | there - self._known):
                name = self.transport.send(node, self.begin.to_bytes(), "join")
                if name is not None:
                    self._joining[name] = node
                    if node not in self._known:
                        self._known.add(node)
                        self._silent[node] = Silence(self.now())
        except TransportRestarted:
            self._forget_sent()
            return
        self._known &= there
        for member in self.sites.values():
            if member.node is not None and member.node not in there:
                self.note("site away", {"site": member.name})
                member.node = None

    def _joined(self, node: int, reply: Reply) -> None:
        """Add a site, or note the reason why it cannot take part."""
        message, why = read_reply(reply)
        site, before = None, None
        if message is not None and message.kind == "joined":
            read = partial(read_joined, node=node, methods=self.methods, own_data=self.own_data)
            site, why = read_statement(read, message.head)
            before = self.sites.get(site.name) if site else None
            why = (
                (
                    unfit(site, self.sites, self._names.get(node, ""), self.clients, own_data=self.own_data)
                    or ""
                )
                if site
                else why
            )
        elif message is not None:
            why = str(message.head.get("reason"))
        if site is None or why:
            name = str(message.head.get("site", "")) if message else self._names.get(node, "")
            if self._refused.get(node) != why:
                self.note("site refused", {"site": name, "reason": why})
            self._refused[node] = why
            if reply.error is not None:  # its process may have been starting
                self._known.discard(node)
            if message is not None and message.kind == "joined":  # it does not know yet
                try:
                    self.transport.send(node, SiteMessage("refuse", {"reason": why}).to_bytes(), "join")
                except TransportRestarted:
                    self._forget_sent()
            return
        if before is not None and self.own_data:
            site.clients = before.clients
        self.sites[site.name] = site
        self.note("site joined", {"site": site.name, "clients": list(site.clients), **site.counts})

    def _forget_sent(self) -> None:
        """Forget which nodes got which requests, so that all sites join again and get their open requests again."""
        self.note("link renewed", {})
        for request in self._sent.values():
            request.node = None
        self._sent.clear()
        self._joining.clear()
        self._known.clear()
        for site in self.sites.values():
            site.node = None
