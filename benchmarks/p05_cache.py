"""P5: cached encoder features against features that are computed at every step, after the first epoch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.harness import Bench, Measured, agree, pairs
from benchmarks.models import Size, conversation, tuned_model
from fedloom.models.batches import answer_losses, collate
from fedloom.tuning.adapters import Tuned
from fedloom.types import Conversation

SMOLVLM = Size(width=256, layers=6, tower_width=768, tower_layers=7, patch=8)
"""64 image tokens; an image costs 7.7 times the forward pass of its 80 tokens, as in SmolVLM-256M."""

LLAVA = Size(width=256, layers=4, tower_width=256, tower_layers=6)
"""The shape of the first bundled model: 16 image tokens of a tower as wide as the language model."""


@dataclass(frozen=True)
class Noise:
    """An image of random pixels, drawn when asked for."""

    number: int
    side: int

    @property
    def key(self) -> str:
        """A key that is equal for equal pixels."""
        return f"noise-{self.number}-{self.side}"

    def pixels(self) -> NDArray[np.uint8]:
        """Draw the pixels, shape [side, side, 3]."""
        generator = np.random.default_rng(self.number)
        return generator.integers(0, 256, (self.side, self.side, 3), dtype=np.uint8)


def batch_of(size: Size, tokens: int, count: int) -> tuple[Tuned, list[Conversation]]:
    """Build a model and a batch of conversations with `tokens` tokens each, including their image tokens."""
    tuned = tuned_model(size)
    shown = [conversation(tuned.vlm, tokens, 4, k, picture=Noise(k, size.image)) for k in range(count)]
    return tuned, shown


def step(tuned: Tuned, batch: list[Conversation]) -> torch.Tensor:
    """Compute one forward and backward pass and return the loss."""
    tuned.grads.zero_()
    loss = answer_losses(tuned.vlm, collate(tuned.vlm, [batch]))[0]
    loss.backward()
    return loss.detach()


def on_or_off(size: Size, tokens: int) -> Callable[[], Measured]:
    """Compare training steps with and without cached features, four conversations each."""

    def measure() -> Measured:
        tuned, batch = batch_of(size, tokens, 4)

        def off() -> torch.Tensor:
            tuned.vlm.memo.features.clear()
            return step(tuned, batch)

        agree("losses", abs(float(off() - step(tuned, batch))), 0.0)
        times = pairs(lambda: step(tuned, batch), off, 25)
        return times.gain, times.summary(ours="kept", rival="computed anew") + " a step"

    return measure


def hit() -> Measured:
    """Measure the time of reading cached features, as a share of a step."""
    tuned, batch = batch_of(SMOLVLM, 80, 4)
    step(tuned, batch)
    images = [image for one in batch for image in one.pictures]
    times = pairs(lambda: tuned.vlm.image_features(images), lambda: step(tuned, batch), 25)
    return times.cost, times.summary(ours="finding", rival="step")


ROWS = {
    "P5-smolvlm": Bench("kept features, SmolVLM", 3.2, 2.5, on_or_off(SMOLVLM, 80)),
    "P5-llava": Bench("kept features, tiny LLaVA", 1.15, 1.08, on_or_off(LLAVA, 64)),
    "P5-hit": Bench("finding them / step", 0.02, None, hit, higher=False),
}
