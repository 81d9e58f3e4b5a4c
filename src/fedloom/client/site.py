"""A site: the owner of clients' data, rendered examples and memory, and of the base model.

A server knows of a site only the profiles of its clients and what it sends. In one process a site is an object next to the
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

from fedloom.algorithms.algorithm import EVERYTHING, Budget
from fedloom.algorithms.local_rule import PLAIN, LocalRule, Second
from fedloom.client.answer_questions import WHOLE, Share, answer_rows
from fedloom.client.client_measurements import PROBES
from fedloom.client.client_memory import InMemory, Memory
from fedloom.client.error_feedback import encode_update
from fedloom.client.local_job import Job, second_pass
from fedloom.client.local_training import Trained, copy_overlapping, to_device
from fedloom.params import Params, Part
from fedloom.system.errors import UserError
from fedloom.tasks.score_answers import Answers
from fedloom.tuning.adapters import Tuned, cast_adapters, side_by_side
from fedloom.tuning.lora import scale_b
from fedloom.tuning.strategy_parts import Parts
from fedloom.types import Broadcast, Conversation, Example, Presence, Tensors
from fedloom.wire.compression import FP32, Codecs
from fedloom.wire.messages import Assignment, Update, unsendable_reason

if TYPE_CHECKING:
    from fedloom.config.schema import Evaluate, Train

PERSONAL = "personal"
"""The name of a client's personal parameters in its memory."""

OWN = "own"
"""The name in a client's memory of a model of its own, with which it is evaluated."""

RULE = "rule/"
"""The prefix of the names of the tensors in a client's memory that the algorithm's rule keeps."""

LOST = "lost"
"""The name of the tensor in a client's memory that holds the error of a codec in its updates."""

CLIENTS_HELD = 1024
"""Number of clients whose profiles and rendered examples are kept from round to round."""


class Profile(NamedTuple):
    """What the server knows about a client: how many examples it holds, and of which modalities.

    Attributes:
        examples: Training examples, ≥ 1.
        images: Whether any of them has an image.
        texts: Whether any of them has a text.
    """

    examples: int
    images: bool
    texts: bool


class Profiles(Sequence[Profile]):
    """The profiles of clients, which are made when they are read, so that a million of them take no memory.

    Args:
        clients: Number of clients.
        profile: Client → its profile.
    """

    def __init__(self, clients: int, profile: Callable[[int], Profile]) -> None:
        self._clients, self._profile = clients, lru_cache(maxsize=CLIENTS_HELD)(profile)

    def __len__(self) -> int:
        return self._clients

    @overload
    def __getitem__(self, client: int) -> Profile: ...
    @overload
    def __getitem__(self, client: slice) -> Sequence[Profile]: ...
    def __getitem__(self, client: int | slice) -> Profile | Sequence[Profile]:
        if isinstance(client, slice):
            return [self._profile(number) for number in range(self._clients)[client]]
        return self._profile(client)


class SiteStage(NamedTuple):
    """One stage of a method at a site.

    Attributes:
        settings: How clients train: rounds, epochs, batch size, optimizer and so on.
        parts: What is sent, trained and kept.
        without_rule: True for stages that a method adds after the strategy's own, such as `finetune`: clients train without
            the algorithm's rule and second pass.
    """

    settings: Train
    parts: Parts
    without_rule: bool = False


@dataclass(frozen=True, eq=False)
class SiteMethod:
    """What a site knows about a method.

    Attributes:
        rule: The client half of the method's algorithm.
        start: The parameters of its first round, equal at all sites.
        stages: Its stages in order: those of the strategy, and those that the method adds.
        profiles: The profile of each client, by its number.
        conversations: Client → its rendered examples; it may render them when it is called.
        second: The second pass of its algorithm; see `fedloom.algorithms.algorithm.FederatedAlgorithm`.
        exchanges: Whether parameters travel; see there.
        budget: Which of the trainable parameters each client holds, trains and reports, and the scale of its adapters.
        codecs: The codecs of its messages.
    """

    rule: LocalRule
    start: Params
    stages: Sequence[SiteStage]
    profiles: Sequence[Profile]
    conversations: Callable[[int], Sequence[Conversation]]
    budget: Budget = EVERYTHING
    second: Second | None = None
    exchanges: bool = True
    codecs: Codecs = FP32


@dataclass(frozen=True, eq=False)
class Question:
    """A request to answer examples with a model.

    Attributes:
        method: The method's name in the experiment; the site knows its prompt.
        stage: Number of the strategy's stage.
        params: The global parameters.
        client: The client whose own model or personal parameters take the place of the global ones, or whose validation
            examples are answered; None for the global model.
        since: Round of the client's memory; see `Assignment.since`.
        test: "test" for the common test set, or "validation".
        slice: The modalities of the test set that are shown: "both", "image" or "text".
        own_share: Share of the client's own model, from 0 to 1; the rest is the global one. Less than 1 is only for clients
            that keep whole models.
    """

    method: str
    stage: int
    params: Params
    client: int | None = None
    since: int = -1
    test: str = "test"
    slice: str = "both"
    own_share: float = 1.0


