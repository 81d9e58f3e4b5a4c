"""Mllama: images are not part of the token sequence; some layers of the decoder attend to them by cross-attention.

Shape legend: B conversations, L tokens, N features of a conversation's images, D language-model width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fedloom.models.family_interface import Grid, dtype_of, image_token, send


def crossed_encode(model: Any, inputs: Mapping[str, Any]) -> list[Tensor]:
    """Encode the tiles of each image: [tiles, patches, E]."""
    states = model.model.vision_model(
        inputs["pixel_values"].to(dtype_of(model.model.vision_model)),
        aspect_ratio_ids=inputs["aspect_ratio_ids"],
        aspect_ratio_mask=inputs["aspect_ratio_mask"],
    ).last_hidden_state[:, 0]  # [B, most tiles, patches, E]
    counts = inputs["aspect_ratio_mask"][:, 0].sum(1)
    return [tiles[: int(count)] for tiles, count in zip(states, counts, strict=True)]


def crossed_spell(model: Any, tokenizer: Any, grid: Grid) -> str:
    """Write a single token; the image is seen from this token on."""
    del grid
    return image_token(model, tokenizer)


def crossed_place(model: Any, ids: Tensor, embeddings: Tensor, tokens: Sequence[Tensor]) -> dict[str, Any]:
    """Return the arguments of cross-attention: a token sees all images whose image token is not after it.

    The model's mask lets a token before all images see nothing, which in the stock code gives it the average
    of everything, padding included. Here it gets the average of the conversation's own tiles, so that
    other conversations of the batch change nothing.
    """
    if not tokens:
        return {"inputs_embeds": embeddings}
    shown = (ids == model.config.image_token_id).cumsum(1)  # [B, L]
    remaining = list(tokens)
    states, owners = [], []
    for count in shown[:, -1].tolist():
        images = [remaining.pop(0) for _ in range(count)]
        states.append(torch.cat(images) if images else embeddings.new_zeros(1, embeddings.shape[-1]))
        numbers = [ids.new_full((len(image),), number + 1) for number, image in enumerate(images)]
        owners.append(torch.cat(numbers) if images else ids.new_zeros(1))
    owner = pad_sequence(owners, batch_first=True)[:, None]  # [B, 1, N], number of the image or 0
    seen = ((owner > 0) & (owner <= shown[..., None]))[:, None]  # [B, 1, L, N]
    any_seen = seen.any(-1, keepdim=True)  # [B, 1, L, 1]
    own = (owner > 0)[:, None]  # [B, 1, 1, N]
    hidden = send(~torch.where(any_seen, seen, own) & own.any(-1, keepdim=True), embeddings.device)
    any_seen = send(any_seen, embeddings.device)
    lowest = torch.finfo(embeddings.dtype).min
    return {
        "inputs_embeds": embeddings,
        "cross_attention_states": pad_sequence(states, batch_first=True).to(embeddings.dtype),  # [B, N, D]
        "cross_attention_mask": embeddings.new_zeros(seen.shape).masked_fill(hidden, lowest),
        "full_text_row_masked_out_mask": any_seen.to(embeddings.dtype),
    }


def crossed_later(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the masks of later tokens, which see what the last token of the prompt sees; images are in the cache."""
    masks = ("cross_attention_mask", "full_text_row_masked_out_mask")
    return {name: arguments[name][:, :, -1:] for name in masks if name in arguments}
