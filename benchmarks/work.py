"""The federated work that several benchmarks share: clients, settings, a round of our engine, a bare loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.models import Size, conversation, tuned_model
from fedloom.algorithms.base import FederatedAlgorithm
from fedloom.algorithms.fedavg import fedavg
from fedloom.engine.in_process import InProcess
from fedloom.engine.rounds import Backend, Memories, Standing, one_round
from fedloom.models.batch import encode
from fedloom.params import Layout, Params
from fedloom.seeds import stream
from fedloom.tuning.adapters import Tuned
from fedloom.types import Broadcast, ClientUpdate, Conversation, Tensors

SEED = 0


@dataclass(frozen=True)
class Settings:
    """How clients train: AdamW at a constant learning rate, without clipping or decay."""

    batch_size: int
    rounds: int = 1
    epochs: int = 1
    lr: float = 1e-3
    schedule: str = "constant"
    optimizer: str = "adamw"
    weight_decay: float = 0.0
    clip: float | None = None


@dataclass(frozen=True)
class Gate:
    """A gate that lets every finite update through."""

    max_norm: float | None = None
    max_ratio: float = 1e9


@dataclass(frozen=True, eq=False)
class Work:
    """Clients with `steps` batches each for one model.

    Attributes:
        tuned: The model with its adapters.
        clients: Each client's conversations.
        settings: How they train.
    """

    tuned: Tuned
    clients: Mapping[int, Sequence[Conversation]]
    settings: Settings

    @property
    def batches(self) -> dict[int, list[list[Conversation]]]:
        """Each client's batches of round 0 in the order in which the engine draws them."""
        found = {}
        for client, held in self.clients.items():
            order = stream(SEED, "batches", round=0, client=client, step=0).permutation(len(held))
            size = self.settings.batch_size
            found[client] = [
                [held[k] for k in order[start : start + size]] for start in range(0, len(order), size)
            ]
        return found


def make_work(
    size: Size,
    *,
    clients: int,
    steps: int,
    batch_size: int,
    tokens: int,
    answer: int = 4,
    alike: bool = False,
) -> Work:
    """Make clients whose conversations all have `tokens` tokens, `answer` of them trained on.

    With `alike` a client holds one conversation many times, so that a rival which draws its batches in
    another order still trains on the same ones.
    """
    tuned = tuned_model(size)
    held = {
        client: [
            conversation(tuned.vlm, tokens, answer, client if alike else client * steps * batch_size + k)
            for k in range(1 if alike else steps * batch_size)
        ]
        * (steps * batch_size if alike else 1)
        for client in range(clients)
    }
    return Work(tuned, held, Settings(batch_size))


def ignore(update: ClientUpdate) -> None:
    """Take an update and do nothing: the progress callback of a benchmark."""


def in_process(work: Work) -> InProcess:
    """The sequential backend."""
    algorithm = fedavg()
    return InProcess(work.tuned, algorithm.local, work.clients, work.settings, SEED, ignore)


BACKENDS: dict[str, Callable[[Work], Backend]] = {"sequential": in_process}


def run_round(
    algorithm: FederatedAlgorithm, backend: Backend, start: Params, cohort: Sequence[int]
) -> Params:
    """Run round 0 through the whole engine: broadcast, clients, gate, aggregation."""
    standing = Standing(algorithm.init(start))
    return one_round(algorithm, backend, standing, cohort, Gate())[0].state.params


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch as a bare loop holds it: token ids and labels, −100 where nothing is learnt, shape [B, L]."""

    ids: Tensor
    labels: Tensor


def tensors(work: Work, batch: Sequence[Conversation]) -> Batch:
    """Tokenise a batch of conversations of equal length."""
    encoded = [encode(work.tuned.vlm, one, [one.answer]) for one in batch]
    ids = torch.tensor([[*one.prompt, *one.answers[0]] for one in encoded])
    labels = ids.clone()
    labels[:, : len(encoded[0].prompt)] = -100
    return Batch(ids, labels)


def answer_states_loss(tuned: Tuned, batch: Batch) -> Tensor:
    """The loss as a bare loop writes it, with the head at answer positions only."""
    embedded = tuned.vlm.model.get_input_embeddings()(batch.ids)
    states = tuned.vlm.decoder(inputs_embeds=embedded, use_cache=False)[0]
    learnt = batch.labels[:, 1:] != -100
    logits = tuned.vlm.model.get_output_embeddings()(states[:, :-1][learnt])
    return F.cross_entropy(logits, batch.labels[:, 1:][learnt])


def bare_client(tuned: Tuned, start: Params, batches: Sequence[Batch], lr: float) -> None:
    """Train one client as a plain loop does: set the parameters, then forward, backward, step."""
    tuned.write(start)
    parameters = trained(tuned)
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0, fused=True)
    for batch in batches:
        optimizer.zero_grad(set_to_none=False)
        answer_states_loss(tuned, batch).backward()
        optimizer.step()


def trained(tuned: Tuned) -> list[torch.nn.Parameter]:
    """The model's trained parameters."""
    return [one for one in tuned.vlm.model.parameters() if one.requires_grad]


def deltas(work: Work, cohort: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
    """Each client's delta as the engine computes it."""
    for update, _ in in_process(work).map(Broadcast(work.tuned.start), cohort, 0, {}):
        yield update.client, update.delta.flat.clone()


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

    def map(
        self, broadcast: Broadcast, cohort: Sequence[int], round: int, memories: Memories
    ) -> Iterator[tuple[ClientUpdate, Tensors]]:
        """Load, nudge and read back, client by client."""
        del round, memories
        for client in sorted(cohort):
            self.live.copy_(broadcast.params.flat)
            self.live.add_(nudge(client))
            delta = broadcast.params.with_flat(self.live - broadcast.params.flat)
            yield ClientUpdate(client, delta, 1.0), {}


def nudge(client: int) -> float:
    """What a no-op client adds to every value."""
    return 1e-3 * (1 + client % 7)