class QuestionExamples(NamedTuple):
    """The examples of a question, the modalities that are shown of each, and what prompts say of these."""

    examples: Sequence[Example]
    presence: Sequence[Presence]
    clause: str | None


def _no_examples(question: Question) -> QuestionExamples:
    return QuestionExamples((), (), None)


@dataclass(frozen=True, eq=False)
class Site:
    """The client side of a run.

    Attributes:
        tuned: The base model with the adapters that are trained.
        seed: The experiment's seed.
        method: Name of a method → what the site knows about it.
        memory: What its clients keep.
        examples_of: Question → its examples.
        evaluate: How models answer; None where nothing is evaluated.
    """

    tuned: Tuned
    seed: int
    method: Callable[[str], SiteMethod]
    memory: Memory = field(default_factory=InMemory)
    examples_of: Callable[[Question], QuestionExamples] = _no_examples
    evaluate: Evaluate | None = None

    def rounds_before(self, method: str, stage: int) -> int:
        """Return how many rounds the stages of a method before a stage have in all."""
        return sum(before.settings.rounds for before in self.method(method).stages[:stage])

    def job(self, assignment: Assignment) -> Job:
        """Make the job of an assignment.

        Raises:
            UserError: What the client kept is lost, or the server asks for values that it must not have.
        """
        local = self.method(assignment.method)
        stage = local.stages[assignment.stage]
        if stage.without_rule:
            local = replace(local, rule=PLAIN, second=None, exchanges=True)
        parts, whole = stage.parts, assignment.params.whole
        up = assignment.up or whole
        if up != parts.up and (up & parts.up) != up:
            raise UserError(
                "the server asks for values that its strategy does not train, or that stay with clients"
            )
        everything = up == parts.up or not local.exchanges
        trained = parts.trained if everything else up | (parts.trained & parts.personal)
        if (affordable := local.budget.up(assignment.client)) is not None:
            trained = trained & affordable
        kept = self._read_memory(assignment.method, assignment.client, assignment.since)
        sent = assignment.down or whole  # what stays with clients is not taken from it
        down = parts.down if sent in (whole, parts.down) else sent & parts.down
        params = _with_own(local.start, parts, assignment.params, down, kept)
        params = _within_budget(local.budget, assignment.client, params)
        # Control variates, the codec's error and the like start anew with each stage; personal parameters and models stay.
        rule = {name[len(RULE) :]: value for name, value in kept.items() if name.startswith(RULE)}
        same_stage = assignment.since >= self.rounds_before(assignment.method, assignment.stage)
        memory, lost = (rule, kept.get(LOST)) if same_stage else ({}, None)
        broadcast = Broadcast(params, assignment.extras)
        start = params if local.rule.start is None else params.with_flat(local.rule.start(broadcast, memory))
        job = Job(
            assignment,
            broadcast,
            start,
            local.rule,
            memory,
            local.conversations(assignment.client),
            stage.settings,
            self.seed,
            None if trained.is_whole else trained,
            parts.personal if parts.personal.count else None,
            scale=local.budget.scale(assignment.client),
            exchanges=local.exchanges,
            lost=lost,
        )
        if local.second is None:
            return job
        own = params.with_flat(scale_b(kept[OWN], params.layout, 1 / job.scale)) if OWN in kept else None
        return replace(job, second=second_pass(job, local.second, own))

    def update(self, job: Job, trained: Trained) -> Update:
        """Make a client's update from the end of its training; write the client's memory before the update is returned.

        Raises:
            UserError: What the client would keep is not finite, or no message can hold what it would send.
        """
        assignment, start = job.assignment, job.broadcast.params
        sent, rule = (
            copy_overlapping(to_device(tensors, "cpu"), trained.end)
            for tensors in job.rule.finish(trained.carry, job.steps)
        )
        if why := unsendable_reason(sent):
            raise UserError(f"what the algorithm sends cannot be sent: {why}")
        up = assignment.up or start.whole
        ruled = up if job.exchanges else start.whole  # rules act on what is exchanged, or else on everything
        kept: dict[str, Tensor] = {
            f"{RULE}{name}": _zero_unexchanged(ruled, value) for name, value in rule.items()
        }
        if job.personal is not None:
            kept[PERSONAL] = job.personal.take(scale_b(trained.end, start.layout, job.scale)).clone()
        if (own := _own_model(job, trained)) is not None:
            kept[OWN] = scale_b(own, start.layout, job.scale)
        delta = up.zero_outside(scale_b(trained.end - start.flat, start.layout, job.scale))
        moved = delta if job.exchanges else trained.end - job.start.flat
        norm = float(torch.linalg.vector_norm(moved))
        encoded = encode_update(delta, up, self.method(assignment.method).codecs, job.lost)
        if encoded.lost is not None:
            kept[LOST] = encoded.lost
        if kept:
            if isfinite(norm):  # otherwise the server refuses the update with that reason
                _require_finite(kept)
            rounds = (*assignment.keep, assignment.since)
            round = self.rounds_before(assignment.method, assignment.stage) + job.round
            self.memory.write((assignment.method, job.client, round), kept, rounds)
        metrics = {
            "loss": trained.loss,
            "steps": float(job.steps),
            "norm": norm,
            "seconds": trained.seconds,
        }
        return Update(
            job.client,
            start.with_flat(encoded.delta),
            float(len(job.conversations)),
            {name: _zero_unexchanged(ruled, value) for name, value in sent.items()},
            metrics,
            assignment.up,
            bool(kept),
            encoded.coded,
        )

    def measure(self, job: Job, probe: str) -> Update:
        """Run a probe of `fedloom.client.client_measurements` at a client; return an update that reports no parameters.

        Raises:
            UserError: There is no such probe.
        """
        if probe not in PROBES:
            raise UserError(f"there is no probe {probe!r}; there are {', '.join(PROBES)}")
        results = to_device(PROBES[probe](self.tuned, job), "cpu")
        layout = self.tuned.layout
        return Update(
            job.client, Params.zeros(layout), float(len(job.conversations)), results, up=Part(layout.size, ())
        )

    def model(self, question: Question) -> Params:
        """Return the parameters of a question's model.

        These are the client's own model if it keeps one, or else the global parameters with the client's personal parameters; or a
        model between these and the global one.
        """
        if question.client is None:
            return question.params
        kept = self._read_memory(question.method, question.client, question.since)
        if OWN in kept:
            own = question.params.with_flat(kept[OWN])
        else:
            local = self.method(question.method)
            parts = local.stages[question.stage].parts
            own = _with_own(local.start, parts, question.params, parts.down, kept)
        if question.own_share == 1:
            return own
        return own.with_flat(torch.lerp(question.params.flat, own.flat, question.own_share))

    def answer(self, questions: Sequence[Question], workers: int = 1, share: Share = WHOLE) -> list[Answers]:
        """Answer questions, all about the same examples, each with its own model.

        Args:
            questions: At least one; they differ only in parameters, client and `since`.
            workers: Processes that answer at once; more than one needs `fedloom.system.processes.can_fork`.
            share: Which part of them is answered.
        """
        assert self.evaluate is not None
        examples, presence, clause = self.examples_of(questions[0])
        with side_by_side(self.tuned, len(questions)) as stack:
            for row, question in enumerate(questions):
                stack.write(self.model(question), row)
            connects = stack.connectors(len(questions))
            with torch.no_grad(), cast_adapters(stack, len(questions)):
                return answer_rows(
                    stack.vlm, connects, examples, presence, self.evaluate,
                    clause=clause, workers=workers, share=share,
                )  # fmt: skip

    def _read_memory(self, method: str, client: int, since: int) -> Tensors:
        return {} if since < 0 else self.memory.read((method, client, since))


