"""A site: the owner of clients' data, rendered examples and memory, and of the base model.

A server knows of a site only the profiles of its clients and what it sends. In one process a site is an object beside the
server; elsewhere it is another process or machine, to which assignments go as bytes. Nothing else differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import isfinite
from typing import TYPE_CHECKING, NamedTuple, overload

import torch
from torch import Tensor

from fedloom.algorithms.base import EVERYTHING, Budget
from fedloom.algorithms.rule import PLAIN, LocalRule, Second
from fedloom.client.evaluate import judge_rows
from fedloom.client.feedback import in_fewer_bits
from fedloom.client.job import Job, second_pass
from fedloom.client.memory import InMemory, Memory
from fedloom.client.probes import PROBES
from fedloom.client.train import Trained, apart, put
from fedloom.messages import Assignment, Update, unsendable
from fedloom.params import Params, Part
from fedloom.tasks.scoring import Judged
from fedloom.tuning.adapters import Tuned, side_by_side
from fedloom.tuning.lora import fold
from fedloom.tuning.parts import Parts
from fedloom.types import Broadcast, Conversation, Example, Presence, Tensors, UserError
from fedloom.wire import FP32, Codecs

if TYPE_CHECKING:
    from fedloom.sections import Evaluate, Train

PERSONAL = "personal"
"""The name of a client's personal values in its memory."""

OWN = "own"
"""The name in a client's memory of a model of its own, with which it is evaluated."""

RULE = "rule/"
"""The prefix of the names in a client's memory under which the algorithm's rule keeps its tensors."""

LOST = "lost"
"""The name in a client's memory of what a codec lost of its updates."""

CLIENTS_HELD = 1024
"""Clients whose profiles and rendered examples are kept from round to round."""


class Profile(NamedTuple):
    """The profile of a client that a site sends to the server: how many examples it holds, and of which modalities.

    Attributes:
        examples: Training examples, ≥ 1.
        images: Whether any of them has an image.
        texts: Whether any of them has a text.
    """

    examples: int
    images: bool
    texts: bool


class Profiles(Sequence[Profile]):
    """Profiles of clients, made when they are read, so that a million of them take no memory.

    Args:
        clients: Number of clients.
        one: Client → its profile.
    """

    def __init__(self, clients: int, one: Callable[[int], Profile]) -> None:
        self._clients, self._one = clients, lru_cache(maxsize=CLIENTS_HELD)(one)

    def __len__(self) -> int:
        return self._clients

    @overload
    def __getitem__(self, client: int) -> Profile: ...
    @overload
    def __getitem__(self, client: slice) -> Sequence[Profile]: ...
    def __getitem__(self, client: int | slice) -> Profile | Sequence[Profile]:
        if isinstance(client, slice):
            return [self._one(one) for one in range(self._clients)[client]]
        return self._one(client)


@dataclass(frozen=True, eq=False)
class Local:
    """What a site knows about a method.

    Attributes:
        rule: The client half of its algorithm.
        start: The parameters of its first round, equal at all sites.
        parts: What is sent, trained and kept, one entry for each stage of the strategy.
        profiles: The profile of each client, by its number.
        conversations: Client → its rendered examples; it may render them when it is called.
        second: The second pass of its algorithm; see `fedloom.algorithms.base.FederatedAlgorithm`.
        exchanges: Whether parameters travel; see there.
        codecs: How its messages are written.
        further: How clients train in stages of the method's own, after those of the strategy.
        budget: What each client holds, trains and reports of all that is trained, and the scale of its adapters.
    """

    rule: LocalRule
    start: Params
    parts: Sequence[Parts]
    profiles: Sequence[Profile]
    conversations: Callable[[int], Sequence[Conversation]]
    further: Sequence[Train] = ()
    budget: Budget = EVERYTHING
    second: Second | None = None
    exchanges: bool = True
    codecs: Codecs = FP32


@dataclass(frozen=True, eq=False)
class Question:
    """A request to answer examples with a model, and which model that is.

    Attributes:
        method: The method by its name in the experiment; the site knows its prompt.
        stage: Number of the strategy's stage.
        params: The global parameters.
        client: The client whose own model, or whose personal values, take the place of the global ones, or whose validation
            examples are answered; None is neither.
        since: Round of the client's memory; see `Assignment.since`.
        test: "test" for the common test part, or "validation".
        slice: The modalities that are shown of the test part: "both", "image" or "text".
    """

    method: str
    stage: int
    params: Params
    client: int | None = None
    since: int = -1
    test: str = "test"
    slice: str = "both"


