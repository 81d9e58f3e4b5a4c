"""Bound a client's update by what the server knows before any update has arrived.

The server knows the training settings, the global parameters x and how many examples a client holds, hence its steps
t = 1 … T and their learning rates η_t. A step moves the parameters by at most

    η_t · r_t                    with r_t of the optimizer (`fedloom.client.optimizers.Optimizer.reach`)
    AdamW   r_t = C_t · √P       whatever the gradients are, with C_t ≤ 7.3 for β2 = 0.999
    SGD     r_t = `train.clip`   if the gradient is clipped and the algorithm's local rule does not change it

and with weight decay λ the distance d_t from x grows as

    d_t ≤ |1 − η_t λ| · d_{t−1} + η_t λ ‖x‖ + η_t r_t,        d_0 = 0.

d_T bounds the norm of every honest update, whatever its data, so no honest update is refused. If the settings do not bound
it (SGD without clipping, or under a rule that adds to the clipped gradient; AdamW with β2 < 0.81), the norm of an update may
be `TIMES` · ‖x‖ + √P: beyond that, nothing of the global parameters is left (with β2 near 0, AdamW divides by single
gradients and may itself get there; `admission.max_norm` allows it). P, x and the norm are those of the values that are
exchanged, and of the client's own LoRA factors if they have a scale of their own (`fedloom.algorithms.lora_ranks`).

Codecs raise the bound. Clients start with the decoded x, whose norm is at most 1 + c times that of x, with c the loss of the
codec (`fedloom.wire.compression`). What they send may include the codec's error in earlier rounds, so the learning rates of
those rounds count too (`fedloom.wire.compression.Codecs.gain`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, sqrt
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedloom.algorithms.algorithm import EVERYTHING, Extra, FederatedAlgorithm, LocalWork
from fedloom.algorithms.local_rule import PLAIN
from fedloom.client.learning_rate import learning_rate, rate_of, steps_of
from fedloom.client.optimizers import OPTIMIZERS
from fedloom.client.site import Profile
from fedloom.params import Params, Part
from fedloom.tuning.lora import scale_b
from fedloom.wire.compression import CODECS, FP32, Codecs

if TYPE_CHECKING:
    from fedloom.config.schema import Train

TIMES = 100.0
"""Largest norm of an update, as a multiple of the global parameters' norm, if the settings do not bound it."""

UNCLIPPED = 1e6
"""Largest norm of a gradient if gradients are not clipped: with a larger one, training has failed."""

SLACK = 1.05
"""Factor on bounds, because float32 norms of many millions of values are a few percent off."""

ROUNDING = 2.0**-22
"""The rounding error of float32 parameters in one step, as a share of their norm."""


@dataclass(frozen=True)
class ClientBounds:
    """The bounds on one client's update.

    Attributes:
        examples: Number of examples that the client holds, which is its largest weight.
        up: The part that the client reports.
        most: Largest norm of its delta.
        usual: A norm that such work commonly leads to. The usual norm counts as at least this one, so that a client with
            many steps, or with the only images, is not refused for being unlike the others.
        extras: Name → shape and bounds of a tensor that the update carries besides the delta.
        scale: Factor on the scale of its LoRA adapters. Norms are those of its delta before B was multiplied by it.
    """

    examples: int
    up: Part
    most: float
    usual: float
    extras: Mapping[str, Extra]
    scale: float = 1.0

    def own_change(self, delta: Params) -> Tensor:
        """Return the change of the client's own values, shape [P]."""
        return scale_b(delta.flat, delta.layout, 1 / self.scale)


