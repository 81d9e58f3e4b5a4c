"""The work of one client in one round."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fedloom.algorithms.local_rule import LocalRule, Second
from fedloom.client.learning_rate import rate_of, steps_of
from fedloom.params import Params, Part
from fedloom.seeds import stream, torch_stream
from fedloom.tuning.dropout import Masks
from fedloom.types import Broadcast, Conversation, Tensors
from fedloom.wire.messages import Assignment

if TYPE_CHECKING:
    from fedloom.config.schema import Train

BUCKETED = 32
"""Number of batches whose examples are sorted together by modality and length where batches are "bucketed"."""


@dataclass(frozen=True, eq=False)
class Job:
    """The work of one client in one round, which its site makes from an assignment.

    Attributes:
        assignment: The server's request; `seed` and the request's client, round and stage name the random streams.
        broadcast: The client's parameters (what was sent, the method's start where nothing was, and its personal parameters),
            from which updates count, and the algorithm's extras.
        start: The parameters from which training starts: those of `broadcast`, unless the rule or a second pass starts
            elsewhere.
        rule: The client half of the algorithm.
        memory: The rule's tensors of this client's last accepted round, or {}.
        conversations: The client's rendered examples, at least one.
        settings: Epochs, batch size, optimizer and so on.
        seed: The experiment's seed.
        trained: The part that the client trains, personal parameters included; None is everything.
        personal: The part that stays with the client; None is nothing.
        scale: Factor on the scale of the client's LoRA adapters. `broadcast` and `start` are for adapters of this scale, and
            so is where training ends; `assignment.params` and updates are for those of the plain scale.
        exchanges: Whether parameters travel; see `fedloom.algorithms.algorithm.FederatedAlgorithm.exchanges`.
        name: The pass's name, which is part of the names of its random streams; the first pass has none.
        factor: Factor on the learning rate.
        second: The work of the second pass, or None.
        lost: The error of a codec in the client's earlier updates, shape [P], or None.
    """

    assignment: Assignment
    broadcast: Broadcast
    start: Params
    rule: LocalRule
    memory: Tensors
    conversations: Sequence[Conversation]
    settings: Train
    seed: int
    trained: Part | None = None
    personal: Part | None = None
    scale: float = 1.0
    exchanges: bool = True
    name: str = ""
    factor: float = 1.0
    second: Job | None = None
    lost: Tensor | None = None

    @property
    def trains_alone(self) -> bool:
        """Whether the client cannot train side by side with others, because a rule makes its own gradient."""
        return self.rule.gradient is not None or (self.second is not None and self.second.trains_alone)

    @property
    def client(self) -> int:
        """The client's number."""
        return self.assignment.client

    @property
    def round(self) -> int:
        """The round's number within its stage."""
        return self.assignment.round

    @property
    def steps(self) -> int:
        """Number of optimizer steps in the round."""
        return steps_of(self.settings, len(self.conversations))

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        return self.factor * rate_of(self.settings, self.round, step, self.steps)

    def _stream_name(self, purpose: str) -> str:
        purpose = f"{purpose} of {self.name}" if self.name else purpose
        return f"{purpose} of stage {self.assignment.stage}" if self.assignment.stage else purpose

    def stream(self, purpose: str, step: int) -> torch.Generator:
        """Return the random stream of a rule's purpose at a step, on the CPU."""
        name = self._stream_name(f"rule/{purpose}")
        return torch_stream(self.seed, name, round=self.round, client=self.client, step=step)

    def dropout_masks(self, step: int) -> Masks:
        """Return the masks of a step's dropout, whose random stream is another for each layer."""

        def draw(layer: str) -> torch.Generator:
            name = self._stream_name(f"dropout/{layer}")
            return torch_stream(self.seed, name, round=self.round, client=self.client, step=step)

        return Masks(draw)

    def batches(self) -> Iterator[list[Conversation]]:
        """Yield the batches of all epochs; each epoch is drawn from its own random stream."""
        for epoch in range(self.settings.epochs):
            name = self._stream_name("batches")
            draw = stream(self.seed, name, round=self.round, client=self.client, step=epoch)
            for batch in draw_batches(
                self.conversations, self.settings.batch_size, self.settings.batches, draw
            ):
                yield [self.conversations[k] for k in batch]


def second_pass(job: Job, second: Second, own: Params | None) -> Job:
    """Return the work of a second pass over a client's data.

    Args:
        job: The work of the first pass.
        second: The second pass.
        own: The client's own model; None where it has none yet and starts from what was sent.
    """
    epochs = second.epochs or job.settings.epochs
    return replace(
        job,
        rule=second.rule,
        memory={},
        settings=job.settings.model_copy(update={"epochs": epochs}),
        start=job.broadcast.params if own is None else own,
        name=second.name,
        factor=second.rate,
    )


def draw_batches(
    conversations: Sequence[Conversation], size: int, batches: str, draw: np.random.Generator
) -> list[list[int]]:
    """Divide one epoch's examples into batches; each example is in exactly one.

    Args:
        conversations: The examples.
        size: Examples in a batch, ≥ 1; the last one drawn may be smaller.
        batches: "shuffled" cuts a random order into pieces. "bucketed" sorts the pieces of `BUCKETED`
            batches by modality and length first and shuffles the batches afterward: little padding, but
            batches are no longer independent draws.
        draw: The random stream.

    Returns:
        Positions in `conversations`, batch by batch.
    """
    order = [int(k) for k in draw.permutation(len(conversations))]
    if batches == "shuffled":
        return [order[start : start + size] for start in range(0, len(order), size)]

    def shape(k: int) -> tuple[bool, int]:
        conversation = conversations[k]
        return conversation.picture is None, len(conversation.user) + len(conversation.answer)

    buckets: list[list[int]] = []
    for start in range(0, len(order), BUCKETED * size):
        window = sorted(order[start : start + BUCKETED * size], key=shape)
        buckets += [window[first : first + size] for first in range(0, len(window), size)]
    return [buckets[k] for k in draw.permutation(len(buckets))]
