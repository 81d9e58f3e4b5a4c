"""Losses and gradients of a client's current batch at any parameters, for rules that make their own gradient.

Shape legend: B examples of the batch, P trainable parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedloom.client.backpropagation import backpropagate, micro_batches
from fedloom.client.local_job import Job
from fedloom.models.batches import Batch
from fedloom.system.timing import Clock
from fedloom.tuning.adapters import Tuned, side_by_side
from fedloom.tuning.dropout import Masks, tokens_of
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
            return self._mean_loss(params)[0]

    def gradient(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean loss of the batch, a scalar, and its gradient, shape [P], zero for what is not trained."""
        return self._mean_loss(params)

    def per_example(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of each example, shape [B], and its gradient, shape [B, P].

        The examples are rows side by side, as clients are; at most `train.micro_batch` of them at a time.
        """
        size, masks, parts = self.job.settings.micro_batch or self.examples, self._masks, []
        for first in range(0, self.examples, size):
            batches = micro_batches(
                self.tuned.vlm, [[one] for one in self.conversations[first : first + size]], None, self.clock
            )
            parts.append(self._losses(params, batches, masks))
            masks = masks.after(tokens_of(batches[0], 1)[0])
        losses, grads = zip(*parts, strict=True)
        return torch.cat(losses), torch.cat(grads)

    @property
    def _masks(self) -> Masks:
        """The masks of the step: one stream goes through its tokens in order, however they are grouped into rows."""
        return self.job.dropout_masks(self.step)

    def _mean_loss(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean loss, a scalar, and its gradient, shape [P], which is zero without autograd."""
        batches = micro_batches(
            self.tuned.vlm, [self.conversations], self.job.settings.micro_batch, self.clock
        )
        losses, grads = self._losses(params, batches, self._masks)
        return losses[0], grads[0]

    def _losses(self, params: Tensor, batches: Sequence[Batch], masks: Masks) -> tuple[Tensor, Tensor]:
        """Return the losses of K rows at parameters of shape [P], and their gradients, [K, P]; zeros without autograd."""
        before, rows = self.tuned.flat.clone(), len(batches[0].sizes)
        try:
            with side_by_side(self.tuned, rows, [self.job.scale] * rows) as stack:
                stack.flat.copy_(params.expand(rows, -1))
                losses, _ = backpropagate(stack, batches, [masks], self.clock)
                return losses, stack.grads * self.trained
        finally:
            self.tuned.flat.copy_(before)
