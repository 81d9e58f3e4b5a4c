"""Train clients in Ray's actors, which each keep the model and the data, on this machine or across a cluster.

An actor opens the site once, and then gets assignments as messages, a few clients at a time, whenever it is idle. What all
clients of a round have in common is sent once. Updates come back as messages, and clients' memories are files in the run's
folder. All actors must see this folder, the data and the models at the same paths. If an actor dies, another one therefore
trains its clients again, from their memories of the round before. The updates are those of `InProcess` with as many
threads and rows.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from fedloom.client.site import Site
from fedloom.engine.in_process import InProcess
from fedloom.engine.ray_cluster import ActorRequest, actor_count, connect, import_ray
from fedloom.engine.timed_answers import from_bytes, timed, to_bytes
from fedloom.engine.trains_in_pieces import Trained, TrainsInPieces
from fedloom.models.gradient_checkpointing import gradient_checkpointing
from fedloom.system.errors import UserError, error_sentence, first_line
from fedloom.system.timing import Clock
from fedloom.wire.messages import Assignment

TRIES = 3
"""Number of actors that may die over the same clients before these are missing."""

QUIET_SECONDS = 120.0
"""Seconds without any client's update after which a message is shown, once."""

STILL_WAITING = (
    "Ray's actors have trained no client yet: they load the model, or wait for CPUs or GPUs that others use"
)

BROADCASTS_HELD = 8
"""Number of broadcasts that are kept for further clients."""

OpenSite = Callable[..., AbstractContextManager[Site]]
"""Opens an actor's site; a function of a module that all nodes have."""

Own = tuple[int, int, int, tuple[int, ...]]
"""The number of a client's broadcast, and the fields of its assignment that are its own: its number, `since` and `keep`."""

Result = tuple[str, Sequence[bytes]]
"""The reason for which an actor stopped early, or "", and the answer to each client's assignment."""


class Actor:
    """The side of an actor: it opens a site, trains clients, and returns plain values, errors included."""

    def __init__(self, open_site: OpenSite, arguments: Sequence[Any], place: str) -> None:
        self._open, self._place = (open_site, arguments), place
        self._live, self._sites = ExitStack(), list[Site]()
        self._known = dict[int, Assignment]()

    def train(
        self, shared: Mapping[int, Sequence[Any]], own: Sequence[Own], rows: int, recompute: bool
    ) -> Result:
        """Train clients side by side or one after the other.

        Args:
            shared: Number of a broadcast → reference to the message that its clients have in common.
            own: The fields that are each client's own.
            rows: Clients side by side.
            recompute: Whether layers are recomputed.
        """
        answers = list[bytes]()
        try:
            clock = Clock()  # so that opening the site is counted as loading
            site = self._site()
            for number in shared.keys() - self._known.keys():
                message = import_ray().get(shared[number][0])
                self._known[number] = Assignment.from_bytes(message, site.tuned.layout)
            assignments = [
                replace(self._known[number], client=client, since=since, keep=keep)
                for number, client, since, keep in own
            ]
            for old in [*self._known][: -max(BROADCASTS_HELD, len(shared))]:
                del self._known[old]
            with gradient_checkpointing(site.tuned.vlm, recompute):
                answers += map(to_bytes, timed(InProcess(site, rows), assignments, clock))
        except Exception as error:
            return f"an actor on {socket.gethostname()}: {error_sentence(error)}", []
        return "", answers

    def _site(self) -> Site:
        """Return the site, which the first client opens."""
        if not self._sites:
            with suppress(OSError):  # this node lacks the folder
                os.chdir(self._place)
            function, arguments = self._open
            self._sites.append(self._live.enter_context(function(*arguments)))
        return self._sites[0]


@dataclass
class Piece:
    """Assignments that one actor gets together, and the number of actors that died over them."""

    assignments: Sequence[Assignment]
    shared: Mapping[int, Sequence[Any]]
    own: Sequence[Own]
    deaths: int = 0


def _nowhere(text: str) -> None:
    pass


