"""The round loop: broadcast, train a cohort, refuse what is broken, apply the rest, commit.

Updates stream from the clients through the gate into the aggregator; none is kept, so a round takes the
memory of a few updates, whatever the size of its cohort.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from math import isfinite
from typing import Any, Protocol

import torch
from torch import Tensor

from fedloom.algorithms.base import FederatedAlgorithm, ServerState
from fedloom.client.train import Answer, Result, TrainSettings, Work
from fedloom.engine.gate import Gate, GateSettings
from fedloom.engine.limits import Expected, norm
from fedloom.engine.matching import matched
from fedloom.params import Params
from fedloom.record import Clock
from fedloom.scenarios.published import published_cohort
from fedloom.seeds import stream
from fedloom.types import ClientUpdate, Conversation, Missing, Tensors, UserError


class Memories(Protocol):
    """What clients keep, by client: a dict, or files."""

    def get(self, client: int, default: Tensors, /) -> Tensors:
        """Return what a client keeps."""
        ...

    def __setitem__(self, client: int, memory: Tensors, /) -> None:
        """Keep what a client found in this round."""
        ...


MISSED = 3
"""So many rounds in a row without effect end a run."""

TOLD = 5
"""Clients whose reasons a message gives."""

LISTED = 1000
"""Clients of one round whose figures go into the record one by one; larger cohorts are summed up."""


class Backend(Protocol):
    """Where clients run. In-process, side by side, or at other sites: all give the same updates."""

    def map(self, works: Iterable[Work], clock: Clock) -> Iterator[Answer]:
        """Do the work and yield (update, what the client keeps), or `Missing`, in the order of `works`.

        A client for whom nothing is yielded has not answered; that is no error.
        """
        ...


@dataclass(frozen=True)
class Best:
    """The round with the best validation score so far, the first of equals.

    Attributes:
        round: Rounds that were done then, over all stages.
        score: Its validation score.
        models: Parameters by the client they belong to, or None for the global model.
    """

    round: int
    score: float
    models: Mapping[int | None, Params]


@dataclass(frozen=True)
class Standing:
    """Where a run stands between two rounds: all that a resumed run needs.

    Attributes:
        state: The server's state; `state.round` rounds are done.
        memories: What clients keep, by client.
        norms: Norms of the updates accepted last, at most `gate.REMEMBERED`.
        missed: Number of the last rounds, in a row, that were not applied.
        up: Bytes sent by clients so far.
        down: Bytes sent to clients so far.
        seconds: Time spent in rounds so far.
        best: The best round so far, where one is looked for and was found.
    """

    state: ServerState
    memories: Memories = field(default_factory=dict[int, Tensors])
    norms: tuple[float, ...] = ()
    missed: int = 0
    up: int = 0
    down: int = 0
    seconds: float = 0.0
    best: Best | None = None


@dataclass(frozen=True)
class Schedule:
    """How often and with whom.

    Attributes:
        rounds: Number of rounds.
        clients: Client numbers to draw from, ascending.
        cohort: How many of them train in a round; None means all.
        seed: Names the draws.
        sampler: corrected, or published: the cohorts of FedMLLM's code, which are the same for every seed.
    """

    rounds: int
    clients: Sequence[int]
    cohort: int | None
    seed: int
    sampler: str = "corrected"


def draw_cohort(schedule: Schedule, round: int) -> Sequence[int]:
    """Draw the clients of a round, without replacement, in ascending order."""
    if schedule.cohort is None or schedule.cohort >= len(schedule.clients):
        return schedule.clients
    if schedule.sampler == "published":
        places = published_cohort(round, len(schedule.clients), schedule.cohort)
        return tuple(schedule.clients[place] for place in places)
    drawn = stream(schedule.seed, "cohort", round=round).choice(
        len(schedule.clients), schedule.cohort, replace=False
    )
    return tuple(schedule.clients[place] for place in sorted(drawn))


def payload(tensors: Tensors) -> int:
    """Count the bytes of named tensors on the wire."""
    return sum(value.numel() * value.element_size() for value in tensors.values())


def in_memory(standing: Standing) -> Memories:
    """Open a copy of clients' memories for the next round, in memory."""
    return dict(standing.memories.items()) if isinstance(standing.memories, Mapping) else {}


def _nothing(standing: Standing, log: dict[str, Any]) -> None:
    pass


Committed = Callable[[Standing, dict[str, Any]], Standing | None]
"""(where a run stands after a round, the round's figures) → where it then stands; None where that is the same."""


