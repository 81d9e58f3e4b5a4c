"""The work of one client in one round, which its site makes from an assignment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fedloom.algorithms.rule import LocalRule, Second
from fedloom.client.schedule import rate_of, steps_of
from fedloom.messages import Assignment
from fedloom.params import Params, Part
from fedloom.seeds import stream, torch_stream
from fedloom.tuning.dropout import Masks
from fedloom.types import Broadcast, Conversation, Tensors

if TYPE_CHECKING:
    from fedloom.sections import Train

BUCKETED = 32
"""Batches whose examples are sorted together by modality and length where batches are "bucketed"."""


@dataclass(frozen=True, eq=False)
class Job:
    """The work of one client in one round.

    Attributes:
        assignment: What the server asks for; with `seed` its client, round and stage name the random streams.
        start: The parameters that the client begins with (what was sent, the method's start where nothing was, and its
            personal values) and the algorithm's extras.
        rule: The client half of the algorithm.
        memory: What the rule kept of this client's last accepted round, or {}.
        conversations: The client's rendered examples, at least one.
        settings: How the client trains: epochs, batch size, optimizer and so on.
        seed: The experiment's seed.
        trained: The part that the client trains, personal values included; None is all.
        personal: The part that stays with the client; None is nothing.
        scale: Factor on the scale of the client's LoRA adapters. `start` is for adapters of this scale, and so is where
            training ends; `assignment.params` and updates are for those of the plain scale.
        begin: The parameters that training begins with where they are not those of `start`.
        exchanges: Whether parameters travel; see `fedloom.algorithms.base.FederatedAlgorithm.exchanges`.
        name: The pass's name, which its random streams carry; the first pass has none.
        factor: Factor on the learning rate.
        second: The work of the second pass, or None.
        lost: What a codec lost of the client's earlier updates, shape [P], or None.
    """

    assignment: Assignment
    start: Broadcast
    rule: LocalRule
    memory: Tensors
    conversations: Sequence[Conversation]
    settings: Train
    seed: int
    trained: Part | None = None
    personal: Part | None = None
    scale: float = 1.0
    begin: Params | None = None
    exchanges: bool = True
    name: str = ""
    factor: float = 1.0
    second: Job | None = None
    lost: Tensor | None = None

    @property
    def begun(self) -> Params:
        """The parameters that training begins with."""
        return self.start.params if self.begin is None else self.begin

    @property
    def alone(self) -> bool:
        """Whether the client cannot train side by side with others, since a rule makes its own gradient."""
        return self.rule.gradient is not None or (self.second is not None and self.second.alone)

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

    def _purpose(self, what: str) -> str:
        what = f"{what} of {self.name}" if self.name else what
        return f"{what} of stage {self.assignment.stage}" if self.assignment.stage else what

    def stream(self, purpose: str, step: int) -> torch.Generator:
        """Return the random stream of a rule's purpose at a step, on the CPU."""
        named = self._purpose(f"rule/{purpose}")
        return torch_stream(self.seed, named, round=self.round, client=self.client, step=step)

    def masks(self, step: int) -> Masks:
        """Return the random streams of a step's dropout, one for each layer."""

        def draw(layer: str, device: torch.device) -> torch.Generator:
            purpose = self._purpose(f"dropout/{layer}")
            return torch_stream(
                self.seed, purpose, round=self.round, client=self.client, step=step, device=device
            )

        return draw

    def batches(self) -> Iterator[list[Conversation]]:
        """Draw the batches of all epochs, each from a random stream of its own."""
        for epoch in range(self.settings.epochs):
            purpose = self._purpose("batches")
            draw = stream(self.seed, purpose, round=self.round, client=self.client, step=epoch)
            for batch in draw_batches(
                self.conversations, self.settings.batch_size, self.settings.batches, draw
            ):
                yield [self.conversations[k] for k in batch]


def second_pass(job: Job, second: Second, own: Params | None) -> Job:
    """Return the work of a second pass over a client's data.

    Args:
        job: The work of the first pass.
        second: The second pass.
        own: The client's own model; None where it has none yet, and begins with what was sent.
    """
    epochs = second.epochs or job.settings.epochs
    return replace(
        job,
        rule=second.rule,
        memory={},
        settings=job.settings.model_copy(update={"epochs": epochs}),
        begin=own,
        name=second.name,
        factor=second.rate,
    )


def draw_batches(
    conversations: Sequence[Conversation], size: int, batches: str, draw: np.random.Generator
) -> list[list[int]]:
    """Cut one epoch's examples into batches; each example is in one of them.

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
        one = conversations[k]
        return one.picture is None, len(one.user) + len(one.answer)

    cut: list[list[int]] = []
    for start in range(0, len(order), BUCKETED * size):
        window = sorted(order[start : start + BUCKETED * size], key=shape)
        cut += [window[at : at + size] for at in range(0, len(window), size)]
    return [cut[k] for k in draw.permutation(len(cut))]