class Asked(NamedTuple):
    """The examples of a question, their modalities that are shown, and what prompts say of these."""

    examples: Sequence[Example]
    presence: Sequence[Presence]
    clause: str | None


def _nothing(question: Question) -> Asked:
    return Asked((), (), None)


@dataclass(frozen=True, eq=False)
class Site:
    """The client side of a run.

    Attributes:
        tuned: The base model with the adapters that are trained.
        settings: How clients train, one entry for each stage of the strategy.
        seed: The experiment's seed.
        local: Method → what the site knows about it.
        memory: What its clients keep.
        asked: Question → its examples.
        evaluate: How models answer; None where nothing is evaluated.
    """

    tuned: Tuned
    settings: Sequence[Train]
    seed: int
    local: Callable[[str], Local]
    memory: Memory = field(default_factory=InMemory)
    asked: Callable[[Question], Asked] = _nothing
    evaluate: Evaluate | None = None

    def stages(self, method: str) -> Sequence[Train]:
        """Return how clients train in each stage of a method."""
        return (*self.settings, *self.local(method).further)

    def rounds_before(self, stage: int) -> int:
        """Return how many rounds the stages before a stage have in all."""
        return sum(one.rounds for one in self.settings[:stage])

    def job(self, assignment: Assignment) -> Job:
        """Make the job of an assignment.

        Raises:
            UserError: What the client kept is lost, or the server asks for values that it must not have.
        """
        local, stage = self.local(assignment.method), assignment.stage
        if stage >= len(self.settings):  # one of the method's own, in which clients train plainly
            local = replace(local, rule=PLAIN, second=None, exchanges=True)
        parts, whole = local.parts[stage], assignment.params.whole
        up = assignment.up or whole
        if up != parts.up and (up & parts.up) != up:
            raise UserError(
                "the server asks for values that its strategy does not train, or that stay with clients"
            )
        everything = up == parts.up or not local.exchanges
        trained = parts.trained if everything else up | (parts.trained & parts.personal)
        if (held := local.budget.up(assignment.client)) is not None:
            trained = trained & held
        kept = self._kept(assignment.method, assignment.client, assignment.since)
        asked = assignment.down or whole  # of which nothing that stays with clients is taken
        down = parts.down if asked in (whole, parts.down) else asked & parts.down
        start = _with_own(local, stage, assignment.params, down, kept)
        start = _as_held(local.budget, assignment.client, start)
        # Control variates, what a codec lost and the like begin anew with a stage; personal values and models stay.
        rule = {name[len(RULE) :]: value for name, value in kept.items() if name.startswith(RULE)}
        again = assignment.since >= self.rounds_before(stage)
        sent = Broadcast(start, assignment.extras)
        memory, lost = (rule, kept.get(LOST)) if again else ({}, None)
        begin = None if local.rule.start is None else start.with_flat(local.rule.start(sent, memory))
        job = Job(
            assignment,
            sent,
            local.rule,
            memory,
            local.conversations(assignment.client),
            self.stages(assignment.method)[stage],
            self.seed,
            None if trained.is_whole else trained,
            parts.personal if parts.personal.count else None,
            scale=local.budget.scale(assignment.client),
            begin=begin,
            exchanges=local.exchanges,
            lost=lost,
        )
        if local.second is None:
            return job
        own = start.with_flat(fold(kept[OWN], start.layout, 1 / job.scale)) if OWN in kept else None
        return replace(job, second=second_pass(job, local.second, own))

    def update(self, job: Job, trained: Trained) -> Update:
        """Make a client's update from where its training ended; write what it keeps before the update is returned.

        Raises:
            UserError: What the client would keep is not finite, or no message can hold what it would send.
        """
        asked, start = job.assignment, job.start.params
        found = job.rule.finish(trained.carry, job.steps)
        sent, rule = (apart(put(tensors, "cpu"), trained.end) for tensors in found)
        if why := unsendable(sent):
            raise UserError(f"what the algorithm sends cannot be sent: {why}")
        up = asked.up or start.whole
        ruled = up if job.exchanges else start.whole  # rules act on what is exchanged, or else on everything
        kept: dict[str, Tensor] = {f"{RULE}{name}": _on(ruled, value) for name, value in rule.items()}
        if job.personal is not None:
            kept[PERSONAL] = job.personal.take(fold(trained.end, start.layout, job.scale)).clone()
        if (own := _own(job, trained)) is not None:
            kept[OWN] = fold(own, start.layout, job.scale)
        delta = up.only(fold(trained.end - start.flat, start.layout, job.scale))
        moved = delta if job.exchanges else trained.end - job.begun.flat
        norm = float(torch.linalg.vector_norm(moved))
        sends = in_fewer_bits(delta, up, self.local(asked.method).codecs, job.lost)
        if sends.lost is not None:
            kept[LOST] = sends.lost
        if kept:
            if isfinite(norm):  # otherwise the server refuses the update, and says why
                _require_finite(kept)
            rounds = (*asked.keep, asked.since)
            self.memory.write(
                (asked.method, job.client, self.rounds_before(asked.stage) + job.round), kept, rounds
            )
        metrics = {
            "loss": trained.loss,
            "steps": float(job.steps),
            "norm": norm,
            "seconds": trained.seconds,
        }
        return Update(
            job.client,
            start.with_flat(sends.delta),
            float(len(job.conversations)),
            {name: _on(ruled, value) for name, value in sent.items()},
            metrics,
            asked.up,
            bool(kept),
            sends.coded,
        )

    def measured(self, job: Job, probe: str) -> Update:
        """Measure a probe of `fedloom.client.probes` at a client; return an update that reports no parameters.

        Raises:
            UserError: There is no such probe.
        """
        if probe not in PROBES:
            raise UserError(f"there is no probe {probe!r}; there are {', '.join(PROBES)}")
        found = put(PROBES[probe](self.tuned, job), "cpu")
        layout = self.tuned.layout
        return Update(
            job.client, Params.zeros(layout), float(len(job.conversations)), found, up=Part(layout.size, ())
        )

    def model(self, question: Question) -> Params:
        """Return the parameters of a question's model.

        They are the global ones, with a client's personal values where it has any; a client that keeps a model of its own
        is asked with that.
        """
        if question.client is None:
            return question.params
        kept = self._kept(question.method, question.client, question.since)
        if OWN in kept:
            return question.params.with_flat(kept[OWN])
        local = self.local(question.method)
        return _with_own(local, question.stage, question.params, local.parts[question.stage].down, kept)

    def answer(self, questions: Sequence[Question], workers: int = 1) -> list[Judged]:
        """Answer questions, all about the same examples, each with its own model.

        Args:
            questions: At least one; they differ only in parameters, client and `since`.
            workers: Processes that answer at once; more than one needs `fedloom.processes.can_fork`.
        """
        assert self.evaluate is not None
        examples, presence, clause = self.asked(questions[0])
        with side_by_side(self.tuned, len(questions)) as stack:
            for row, question in enumerate(questions):
                stack.write(self.model(question), row)
            connects = stack.connects(len(questions))
            return judge_rows(
                stack.vlm, connects, examples, presence, self.evaluate, clause=clause, workers=workers
            )

    def _kept(self, method: str, client: int, since: int) -> Tensors:
        return {} if since < 0 else self.memory.read((method, client, since))


