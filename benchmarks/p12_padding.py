"""P12: all tokens over real tokens in the engine's own batches, with half the examples without an image."""

from __future__ import annotations

import numpy as np

from benchmarks.harness import Bench, Measured
from benchmarks.models import Size, conversation, tuned_model
from benchmarks.p05_cache import Noise
from benchmarks.work import SEED, Clients, train_settings
from fedloom.models.batches import collate

SIZE = Size(width=64, layers=1, image=128)  # 64 image tokens
CLIENTS, HELD, BATCH = 4, 128, 8


def padding() -> Measured:
    """Compute one figure for each client: tokens of its batches, including padding, over real tokens."""
    vlm = tuned_model(SIZE)
    generator = np.random.default_rng(SEED)
    held = {}
    for client in range(CLIENTS):
        lengths = np.clip(np.exp(generator.normal(3.4, 0.4, HELD)), 16, 120).astype(int)
        shown = generator.random(HELD) < 0.5
        held[client] = [
            conversation(
                vlm.vlm,
                int(length) + image * SIZE.image_tokens,
                4,
                k,
                picture=Noise(k, SIZE.image) if image else None,
            )
            for k, (length, image) in enumerate(zip(lengths, shown, strict=True))
        ]
    made = Clients(vlm, held, train_settings(BATCH, batches="bucketed"))
    ratios = []
    for client in held:
        masks = [collate(vlm.vlm, [batch]).mask for batch in made.job(client).batches()]
        ratios.append(sum(mask.numel() for mask in masks) / sum(int(mask.sum()) for mask in masks))
    return ratios, f"{CLIENTS} clients with {HELD} conversations, batches of {BATCH}, 64 image tokens"


ROWS = {"P12": Bench("padded / real tokens", 1.10, 1.25, padding, higher=False)}
