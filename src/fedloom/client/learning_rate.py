"""The number of steps that a client takes in a round, and their learning rates."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedloom.config.schema import Train


def learning_rate(settings: Train, round: int) -> float:
    """Return the learning rate of a round, which "cosine" lowers from round to round and `local_rate` scales within a round.

    "published" is FedMLLM's cosine (arXiv 2411.14717, public code), which warms up over a hundredth of the
    rounds, lr · (round + 1) / warm. With fewer than 100 rounds that is less than one round, so the first has
    lr · 100 / rounds: with 25 rounds, four times the intended rate.
    """
    if settings.schedule == "constant":
        return settings.lr
    warm = 0.01 * settings.rounds if settings.schedule == "published" else 0.0
    if round < warm:
        return settings.lr * (round + 1) / warm
    return settings.lr * (1 + math.cos(math.pi * (round - warm) / (settings.rounds - warm))) / 2


def local_rate(schedule: str, step: int, steps: int) -> float:
    """Return the factor, in [0, 1], by which one of a client's steps scales the round's learning rate.

    Args:
        schedule: "constant" is 1 throughout. "cosine" falls from 1 at the first step toward 0. "published" is
            FedMLLM's (arXiv 2411.14717, public code): a fresh cosine of transformers' Trainer in each round,
            with a warm-up over a hundredth of the steps, rounded up. That starts at 0, so the first step of
            every round changes nothing, and a client with a single step does not move.
        step: The step's number in this round, from 0.
        steps: Steps that the client takes in this round.
    """
    if schedule == "constant":
        return 1.0
    warm = math.ceil(0.01 * steps) if schedule == "published" else 0
    if step < warm:
        return step / warm
    return (1 + math.cos(math.pi * (step - warm) / (steps - warm))) / 2


def steps_of(settings: Train, examples: int) -> int:
    """Return how many optimizer steps a client with `examples` examples takes in a round."""
    return settings.epochs * math.ceil(examples / settings.batch_size)


def rate_of(settings: Train, round: int, step: int, steps: int) -> float:
    """Return the learning rate of a client's step, counted from 0, in a round in which it takes `steps`."""
    return learning_rate(settings, round) * local_rate(settings.local_schedule, step, steps)
