"""The federated work that several benchmarks share: clients, settings, a round of our engine, a bare loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.models import Size, conversation, tuned_model
from fedloom.algorithms.base import PLAIN
from fedloom.algorithms.fedavg import fedavg
from fedloom.client.train import Result, Work
from fedloom.engine.in_process import InProcess
from fedloom.engine.machine import MOST, choose, this_machine
from fedloom.engine.rounds import Backend, Run, Schedule, Standing, run_rounds
from fedloom.engine.workers import Workers
from fedloom.messages import Update
from fedloom.models.batch import encode
from fedloom.params import Layout, Params
from fedloom.record import Clock
from fedloom.tuning.adapters import Tuned
from fedloom.types import Broadcast, Conversation

SEED = 0
ROWS = 8  # clients side by side


@dataclass(frozen=True)
class Settings:
    """How clients train: AdamW at a constant learning rate, without clipping or decay."""

    batch_size: int
    rounds: int = 1
    epochs: int = 1
    lr: float = 1e-3
    schedule: str = "constant"
    local_schedule: str = "constant"
    beta2: float = 0.999
    optimizer: str = "adamw"
    weight_decay: float = 0.0
    clip: float | None = None
    batches: str = "shuffled"


@dataclass(frozen=True)
class Limits:
    """A gate that lets every finite update through."""

    max_norm: float | None = 1e30
    max_ratio: float = 1e9


@dataclass(frozen=True, eq=False)
class Clients:
    """Clients with some batches each, for one model.

    Attributes:
        tuned: The model with its adapters.
        held: Each client's conversations.
        settings: How they train.
    """

    tuned: Tuned
    held: Mapping[int, Sequence[Conversation]]
    settings: Settings

    def work(self, client: int) -> Work:
        """What a client is to do in round 0."""
        sent = Broadcast(self.tuned.start)
        return Work(client, 0, SEED, PLAIN, sent, {}, self.held[client], self.settings)


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
    """Make clients whose conversations all have `tokens` tokens, `answer` of them trained on.

    With `alike` a client holds one conversation many times, so that a rival which draws its batches in
    another order still trains on the same ones.
    """
    tuned, count = tuned_model(size), steps * batch_size
    held: dict[int, list[Conversation]] = {}
    for client in range(clients):
        if alike:
            held[client] = [conversation(tuned.vlm, tokens, answer, client)] * count
        else:
            held[client] = [conversation(tuned.vlm, tokens, answer, client * count + k) for k in range(count)]
    return Clients(tuned, held, Settings(batch_size))


def sequential(clients: Clients) -> InProcess:
    """One client after the other."""
    return InProcess(clients.tuned)


def cohort(clients: Clients) -> InProcess:
    """Eight clients side by side."""
    return InProcess(clients.tuned, ROWS)


def workers(clients: Clients) -> Backend:
    """One client after the other in each of as many processes as there are threads."""
    return Workers(InProcess(clients.tuned), this_machine(clients.tuned.vlm.device).threads)


def automatic(clients: Clients) -> Backend:
    """What a run chooses by itself: processes, and clients side by side, by the work and the kind of machine."""
    works = [clients.work(client) for client in list(clients.held)[:MOST]]
    found = choose(clients.tuned, works, len(clients.held), this_machine(clients.tuned.vlm.device))
    inner = InProcess(clients.tuned, found.rows)
    return inner if found.workers == 1 else Workers(inner, found.workers)


BACKENDS: dict[str, Callable[[Clients], Backend]] = {
    "sequential": sequential,
    "workers": workers,
    "cohort": cohort,
    "auto": automatic,
}


def _nothing(client: int) -> list[Conversation]:
    return [Conversation("", "")]


def run_round(
    backend: Backend,
    start: Params,
    cohort: Sequence[int],
    clients: Clients | None = None,
) -> Params:
    """Run round 0 of FedAvg through the whole engine: broadcast, clients, gate, aggregation."""
    algorithm = fedavg()
    run = Run(
        algorithm,
        Standing(algorithm.init(start)),
        Schedule(1, cohort, None, SEED),
        clients.held.__getitem__ if clients else _nothing,
        clients.settings if clients else Settings(1),
        Limits(),
    )
    return run_rounds([run], backend)[0].state.params


def round_of(
    clients: Clients, way: str = "sequential", cohort: Sequence[int] | None = None
) -> Callable[[], Params]:
    """Make a function that runs round 0 with some clients, all if not said."""
    whole = list(clients.held) if cohort is None else cohort
    return partial(run_round, BACKENDS[way](clients), clients.tuned.start, whole, clients)


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch as a bare loop holds it: token ids and labels, −100 where nothing is learnt, shape [B, L]."""

    ids: Tensor
    labels: Tensor


def tensors(tuned: Tuned, batch: Sequence[Conversation]) -> Batch:
    """Tokenise a batch of conversations of equal length."""
    encoded = [encode(tuned.vlm, one, [one.answer]) for one in batch]
    ids = torch.tensor([[*one.prompt, *one.answers[0]] for one in encoded])
    labels = ids.clone()
    labels[:, : len(encoded[0].prompt)] = -100
    return Batch(ids, labels)


def bare_loss(tuned: Tuned, batch: Batch) -> Tensor:
    """The loss as a bare loop writes it, with the head at answer positions only."""
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
    """How far two results lie apart, over how far the second moved from where both began."""
    return float((one - other).norm() / (other - start).norm())


@dataclass(frozen=True, eq=False)
class NoOp:
    """A backend whose clients only add a small constant: what is left is the engine's own cost.

    Attributes:
        layout: Names and shapes of what is exchanged.
        live: The model's values, shape [P]; every client's parameters are loaded into it.
    """

    layout: Layout
    live: Tensor

    @staticmethod
    def of(tensors: int, values: int) -> NoOp:
        """Make one for `tensors` tensors of `values` values each."""
        layout = Layout.of({f"layer.{number:03d}": (values,) for number in range(tensors)})
        return NoOp(layout, torch.zeros(layout.size))

    def map(self, works: Iterable[Work], clock: Clock) -> Iterator[Result]:
        """Load, nudge and read back, client by client."""
        for work in works:
            sent = work.broadcast.params
            self.live.copy_(sent.flat)
            self.live.add_(nudge(work.client))
            clock.lap("load")
            yield Update(work.client, sent.with_flat(self.live - sent.flat), 1.0), {}


def nudge(client: int) -> float:
    """What a no-op client adds to every value."""
    return 1e-3 * (1 + client % 7)
