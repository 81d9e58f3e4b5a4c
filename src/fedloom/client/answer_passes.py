"""Divide questions that are answered together into passes over the model that stay within a bound of memory.

The bound is the same on every machine, and the bytes of a token follow from the model's shapes. So passes are fixed before the
first round, and neither clock nor free memory changes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fedloom.models.last_layer import layers_of
from fedloom.models.linear_layers import linear_shape
from fedloom.models.load_model import Vlm

ANSWER_BYTES = 2**32
"""The most bytes that a pass over questions takes beside the model, unless a single question needs more."""

MASK_BYTES = 8
"""Bytes that each pair of tokens of a row takes in masks: one in a float32 mask and its copies of truth values."""


def passes(vlm: Vlm, widths: Sequence[int], clients: int) -> Iterator[slice]:
    """Yield runs of questions, in their order, whose passes take at most `ANSWER_BYTES` each or hold one question.

    Args:
        vlm: The model.
        widths: Tokens of each question's row, its answer included.
        clients: Clients side by side, each of which has a row for every question.
    """
    each, start = token_bytes(vlm), 0
    while start < len(widths):
        stop, widest = start + 1, widths[start]
        while stop < len(widths):
            widest = max(widest, widths[stop])
            if clients * (stop + 1 - start) * widest * (each + MASK_BYTES * widest) > ANSWER_BYTES:
                break
            stop += 1
        yield slice(start, stop)
        start = stop


def token_bytes(vlm: Vlm) -> int:
    """Return the bytes that a token takes in a pass: its keys and values in all layers, and the outputs of the largest layer."""
    config, layers = vlm.model.config.get_text_config(), layers_of(vlm) or [vlm.decoder]
    residual = vlm.model.get_input_embeddings().embedding_dim
    heads = getattr(config, "num_attention_heads", None) or 1
    shared = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or residual // heads
    outputs = max(
        sum(shape[1] for module in layer.modules() if (shape := linear_shape(module)) is not None)
        for layer in layers
    )
    return vlm.precision.itemsize * (2 * len(layers) * shared * width + 4 * residual + outputs)
