"""The work of one client in one round, which its site makes from an assignment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from fedloom.algorithms.base import LocalRule
from fedloom.client.schedule import rate_of, steps_of
from fedloom.messages import Assignment
from fedloom.params import Part
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
        return rate_of(self.settings, self.round, step, self.steps)

    def _purpose(self, what: str) -> str:
        return f"{what} of stage {self.assignment.stage}" if self.assignment.stage else what

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


def draw_batches(
    conversations: Sequence[Conversation], size: int, batches: str, draw: np.random.Generator
) -> list[list[int]]:
    """Cut one epoch's examples into batches; each example is in one of them.

    Args:
        conversations: The examples.
        size: Examples in a batch, ≥ 1; the last one drawn may be smaller.
        batches: "shuffled" cuts a random order into pieces. "bucketed" sorts the pieces of `BUCKETED`
            batches by modality and length first and shuffles the batches afterwards: little padding, but
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
