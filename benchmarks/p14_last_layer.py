"""P14: steps with the decoder's last layer computed at the answers only, against steps with the whole layer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

from torch import Tensor

from benchmarks.harness import Bench, Measured, agree, pairs
from benchmarks.models import Size
from benchmarks.work import make_clients
from fedloom.models import batches as batches

BUNDLED = Size(width=256, layers=4)


def against_whole(tokens: int, answer: int) -> Callable[[], Measured]:
    """Compare forward and backward of eight conversations at the bundled model's width and depth."""

    def measure() -> Measured:
        made = make_clients(BUNDLED, clients=1, steps=1, batch_size=8, tokens=tokens, answer=answer)
        tuned = made.tuned
        batch = batches.collate(tuned.vlm, [made.held[0]])

        def ours() -> Tensor:
            tuned.grads.zero_()
            batches.answer_losses(tuned.vlm, batch).sum().backward()
            return tuned.grads.clone()

        def whole() -> Tensor:
            with patch.object(batches, "reading", _nothing):
                return ours()

        agree("gradients", float((ours() - whole()).norm() / whole().norm()), 1e-5)
        times = pairs(ours, whole, 15)
        return times.gain, times.summary(rival="whole layer", per=8) + " a conversation"

    return measure


def _nothing(*given: Any) -> nullcontext[None]:
    del given
    return nullcontext()


ROWS = {
    "P14-short": Bench("last layer, 3 of 64 read", 1.12, 1.05, against_whole(64, 3)),
    "P14-long": Bench("last layer, 32 of 64 read", 1.03, 0.97, against_whole(64, 32)),
}
