"""Run rounds: assign, let the cohort train, admit its updates, aggregate them, take a server step, write a checkpoint.

The server holds nothing that clients hold: it knows their profiles and what updates say. Updates stream from the backend
through admission into the aggregate. None is kept, so a round needs memory for a few updates, whatever the size of its
cohort.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from math import isfinite
from typing import TYPE_CHECKING, Any, Protocol

import torch

from fedloom.algorithms.algorithm import EVERYTHING, Diagnostics, FederatedAlgorithm, ServerState, TooFew
from fedloom.client.site import Profile, Question
from fedloom.engine.admission import Admission
from fedloom.engine.client_order import in_order
from fedloom.engine.client_sampling import Schedule, draw_cohort
from fedloom.engine.update_bounds import UpdateBounds, norm
from fedloom.params import Params, Part
from fedloom.system.errors import UserError
from fedloom.system.timing import Clock
from fedloom.tasks.score_answers import Answers
from fedloom.wire.compression import FP32, Codecs
from fedloom.wire.messages import Answer, Assignment, in_codec

if TYPE_CHECKING:
    from fedloom.config.schema import Limits, Train

MAX_UNAPPLIED_ROUNDS = 3
"""Maximum number of consecutive unapplied rounds before the run ends."""

MAX_REASONS = 5
"""Maximum number of clients whose reasons a message gives."""

MEMORIES_KEPT = 2
"""Number of rounds of accepted updates to which the memory of a client may still go back."""


class Backend(Protocol):
    """The connection to the sites, in this process or elsewhere. All backends return the same updates."""

    def start(self, method: str) -> Params:
        """Return the parameters of a method's first round."""
        ...

    def describe(self, method: str) -> Sequence[Profile]:
        """Return the profile of each client, by its number."""
        ...

    def train(self, assignments: Iterable[Assignment], clock: Clock) -> Iterator[Answer]:
        """Let clients train, and yield an update or `Missing` for each, in any order.

        A client for which nothing is yielded has not answered; that is no error.
        """
        ...

    def measure(self, assignments: Iterable[Assignment], probe: str) -> Iterator[Answer]:
        """Run a probe of `fedloom.client.client_measurements` at each client, and yield its results as an update's extras."""
        ...

    def answer(self, questions: Sequence[Question]) -> list[Answers]:
        """Answer questions, all about the same examples, each with its own model."""
        ...


@dataclass(frozen=True)
class Best:
    """The round with the best validation score so far; of equal ones the first.

    Attributes:
        round: Number of rounds done by then, over all stages.
        score: The validation score.
        params: The global parameters.
        since: Client → round of its memory at that time; see `Assignment.since`.
    """

    round: int
    score: float
    params: Params
    since: Mapping[int, int]


@dataclass(frozen=True)
class TrainingState:
    """What the server needs to continue a training after a round.

    Attributes:
        state: The server's state; `state.round` rounds of the stage are done.
        kept: Client → the rounds, counted over all stages, of the last accepted memories, at most `MEMORIES_KEPT`; newest last.
        norms: Norms of the last accepted updates, at most `admission.REMEMBERED`.
        missed: Number of the last rounds in a row that were not applied.
        bytes_up: Bytes of all updates so far.
        bytes_down: Bytes of all assignments so far.
        seconds: Time spent in rounds so far.
        best: The best round so far; None where none is chosen.
    """

    state: ServerState
    kept: Mapping[int, tuple[int, ...]] = field(default_factory=dict[int, tuple[int, ...]])
    norms: tuple[float, ...] = ()
    missed: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0
    best: Best | None = None

    @property
    def since(self) -> dict[int, int]:
        """Client → round of its newest accepted memory."""
        return {client: rounds[-1] for client, rounds in self.kept.items()}


def _nothing(training_state: TrainingState, log: dict[str, Any]) -> None:
    pass


AfterRound = Callable[[TrainingState, dict[str, Any]], TrainingState | None]
"""(state after a round, the round's figures) → the state from which to continue; None for the same one."""