@dataclass(frozen=True)
class Run:
    """One training: a server, its clients, and where it stands.

    Attributes:
        algorithm: Server and client half.
        standing: Where it stands.
        schedule: Rounds and cohorts.
        conversations: Each client's rendered examples, by client; may render them when asked.
        settings: How clients train.
        gate: Which updates are refused.
        opened: Makes the memories that the next round's clients write to, from where the run stands; those
            of before stay as they are.
        committed: Called after each round with where the run then stands and the round's figures.
        stage: Number of the strategy's stage.
        trained: Mask of the values this stage trains, or None; see `Work`.
        shared: Mask of the values that are exchanged, or None.
    """

    algorithm: FederatedAlgorithm
    standing: Standing
    schedule: Schedule
    conversations: Callable[[int], Sequence[Conversation]]
    settings: TrainSettings
    gate: GateSettings
    opened: Callable[[Standing], Memories] = in_memory
    committed: Committed = _nothing
    stage: int = 0
    trained: Tensor | None = None
    shared: Tensor | None = None

    @property
    def round(self) -> int:
        """The next round."""
        return self.standing.state.round

    @property
    def left(self) -> int:
        """Rounds that are left."""
        return self.schedule.rounds - self.round

    @property
    def exchanged(self) -> int:
        """Bytes of the values that go one way: those that this stage trains and clients do not keep."""
        masks = [mask for mask in (self.trained, self.shared) if mask is not None]
        if not masks:
            return payload({"params": self.standing.state.params.flat})
        return 4 * int(torch.stack(masks).prod(0).sum())


def run_rounds(runs: Sequence[Run], backend: Backend) -> list[Standing]:
    """Run the rounds that are left of one training, or of several in step over the same frozen model.

    Several trainings share nothing but the model; together their clients may train side by side. A round is
    committed when all that take part in it have ended it, so that a commit may use the model for evaluation.

    Raises:
        UserError: Every update of a round was refused, or the last of `MISSED` rounds in a row could not be applied;
            nothing of that round is kept.
    """
    now = list(runs)
    while left := [k for k, run in enumerate(now) if run.left > 0]:
        # Runs that are behind go first, so that those which train together are in the same round.
        first = min(now[k].round for k in left)
        together = [k for k in left if now[k].round == first]
        clock = Clock()
        cohorts = [draw_cohort(now[k].schedule, first) for k in together]
        asked = [_expected(now[k]) for k in together]
        works = [
            expected.noted(works_of(now[k], cohort))
            for k, cohort, expected in zip(together, cohorts, asked, strict=True)
        ]
        whole = list(chain.from_iterable(cohorts))
        answers, logs = matched(backend.map(chain.from_iterable(works), clock), whole), list[dict[str, Any]]()
        for k, cohort, expected in zip(together, cohorts, asked, strict=True):
            standing, log = _close(now[k], cohort, expected, islice(answers, len(cohort)), clock)
            now[k] = replace(now[k], standing=standing)
            logs.append(log)
        for k, log in zip(together, logs, strict=True):
            now[k] = replace(now[k], standing=now[k].committed(now[k].standing, log) or now[k].standing)
    return [run.standing for run in now]


def works_of(run: Run, cohort: Sequence[int] | None = None) -> Iterator[Work]:
    """Say what each client of the next round's cohort is to do, one at a time."""
    cohort = draw_cohort(run.schedule, run.round) if cohort is None else cohort
    state, broadcast = run.standing.state, run.algorithm.broadcast(run.standing.state)
    for client in cohort:
        yield Work(
            client,
            state.round,
            run.schedule.seed,
            run.algorithm.local,
            broadcast,
            run.standing.memories.get(client, {}),
            run.conversations(client),
            run.settings,
            run.stage,
            run.trained,
            run.shared,
        )


def _expected(run: Run) -> Expected:
    params = run.algorithm.broadcast(run.standing.state).params
    return Expected(run.algorithm, params, (run.trained, run.shared))


