"""Clients' work in one round: start from the broadcast, take local steps, send the difference.

This is the whole local loop; there is no trainer behind it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fedloom.algorithms.base import Correct, LocalRule
from fedloom.client.optimizers import OPTIMIZERS, clip
from fedloom.models.batch import answer_losses, collate
from fedloom.record import Clock
from fedloom.seeds import stream, torch_stream
from fedloom.tuning.adapters import Tuned, side_by_side
from fedloom.tuning.dropout import Masks, dropping
from fedloom.tuning.masks import own_start
from fedloom.types import Broadcast, ClientUpdate, Conversation, Missing, Tensors


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
        """How the learning rate changes from round to round: "cosine", "constant" or "published"."""
        ...

    @property
    def local_schedule(self) -> str:
        """How it changes from step to step inside a round: "constant", "cosine" or "published"."""
        ...

    @property
    def optimizer(self) -> str:
        """A key of `OPTIMIZERS`."""
        ...

    @property
    def beta2(self) -> float:
        """AdamW's memory of squared gradients, in [0, 1)."""
        ...

    @property
    def weight_decay(self) -> float:
        """Decoupled weight decay (AdamW) or L2 (SGD)."""
        ...

    @property
    def clip(self) -> float | None:
        """Largest gradient norm, or None."""
        ...

    @property
    def batches(self) -> str:
        """How examples come together: "shuffled", or "bucketed" by modality and length; see `draw_batches`."""
        ...


def learning_rate(settings: TrainSettings, round: int) -> float:
    """Return the learning rate of a round, falling from round to round if "cosine"; `local_rate` changes it inside.

    "published" is FedMLLM's cosine (arXiv 2411.14717, public code), which warms up over a hundredth of the
    rounds, lr · (round + 1) / warm. With fewer than 100 rounds that is less than one round, so the first has
    lr · 100 / rounds: four times the rate that was meant, at 25.
    """
    if settings.schedule == "constant":
        return settings.lr
    warm = 0.01 * settings.rounds if settings.schedule == "published" else 0.0
    if round < warm:
        return settings.lr * (round + 1) / warm
    return settings.lr * (1 + math.cos(math.pi * (round - warm) / (settings.rounds - warm))) / 2


def local_rate(schedule: str, step: int, steps: int) -> float:
    """Return the part of a round's learning rate, in [0, 1], that one of the client's steps has.

    Args:
        schedule: "constant" is 1 throughout. "cosine" falls from 1 at the first step towards 0. "published" is
            FedMLLM's (arXiv 2411.14717, public code): a fresh cosine of transformers' Trainer in each round,
            with a warm-up over a hundredth of the steps, rounded up. That starts at 0, so the first step of
            every round moves nothing, and a client with a single step stays where it was.
        step: The step's number in this round, from 0.
        steps: Steps that the client takes in this round.
    """
    if schedule == "constant":
        return 1.0
    warm = math.ceil(0.01 * steps) if schedule == "published" else 0
    if step < warm:
        return step / warm
    return (1 + math.cos(math.pi * (step - warm) / (steps - warm))) / 2


OWN = "personal"
"""What a client calls its own values in its memory, beside what its algorithm's rule keeps."""


@dataclass(frozen=True, eq=False)
class Work:
    """What one client is to do in one round.

    Attributes:
        client: The client's number; with `seed` and `round` it names the client's random streams.
        round: The round's number.
        seed: The experiment's seed.
        rule: The client half of the algorithm.
        broadcast: Parameters and extras from the server.
        memory: What this client kept from its last round, or {}.
        conversations: The client's rendered examples, at least one.
        settings: Epochs, batch size, optimiser.
        stage: Number of the strategy's stage; with `round` it names the client's random streams.
        trained: 1 for values that this stage trains and 0 for others, shape [P]; None is all.
        shared: 1 for values that are exchanged and 0 for those the client keeps, shape [P]; None is all.
    """

    client: int
    round: int
    seed: int
    rule: LocalRule
    broadcast: Broadcast
    memory: Tensors
    conversations: Sequence[Conversation]
    settings: TrainSettings
    stage: int = 0
    trained: Tensor | None = None
    shared: Tensor | None = None

    @property
    def start(self) -> Broadcast:
        """What the client begins with: the broadcast, and its own values where they are not exchanged."""
        params = own_start(self.broadcast.params, self.memory.get(OWN), self.shared)
        return Broadcast(params, self.broadcast.extras)

    @property
    def steps(self) -> int:
        """Number of optimiser steps this takes."""
        return self.settings.epochs * math.ceil(len(self.conversations) / self.settings.batch_size)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        part = local_rate(self.settings.local_schedule, step, self.steps)
        return learning_rate(self.settings, self.round) * part

    def _purpose(self, what: str) -> str:
        return f"{what} of stage {self.stage}" if self.stage else what

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


BUCKETED = 32
"""Batches in whose examples those that are alike are looked for."""


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


Result = tuple[ClientUpdate, Tensors]
"""A client's update, and what the client keeps."""

Answer = Result | Missing
"""What a client that was asked comes to."""


