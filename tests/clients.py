"""Sites with and without a model, backends whose clients are plain functions, and helpers of tests around them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch

from fedloom.algorithms import ENTRIES, SERVERS
from fedloom.algorithms.algorithm import FederatedAlgorithm
from fedloom.algorithms.compose import Given, compose
from fedloom.algorithms.local_rule import LocalRule, Probe
from fedloom.client.client_memory import InMemory, Memory
from fedloom.client.local_job import Job
from fedloom.client.local_training import Trained, train
from fedloom.client.site import Profile, Question, Site, SiteMethod, SiteStage
from fedloom.config.schema import Limits, Train
from fedloom.data.drawn_shapes import MAKERS
from fedloom.engine.client_sampling import Schedule
from fedloom.engine.rounds import AfterRound, Training, TrainingState
from fedloom.models.load_model import load_vlm
from fedloom.params import Layout, Params, Part
from fedloom.seeds import stream, torch_stream
from fedloom.system.timing import Clock
from fedloom.tasks import TASKS
from fedloom.tasks.score_answers import Answers
from fedloom.tuning.adapters import Spot, Tuned, prepare
from fedloom.tuning.strategies import Full, LoRA, Stage, stage
from fedloom.tuning.strategy_parts import Parts
from fedloom.types import Broadcast, Conversation, Presence, Tensors
from fedloom.wire.messages import Answer, Assignment, Update

LAYOUT = Layout.of({"connector/w": (3, 2), "llm/layers.0.q:lora_a": (4,), "llm/layers.0.q:lora_b": (2,)})
CLIENTS = 5
EXCHANGING = tuple(name for name in SERVERS if "no values" not in ENTRIES[name].traits)
"""The algorithms whose clients send deltas."""
TRAIN = Train(rounds=3, batch_size=1, lr=0.1, schedule="constant")
PERMISSIVE = Limits(max_norm=1e300, max_ratio=1e300)


def tune(path: Path, strategy: str = "both", dropout: float = 0.0) -> Tuned:
    """Load a model and give it adapters of rank 2, as a strategy of one stage asks."""
    return prepare(load_vlm(str(path)), stage(strategy, LoRA(rank=2, dropout=dropout)), seed=0)


def start_of(layout: Layout = LAYOUT) -> Params:
    """Return the parameters with which every method begins."""
    return Params(layout, torch.linspace(-1, 1, layout.size))


def held(client: int) -> list[Conversation]:
    """Return a client's examples: one more than its number."""
    return [Conversation("", "")] * (client + 1)


def profiles(clients: int = CLIENTS) -> list[Profile]:
    """Return the profiles of clients with the examples of `held`; those with odd numbers have no images."""
    return [Profile(client + 1, images=client % 2 == 0, texts=True) for client in range(clients)]


def all_parts(size: int) -> Parts:
    """Return the parts of a strategy that exchanges everything."""
    whole = Part.whole(size)
    return Parts(whole, whole, Part(size, ()), whole)


def named(
    name: str, clients: int = CLIENTS, arguments: Mapping[str, Mapping[str, Any]] | None = None
) -> FederatedAlgorithm:
    """Build an algorithm by its name, such as "fedavg+ditto"."""
    return compose(name.split("+"), Given(clients), lambda part: (arguments or {}).get(part, {}))


def site_of(
    algorithm: FederatedAlgorithm,
    train: Train = TRAIN,
    memory: Memory | None = None,
    parts: Parts | None = None,
    layout: Layout = LAYOUT,
    clients: int = CLIENTS,
) -> Site:
    """Return a site without a model, whose clients have the examples of `held`."""
    local = SiteMethod(
        algorithm.local,
        start_of(layout),
        [SiteStage(train, parts or all_parts(layout.size))],
        profiles(clients),
        held,
        second=algorithm.second,
        exchanges=algorithm.exchanges,
    )
    return Site(cast("Any", None), 0, lambda method: local, memory or InMemory())


