"""P5: encoder features kept against computed anew at every step, after the first epoch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.harness import Bench, Measured, agree, pairs
from benchmarks.models import Size, conversation, tuned_model
from fedloom.models.batches import answer_loss
from fedloom.tuning.adapters import Tuned
from fedloom.types import Conversation

SMOLVLM = Size(width=256, layers=6, tower_width=768, tower_layers=7, patch=8)
"""64 image tokens; a picture costs 7.7 times the forward pass of its 80 tokens, as in SmolVLM-256M."""

LLAVA = Size(width=256, layers=4, tower_width=256, tower_layers=6)
"""The shape of the first bundled model: 16 image tokens of a tower as wide as the language model."""


@dataclass(frozen=True)
class Noise:
    """A picture of random pixels, drawn when asked for."""

    number: int
    side: int

    @property
    def key(self) -> str:
        """Equal for equal pixels."""
        return f"noise-{self.number}-{self.side}"

    def pixels(self) -> NDArray[np.uint8]:
        """Draw it, shape [side, side, 3]."""
        generator = np.random.default_rng(self.number)
        return generator.integers(0, 256, (self.side, self.side, 3), dtype=np.uint8)


def batch_of(size: Size, tokens: int, count: int) -> tuple[Tuned, list[Conversation]]:
    """Make a model and a batch of conversations with `tokens` tokens each, their image tokens included."""
    tuned = tuned_model(size)
    shown = [conversation(tuned.vlm, tokens, 4, k, picture=Noise(k, size.picture)) for k in range(count)]
    return tuned, shown


def step(tuned: Tuned, batch: list[Conversation]) -> torch.Tensor:
    """One forward and backward pass."""
    tuned.grads.zero_()
    loss = answer_loss(tuned.vlm, batch)
    loss.backward()
    return loss.detach()


def on_or_off(size: Size, tokens: int) -> Callable[[], Measured]:
    """Compare training steps with kept features and without, four conversations each."""

    def measure() -> Measured:
        tuned, batch = batch_of(size, tokens, 4)

        def off() -> torch.Tensor:
            tuned.vlm.memo.features.clear()
            return step(tuned, batch)

        agree("losses", abs(float(off() - step(tuned, batch))), 0.0)
        found = pairs(lambda: step(tuned, batch), off, 25)
        return found.gain, found.said(ours="kept", rival="computed anew") + " a step"

    return measure


def hit() -> Measured:
    """What finding kept features costs, as a share of a step."""
    tuned, batch = batch_of(SMOLVLM, 80, 4)
    step(tuned, batch)
    pictures = [picture for one in batch for picture in one.pictures]
    found = pairs(lambda: tuned.vlm.look(pictures), lambda: step(tuned, batch), 25)
    return found.cost, found.said(ours="finding", rival="step")


ROWS = {
    "P5-smolvlm": Bench("kept features, SmolVLM", 3.2, 2.5, on_or_off(SMOLVLM, 80)),
    "P5-llava": Bench("kept features, tiny LLaVA", 1.15, 1.08, on_or_off(LLAVA, 64)),
    "P5-hit": Bench("finding them / step", 0.02, None, hit, higher=False),
}