def train(tuned: Tuned, works: Sequence[Work], clock: Clock | None = None) -> list[Result]:
    """Train one client, or several side by side over the shared frozen model.

    Side by side, each client's adapters are one row of a stack: one forward and one backward pass serve all
    of them. Rows never mix: the loss is each client's own mean, summed; norms for clipping, local rules and
    random streams are each client's own; a client that has taken its steps leaves the stack. So the updates
    are those of training one client after the other.

    Args:
        tuned: The model with one row; its live values are overwritten.
        works: What each client is to do; all with the same settings and round.
        clock: Told where the time goes.

    Returns:
        Updates in the order of `works`.

    Raises:
        ValueError: Settings or rounds differ between works, so their rows could not step together.
    """
    settings, round = works[0].settings, works[0].round
    if any(work.settings != settings or work.round != round for work in works):
        raise ValueError("clients that train side by side need the same settings and round")
    begun, clock = time.perf_counter(), clock or Clock()
    # Clients with most steps first: those still at work are always the first rows.
    order = sorted(range(len(works)), key=lambda k: -works[k].steps)
    rows = [works[k] for k in order]
    batches = [work.batches() for work in rows]
    losses = torch.zeros(len(rows), dtype=torch.float64, device=tuned.flat.device)
    with side_by_side(tuned, len(rows)) as stack:
        where = stack.flat.device
        starts = [_at(work.start, where) for work in rows]
        for k, start in enumerate(starts):
            stack.write(start.params, k)
        carries = [
            work.rule.begin(start, _put(work.memory, where)) for work, start in zip(rows, starts, strict=True)
        ]
        held_back = [None if work.trained is None else work.trained.to(where).bool() for work in rows]
        slots, tied = stack.zeroed(OPTIMIZERS[settings.optimizer].slots), len(rows)
        clock.lap("load")
        for step in range(rows[0].steps):
            active = sum(work.steps > step for work in rows)
            if active < tied:
                stack.tie(active)
                tied = active
            batch = collate(stack.vlm, [next(batches[k]) for k in range(active)], clock)
            flat, grads = stack.flat[:active], stack.grads[:active]
            grads.zero_()
            with dropping(stack, batch, [work.masks(step) for work in rows[:active]]):
                found = answer_losses(stack.vlm, batch, stack.connects(active))
                losses[:active] += found.detach()
                clock.lap("forward")
                if found.requires_grad:  # not where only the connector is trained and no picture is shown
                    found.sum().backward()
            clock.lap("backward")
            _change(grads, flat, carries, [work.rule.penalize for work in rows[:active]])
            for grad, mask in zip(grads, held_back, strict=False):
                if mask is not None:
                    grad.mul_(mask)
            clip(grads, settings.clip)
            _change(grads, flat, carries, [work.rule.correct for work in rows[:active]])
            _move(flat, grads, slots, rows[:active], step)
            for values, start, mask in zip(flat, starts, held_back, strict=False):
                if mask is not None:  # an optimiser moves a value without gradient too: it decays it
                    values.copy_(torch.where(mask, values, start.params.flat))
            clock.lap("step")
        ends = [stack.flat[k].cpu() for k in range(len(rows))]
    seconds = (time.perf_counter() - begun) / len(rows)
    results = [
        _result(work, end, carry, loss, seconds)
        for work, end, carry, loss in zip(rows, ends, carries, losses.tolist(), strict=True)
    ]
    clock.lap("load")
    return [results[order.index(k)] for k in range(len(works))]


def _change(grads: Tensor, flat: Tensor, carries: list[Tensors], changes: Sequence[Correct]) -> None:
    """Let each client's rule change its own gradient, a row of [K, P], and what it carries."""
    for k, (grad, values, change) in enumerate(zip(grads, flat, changes, strict=True)):
        changed, carries[k] = change(grad, values, carries[k])
        if changed is not grad:
            grad.copy_(changed)


def _move(flat: Tensor, grads: Tensor, slots: Tensors, works: Sequence[Work], step: int) -> None:
    """Take one step of the optimiser: for all rows, [K, P], at once where they have the same learning rate."""
    settings, rates = works[0].settings, [work.rate(step) for work in works]
    alike = len(set(rates)) == 1
    for k, rate in enumerate(rates[:1] if alike else rates):
        part = slice(0, len(works)) if alike else slice(k, k + 1)
        held = {name: value[part] for name, value in slots.items()}
        OPTIMIZERS[settings.optimizer].step(
            flat[part], grads[part], held, step + 1, rate, settings.weight_decay, settings.beta2
        )


def _result(work: Work, end: Tensor, carry: Tensors, losses: float, seconds: float) -> Result:
    extras, kept = (_put(tensors, "cpu") for tensors in work.rule.finish(carry, work.steps))
    delta = end - work.start.params.flat
    if work.shared is not None:
        delta, kept = delta * work.shared, {**kept, OWN: end.clone()}
    metrics = {
        "loss": losses / work.steps,
        "steps": float(work.steps),
        "norm": float(torch.linalg.vector_norm(delta)),
        "seconds": seconds,
    }
    weight = float(len(work.conversations))
    return ClientUpdate(work.client, work.broadcast.params.with_flat(delta), weight, extras, metrics), kept


def _put(tensors: Tensors, where: torch.device | str) -> Tensors:
    """Move named tensors to a device; those that are there stay as they are."""
    return {name: value.to(where) for name, value in tensors.items()}


def _at(broadcast: Broadcast, where: torch.device) -> Broadcast:
    params = broadcast.params.with_flat(broadcast.params.flat.to(where))
    return Broadcast(params, _put(broadcast.extras, where))