@dataclass(frozen=True)
class Plain:
    """A backend whose client k pulls the parameters toward k, with the real optimizer, rule and memory."""

    site: Site

    def start(self, method: str) -> Params:
        return self.site.method(method).start

    def describe(self, method: str) -> Sequence[Profile]:
        return self.site.method(method).profiles

    def measure(self, assignments: Iterable[Assignment], probe: str) -> Iterator[Answer]:
        raise NotImplementedError

    def answer(self, questions: Sequence[Question]) -> list[Answers]:
        raise NotImplementedError

    def train(self, assignments: Iterable[Assignment], clock: Clock) -> Iterator[Answer]:
        for assignment in assignments:
            yield self.client(assignment)
            clock.lap("step")

    def client(self, assignment: Assignment) -> Answer:
        job = self.site.job(assignment)
        return self.site.update(job, trained(job))


@dataclass(frozen=True)
class Quadratic:
    """The probe of a client whose examples are all ½‖w − target‖²."""

    target: float
    trained: torch.Tensor
    rate: float = 0.1
    examples: int = 1
    named: Callable[[str], torch.Generator] = lambda purpose: torch_stream(0, purpose)

    def loss(self, params: torch.Tensor) -> torch.Tensor:
        return (params - self.target).square().sum() / 2

    def gradient(self, params: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.loss(params), (params - self.target) * self.trained

    def per_example(self, params: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        loss, grads = self.gradient(params)
        return loss.expand(self.examples), grads.expand(self.examples, -1)

    def stream(self, purpose: str) -> torch.Generator:
        return self.named(purpose)


ToyGradient = Callable[[Job, Probe, torch.Tensor, Tensors], tuple[torch.Tensor, torch.Tensor, Tensors]]
"""(work of the pass, probe, parameters of shape [P], carry) → (loss, gradient of shape [P], carry)."""


def train_without_model(job: Job, gradient: ToyGradient) -> Trained:
    """Train a client by the real loop, with a function in place of the model."""
    flat = job.start.flat.clone()[None]
    spots = {name: Spot("", f"value_{k}") for k, name in enumerate(job.start.layout.names)}
    vlm, stage = cast("Any", SimpleNamespace(model=torch.nn.Module())), Stage({"connector": Full()})
    tuned = Tuned(vlm, stage, job.start, spots, flat, torch.zeros_like(flat), {})

    def toy(work: Job) -> Job:
        return replace(work, rule=work.rule._replace(gradient=partial(gradient, work)))

    second = None if job.second is None else toy(job.second)
    (end,) = train(tuned, [replace(toy(job), second=second)])
    return end


def trained(job: Job) -> Trained:
    """Train a client on a quadratic around its number, in both passes where there are two."""
    return train_without_model(job, _quadratic)


def _quadratic(
    job: Job, probe: Probe, params: torch.Tensor, carry: Tensors
) -> tuple[torch.Tensor, torch.Tensor, Tensors]:
    toy = Quadratic(job.client, probe.trained, probe.rate, 1, probe.stream)
    if job.rule.gradient is not None:
        return job.rule.gradient(toy, params, carry)
    return toy.loss(params), params - job.client, carry


@dataclass(frozen=True)
class Corrupted(Plain):
    """A backend in which some clients' updates are changed in some rounds, or left out where the change returns None."""

    bad: dict[int, Callable[[Update], Answer | None]] = field(default_factory=dict)
    rounds: tuple[int, ...] = (0, 1, 2)

    def train(self, assignments: Iterable[Assignment], clock: Clock) -> Iterator[Answer]:
        for assignment in assignments:
            answer: Answer | None = self.client(assignment)
            if assignment.client in self.bad and assignment.round in self.rounds:
                assert isinstance(answer, Update)
                answer = self.bad[assignment.client](answer)
            if answer is not None:
                yield answer
            clock.lap("step")


def run_of(
    name: str,
    clients: Sequence[int] = range(CLIENTS),
    train: Train = TRAIN,
    limits: Limits = PERMISSIVE,
    *,
    algorithm: FederatedAlgorithm | None = None,
    after_round: AfterRound = lambda now, log: None,
    training_state: TrainingState | None = None,
    cohort: int | None = None,
    rounds: int | None = None,
    seed: int = 0,
    **fields: Any,
) -> Training:
    """Set up a training of the clients of `site_of`."""
    algorithm = algorithm or named(name)
    begun = training_state or TrainingState(algorithm.init(start_of()))
    schedule = Schedule(train.rounds if rounds is None else rounds, clients, cohort, seed)
    known = profiles(max(clients, default=0) + 1)
    return Training(name, algorithm, begun, schedule, known, train, limits, after_round, **fields)


def same(left: TrainingState, right: TrainingState) -> bool:
    """Return whether two servers have equal bits."""
    one, two = ({"params": now.state.params.flat, **now.state.slots} for now in (left, right))
    return one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())


# With a real model ------------------------------------------------------------------------------------


def asked_about(client: int) -> list[Conversation]:
    """Return the examples of a client of `real_site`: one to three, with text where its number is even."""
    examples = [MAKERS["vqa"](stream(client, "t", step=k), str(k)) for k in range(1 + client % 3)]
    return [TASKS["vqa"].render(one, Presence(True, client % 2 == 0), answer_form="text") for one in examples]


def real_site(
    tuned: Tuned,
    name: str = "fedavg",
    rule: LocalRule | None = None,
    conversations: Callable[[int], Sequence[Conversation]] = asked_about,
    memory: Memory | None = None,
    train: Train = Train(batch_size=2),
    clients: int = CLIENTS,
) -> Site:
    """Return a site with a real model, whose clients have the examples of `conversations`."""
    known = [Profile(1 + client % 3, images=True, texts=client % 2 == 0) for client in range(clients)]
    whole = all_parts(tuned.layout.size)
    algorithm = named(name, clients)
    local = SiteMethod(
        rule or algorithm.local,
        tuned.start,
        [SiteStage(train, whole)],
        known,
        conversations,
        second=algorithm.second,
        exchanges=algorithm.exchanges,
    )
    return Site(tuned, 0, lambda method: local, memory or InMemory())


def assigned(tuned: Tuned, name: str = "fedavg", clients: int = CLIENTS, round: int = 0) -> list[Assignment]:
    """Make the assignments of a round from the start of training."""
    algorithm = named(name, clients)
    sent = algorithm.broadcast(algorithm.init(tuned.start))
    part = None if algorithm.exchanges else Part(tuned.layout.size, ())
    return [
        Assignment(name, 0, round, client, sent.params, sent.extras, down=part, up=part)
        for client in range(clients)
    ]


def job_of(
    tuned: Tuned,
    rule: LocalRule,
    conversations: Sequence[Conversation],
    settings: Train,
    *,
    seed: int = 0,
    round: int = 0,
    client: int = 0,
    stage: int = 0,
    start: Broadcast | None = None,
    memory: Tensors | None = None,
    trained: Part | None = None,
) -> Job:
    """Make a client's job without a site; where `start` is None it begins with the model's start."""
    begun = start or Broadcast(tuned.start)
    assignment = Assignment("method", stage, round, client, begun.params, begun.extras, up=trained)
    return Job(assignment, begun, begun.params, rule, memory or {}, conversations, settings, seed, trained)


Result = tuple[Update, Tensors]
"""A client's update, and what it keeps at its site."""


def results(tuned: Tuned, jobs: Sequence[Job]) -> list[Result]:
    """Train clients side by side, and return the updates that a site makes of the results."""
    return [_result(tuned, *one) for one in zip(jobs, train(tuned, jobs), strict=True)]


def _result(tuned: Tuned, job: Job, end: Trained) -> Result:
    memory = InMemory()
    stages = [SiteStage(job.settings, all_parts(tuned.layout.size))] * (job.assignment.stage + 1)
    local = SiteMethod(job.rule, tuned.start, stages, profiles(), held)
    update = Site(tuned, job.seed, lambda method: local, memory).update(job, end)
    return update, next(iter(memory.memories.values()), {})


def deltas(tuned: Tuned, jobs: Sequence[Job]) -> list[torch.Tensor]:
    """Train clients side by side; return their deltas, shape [P] each."""
    return [update.delta.flat for update, _ in results(tuned, jobs)]
