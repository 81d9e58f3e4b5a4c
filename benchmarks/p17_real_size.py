"""P17: a client's round of a vision-language model of 195 million parameters, against the published way and against its products alone.

The model is a LLaVA in the shape of SmolVLM-256M: a SigLIP tower of 768 × 12 at 224 pixels, 196 image tokens, and a Llama decoder of
576 × 30 with nine heads and three key heads; random weights, LoRA of rank 8 on seven linear layers, batches of four, some 234
tokens an example.
"""

from __future__ import annotations

import copy
import tempfile
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Bench, Measured, agree, pairs
from benchmarks.models import Size, conversation, tuned_model
from benchmarks.p02_seeds import Examples, peft_model, peft_names, seeds_round
from benchmarks.p05_cache import Noise
from benchmarks.work import Clients, apart, round_of, train_settings
from fedloom.models.batches import encode
from fedloom.tuning.strategies import LINEARS

SIZE = Size(
    width=576,
    layers=30,
    heads=9,
    key_heads=3,
    inner=1536,
    tower_width=768,
    tower_layers=12,
    image=224,
)
BATCH, TOKENS, EXAMPLES = 4, 234, 16


def clients(size: Size = SIZE, tokens: int = TOKENS, examples: int = EXAMPLES) -> Clients:
    """Build one client with copies of one conversation about an image, so that the order of batches does not matter."""
    tuned = tuned_model(size)
    one = conversation(tuned.vlm, tokens, 4, picture=Noise(0, size.image))
    return Clients(tuned, {0: [one] * examples}, train_settings(BATCH))


def rows_with_pixels(work: Clients) -> list[dict[str, Tensor]]:
    """Return a client's examples as a Trainer takes them, with pixels, which it encodes at every step."""
    vlm, rows = work.tuned.vlm, []
    for one in work.held[0]:
        encoded = encode(vlm, one, [one.answer])
        ids = torch.tensor([*encoded.prompt, *encoded.answers[0]])
        labels = ids.clone()
        labels[: len(encoded.prompt)] = -100
        images = [image.pixels() for image in one.pictures]
        pixels: Any = vlm.processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
        mask = torch.ones_like(ids)
        rows.append({"input_ids": ids, "labels": labels, "attention_mask": mask, "pixel_values": pixels[0]})
    return rows


def against_published() -> Measured:
    """Compare a round of one client with a Trainer of its own, PEFT's state set and copied, and the encoder at every step."""
    from peft import get_peft_model_state_dict
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    work = clients()
    model = peft_model(SIZE, work)
    start = copy.deepcopy(get_peft_model_state_dict(model))
    held, ours = {0: Examples(rows_with_pixels(work))}, round_of(work)
    with tempfile.TemporaryDirectory() as folder:
        theirs = seeds_round(model, held, work, start, folder)
        flat = torch.cat([theirs[name].reshape(-1) for name in peft_names(work.tuned.layout.names).values()])
        agree("adapters", apart(ours().flat, flat, work.tuned.start.flat), 1e-2)
        times = pairs(ours, lambda: seeds_round(model, held, work, start, folder), 5)
    return times.gain, times.summary(rival="published") + " a client"


def products(size: Size, tokens: int) -> None:
    """Compute the products of a step's forward pass and of its gradients by inputs, of frozen weights alone."""
    heads = size.heads or size.width // 64
    keys = size.width // heads * (size.key_heads or heads)
    shapes = {"q": (size.width, size.width), "k": (size.width, keys), "v": (size.width, keys)}
    shapes |= {
        "o": (size.width, size.width),
        "gate": (size.width, size.inner),
        "up": (size.width, size.inner),
    }
    shapes["down"] = (size.inner, size.width)
    assert len(shapes) == len(LINEARS)
    inputs = {width: torch.ones(tokens, width) for width in {width for width, _ in shapes.values()}}
    weights = [torch.ones(outputs, width) for width, outputs in shapes.values()]
    for _ in range(size.layers):
        for weight in weights:
            output = torch.nn.functional.linear(inputs[weight.shape[1]], weight)
            output @ weight


def against_products() -> Measured:
    """Compare a round of one client with the products of its frozen linear layers at the speed that they reach alone."""
    work = clients()
    ours, steps = round_of(work), EXAMPLES // BATCH
    ours()

    def rival() -> None:
        for _ in range(steps):
            products(SIZE, BATCH * TOKENS)

    rival()
    times = pairs(ours, rival, 5)
    return times.cost, times.summary(rival="products") + " a client"


ROWS = {
    "P17-published": Bench("195M VLM vs published way", 1.7, 1.35, against_published, on_demand=True),
    "P17-products": Bench(
        "195M VLM / products alone", 1.35, 1.8, against_products, higher=False, on_demand=True
    ),
}
