"""Losses and gradients of a client's current batch at any parameters, for rules that make their own gradient.

Shape legend: B examples of the batch, P trained values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedloom.client.backpropagation import backpropagate
from fedloom.client.local_job import Job
from fedloom.models.batches import collate
from fedloom.system.timing import Clock
from fedloom.tuning.adapters import Tuned, side_by_side
from fedloom.types import Conversation


@dataclass(frozen=True, eq=False)
class BatchProbe:
    """The probe of one step of one client; see `fedloom.algorithms.local_rule.Probe`.

    With dropout every evaluation of the step drops the same inputs. The model's live values stay as they are.

    Attributes:
        tuned: The model with one row, the client's.
        job: The client's work.
        conversations: The batch.
        step: The step's number, from 0.
        trained: 1 for values that the client trains and 0 elsewhere, shape [P].
        clock: Measures the time of each kind of work.
    """

    tuned: Tuned
    job: Job
    conversations: Sequence[Conversation]
    step: int
    trained: Tensor
    clock: Clock

    @property
    def examples(self) -> int:
        """Number of examples of the batch."""
        return len(self.conversations)

    @property
    def rate(self) -> float:
        """Learning rate of the step."""
        return self.job.rate(self.step)

    def stream(self, purpose: str) -> torch.Generator:
        """Return a random stream named by the purpose, the client, the round and the step; on the CPU."""
        return self.job.stream(purpose, self.step)

    def loss(self, params: Tensor) -> Tensor:
        """Return the mean loss of the batch at parameters of shape [P], a scalar."""
        with torch.no_grad():
            return self._losses(params[None], [self.conversations])[0][0]

    def gradient(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean loss of the batch, a scalar, and its gradient, shape [P], zero for what is not trained."""
        losses, grads = self._losses(params[None], [self.conversations])
        return losses[0], grads[0]

    def per_example(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of each example, shape [B], and its gradient, shape [B, P].

        The examples are rows side by side, as clients are.
        """
        return self._losses(
            params.expand(self.examples, -1), [[conversation] for conversation in self.conversations]
        )

    def _losses(self, flat: Tensor, groups: Sequence[Sequence[Conversation]]) -> tuple[Tensor, Tensor]:
        """Return the mean loss of each group at its row of `flat`, and the gradients, one row each; zeros without autograd."""
        before = self.tuned.flat.clone()
        try:
            with side_by_side(self.tuned, len(groups), [self.job.scale] * len(groups)) as stack:
                stack.flat.copy_(flat)
                batch = collate(stack.vlm, groups, self.clock)
                # One stream serves all rows: it goes through the batch's tokens in order, however they are grouped.
                masks = [self.job.dropout_masks(self.step)]
                losses, _ = backpropagate(stack, batch, masks, self.clock)
                return losses, stack.grads * self.trained
        finally:
            self.tuned.flat.copy_(before)
