"""Reach sites that are other machines: enroll them, send each its clients' assignments, wait for answers until a deadline.

A backend over anything that carries bytes to nodes and back (`Post`). Nodes come and go and have numbers that mean nothing;
sites have names, and each holds clients of its own. A site that comes back under another number is asked again, and what
it had answered already is not counted twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedloom.client.site import Profile, Question
from fedloom.engine.envelope import Envelope
from fedloom.engine.in_process import ignore
from fedloom.engine.post import Letter, Post, Renewed, Reply, letters_of, opened
from fedloom.engine.remote import judged_from, question_bytes
from fedloom.engine.rounds import Backend
from fedloom.engine.terms import Member, Terms
from fedloom.messages import Answer, Assignment, Missing, Update, answer_from_bytes
from fedloom.params import Layout, Params
from fedloom.record import Clock
from fedloom.tasks.scoring import Judged
from fedloom.types import UserError

TRIES = 3
"""Times that a site is asked the same before its clients are missing; one that comes back anew is asked anew."""

LOOK = 2.0
"""Seconds between looks at which nodes there are."""

POLL = 0.1
"""Seconds between looks for replies."""

FAREWELL = 15.0
"""Seconds that sites have to hear that the run is over."""


@dataclass
class Federation:
    """A backend whose clients are at sites elsewhere.

    Attributes:
        post: What carries messages.
        begin: The message that a site is sent when it joins.
        clients: Number of clients of the run.
        terms: How long the server waits.
        noted: Called with what happens to sites: the kind, and figures.
        own: Whether each site brings data of its own, and is one client.
        now: Seconds from any fixed point, which no change of the clock moves.
        pause: Waits for so many seconds.
    """

    post: Post
    begin: Envelope
    clients: int
    terms: Terms
    noted: Callable[[str, Mapping[str, Any]], None]
    own: bool = False
    now: Callable[[], float] = time.monotonic
    pause: Callable[[float], None] = time.sleep
    members: dict[str, Member] = field(default_factory=dict[str, Member])
    _local: Backend | None = None
    _layout: Layout | None = None
    _trained: Callable[[Update], None] = ignore
    _joining: dict[str, int] = field(default_factory=dict[str, int])
    _names: Mapping[int, str] = field(default_factory=dict[int, str])
    _known: set[int] = field(default_factory=set[int])
    _sent: dict[str, Letter] = field(default_factory=dict[str, Letter])
    _looked: float = float("-inf")

    def enroll(self) -> None:
        """Wait until sites have joined that hold every client, or as many as there are clients.

        Raises:
            UserError: They have not in time; who is missing.
        """
        end = self.now() + self.terms.join
        while missing := self._missing():
            if self.now() > end:
                there = ", ".join(sorted(self.members)) or "none"
                raise UserError(
                    f"{missing} joined within {self.terms.join:g} seconds (sites that did: {there}); start one with "
                    "`fedloom site`, or wait longer with --join"
                )
            self._look()
            self._taken()
            self.pause(POLL)

    def _missing(self) -> str | None:
        if self.own:
            return None if len(self.members) >= self.clients else f"fewer than {self.clients} sites have"
        missing = sorted(set(range(self.clients)) - set(self._sites()))
        return f"no site that holds client {missing[0]}" if missing else None

    def number(self, clients: Mapping[str, int]) -> None:
        """Give each site that has data of its own the number of its client."""
        for name, client in clients.items():
            self.members[name].clients = (client,)

    def attach(self, local: Backend, layout: Layout, trained: Callable[[Update], None] = ignore) -> None:
        """Say what the rounds need.

        Args:
            local: What the server does itself: the start of a method, and answers about global models.
            layout: Names and shapes of what is exchanged.
            trained: Called with every update, for progress.
        """
        self._local, self._layout, self._trained = local, layout, trained

    def start(self, method: str) -> Params:
        """Return the parameters of a method's first round."""
        return self._here.start(method)

    def describe(self, method: str) -> Sequence[Profile]:
        """Return the profile of each client, by its number."""
        found = dict[int, Profile]()
        for one in self.members.values():
            found |= {c: Profile(*p) for c, p in zip(one.clients, one.profiles[method], strict=True)}
        return [found[client] for client in range(self.clients)]

    def train(self, assignments: Iterable[Assignment], clock: Clock) -> Iterator[Answer]:
        """Let clients train, and yield answers as they come; see `Terms` for those that do not come."""
        for answer in self._asked("train", {}, assignments):
            clock.lap("site")
            if isinstance(answer, Update):
                self._trained(answer)
            yield answer

    def measure(self, assignments: Iterable[Assignment], probe: str) -> Iterator[Answer]:
        """Measure a probe of `fedloom.client.probes` at each client."""
        return self._asked("measure", {"probe": probe}, assignments)

    def answer(self, questions: Sequence[Question]) -> list[Judged]:
        """Answer questions: about a client's own model at its site, about global models here.

        Raises:
            UserError: A site did not answer.
        """
        own = [(place, one) for place, one in enumerate(questions) if one.client is not None]
        if not own:
            return self._here.answer(questions)
        letters, places, holder = list[Letter](), dict[int, list[int]](), self._sites()
        for site in self.members:
            mine = [(place, one) for place, one in own if holder[one.client or 0] == site]
            if mine:
                places[len(letters)] = [place for place, _ in mine]
                parts = tuple(question_bytes(one) for _, one in mine)
                asked = tuple(dict.fromkeys(one.client or 0 for _, one in mine))
                letters.append(Letter(site, asked, Envelope("answer", {}, parts).to_bytes()))
        found = dict[int, Judged]()
        for number, reply, reason in self._answers(letters, "answer"):
            if reply is None:
                raise UserError(
                    f"site {letters[number].site} did not answer about its clients' models: {reason}"
                )
            judged = [judged_from(one) for one in reply.head["judged"]]
            found |= dict(zip(places[number], judged, strict=True))
        rest = [place for place in range(len(questions)) if place not in found]
        if rest:
            found |= dict(zip(rest, self._here.answer([questions[place] for place in rest]), strict=True))
        return [found[place] for place in range(len(questions))]

    def evaluate(self, models: Mapping[int | None, Question]) -> dict[str, Mapping[str, Any]]:
        """Let sites score a model on their own held-out parts.

        Args:
            models: The models, of which that of None is global.

        Returns:
            Site → what it says of its scores, or under "reason" why it says nothing.
        """
        asked = Envelope("evaluate", {}, (question_bytes(models[None]),)).to_bytes()
        letters = [Letter(name, self.members[name].clients, asked) for name in sorted(self.members)]
        found = dict[str, Mapping[str, Any]]()
        for number, reply, reason in self._answers(letters, "evaluate"):
            site = letters[number].site
            held = (
                {"reason": reason} if reply is None else {k: v for k, v in reply.head.items() if k != "site"}
            )
            found[site] = held
            self.noted("site evaluation", {"site": site, "method": models[None].method, **held})
        return found

    @property
    def _here(self) -> Backend:
        assert self._local is not None, "attach() comes first"
        return self._local

    @property
    def _needed(self) -> Layout:
        assert self._layout is not None, "attach() comes first"
        return self._layout

    def leave(self) -> None:
        """Let every site know that the run is over; none is waited for longer than `FAREWELL`."""
        end, content = self.now() + FAREWELL, Envelope("end").to_bytes()
        try:
            there = [one.node for one in self.members.values() if one.node is not None]
            left = [self.post.send(node, content, "end") for node in there]
            while (names := [name for name in left if name is not None]) and self.now() < end:
                done = {reply.message for reply in self.post.collect(names)}
                left = [name for name in names if name not in done]
                self.pause(POLL)
        except Renewed:
            return

    def _sites(self) -> dict[int, str]:
        """Return the site that holds each client."""
        return {client: one.name for one in self.members.values() for client in one.clients}

    def _asked(
        self, kind: str, head: Mapping[str, Any], assignments: Iterable[Assignment]
    ) -> Iterator[Answer]:
        """Ask the sites of clients something about each; yield an answer for each client."""
        letters, round = letters_of(kind, head, assignments, self._sites())
        left = {number: set(letter.clients) for number, letter in enumerate(letters)}
        for number, reply, reason in self._answers(letters, f"{kind} {round}"):
            for answer in self._read(reply, letters[number]) if reply is not None else ():
                if answer.client in left[number]:
                    left[number].remove(answer.client)
                    yield answer
            for client in sorted(left.pop(number)):
                yield Missing(client, reason or "its site did not answer for it")

    def _read(self, reply: Envelope, letter: Letter) -> Iterator[Answer]:
        for client, part in zip(letter.clients, reply.parts, strict=False):
            try:
                answer = answer_from_bytes(part, self._needed)
                if answer.client != client:
                    raise ValueError(f"it answered as client {answer.client}")
                yield answer
            except ValueError as error:
                yield Missing(client, f"its site's answer could not be read: {error}")

    def _answers(self, letters: Sequence[Letter], group: str) -> Iterator[tuple[int, Envelope | None, str]]:
        """Yield for each letter its number, and its reply or why there is none, as they come."""
        waiting, begun, got = dict(enumerate(letters)), self.now(), 0
        limit = self.terms.deadline
        while waiting:
            self._deliver(waiting.values(), group)
            self._look()
            for number, reply, reason in self._arrived(waiting):
                letter = waiting.pop(number)
                got += len(letter.clients) if reply is not None else 0
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
                if not lacking or self.terms.policy == "go-on":
                    for number, letter in waiting.items():
                        yield number, None, f"site {letter.site} did not answer within {limit:g} seconds"
                    return
            if waiting:
                self.pause(POLL)

    def _deliver(self, letters: Iterable[Letter], group: str) -> None:
        """Send what has not been sent, or was sent to a node that its site has left."""
        for letter in letters:
            member = self.members.get(letter.site)
            if member is None or member.node is None or letter.node == member.node:
                continue
            try:
                name = self.post.send(member.node, letter.content, group)
            except Renewed:
                self._renewed()
                return
            if name is not None:
                letter.node, letter.tries = member.node, letter.tries + 1
                self._sent[name] = letter

    def _arrived(self, waiting: Mapping[int, Letter]) -> Iterator[tuple[int, Envelope | None, str]]:
        """Yield what has come for letters, and note what has come for none of them any more."""
        numbers = {id(letter): number for number, letter in waiting.items()}
        for reply in self._taken():
            letter = self._sent.pop(reply.message)
            number = numbers.get(id(letter))
            if number is None:
                self.noted(
                    "late", {"site": letter.site, "clients": list(letter.clients), "error": reply.error}
                )
                continue
            found, reason = opened(reply)
            if found is not None and found.kind != "refused":
                del numbers[id(letter)]
                yield number, found, ""
            elif found is not None:
                del numbers[id(letter)]
                yield number, None, f"site {letter.site} refused: {found.head.get('reason')}"
            else:
                self._looked = float("-inf")
                self._look()
                letter.node = None  # so that it is sent again
                if self.members[letter.site].node is None:
                    continue  # it may come back before the deadline
                self.noted("failed", {"site": letter.site, "reason": reason})
                if letter.tries >= TRIES:
                    del numbers[id(letter)]
                    yield number, None, f"site {letter.site} failed: {reason}"

    def _taken(self) -> list[Reply]:
        """Return replies to letters that have come, after those of joining sites were dealt with."""
        try:
            found = list(self.post.collect([*self._joining, *self._sent]))
        except Renewed:
            self._renewed()
            return []
        for reply in found:
            if reply.message in self._joining:
                self._joined(self._joining.pop(reply.message), reply)
        return [reply for reply in found if reply.message in self._sent]

    def _look(self) -> None:
        """Look for nodes that have come or gone, and ask new ones to join."""
        if self.now() - self._looked < LOOK:
            return
        self._looked = self.now()
        try:
            self._names = self.post.nodes()
            there = set(self._names)
            for node in sorted(there - self._known):
                name = self.post.send(node, self.begin.to_bytes(), "join")
                if name is not None:
                    self._joining[name] = node
                    self._known.add(node)
        except Renewed:
            self._renewed()
            return
        self._known &= there
        for member in self.members.values():
            if member.node is not None and member.node not in there:
                self.noted("site away", {"site": member.name})
                member.node = None

    def _joined(self, node: int, reply: Reply) -> None:
        """Take in a site, or note why it cannot take part."""
        found, reason = opened(reply)
        if found is None or found.kind != "joined":
            why = reason if found is None else str(found.head.get("reason"))
            self.noted(
                "site refused", {"site": str(found.head.get("site", "")) if found else "", "reason": why}
            )
            if found is None:  # its process may have been starting
                self._known.discard(node)
            return
        head, held = found.head, self.members.get(found.head["site"])
        member = Member(head["site"], node, tuple(head["clients"]), head["profiles"], head.get("counts", {}))
        if why := self._unfit(member, held):
            self.noted("site refused", {"site": member.name, "reason": why})
            return
        if held is not None and self.own:
            member.clients = held.clients
        self.members[member.name] = member
        self.noted("site joined", {"site": member.name, "clients": list(member.clients), **member.counts})

    def _unfit(self, member: Member, held: Member | None) -> str | None:
        """Return why a site cannot take part, or None."""
        if (registered := self._names.get(member.node or 0)) and registered != member.name:
            return f"its key is that of site {registered}"
        if self.own:
            if held is None and len(self.members) >= self.clients:
                return f"{self.clients} other sites take part already"
            if held is not None and held.counts != member.counts:
                return "it came back with other data"
            return None
        others = {client: name for client, name in self._sites().items() if name != member.name}
        taken = sorted(set(others) & set(member.clients))
        return f"client {taken[0]} is at site {others[taken[0]]}" if taken else None

    def _renewed(self) -> None:
        """Forget what was sent, and to which nodes: all sites join anew, and are asked again what they were asked."""
        self.noted("link renewed", {})
        for letter in self._sent.values():
            letter.node = None
        self._sent.clear()
        self._joining.clear()
        self._known.clear()
        for member in self.members.values():
            member.node = None
