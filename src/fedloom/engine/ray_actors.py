"""Train clients by Ray: actors that each keep the model and the data, on this machine or across a cluster.

An actor opens the site once and is then given assignments as messages, a few clients at a time, whenever it has done those
before. What is the same for all clients of a round travels once. Updates come back as messages, and what clients keep goes to
the run's folder, which all actors must see, as they must see data and models, at the same path. So the clients of an actor
that dies are trained again by another one, from what they kept of the round before, and the updates are those of
`InProcess` with as many threads and rows.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import Any

from fedloom.client.site import Profile, Question, Site
from fedloom.engine.in_process import WINDOW, InProcess
from fedloom.engine.ray_cluster import Wanted, connected, library, room
from fedloom.failures import first_line, sentence
from fedloom.framing import prefixed, split
from fedloom.messages import Answer, Assignment, Missing, Update, answer_from_bytes
from fedloom.models.recompute import recomputing
from fedloom.params import Params
from fedloom.record import Clock
from fedloom.tasks.scoring import Judged
from fedloom.types import UserError

EACH = 64
"""Clients for each actor that are looked at together, so that those with most work begin first."""

TRIES = 3
"""Actors that may die over the same clients before these are missing."""

PATIENCE = 120.0
"""Seconds without any client's update after which a message says so, once."""

STILL = "Ray's actors have trained no client yet: they load the model, or wait for processors or GPUs that others use"

SHARED = 8
"""Broadcasts that are kept for further clients."""

Opened = Callable[..., AbstractContextManager[Site]]
"""Opens an actor's site; a function of a module that all nodes have."""

Own = tuple[int, int, int, tuple[int, ...]]
"""The number of a client's broadcast, and what is its own in its assignment: its number, `since` and `keep`."""

Found = tuple[str, Sequence[bytes]]
"""What ended an actor's work early, or "", and the answers to each client's assignment."""


class Actor:
    """An actor's side: it opens a site and trains what it is given, and returns plain values, mistakes too."""

    def __init__(self, opened: Opened, arguments: Sequence[Any], place: str) -> None:
        self._open, self._place = (opened, arguments), place
        self._live, self._opened = ExitStack(), list[Site]()
        self._known = dict[int, Assignment]()

    def train(self, shared: Mapping[int, Sequence[Any]], own: Sequence[Own], rows: int, again: bool) -> Found:
        """Train clients side by side or one after the other.

        Args:
            shared: Number of a broadcast → reference to the message that its clients have in common.
            own: What is each client's own.
            rows: Clients side by side.
            again: Whether layers are recomputed.
        """
        answers = list[bytes]()
        try:
            clock = Clock()  # so that opening the site is counted as loading
            site = self._site()
            for number in shared.keys() - self._known.keys():
                message = library().get(shared[number][0])
                self._known[number] = Assignment.from_bytes(message, site.tuned.layout)
            asked = [
                replace(self._known[number], client=client, since=since, keep=keep)
                for number, client, since, keep in own
            ]
            for old in [*self._known][: -max(SHARED, len(shared))]:
                del self._known[old]
            with recomputing(site.tuned.vlm, again):
                for answer in InProcess(site, rows).train(asked, clock):
                    answers.append(prefixed(json.dumps(clock.take()).encode(), answer.to_bytes()))
        except Exception as error:
            return f"an actor on {socket.gethostname()}: {sentence(error)}", []
        return "", answers

    def _site(self) -> Site:
        """Return the site, which the first client opens."""
        if not self._opened:
            with suppress(OSError):  # this node lacks the folder
                os.chdir(self._place)
            function, arguments = self._open
            self._opened.append(self._live.enter_context(function(*arguments)))
        return self._opened[0]


@dataclass
class Piece:
    """Assignments that one actor gets together, and how many actors died over them."""

    assignments: Sequence[Assignment]
    shared: Mapping[int, Sequence[Any]]
    own: Sequence[Own]
    deaths: int = 0


def _nowhere(text: str) -> None:
    pass


