"""One client's work in one round: start from the broadcast, take local steps, send the difference.

This is the whole local loop; there is no trainer behind it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from fedloom.algorithms.base import LocalRule
from fedloom.client.optimizers import OPTIMIZERS, clip
from fedloom.models.batch import answer_loss
from fedloom.seeds import stream
from fedloom.tuning.adapters import Tuned
from fedloom.types import Broadcast, ClientUpdate, Conversation, Tensors


class TrainSettings(Protocol):
    """The `train` section of an experiment, as far as a client reads it."""

    @property
    def rounds(self) -> int:
        """Number of rounds; the learning rate falls over them."""
        ...

    @property
    def epochs(self) -> int:
        """Passes over the client's data in one round."""
        ...

    @property
    def batch_size(self) -> int:
        """Examples in one optimiser step."""
        ...

    @property
    def lr(self) -> float:
        """Learning rate of the first round."""
        ...

    @property
    def schedule(self) -> str:
        """How the learning rate changes from round to round: "cosine" or "constant"."""
        ...

    @property
    def optimizer(self) -> str:
        """A key of `OPTIMIZERS`."""
        ...

    @property
    def weight_decay(self) -> float:
        """Decoupled weight decay (AdamW) or L2 (SGD)."""
        ...

    @property
    def clip(self) -> float | None:
        """Largest gradient norm, or None."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where and when a client trains: what its random streams are named by."""

    seed: int
    round: int
    client: int


def learning_rate(settings: TrainSettings, round: int) -> float:
    """Return the learning rate of a round: constant inside it, falling from round to round if "cosine"."""
    if settings.schedule == "constant":
        return settings.lr
    return settings.lr * (1 + math.cos(math.pi * round / settings.rounds)) / 2


def train_client(
    tuned: Tuned,
    rule: LocalRule,
    broadcast: Broadcast,
    memory: Tensors,
    conversations: Sequence[Conversation],
    settings: TrainSettings,
    place: Place,
) -> tuple[ClientUpdate, Tensors]:
    """Train on a client's conversations, starting from the broadcast.

    Args:
        tuned: The model; its live values are overwritten.
        rule: The client half of the algorithm.
        broadcast: Parameters and extras from the server.
        memory: What this client kept from its last round, or {}.
        conversations: The client's rendered examples, at least one.
        settings: Epochs, batch size, optimiser.
        place: Names the client's random streams.

    Returns:
        The update and what the client keeps.
    """
    begun = time.perf_counter()
    tuned.write(broadcast.params)
    carry = rule.begin(broadcast, memory)
    lr, optimize = learning_rate(settings, place.round), OPTIMIZERS[settings.optimizer]
    slots: dict[str, torch.Tensor] = {}
    step, losses = 0, 0.0
    for epoch in range(settings.epochs):
        order = stream(place.seed, "batches", round=place.round, client=place.client, step=epoch).permutation(
            len(conversations)
        )
        for start in range(0, len(order), settings.batch_size):
            batch = [conversations[index] for index in order[start : start + settings.batch_size]]
            tuned.grads.zero_()
            loss = answer_loss(tuned.vlm, batch)
            loss.backward()
            clip(tuned.grads, settings.clip)
            grads, carry = rule.correct(tuned.grads, tuned.flat, carry)
            step += 1
            optimize(tuned.flat, grads, slots, step, lr, settings.weight_decay)
            losses += loss.item()
    extras, kept = rule.finish(carry, step)
    delta = broadcast.params.with_flat(tuned.flat - broadcast.params.flat)
    metrics = {
        "loss": losses / step,
        "steps": float(step),
        "norm": float(torch.linalg.vector_norm(delta.flat)),
        "seconds": time.perf_counter() - begun,
    }
    return ClientUpdate(place.client, delta, float(len(conversations)), extras, metrics), kept