class Actors:
    """The actors of one run, which start when the first client is to be trained.

    Args:
        request: The actors that Ray is asked for.
        open_site: Opens an actor's site.
        arguments: The arguments of `open_site`, which are plain values.
        message: Shows a line of text.
    """

    def __init__(
        self,
        request: ActorRequest,
        open_site: OpenSite,
        arguments: Sequence[Any],
        message: Callable[[str], None] = _nowhere,
    ) -> None:
        self._request, self._site = request, (open_site, tuple(arguments), os.getcwd())
        self._message, self._patient = message, False
        self._live = ExitStack()
        self._ray: Any = None
        self._numbers = count()
        self._shared: deque[tuple[Assignment, int, Any]] = deque(maxlen=BROADCASTS_HELD)
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
            self._ray = self._live.enter_context(connect(self._request))
            self.handles += [self._actor() for _ in range(actor_count(self._ray, self._request))]

    def results(
        self, pieces: Iterator[Sequence[Assignment]], rows: int, recompute: bool
    ) -> Iterator[tuple[Sequence[Assignment], Sequence[bytes] | str]]:
        """Send pieces to actors, and yield each one as it is done, with its answers or the reason why there are none.

        Raises:
            UserError: An actor cannot open its site, or an error there is not that of a single client.
        """
        self.start()
        flying: dict[Future[Result], tuple[int, Piece]] = {}
        idle, again = [*range(len(self.handles))], list[Piece]()
        while True:
            while idle and (piece := again.pop() if again else self._next(pieces)) is not None:
                sent = self.handles[idle[-1]].train.remote(piece.shared, piece.own, rows, recompute)
                flying[sent.future()] = idle.pop(), piece
            if not flying:
                return
            # Ray's own wait would turn every signal into a Ctrl-C.
            ready = wait(flying, None if self._patient else QUIET_SECONDS, FIRST_COMPLETED).done
            if not ready and not self._patient:
                self._message(STILL_WAITING)
            self._patient = True
            if not ready:
                continue
            done = next(iter(ready))
            number, piece = flying.pop(done)
            idle.append(number)
            try:
                fault, answers = done.result()
            except self._ray.exceptions.RayError as error:
                self._replace(number)
                piece.deaths += 1
                if piece.deaths < TRIES:
                    again.append(piece)
                    continue
                fault, answers = "", f"{TRIES} Ray actors died over it, the last one so: {first_line(error)}"
            if fault:
                raise UserError(fault)
            yield piece.assignments, answers

    def _next(self, pieces: Iterator[Sequence[Assignment]]) -> Piece | None:
        """Return the next piece, and put what its clients have in common where actors get it, unless it is there."""
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
            if _same_broadcast(assignment, common):
                return number, reference
        number, reference = next(self._numbers), self._ray.put(assignment.to_bytes())
        self._shared.append((assignment, number, reference))
        return number, reference

    def _replace(self, number: int) -> None:
        """Start another actor in place of one that died; Ray chooses its node."""
        with suppress(Exception):
            self._ray.kill(self.handles[number])
        self.handles[number] = self._actor()

    def _actor(self) -> Any:
        remote = self._ray.remote(Actor).options(
            num_cpus=self._request.threads, num_gpus=self._request.gpus, max_restarts=0
        )
        return remote.remote(*self._site)


@dataclass(frozen=True)
class RayActors(TrainsInPieces):
    """A backend that trains in Ray's actors and does everything else in this process.

    Attributes:
        actors: The actors.
    """

    actors: Actors

    def begin(self) -> int:
        """Start Ray and the actors; return their number."""
        self.actors.start()
        return len(self.actors.handles)

    def results(
        self, pieces: Iterator[Sequence[Assignment]]
    ) -> Iterator[tuple[Sequence[Assignment], Trained]]:
        """Let actors train pieces; see `Actors.results`."""
        layout = self.inner.site.tuned.layout
        for assigned, answers in self.actors.results(pieces, self.inner.rows, self.recompute):
            yield (
                assigned,
                answers if isinstance(answers, str) else [from_bytes(one, layout) for one in answers],
            )


def _same_broadcast(one: Assignment, other: Assignment) -> bool:
    """Return whether assignments differ at most in the fields that are a client's own."""
    return (
        one.params is other.params
        and one.extras is other.extras
        and one.coded is other.coded
        and (one.method, one.stage, one.round, one.down, one.up)
        == (other.method, other.stage, other.round, other.down, other.up)
    )
