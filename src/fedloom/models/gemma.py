"""Gemma 3 and 4: bidirectional attention within an image, and inputs of each layer by token.

Shape legend: B images, T image tokens of an image, E encoder width, D language-model width, L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fedloom.models.family_interface import Grid, image_token, one_each, scatter, send


def gemma_spell(model: Any, tokenizer: Any, grid: Grid) -> str:
    """Write one image token for each pooled feature, with marks and blank lines around them."""
    del grid
    tokens = image_token(model, tokenizer) * model.config.mm_tokens_per_image
    return f"\n\n{tokenizer.boi_token}{tokens}{tokenizer.eoi_token}\n\n"


def gemma_placeholder(model: Any, tokenizer: Any) -> str:
    """Return the text that Gemma 3's chat template writes for an image: the start of an image."""
    del model
    return tokenizer.boi_token


def gemma_blocks(model: Any, ids: Tensor) -> Tensor:
    """Return block numbers: each run of image tokens is a block, whose tokens see each other."""
    image = ids == model.config.image_token_id
    begins = image & ~F.pad(image, (1, 0))[:-1]
    return torch.where(image, begins.cumsum(0) - 1, -1)


def gemma4_encode(model: Any, inputs: Mapping[str, Any]) -> Sequence[Tensor]:
    """Encode images of any size, without padding patches: [T, E]."""
    positions, pool = inputs["image_position_ids"], model.config.vision_config.pooling_kernel_size
    states = model.model.vision_tower(inputs["pixel_values"], pixel_position_ids=positions).last_hidden_state
    patches = (positions != -1).all(-1).sum(-1)  # [B]
    return states.split((patches // pool**2).tolist())


def gemma4_connect(model: Any, features: Tensor) -> Tensor:
    """Connect [B, T, E] to [B, T, D]."""
    return model.model.embed_vision(features)


def gemma4_spell(model: Any, tokenizer: Any, grid: Grid) -> str:
    """Write one image token for each feature between start and end of the image."""
    return f"{tokenizer.boi_token}{one_each(model, tokenizer, grid)}{tokenizer.eoi_token}"


def gemma4_place(model: Any, ids: Tensor, embeddings: Tensor, tokens: Sequence[Tensor]) -> dict[str, Any]:
    """Put image embeddings where image tokens are; in the smaller models each layer also has embeddings of its own.

    There an image token is replaced by padding, so that a layer's own embeddings depend on text alone.
    """
    arguments, decoder = scatter(model, ids, embeddings, tokens), model.get_decoder()
    if not model.config.get_text_config().hidden_size_per_layer_input:
        return arguments
    text = ids.masked_fill(ids == model.config.image_token_id, model.config.get_text_config().pad_token_id)
    text = send(text, embeddings.device)
    return {**arguments, "per_layer_inputs": decoder.get_per_layer_inputs(text, None)}


def gemma4_blocks(model: Any, ids: Tensor) -> Tensor:
    """Return block numbers as for Gemma 3 if the configuration asks for them, as in the larger models."""
    if model.config.get_text_config().use_bidirectional_attention == "vision":
        return gemma_blocks(model, ids)
    return torch.full_like(ids, -1)