def _close(
    run: Run, cohort: Sequence[int], expected: Expected, answers: Iterator[Answer], clock: Clock
) -> tuple[Standing, dict[str, Any]]:
    """Take in a round's answers; return where the run stands then, and the round's figures."""
    before = run.standing
    gate = Gate(before.state.params.layout, expected, before.norms, run.gate)
    tally = _Tally(gate, expected, run.opened(before), run.exchanged)
    accepted = tally.accepted(answers, clock)
    first = next(accepted, None)
    if first is None and not tally.missing:
        raise UserError(
            f"round {before.state.round}: every client's update was refused, so the run stops here "
            f"({_reasons(tally.refused)})"
        )
    if first is None:
        after, diagnostics = before.state, dict[str, float]()
        fault = f"no client's update could be used ({_reasons({**tally.refused, **tally.missing})})"
    else:
        after, diagnostics = run.algorithm.apply(before.state, chain([first], accepted))
        fault = _fault(after)
    last = MISSED if first is not None else min(MISSED, run.schedule.rounds)
    if fault is not None and before.missed + 1 >= last:
        which = f"the last of {last} such rounds in a row" if last > 1 else "the only round"
        raise UserError(f"round {before.state.round}: {fault}; this is {which}, so the run stops here")
    clock.lap("aggregate")
    broadcast = run.algorithm.broadcast(before.state)
    down = len(cohort) * (run.exchanged + payload(broadcast.extras))
    timers = clock.take()
    seconds = sum(timers.values())
    log = {
        "round": before.state.round,
        "loss": tally.loss / tally.weight if tally.weight else None,
        "bytes_up": tally.up,
        "bytes_down": down,
        "seconds": seconds,
        "timers": timers,
        "diagnostics": dict(diagnostics),
        "cohort": len(cohort),
        "clients": tally.clients,
        "refused": [{"client": client, "reason": why} for client, why in sorted(tally.refused.items())],
        "missing": [{"client": client, "reason": why} for client, why in sorted(tally.missing.items())],
    }
    if fault is None:
        moved = replace(before, state=after, norms=tally.gate.norms, missed=0)
    else:  # the next round begins where this one began
        log["not_applied"] = fault
        tally.take_back(before.memories)
        moved = replace(
            before, state=replace(before.state, round=before.state.round + 1), missed=before.missed + 1
        )
    moved = replace(
        moved,
        memories=tally.memories,
        up=before.up + tally.up,
        down=before.down + down,
        seconds=before.seconds + seconds,
    )
    return moved, log


def _reasons(reasons: Mapping[int, str]) -> str:
    """List why updates of a round could not be used: those of the first clients, and how many more there are."""
    told = [f"client {client}: {reason}" for client, reason in sorted(reasons.items())]
    more = [f"and {len(told) - TOLD} more"] if len(told) > TOLD else []
    return "; ".join([*told[:TOLD], *more])


def _fault(state: ServerState) -> str | None:
    """Return what is wrong with a server's new state, or None."""
    for name, values in {"global parameters": state.params.flat, **state.slots}.items():
        if not isfinite(norm(values)):
            return f"the aggregate was not applied, since it makes the server's {name} not finite"
    return None


class _Tally:
    """What is counted while a round's updates stream by."""

    def __init__(self, gate: Gate, expected: Expected, memories: Memories, exchanged: int) -> None:
        self.gate, self.expected, self.memories, self.exchanged = gate, expected, memories, exchanged
        self.up = 0
        self.loss = 0.0
        self.weight = 0.0
        self.clients: list[dict[str, Any]] = []
        self.refused: dict[int, str] = {}
        self.missing: dict[int, str] = {}
        self.kept: list[int] = []

    def came(self, answers: Iterator[Answer]) -> Iterator[Result]:
        """Pass on what came, and note who is missing."""
        for answer in answers:
            if isinstance(answer, Missing):
                self.expected.passed_over(answer.client)
                self.missing[answer.client] = answer.reason
            else:
                yield answer

    def accepted(self, answers: Iterator[Answer], clock: Clock) -> Iterator[ClientUpdate]:
        """Pass on the updates that the gate lets through."""
        for update, memory, reason in self.gate.judge(self.came(answers)):
            self.up += self.exchanged + payload(update.extras)
            if len(self.clients) < LISTED:
                own = {"client": update.client, "weight": update.weight}
                self.clients.append(own | {**update.metrics} | own)  # a metric cannot take their names
            if reason is not None:
                self.refused[update.client] = reason
                continue
            if isfinite(loss := update.metrics.get("loss", 0.0)):
                self.loss += update.weight * loss
                self.weight += update.weight
            if memory:
                self.memories[update.client] = memory
                self.kept.append(update.client)
            clock.lap("aggregate")
            yield update

    def take_back(self, before: Memories) -> None:
        """Let every client keep what it kept before this round."""
        for client in self.kept:
            self.memories[client] = before.get(client, {})