def _with_own(start: Params, parts: Parts, sent: Params, down: Part, kept: Tensors) -> Params:
    """Return a client's parameters: what was sent in `down`, the method's start elsewhere, and its personal parameters."""
    flat = sent.flat if down.is_whole else torch.where(down.mask, sent.flat, start.flat)
    personal = kept.get(PERSONAL)
    return sent.with_flat(flat if personal is None else parts.personal.put(personal, flat))


def _within_budget(budget: Budget, client: int, params: Params) -> Params:
    """Return the parameters a client trains with: values outside its budget zeroed, B rescaled to the client's LoRA scale.

    Messages, memory and evaluated models use the server's scale.
    """
    part = budget.down(client)
    flat = params.flat if part is None else part.zero_outside(params.flat)
    return params.with_flat(scale_b(flat, params.layout, 1 / budget.scale(client)))


def _own_model(job: Job, trained: Trained) -> Tensor | None:
    """Return the model that a client keeps for itself after a round, shape [P] in a new buffer, or None."""
    own = trained.own
    if own is None and job.rule.own is not None:
        own = job.rule.own(trained.end, to_device(trained.carry, "cpu"))
    if own is None:
        return None
    if own.shape != trained.end.shape:
        raise ValueError(
            f"a rule keeps a model of shape {list(own.shape)}; it must be {list(trained.end.shape)}"
        )
    return own.detach().float().cpu().clone()


def _require_finite(kept: Tensors) -> None:
    """Raise UserError if a client would keep values that are not finite, from which no valid update could ever follow."""
    for name, value in kept.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise UserError(f"what the client keeps as {name} holds values that are not finite")


def _zero_unexchanged(up: Part, value: Tensor) -> Tensor:
    """Zero a rule's tensor outside `up` if it has one value per parameter."""
    return up.zero_outside(value) if value.shape == (up.size,) else value
