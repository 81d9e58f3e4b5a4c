"""The federated work that several benchmarks share: clients, settings, a round of our engine, a bare loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.models import Size, conversation, tuned_model
from fedloom.algorithms.fedavg import fedavg
from fedloom.client.local_job import Job
from fedloom.client.local_training import train
from fedloom.client.site import Profile, Profiles, Question, Site, SiteMethod, SiteStage
from fedloom.config.schema import Limits, Train
from fedloom.engine.client_sampling import Schedule
from fedloom.engine.in_process import InProcess
from fedloom.engine.machine_choices import MOST, choose, this_machine
from fedloom.engine.rounds import Backend, Training, TrainingState, run_rounds
from fedloom.engine.worker_processes import Workers
from fedloom.models.batches import encode
from fedloom.params import Layout, Params, Part
from fedloom.system.timing import Clock
from fedloom.tasks.score_answers import Answers
from fedloom.tuning.adapters import Tuned
from fedloom.tuning.strategy_parts import Parts
from fedloom.types import Conversation
from fedloom.wire.messages import Assignment, Update

SEED = 0
METHOD = "fedavg"
ROWS = 8  # clients side by side
MOST_CLIENTS = 10**9  # of a backend without a model: more than any cohort has
OPEN = Limits(max_norm=1e30, max_ratio=1e9)  # admits every finite update


def train_settings(batch_size: int, **more: Any) -> Train:
    """Return the default settings of training: AdamW at a constant learning rate, without clipping or decay."""
    return Train(rounds=1, batch_size=batch_size, schedule="constant", clip=None, **more)


def text_only(client: int) -> Profile:
    """Describe a client with one example, which has a text."""
    return Profile(1, images=False, texts=True)


@dataclass(frozen=True, eq=False)
class Clients:
    """Clients with their batches, for one model whose values are all sent and trained.

    Attributes:
        tuned: The model with its adapters.
        held: Each client's conversations.
        settings: Settings of training.
        seed: Seed of the random streams of their batches.
    """

    tuned: Tuned
    held: Mapping[int, Sequence[Conversation]]
    settings: Train
    seed: int = SEED

    @cached_property
    def site(self) -> Site:
        """The site of these clients."""
        size = self.tuned.layout.size
        whole = Part.whole(size)
        stages = [SiteStage(self.settings, Parts(whole, whole, Part(size, ()), whole))]
        profiles = Profiles(len(self.held), self._profile)
        local = SiteMethod(fedavg().local, self.tuned.start, stages, profiles, self.held.__getitem__)
        return Site(self.tuned, self.seed, lambda _: local)

    def job(self, client: int, round: int = 0, sent: Params | None = None) -> Job:
        """Return a client's work in a round that sends some parameters, by default those of the start."""
        return self.site.job(Assignment(METHOD, 0, round, client, sent or self.tuned.start))

    def updates(self, jobs: Sequence[Job]) -> list[Update]:
        """Train clients, side by side if there are several, and return their updates."""
        ends = train(self.tuned, jobs)
        return [self.site.update(job, end) for job, end in zip(jobs, ends, strict=True)]

    def _profile(self, client: int) -> Profile:
        held = self.held[client]
        return Profile(len(held), any(one.pictures for one in held), any(one.user for one in held))


def make_clients(
    size: Size,
    *,
    clients: int,
    steps: int,
    batch_size: int,
    tokens: int,
    answer: int = 4,
    alike: bool = False,
) -> Clients:
    """Build clients whose conversations all have `tokens` tokens, `answer` of them in the answer.

    With `alike` a client has copies of one conversation, so that a rival with another order of batches
    trains on the same ones.
    """
    tuned, count = tuned_model(size), steps * batch_size
    held: dict[int, list[Conversation]] = {}
    for client in range(clients):
        if alike:
            held[client] = [conversation(tuned.vlm, tokens, answer, client)] * count
        else:
            held[client] = [conversation(tuned.vlm, tokens, answer, client * count + k) for k in range(count)]
    return Clients(tuned, held, train_settings(batch_size))


def sequential(clients: Clients) -> InProcess:
    """Return a backend that trains one client after the other."""
    return InProcess(clients.site)


def cohort(clients: Clients) -> InProcess:
    """Return a backend that trains eight clients side by side."""
    return InProcess(clients.site, ROWS)


def workers(clients: Clients) -> Backend:
    """Return a backend of one process per thread, each of which trains one client after the other."""
    return Workers(sequential(clients), this_machine(clients.tuned.vlm.device).threads)