@dataclass(frozen=True)
class Training:
    """One training: a server, what it knows about its clients, and its state.

    Attributes:
        method: The method's name in the experiment.
        algorithm: The server half, and what updates carry.
        training_state: The state between two rounds.
        schedule: Rounds and cohorts.
        profiles: The profile of each client, by its number.
        settings: How clients train.
        limits: Limits on updates.
        after_round: Called after each round with the training's state and the round's figures; it writes the checkpoint.
        stage: Number of the strategy's stage.
        before: Number of rounds of the stages before.
        down: Client → the part that is sent to it; None is everything.
        up: Client → the part that it trains and reports; None is everything.
        scale: Client → factor on the scale of its LoRA adapters; see `fedloom.algorithms.algorithm.Budget`.
        codecs: The codecs of messages.
    """

    method: str
    algorithm: FederatedAlgorithm
    training_state: TrainingState
    schedule: Schedule
    profiles: Sequence[Profile]
    settings: Train
    limits: Limits
    after_round: AfterRound = _nothing
    stage: int = 0
    before: int = 0
    down: Callable[[int], Part | None] = EVERYTHING.down
    up: Callable[[int], Part | None] = EVERYTHING.up
    scale: Callable[[int], float] = EVERYTHING.scale
    codecs: Codecs = FP32

    def parts(self, client: int) -> tuple[Part | None, Part | None]:
        """Return the part that is sent to a client and the part that it reports; both are empty without exchange."""
        if self.algorithm.exchanges:
            return self.down(client), self.up(client)
        nothing = Part(self.training_state.state.params.layout.size, ())
        return nothing, nothing

    @property
    def round(self) -> int:
        """Number of the next round within its stage."""
        return self.training_state.state.round

    @property
    def left(self) -> int:
        """Number of rounds left."""
        return self.schedule.rounds - self.round


def run_rounds(runs: Sequence[Training], backend: Backend) -> list[TrainingState]:
    """Run the remaining rounds of one training, or of several in step over the same frozen model.

    Several trainings share nothing but the model; their clients may train side by side. `after_round` is called when all
    trainings have ended a round, so that it may use the model for evaluation.

    Raises:
        UserError: No training can continue, because in each either every update of the round was refused, or
            `MAX_UNAPPLIED_ROUNDS` rounds in a row could not be applied. Nothing of that round is kept. If any training can
            continue, or has already written the checkpoint of this round, none is stopped.
        ValueError: Two trainings have a client in common.
    """
    now = list(runs)
    while left := [k for k, run in enumerate(now) if run.left > 0]:
        # Trainings that are behind go first, so that all that run together are in the same round.
        first = min(now[k].round for k in left)
        together = [k for k in left if now[k].round == first]
        clock, cohorts = Clock(), {k: draw_cohort(now[k].schedule, now[k].round) for k in together}
        admissions = {k: admission_of(now[k]) for k in together}
        assignments = chain.from_iterable(
            map(admissions[k].count_sent, assignments_of(now[k], cohorts[k])) for k in together
        )
        asked = list(chain.from_iterable(cohorts.values()))
        if len(set(asked)) < len(asked):
            raise ValueError("trainings in step need clients of their own")
        answers = in_order(backend.train(assignments, clock), asked, admissions[together[-1]].refuse_stray)
        logs, ends = dict[int, dict[str, Any]](), list[str | None]()
        for k in together:
            # The last training reads the stream to its end, so that stray answers after all others are counted.
            own_answers = answers if k == together[-1] else islice(answers, len(cohorts[k]))
            training_state, logs[k], end = _round(now[k], admissions[k], own_answers, len(cohorts[k]), clock)
            now[k] = replace(now[k], training_state=training_state)
            ends.append(end)
        if len(ends) == len(now) and all(ends):  # a training that cannot go on does not stop the others
            raise UserError(f"{next(iter(ends))}, so the run stops here")
        for k, log in logs.items():
            now[k] = replace(
                now[k], training_state=now[k].after_round(now[k].training_state, log) or now[k].training_state
            )
    return [run.training_state for run in now]


def assignments_of(run: Training, cohort: Sequence[int] | None = None) -> Iterator[Assignment]:
    """Make the assignment of each client of the next round's cohort, one at a time."""
    training_state, broadcast = run.training_state, run.algorithm.broadcast(run.training_state.state)
    best = training_state.best.since if training_state.best else {}
    encoded = dict[Part | None, tuple[Params, bytes | None]]()  # once for all clients that get the same part
    for client in draw_cohort(run.schedule, run.round) if cohort is None else cohort:
        *older, since = training_state.kept.get(client, (-1,))
        keep = {*older, *([best[client]] if client in best else [])}
        down, up = run.parts(client)
        if down not in encoded:
            encoded[down] = _encode(broadcast.params, down, run.codecs.down)
        params, coded = encoded[down]
        yield Assignment(
            run.method,
            run.stage,
            run.round,
            client,
            params,
            broadcast.extras,
            since,
            tuple(sorted(keep)),
            down,
            up,
            coded,
        )