def _with_own(local: Local, stage: int, params: Params, down: Part, kept: Tensors) -> Params:
    """Return a client's parameters: what was sent, the method's start elsewhere, and its personal values."""
    flat = params.flat if down.is_whole else torch.where(down.mask, params.flat, local.start.flat)
    own = kept.get(PERSONAL)
    return params.with_flat(flat if own is None else local.parts[stage].personal.put(own, flat))


def _as_held(budget: Budget, client: int, params: Params) -> Params:
    """Return a client's parameters for its own work: zero where it holds none, and B for adapters of its own scale.

    Messages, memory and models that are evaluated are for adapters of the plain scale.
    """
    held = budget.down(client)
    flat = params.flat if held is None else held.only(params.flat)
    return params.with_flat(fold(flat, params.layout, 1 / budget.scale(client)))


def _own(job: Job, trained: Trained) -> Tensor | None:
    """Return the model that a client keeps for itself after a round, shape [P] and its own buffer, or None."""
    own = trained.own
    if own is None and job.rule.own is not None:
        own = job.rule.own(trained.end, put(trained.carry, "cpu"))
    if own is None:
        return None
    if own.shape != trained.end.shape:
        raise ValueError(
            f"a rule keeps a model of shape {list(own.shape)} of one of {list(trained.end.shape)}"
        )
    return own.detach().float().cpu().clone()


def _require_finite(kept: Tensors) -> None:
    """Raise UserError for what a client would keep that is not finite: it could never send anything sound again."""
    for name, value in kept.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise UserError(f"what the client keeps as {name} holds values that are not finite")


def _on(up: Part, value: Tensor) -> Tensor:
    """Return a rule's tensor, with zeros outside `up` where it is as long as the layout: rules act on what is exchanged."""
    return up.only(value) if value.shape == (up.size,) else value
