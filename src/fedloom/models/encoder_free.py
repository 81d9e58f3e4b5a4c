"""Families without a vision encoder: Fuyu takes patches of pixels, Chameleon and Emu3 tokens of a frozen image tokenizer.

Shape legend: B images, R and C rows and columns, P values of a patch of pixels, T image tokens, D
language-model width.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

import torch
from torch import Tensor

from fedloom.models.connectors import tokens_out
from fedloom.models.family_interface import Grid, dtype_of, image_token, plain_head, send


def fuyu_encode(model: Any, inputs: Mapping[str, Any]) -> list[Tensor]:
    """Cut images into patches of pixels without the padding: [R, C, P], with the colors of a pixel next to each other."""
    size, patches_of_images = model.config.patch_size, []
    sides = zip(inputs["image_unpadded_heights"], inputs["image_unpadded_widths"], strict=True)
    for images, side in zip(inputs["images"], sides, strict=True):
        rows, columns = (ceil(int(torch.as_tensor(length).flatten()[0]) / size) for length in side)
        pixels = torch.as_tensor(images)[0, :, : rows * size, : columns * size]  # [3, …, …]
        patches = pixels.unfold(1, size, size).unfold(2, size, size)  # [3, R, C, size, size]
        patches_of_images.append(patches.permute(1, 2, 3, 4, 0).flatten(2).float())
    return patches_of_images


def fuyu_connect(model: Any, features: Tensor) -> Tensor:
    """Embed patches linearly: [B, R · C, D]."""
    return model.model.vision_embed_tokens(features.flatten(1, 2))


def fuyu_spell(model: Any, tokenizer: Any, grid: Grid) -> str:
    """Write rows of image tokens, each followed by Fuyu's line break, and the token that begins the text.

    The tokens of a resampler form one row. A chat template writes the beginning of the text itself.
    """
    begin = "" if tokenizer.chat_template else tokenizer.bos_token or ""
    count = tokens_out(model, grid[0] * grid[1])
    rows = grid[0] if count == grid[0] * grid[1] else 1
    return (image_token(model, tokenizer) * (count // rows) + "|NEWLINE|") * rows + begin


def chameleon_encode(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """Turn images into token ids, stored as floating-point numbers: [B, T, 1]."""
    pixels = inputs["pixel_values"].to(dtype_of(model.model.vqmodel))
    return model.model.get_image_tokens(pixels)[..., None].float()


def embed_tokens(model: Any, features: Tensor) -> Tensor:
    """Embed token ids [B, *grid, 1] as the decoder embeds words: [B, T, D]."""
    return model.get_input_embeddings()(features.flatten(1).long())


def chameleon_spell(model: Any, tokenizer: Any, grid: Grid) -> str:
    """Write the image tokens between the marks of an image."""
    begin = getattr(tokenizer, "boi_token", None) or "<racm3:break>"
    end = getattr(tokenizer, "eoi_token", None) or "<eoss>"
    return f"{begin}{image_token(model, tokenizer) * grid[0]}{end}"


def chameleon_head(model: Any, states: Tensor) -> Tensor:
    """Compute logits; image tokens have the lowest one, so that they are never generated."""
    hidden = send(torch.tensor(model.model.vocabulary_mapping.image_tokens), states.device)
    logits = plain_head(model, states)
    return logits.index_fill(-1, hidden, torch.finfo(logits.dtype).min)


def emu_encode(model: Any, inputs: Mapping[str, Any]) -> list[Tensor]:
    """Turn images into token ids with a mark at the end of each row: [R, C + 1, 1].

    Images are encoded one by one, because the padding of a batch would change the tokens of its smaller images.
    """
    ids, batch = [], inputs["pixel_values"].to(dtype_of(model.model.vqmodel))
    for pixels, size in zip(batch, inputs["image_sizes"], strict=True):
        height, width = (int(side) for side in size)
        (codes,) = model.model.vqmodel.encode(pixels[None, :, :height, :width], size[None]).image_tokens
        ids.append(model.model.vocabulary_mapping.convert_img2bpe(codes)[..., None].float())
    return ids


def emu_spell(model: Any, tokenizer: Any, grid: Grid) -> str:
    """Write the image's size and its tokens between the marks of an image."""
    rows, columns = grid[0], grid[1] - 1
    tokens = image_token(model, tokenizer) * (grid[0] * grid[1])
    opened = f"{tokenizer.boi_token}{rows}*{columns}{tokenizer.image_wrapper_token}"
    return f"{opened}{tokens}{tokenizer.eof_token}{tokenizer.eoi_token}"