def _encode(params: Params, down: Part | None, codec: str) -> tuple[Params, bytes | None]:
    """Encode the parameters that clients get; return them as clients decode them, and their bytes."""
    flat, coded = in_codec(params.flat, down, codec)
    return params if coded is None else params.with_flat(flat), coded


def admission_of(run: Training) -> Admission:
    """Return the admission of the updates of a training's next round."""
    params = run.algorithm.broadcast(run.training_state.state).params
    expected = UpdateBounds(
        run.algorithm,
        params,
        run.settings,
        run.round,
        run.profiles,
        lambda client: run.parts(client)[1],
        run.scale,
        run.codecs,
    )
    return Admission(expected, run.training_state.norms, run.limits)


def _round(
    run: Training, admission: Admission, answers: Iterator[Answer], cohort: int, clock: Clock
) -> tuple[TrainingState, dict[str, Any], str | None]:
    """Admit a round's answers, aggregate them, and take the server step.

    Returns:
        The state after the round, the round's figures, and why the training should not go on, or None.
    """
    before, number, end = run.training_state, run.round, None
    accepted = admission.admit(answers, clock)
    first = next(accepted, None)
    after: ServerState = before.state
    diagnostics: Diagnostics = {}
    if first is None:
        fault = (
            "no client's update could be used" if admission.missing else "every client's update was refused"
        )
        fault += _reasons(admission)
    else:
        try:
            after, diagnostics = run.algorithm.apply(before.state, chain([first], accepted))
            deque(accepted, maxlen=0)  # updates that the aggregate did not read are counted as well
            if run.algorithm.exchanges:
                after = _where_reported(before.state, after, admission.reported)
            fault = _fault(after)
        except TooFew as error:
            deque(accepted, maxlen=0)
            fault = f"the updates were not aggregated, since {error}{_reasons(admission)}"
    # Without the minimum, a short run of which no round could be applied would end as if it had trained.
    last = min(MAX_UNAPPLIED_ROUNDS, run.schedule.rounds)
    if first is None and not admission.missing:
        end = f"round {number}: {fault}"
    elif fault is not None and before.missed + 1 >= last:
        which = f"the last of {last} such rounds in a row" if last > 1 else "the only round"
        end = f"round {number}: {fault}; this is {which}"
    clock.lap("aggregate")
    timers = clock.take()
    seconds = sum(timers.values())
    log = {
        "round": number,
        **admission.figures(),
        "seconds": seconds,
        "timers": timers,
        "diagnostics": dict(diagnostics),
        "cohort": cohort,
    }
    moved = replace(
        before,
        bytes_up=before.bytes_up + admission.bytes_up,
        bytes_down=before.bytes_down + admission.bytes_down,
        seconds=before.seconds + seconds,
    )
    if fault is not None:
        # The next round starts where this one started. That holds for clients, too: their memory goes back.
        log["not_applied"] = fault
        state = replace(before.state, round=number + 1)
        return replace(moved, state=state, missed=before.missed + 1), log, end
    kept = {
        client: (*before.kept.get(client, ())[1 - MEMORIES_KEPT :], run.before + number)
        for client in admission.clients_with_memory
    }
    moved = replace(moved, state=after, norms=admission.norms, missed=0, kept={**before.kept, **kept})
    return moved, log, end


def _where_reported(before: ServerState, after: ServerState, reported: Part) -> ServerState:
    """Return the state after a step, in which values that no client reported, and their slots, are as before."""
    if reported.is_whole:
        return after
    size, mask = reported.size, reported.mask
    slots = {
        name: torch.where(mask, value, before.slots[name])
        if value.shape == (size,) and name in before.slots
        else value
        for name, value in after.slots.items()
    }
    flat = torch.where(mask, after.params.flat, before.params.flat)
    return replace(after, params=after.params.with_flat(flat), slots=slots)


def _reasons(admission: Admission) -> str:
    """List in brackets why updates could not be used: the first clients' reasons, and the number of further ones."""
    reasons = {**admission.refused, **admission.missing}
    listed = [f"client {client}: {reason}" for client, reason in reasons.items()]
    more = [f"and {len(listed) - MAX_REASONS} more"] if len(listed) > MAX_REASONS else []
    return f" ({'; '.join([*listed[:MAX_REASONS], *more])})" if listed else ""


def _fault(state: ServerState) -> str | None:
    """Return what is wrong with a server's new state, or None."""
    for name, values in {"global parameters": state.params.flat, **state.slots}.items():
        if not isfinite(norm(values)):
            return f"the aggregate was not applied, since it makes the server's {name} not finite"
    return None