def automatic(clients: Clients) -> Backend:
    """Return the backend that a run chooses itself: processes and clients side by side, by the work and the machine."""
    jobs = [clients.job(client) for client in list(clients.held)[:MOST]]
    choice = choose(clients.tuned, jobs, len(clients.held), this_machine(clients.tuned.vlm.device))
    inner = InProcess(clients.site, choice.rows)
    return inner if choice.workers == 1 else Workers(inner, choice.workers)


BACKENDS: dict[str, Callable[[Clients], Backend]] = {
    "sequential": sequential,
    "workers": workers,
    "cohort": cohort,
    "auto": automatic,
}


def run_round(
    backend: Backend,
    start: Params,
    cohort: Sequence[int],
    clients: Clients | None = None,
) -> Params:
    """Run round 0 of FedAvg through the whole engine: assignments, clients, admission, aggregation."""
    algorithm = fedavg()
    run = Training(
        METHOD,
        algorithm,
        TrainingState(algorithm.init(start)),
        Schedule(1, cohort, None, SEED),
        backend.describe(METHOD),
        clients.settings if clients else train_settings(1),
        OPEN,
    )
    return run_rounds([run], backend)[0].state.params


def round_of(
    clients: Clients, way: str = "sequential", cohort: Sequence[int] | None = None
) -> Callable[[], Params]:
    """Return a function that runs round 0 with some clients, by default with all."""
    whole = list(clients.held) if cohort is None else cohort
    return partial(run_round, BACKENDS[way](clients), clients.tuned.start, whole, clients)


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch of a bare loop: token ids and labels, −100 where there is no loss, shape [B, L]."""

    ids: Tensor
    labels: Tensor


def tensors(tuned: Tuned, batch: Sequence[Conversation]) -> Batch:
    """Tokenize a batch of conversations of equal length."""
    encoded = [encode(tuned.vlm, one, [one.answer]) for one in batch]
    ids = torch.tensor([[*one.prompt, *one.answers[0]] for one in encoded])
    labels = ids.clone()
    labels[:, : len(encoded[0].prompt)] = -100
    return Batch(ids, labels)


def bare_loss(tuned: Tuned, batch: Batch) -> Tensor:
    """Compute the loss as a bare loop does, with the head at answer positions only."""
    embedded = tuned.vlm.model.get_input_embeddings()(batch.ids)
    states = tuned.vlm.decoder(inputs_embeds=embedded, use_cache=False)[0]
    learnt = batch.labels[:, 1:] != -100
    logits = tuned.vlm.model.get_output_embeddings()(states[:, :-1][learnt])
    return F.cross_entropy(logits, batch.labels[:, 1:][learnt])


def bare_client(tuned: Tuned, start: Params, batches: Sequence[Batch], lr: float) -> None:
    """Train one client as a plain loop does: set the parameters, then forward, backward, step."""
    tuned.write(start)
    trained = [one for one in tuned.vlm.model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0, fused=True)
    for batch in batches:
        optimizer.zero_grad(set_to_none=False)
        bare_loss(tuned, batch).backward()
        optimizer.step()


def apart(one: Tensor, other: Tensor, start: Tensor) -> float:
    """Return the distance of two results over the distance of the second from their common start."""
    return float((one - other).norm() / (other - start).norm())


class Trainless:
    """The methods of a backend without a model, except `train`: all clients are equal and answer no questions."""

    def start(self, method: str) -> Params:
        """Never called, because benchmarks give the start of a round."""
        raise NotImplementedError

    def describe(self, method: str) -> Sequence[Profile]:
        """Describe clients with one example each."""
        del method
        return Profiles(MOST_CLIENTS, text_only)

    def answer(self, questions: Sequence[Question]) -> list[Answers]:
        """Never called, because benchmarks of the engine evaluate nothing."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class NoOp(Trainless):
    """A backend whose clients only add a small constant, so that only the engine's own cost is measured.

    Attributes:
        layout: Names and shapes of the values that are exchanged.
        live: The model's values, shape [P]; every client's parameters are loaded into it.
    """

    layout: Layout
    live: Tensor

    @staticmethod
    def of(tensors: int, values: int) -> NoOp:
        """Build a backend for `tensors` tensors of `values` values each."""
        layout = Layout.of({f"layer.{number:03d}": (values,) for number in range(tensors)})
        return NoOp(layout, torch.zeros(layout.size))

    def train(self, assignments: Iterable[Assignment], clock: Clock) -> Iterator[Update]:
        """Load, change and read back the values, client by client."""
        for assignment in assignments:
            sent = assignment.params
            self.live.copy_(sent.flat)
            self.live.add_(nudge(assignment.client))
            clock.lap("load")
            yield Update(assignment.client, sent.with_flat(self.live - sent.flat), 1.0)


def nudge(client: int) -> float:
    """Return the value that a no-op client adds to every value."""
    return 1e-3 * (1 + client % 7)
