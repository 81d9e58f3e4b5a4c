"""P10: the head at answer positions only, against logits for every token, with a real vocabulary's width."""

from __future__ import annotations

import torch

from benchmarks.harness import Bench, Measured, agree, pairs
from benchmarks.models import Size
from benchmarks.work import make_clients, tensors
from fedloom.models.batches import answer_losses, collate

SIZE = Size(width=256, layers=6, vocabulary=49_280)


def head() -> Measured:
    """Compare one forward and backward pass of 96 tokens, of which 8 are the answer."""
    work = make_clients(SIZE, clients=1, steps=1, batch_size=1, tokens=96, answer=8)
    tuned, batch = work.tuned, work.held[0]
    held = tensors(tuned, batch)
    losses: dict[str, torch.Tensor] = {}

    def ours() -> None:
        tuned.grads.zero_()
        losses["ours"] = answer_losses(tuned.vlm, collate(tuned.vlm, [batch]))[0]
        losses["ours"].backward()

    def rival() -> None:
        tuned.grads.zero_()
        losses["rival"] = tuned.vlm.model(input_ids=held.ids, labels=held.labels, use_cache=False).loss
        losses["rival"].backward()

    ours(), rival()
    agree("losses", abs(float(losses["ours"].detach() - losses["rival"].detach())), 1e-5)
    times = pairs(ours, rival, 40)
    return times.gain, times.summary(rival="all logits") + " a step"


ROWS = {"P10": Bench("head at answers, V=49280", 2.2, 1.7, head)}
