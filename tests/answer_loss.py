"""The loss of one client's conversations, for tests."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fedloom.models.batches import answer_losses, collate
from fedloom.models.load_model import Vlm
from fedloom.types import Conversation


def answer_loss(vlm: Vlm, conversations: Sequence[Conversation]) -> Tensor:
    """Return the mean negative log-likelihood of the conversations' answers, a scalar."""
    return answer_losses(vlm, collate(vlm, [conversations]))[0]