class Actors:
    """The actors of one run, which start when the first client is to be trained.

    Args:
        wanted: What is asked of Ray.
        opened: Opens an actor's site.
        arguments: What `opened` is given: plain values.
        message: Shows a line of text.
    """

    def __init__(
        self,
        wanted: Wanted,
        opened: Opened,
        arguments: Sequence[Any],
        message: Callable[[str], None] = _nowhere,
    ) -> None:
        self._wanted, self._site = wanted, (opened, tuple(arguments), os.getcwd())
        self._message, self._patient = message, False
        self._live = ExitStack()
        self._ray: Any = None
        self._numbers = count()
        self._shared: deque[tuple[Assignment, int, Any]] = deque(maxlen=SHARED)
        self.handles: list[Any] = []

    def close(self) -> None:
        """End the actors, and Ray where it was started for them."""
        for handle in self.handles:
            with suppress(Exception):
                self._ray.kill(handle)
        self.handles.clear()
        self._shared.clear()
        self._live.close()
        self._ray = None

    def start(self) -> None:
        """Start Ray and the actors, unless they are there; their models are loaded with the first clients."""
        if self._ray is None:
            self._ray = self._live.enter_context(connected(self._wanted))
            self.handles += [self._actor() for _ in range(room(self._ray, self._wanted))]

    def results(
        self, pieces: Iterator[Sequence[Assignment]], rows: int, recompute: bool
    ) -> Iterator[tuple[Sequence[Assignment], Sequence[bytes] | str]]:
        """Give pieces to actors; yield each with its answers, or with the reason why there are none, as they are done.

        Raises:
            UserError: An actor cannot open its site, or work fails there that is no client's alone.
        """
        self.start()
        flying: dict[Future[Found], tuple[int, Piece]] = {}
        idle, again = [*range(len(self.handles))], list[Piece]()
        while True:
            while idle and (piece := again.pop() if again else self._next(pieces)) is not None:
                sent = self.handles[idle[-1]].train.remote(piece.shared, piece.own, rows, recompute)
                flying[sent.future()] = idle.pop(), piece
            if not flying:
                return
            # Ray's own wait would turn every signal into a Ctrl-C.
            found = wait(flying, None if self._patient else PATIENCE, FIRST_COMPLETED).done
            if not found and not self._patient:
                self._message(STILL)
            self._patient = True
            if not found:
                continue
            done = next(iter(found))
            number, piece = flying.pop(done)
            idle.append(number)
            try:
                wrong, answers = done.result()
            except self._ray.exceptions.RayError as error:
                self._replace(number)
                piece.deaths += 1
                if piece.deaths < TRIES:
                    again.append(piece)
                    continue
                wrong, answers = "", f"{TRIES} Ray actors died over it, the last one so: {first_line(error)}"
            if wrong:
                raise UserError(wrong)
            yield piece.assignments, answers

    def _next(self, pieces: Iterator[Sequence[Assignment]]) -> Piece | None:
        """Take the next piece; what clients have in common is put where actors get it, unless it is there."""
        if (assignments := next(pieces, None)) is None:
            return None
        shared, own = dict[int, Sequence[Any]](), list[Own]()
        for one in assignments:
            number, reference = self._broadcast(one)
            shared[number] = [reference]  # in a list, so that only actors that lack it get it
            own.append((number, one.client, one.since, one.keep))
        return Piece(assignments, shared, own)

    def _broadcast(self, assignment: Assignment) -> tuple[int, Any]:
        """Return the number of an assignment's broadcast and the reference to it."""
        for common, number, reference in self._shared:
            if _alike(assignment, common):
                return number, reference
        number, reference = next(self._numbers), self._ray.put(assignment.to_bytes())
        self._shared.append((assignment, number, reference))
        return number, reference

    def _replace(self, number: int) -> None:
        """Start another actor for one that died; the scheduler places it where there is room."""
        with suppress(Exception):
            self._ray.kill(self.handles[number])
        self.handles[number] = self._actor()

    def _actor(self) -> Any:
        made = self._ray.remote(Actor).options(
            num_cpus=self._wanted.threads, num_gpus=self._wanted.gpus, max_restarts=0
        )
        return made.remote(*self._site)


@dataclass(frozen=True)
class RayActors:
    """A backend that lets Ray's actors train, and does everything else in this process.

    Attributes:
        inner: The site in this process, how many of its clients train side by side, and what hears of updates.
        actors: The actors.
        recompute: Whether layers are recomputed.
    """

    inner: InProcess
    actors: Actors
    recompute: bool = False

    def start(self, method: str) -> Params:
        """See `Backend`."""
        return self.inner.start(method)

    def describe(self, method: str) -> Sequence[Profile]:
        """See `Backend`."""
        return self.inner.describe(method)

    def answer(self, questions: Sequence[Question]) -> list[Judged]:
        """See `Backend`."""
        return self.inner.answer(questions)

    def measure(self, assignments: Iterable[Assignment], probe: str) -> Iterator[Answer]:
        """See `Backend`."""
        return self.inner.measure(assignments, probe)

    def train(self, assignments: Iterable[Assignment], clock: Clock) -> Iterator[Answer]:
        """Train clients and yield their updates as they are done; a client that raises, or kills actors, is `Missing`."""
        rows, layout = self.inner.rows, self.inner.site.tuned.layout
        if not self.inner.site.memory.shared:
            raise ValueError("what clients keep in an actor is lost; keep it in files")
        self.actors.start()
        clock.lap("load")
        begun = time.perf_counter()
        for asked, found in self.actors.results(self._pieces(assignments), rows, self.recompute):
            clock.skip()
            passed = time.perf_counter() - begun
            if isinstance(found, str):
                yield from [Missing(one.client, found) for one in asked]
            else:
                read = [
                    (answer_from_bytes(answer, layout), json.loads(times))
                    for times, answer in map(split, found)
                ]
                there = sum(sum(spent.values()) for _, spent in read)
                for answer, spent in read:
                    if isinstance(answer, Update):
                        self.inner.trained(answer)
                    # Seconds that passed here for each second of an actor's work.
                    clock.add({name: seconds * passed / there for name, seconds in spent.items()})
                    yield answer
            begun = time.perf_counter()

    def _pieces(self, assignments: Iterable[Assignment]) -> Iterator[Sequence[Assignment]]:
        """Cut assignments into what actors get together: blocks of clients side by side are formed as in one process."""
        rows, coming = self.inner.rows, iter(assignments)
        if rows > 1:
            while window := list(islice(coming, rows * WINDOW)):
                yield window
        while window := list(islice(coming, EACH * max(1, len(self.actors.handles)))):
            yield from ([one] for one in sorted(window, key=self._examples, reverse=True))

    def _examples(self, assignment: Assignment) -> int:
        return self.inner.site.local(assignment.method).profiles[assignment.client].examples


def _alike(one: Assignment, other: Assignment) -> bool:
    """Return whether assignments differ at most in what is a client's own."""
    return (
        one.params is other.params
        and one.extras is other.extras
        and one.coded is other.coded
        and (one.method, one.stage, one.round, one.down, one.up)
        == (other.method, other.stage, other.round, other.down, other.up)
    )
