"""Families without a vision encoder: patches of pixels, or image tokens of a frozen tokenizer of pictures.

Shape legend: B pictures, R and C rows and columns, P values of a patch of pixels, T image tokens, D
language-model width.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

import torch
from torch import Tensor

from fedloom.models.connectors import tokens_out
from fedloom.models.family_interface import Grid, image_token, plain_head


def fuyu_encode(model: Any, inputs: Mapping[str, Any]) -> list[Tensor]:
    """Cut pictures into patches, leaving out those that are padding only: [R, C, P], pixel by pixel in colors."""
    size, found = model.config.patch_size, []
    sides = zip(inputs["image_unpadded_heights"], inputs["image_unpadded_widths"], strict=True)
    for images, side in zip(inputs["images"], sides, strict=True):
        rows, columns = (ceil(int(torch.as_tensor(one).flatten()[0]) / size) for one in side)
        pixels = torch.as_tensor(images)[0, :, : rows * size, : columns * size]  # [3, …, …]
        patches = pixels.unfold(1, size, size).unfold(2, size, size)  # [3, R, C, size, size]
        found.append(patches.permute(1, 2, 3, 4, 0).flatten(2).to(model.dtype))
    return found


def fuyu_connect(model: Any, features: Tensor) -> Tensor:
    """Embed patches linearly: [B, R · C, D]."""
    return model.model.vision_embed_tokens(features.flatten(1, 2))


def fuyu_spell(model: Any, tokenizer: Any, grid: Grid) -> str:
    """Write rows of image tokens, each ended by a line break of its own, and the beginning of the text.

    What a resampler gives has no rows and is written in one; a chat template begins the text itself.
    """
    begin = "" if tokenizer.chat_template else tokenizer.bos_token or ""
    count = tokens_out(model, grid[0] * grid[1])
    rows = grid[0] if count == grid[0] * grid[1] else 1
    return (image_token(model, tokenizer) * (count // rows) + "|NEWLINE|") * rows + begin


def chameleon_encode(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """Turn pictures into token ids, kept as numbers: [B, T, 1]."""
    return model.model.get_image_tokens(inputs["pixel_values"].to(model.dtype))[..., None].float()


def looked_up(model: Any, features: Tensor) -> Tensor:
    """Embed token ids [B, *grid, 1] as the decoder embeds words: [B, T, D]."""
    return model.get_input_embeddings()(features.flatten(1).long())


def chameleon_spell(model: Any, tokenizer: Any, grid: Grid) -> str:
    """Write the image tokens between the marks of an image."""
    begin = getattr(tokenizer, "boi_token", None) or "<racm3:break>"
    end = getattr(tokenizer, "eoi_token", None) or "<eoss>"
    return f"{begin}{image_token(model, tokenizer) * grid[0]}{end}"


def chameleon_head(model: Any, states: Tensor) -> Tensor:
    """Compute logits of words; image tokens cannot be said."""
    silent = torch.tensor(model.model.vocabulary_mapping.image_tokens, device=states.device)
    logits = plain_head(model, states)
    return logits.index_fill(-1, silent, torch.finfo(logits.dtype).min)


def emu_encode(model: Any, inputs: Mapping[str, Any]) -> list[Tensor]:
    """Turn pictures into token ids with a mark at the end of each row: [R, C + 1, 1].

    One by one, because the padding of a batch would change the tokens of a smaller picture in it.
    """
    found = []
    for pixels, size in zip(inputs["pixel_values"].to(model.dtype), inputs["image_sizes"], strict=True):
        height, width = (int(side) for side in size)
        (codes,) = model.model.vqmodel.encode(pixels[None, :, :height, :width], size[None]).image_tokens
        found.append(model.model.vocabulary_mapping.convert_img2bpe(codes)[..., None].float())
    return found


def emu_spell(model: Any, tokenizer: Any, grid: Grid) -> str:
    """Write the picture's size and its tokens between the marks of an image."""
    rows, columns = grid[0], grid[1] - 1
    tokens = image_token(model, tokenizer) * (grid[0] * grid[1])
    opened = f"{tokenizer.boi_token}{rows}*{columns}{tokenizer.image_wrapper_token}"
    return f"{opened}{tokens}{tokenizer.eof_token}{tokenizer.eoi_token}"