class UpdateBounds:
    """The bounds on the updates of one round, from what the server knows about its clients.

    Args:
        algorithm: The algorithm, which announces the extras of updates and may add to gradients.
        params: The global parameters of the round.
        settings: How clients train.
        round: The round's number within its stage.
        profiles: The profile of each client.
        up: Client → the part that it reports; None is all.
        scale: Client → factor on the scale of its LoRA adapters.
        codecs: The codecs of messages.

    Attributes:
        layout: Names and shapes of the global parameters.
    """

    def __init__(
        self,
        algorithm: FederatedAlgorithm,
        params: Params,
        settings: Train,
        round: int,
        profiles: Sequence[Profile],
        up: Callable[[int], Part | None],
        scale: Callable[[int], float] = EVERYTHING.scale,
        codecs: Codecs = FP32,
    ) -> None:
        self.layout = params.layout
        self._algorithm, self._params, self._settings, self._round = algorithm, params, settings, round
        self._profiles, self._up, self._scale, self._codecs = profiles, up, scale, codecs
        self._cached: dict[tuple[int, Part, float], tuple[float, float, Mapping[str, Extra]]] = {}

    def of(self, client: int) -> ClientBounds:
        """Return the bounds on a client's update."""
        examples, part = self._profiles[client].examples, self._up(client) or self._params.whole
        work = steps_of(self._settings, examples), part, self._scale(client)
        if work not in self._cached:  # the same for all clients with as many steps
            self._cached[work] = self._bounds_of(*work)
        return ClientBounds(examples, part, *self._cached[work], work[-1])

    def _bounds_of(self, steps: int, part: Part, scale: float) -> tuple[float, float, Mapping[str, Extra]]:
        clip = self._settings.clip
        free = self._algorithm.local.correct is PLAIN.correct
        gradient = inf if clip is None or not free else clip
        size = norm(part.take(scale_b(self._params.flat, self.layout, 1 / scale)))
        size *= 1 + CODECS[self._codecs.down].loss
        most, usual = delta_bound(self._settings, self._round, steps, gradient, part.count, size)
        if self._algorithm.local.start is not None:  # then deltas are not measured from where clients start
            most, usual = fallback_bound(part.count, size)
        elif (fastest := self._fastest_round()) != self._round:
            most, _ = delta_bound(self._settings, fastest, steps, gradient, part.count, size)
        most *= self._codecs.gain
        limit = SLACK * (UNCLIPPED if clip is None else clip)
        rate = max(rate_of(self._settings, self._round, step, steps) for step in range(steps))
        return most, usual, self._algorithm.extras(LocalWork(self.layout.size, steps, limit, rate))

    def _fastest_round(self) -> int:
        """Return the round with the largest learning rate among those whose changes an update may include."""
        if self._codecs.up == "fp32" or not self._codecs.feedback:
            return self._round
        return max(range(self._round + 1), key=lambda round: learning_rate(self._settings, round))


def delta_bound(
    settings: Train, round: int, steps: int, gradient: float, values: int, start: float
) -> tuple[float, float]:
    """Bound the norm of the delta to which a client's work can lead.

    Args:
        settings: How the client trains.
        round: The round's number within its stage.
        steps: Steps that it takes.
        gradient: Largest norm of a gradient that the optimizer gets; inf if nothing bounds it.
        values: Number P of values that are exchanged.
        start: Norm of these values at the start.

    Returns:
        The bound, and a norm that is common: that of steps in random directions, or a thousandth of the bound if the settings
        do not bound it.
    """
    longest, decay = OPTIMIZERS[settings.optimizer].reach, settings.weight_decay
    far = squares = 0.0
    for step in range(steps):
        rate = rate_of(settings, round, step, steps)
        moved = rate * longest(step + 1, values, gradient, settings.beta2) if rate else 0.0
        far = abs(1 - rate * decay) * far + rate * decay * start + moved + ROUNDING * (start + far)
        squares += moved**2
    if far < inf:
        return SLACK * far, sqrt(squares)
    return fallback_bound(values, start)


def fallback_bound(values: int, start: float) -> tuple[float, float]:
    """Return the bound, and a norm that is common, if nothing bounds how far a client goes; see `delta_bound`."""
    largest = TIMES * start + sqrt(values)
    return largest, largest / 1000


def norm(values: Tensor) -> float:
    """Return the Euclidean norm of a tensor, which is finite exactly if all values are."""
    result = float(torch.linalg.vector_norm(values))
    # Squares of huge or tiny float32 values leave the range of float32; then float64 is used.
    return result if 1e-15 < result < 1e15 else float(torch.linalg.vector_norm(values.double()))
