"""What a client's update may amount to, derived from what the server knows before any update has come.

The server knows the training settings, the global parameters x and how many examples a client holds, hence its steps
t = 1 … T and their learning rates η_t. A step moves the parameters by at most

    η_t · r_t                    with r_t of the optimizer (`fedloom.client.optimizers.Optimizer.reach`)
    AdamW   r_t = C_t · √P       whatever the gradients are, with C_t ≤ 7.3 for β2 = 0.999
    SGD     r_t = `train.clip`   where the gradient is clipped and the algorithm's local rule leaves it alone

and with weight decay λ the distance d_t from x grows as

    d_t ≤ |1 − η_t λ| · d_{t−1} + η_t λ ‖x‖ + η_t r_t,        d_0 = 0.

d_T bounds the norm of every honest update, whatever its data: no honest update is refused by it. Where the settings
bound nothing (SGD without clipping, or under a rule that adds to the clipped gradient; AdamW with β2 < 0.81) an update
may be `TIMES` · ‖x‖ + √P long: beyond that, nothing of the global parameters is left (with β2 near 0, AdamW divides by
single gradients and may itself go there; `gate.max_norm` allows it). P, x and the norm are those of the
values that are exchanged.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import inf, sqrt

import torch
from torch import Tensor

from fedloom.algorithms.base import PLAIN, Extra, FederatedAlgorithm, LocalWork
from fedloom.client.optimizers import OPTIMIZERS
from fedloom.client.train import Work
from fedloom.params import Params

TIMES = 100.0
"""Norm of an update, as a multiple of the global parameters', where the settings bound nothing."""

UNCLIPPED = 1e6
"""Largest norm of a gradient where gradients are not clipped: with one beyond it, training has failed."""

SLACK = 1.05
"""Factor on bounds: float32 norms of many millions of values are a few percent off."""

ROUNDING = 2.0**-22
"""What float32 rounds away from parameters in one step, as a share of their norm."""


@dataclass(frozen=True)
class Allowance:
    """What one client's update may amount to.

    Attributes:
        client: The client that was asked.
        examples: Examples that the client holds: the largest weight.
        most: Largest norm of its delta.
        usual: A norm that such work commonly comes to: the median of other updates counts for no less, so that a
            client with many steps, or with the only images, is not refused for being unlike the others.
        extras: What comes besides the delta, by name.
    """

    client: int
    examples: int
    most: float
    usual: float
    extras: Mapping[str, Extra]


class Expected:
    """What the clients of one round were asked for: noted as works go out, taken as updates come in.

    Args:
        algorithm: Says which extras updates carry.
        params: What the round broadcasts.
        masks: Masks of what is trained and of what is exchanged, where that is not all; shape [P].

    Attributes:
        silent: Stretches of the layout in which a delta is zero, because they are not exchanged.
    """

    def __init__(self, algorithm: FederatedAlgorithm, params: Params, masks: Iterable[Tensor | None]) -> None:
        self._algorithm, self._layout = algorithm, params.layout
        given = [mask for mask in masks if mask is not None]
        exchanged = torch.stack(given).prod(0).bool() if given else None
        self.silent = () if exchanged is None else tuple(_stretches(~exchanged))
        self._values = params.layout.size if exchanged is None else int(exchanged.sum())
        self._norm = norm(params.flat if exchanged is None else params.flat[exchanged])
        self._asked: deque[tuple[int, int, int]] = deque()
        self._reaches: dict[int, tuple[float, float, Mapping[str, Extra]]] = {}

    def noted(self, works: Iterable[Work]) -> Iterator[Work]:
        """Pass works on, and note what each asks for."""
        for work in works:
            if work.steps not in self._reaches:  # the same for all clients with as many steps
                self._reaches[work.steps] = self._reach(work)
            self._asked.append((work.client, len(work.conversations), work.steps))
            yield work

    def take(self) -> Allowance:
        """Return what the next update may amount to: updates come in the order of the works."""
        client, examples, steps = self._asked.popleft()
        return Allowance(client, examples, *self._reaches[steps])

    def passed_over(self, client: int) -> None:
        """Forget what a client was asked for that is missing; its work may not even have gone out."""
        if self._asked and self._asked[0][0] == client:
            self._asked.popleft()

    def _reach(self, work: Work) -> tuple[float, float, Mapping[str, Extra]]:
        gradient = UNCLIPPED if work.settings.clip is None else work.settings.clip
        extras = self._algorithm.extras(LocalWork(self._layout.size, work.steps, SLACK * gradient))
        return *reach(work, self._values, self._norm), extras


def reach(work: Work, values: int, start: float) -> tuple[float, float]:
    """Bound the norm of the delta that a client's work can come to.

    Args:
        work: The work.
        values: Number P of values that are exchanged.
        start: Norm of these values where the client starts.

    Returns:
        The bound, and a norm that is common: that of steps in directions drawn at random, or a thousandth of the bound
        where the settings bound nothing.
    """
    settings = work.settings
    clipped = inf if settings.clip is None else settings.clip
    gradient = clipped if work.rule.correct is PLAIN.correct else inf
    longest, decay = OPTIMIZERS[settings.optimizer].reach, settings.weight_decay
    far = squares = 0.0
    for step in range(work.steps):
        rate = work.rate(step)
        moved = rate * longest(step + 1, values, gradient, settings.beta2) if rate else 0.0
        far = abs(1 - rate * decay) * far + rate * decay * start + moved + ROUNDING * (start + far)
        squares += moved**2
    if far < inf:
        return SLACK * far, sqrt(squares)
    largest = TIMES * start + sqrt(values)
    return largest, largest / 1000


def norm(values: Tensor) -> float:
    """Return the Euclidean norm of a tensor; it is finite exactly when all values are."""
    found = float(torch.linalg.vector_norm(values))
    # Squares of huge or tiny float32 values leave its range; then float64 decides.
    return found if 1e-15 < found < 1e15 else float(torch.linalg.vector_norm(values.double()))


def _stretches(mask: Tensor) -> Iterator[slice]:
    """Yield where a mask, bool of shape [P], holds."""
    edges = torch.nn.functional.pad(mask.to(torch.int8), (1, 1)).diff()
    starts, ends = (edges > 0).nonzero().flatten().tolist(), (edges < 0).nonzero().flatten().tolist()
    yield from (slice(start, end) for start, end in zip(starts, ends, strict=True))
