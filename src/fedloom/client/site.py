"""A site: what holds clients' data, their rendered examples, what they keep, and the base model.

A server knows of it what it describes and what it sends. In one process a site is an object beside the server; elsewhere
it is another process or machine, to which assignments go as bytes. Nothing else differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fedloom.algorithms.base import LocalRule
from fedloom.client.evaluate import judge_rows
from fedloom.client.job import Job
from fedloom.client.memory import InMemory, Memory
from fedloom.client.probes import PROBES
from fedloom.client.train import Trained, put
from fedloom.messages import Assignment, Update, unsendable
from fedloom.params import Params, Part
from fedloom.tasks.scoring import Judged
from fedloom.tuning.adapters import Tuned, side_by_side
from fedloom.tuning.parts import Parts
from fedloom.types import Broadcast, Conversation, Example, Presence, Tensors, UserError

if TYPE_CHECKING:
    from fedloom.sections import Evaluate, Train

PERSONAL = "personal"
"""What a site calls a client's own values in its memory, beside what the algorithm's rule keeps."""

RULE = "rule/"
"""Beginning of the names of what the rule keeps."""


class Profile(NamedTuple):
    """What a site tells of a client: how much it holds, and of which modalities.

    Attributes:
        examples: Training examples, ≥ 1.
        images: Whether any of them shows an image.
        texts: Whether any of them shows a text.
    """

    examples: int
    images: bool
    texts: bool


@dataclass(frozen=True, eq=False)
class Local:
    """What a site knows of a method.

    Attributes:
        rule: The client half of its algorithm.
        start: What its first round begins with, equal at all sites.
        parts: What is sent, trained and kept, one entry for each stage of the strategy.
        profiles: What is told of each client, by its number.
        conversations: A client's rendered examples; may render them when asked.
    """

    rule: LocalRule
    start: Params
    parts: Sequence[Parts]
    profiles: Sequence[Profile]
    conversations: Callable[[int], Sequence[Conversation]]


@dataclass(frozen=True, eq=False)
class Question:
    """What a server asks a model, and which model that is.

    Attributes:
        method: The method by its name in the experiment; the site knows its prompt.
        stage: Number of the strategy's stage.
        params: The global parameters.
        client: Whose personal values take the place of the global ones, or whose own examples are asked about; None is
            neither.
        since: Round of the client's memory; see `Assignment.since`.
        test: "test" for the common test part, or "validation".
        part: Which evidence examples of the test part show: "both", "image" or "text".
    """

    method: str
    stage: int
    params: Params
    client: int | None = None
    since: int = -1
    test: str = "test"
    part: str = "both"


class Asked(NamedTuple):
    """The examples of a question, what they show, and what prompts say of it."""

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
        local: What the site knows of a method, by its name.
        memory: Where it keeps what its clients keep.
        asked: The examples of a question.
        evaluate: How answers are found.
    """

    tuned: Tuned
    settings: Sequence[Train]
    seed: int
    local: Callable[[str], Local]
    memory: Memory = field(default_factory=InMemory)
    asked: Callable[[Question], Asked] = _nothing
    evaluate: Evaluate | None = None

    def begun(self, stage: int) -> int:
        """Return how many rounds the stages before have."""
        return sum(one.rounds for one in self.settings[:stage])

    def job(self, assignment: Assignment) -> Job:
        """Put together what a client does.

        Raises:
            UserError: What the client kept is lost.
        """
        local, stage = self.local(assignment.method), assignment.stage
        parts, whole = local.parts[stage], assignment.params.whole
        up = assignment.up or whole
        if up != parts.up and (up & parts.up) != up:
            raise UserError(
                "the server asks for values that its strategy does not train, or that stay with clients"
            )
        trained = parts.trained if up == parts.up else up | (parts.trained & parts.personal)
        kept = self._kept(assignment.method, assignment.client, assignment.since)
        start = _with_own(local, stage, assignment.params, assignment.down or whole, kept)
        # Control variates and the like begin anew with a stage; personal values stay.
        rule = {name[len(RULE) :]: value for name, value in kept.items() if name.startswith(RULE)}
        return Job(
            assignment,
            Broadcast(start, assignment.extras),
            local.rule,
            rule if assignment.since >= self.begun(stage) else {},
            local.conversations(assignment.client),
            self.settings[stage],
            self.seed,
            None if trained.is_whole else trained,
            parts.personal if parts.personal.count else None,
        )

    def update(self, job: Job, trained: Trained) -> Update:
        """Make a client's update of where its training ended; what it keeps is written before that is returned.

        Raises:
            UserError: What the client would keep is not finite, or no message can hold what it would send.
        """
        asked, start = job.assignment, job.start.params
        sent, rule = (put(tensors, "cpu") for tensors in job.rule.finish(trained.carry, job.steps))
        if why := unsendable(sent):
            raise UserError(f"what the algorithm sends cannot be sent: {why}")
        up = asked.up or start.whole
        kept: dict[str, Tensor] = {f"{RULE}{name}": _on(up, value) for name, value in rule.items()}
        if job.personal is not None:
            kept[PERSONAL] = job.personal.take(trained.end).clone()
        delta = up.only(trained.end - start.flat)
        if bool(torch.isfinite(delta).all()):  # otherwise the server refuses it, and says why
            for name, value in kept.items():
                if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                    raise UserError(f"what the client keeps as {name} holds values that are not finite")
        if kept:
            rounds = (*asked.keep, asked.since)
            self.memory.write((asked.method, job.client, self.begun(asked.stage) + job.round), kept, rounds)
        metrics = {
            "loss": trained.loss,
            "steps": float(job.steps),
            "norm": float(torch.linalg.vector_norm(delta)),
            "seconds": trained.seconds,
        }
        return Update(
            job.client,
            start.with_flat(delta),
            float(len(job.conversations)),
            {name: _on(up, value) for name, value in sent.items()},
            metrics,
            asked.up,
            bool(kept),
        )

    def measured(self, job: Job, probe: str) -> Update:
        """Return what a probe of `fedloom.client.probes` finds at a client, as an update that reports no parameters.

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
        """Return the parameters that a question is about: the global ones, with a client's own where it has any."""
        if question.client is None:
            return question.params
        kept = self._kept(question.method, question.client, question.since)
        local = self.local(question.method)
        return _with_own(local, question.stage, question.params, local.parts[question.stage].down, kept)

    def answer(self, questions: Sequence[Question], workers: int = 1) -> list[Judged]:
        """Answer questions, all about the same examples, with the models of each.

        Args:
            questions: At least one; they differ in parameters and client alone.
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
    """Return what a client has: what is sent to it, the method's start elsewhere, and its own values."""
    flat = params.flat if down.is_whole else torch.where(down.mask, params.flat, local.start.flat)
    own = kept.get(PERSONAL)
    return params.with_flat(flat if own is None else local.parts[stage].personal.put(own, flat))


def _on(up: Part, value: Tensor) -> Tensor:
    """Zero a vector as long as the layout where it is not exchanged: a rule acts on what is."""
    return up.only(value) if value.shape == (up.size,) else value
