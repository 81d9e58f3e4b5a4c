"""Families with a vision tower: features of the patches of one or several tiles, and a connector after them.

Shape legend: B images, N tiles of all images, T patches of a tile, E encoder width, D language-model
width, R and C rows and columns of tiles or patches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, sqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fedloom.models.connectors import tokens_out
from fedloom.models.family_interface import Grid, dtype_of, image_token, one_each, plain_head


def chosen_layers(model: Any, pixel_values: Tensor) -> Tensor:
    """Return the hidden states of the layers in LLaVA's configuration, before the last norm: [N, T, E]."""
    config = model.config
    tower, layers = model.model.vision_tower, _listed(config.vision_feature_layer)
    states = tower(pixel_values.to(dtype_of(tower)), output_hidden_states=layers).hidden_states
    # "default" drops the class token; ViP-LLaVA, which has no such key, always does.
    start = 0 if getattr(config, "vision_feature_select_strategy", "default") == "full" else 1
    return torch.cat([states[layer][:, start:] for layer in layers], dim=-1)


def _listed(layers: int | list[int]) -> list[int]:
    """Return numbers of layers as a list; an encoder keeps the states of these alone."""
    return [layers] if isinstance(layers, int) else layers


def llava_encode(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """Encode images of one tile each: [B, T, E]."""
    return chosen_layers(model, inputs["pixel_values"])


def last_states(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """Return the tower's last hidden states, after its last norm: [B, T, E]."""
    tower = model.model.vision_tower
    return tower(inputs["pixel_values"].to(dtype_of(tower))).last_hidden_state


def last_map(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """Return the last map of a convolutional tower, row by row: [B, T, E]."""
    return last_states(model, inputs).flatten(2).transpose(1, 2)  # from [B, E, R, C]


def project(model: Any, features: Tensor) -> Tensor:
    """Connect [B, *grid, E] to [B, T, D] with the projector, tile after tile."""
    return model.model.multi_modal_projector(features.flatten(1, -2))


def with_tile_counts(model: Any) -> dict[str, Any]:
    """Return the setting that makes the image processor report the rows and columns of tiles."""
    del model
    return {"return_row_col_info": True}


def with_tiles(model: Any) -> dict[str, Any]:
    """Return the setting that makes the image processor cut larger images into tiles."""
    del model
    return {"crop_to_patches": True}


def whole_tokens(model: Any) -> dict[str, Any]:
    """Return the setting that makes the sizes of images multiples of an image token's side."""
    side = model.config.vision_config.patch_size * model.config.spatial_merge_size
    return {"patch_size": {"height": side, "width": side}}


def pixtral_encode(model: Any, inputs: Mapping[str, Any]) -> list[Tensor]:
    """Encode images of any size, each without the padding of its batch: [R, C, E]."""
    patch, features = model.config.vision_config.patch_size, []
    layers = _listed(model.config.vision_feature_layer)
    for pixels, size in zip(inputs["pixel_values"], inputs["image_sizes"], strict=True):
        height, width = (int(side) for side in size)
        own = pixels[None, :, :height, :width].to(dtype_of(model.model.vision_tower))
        states = model.model.vision_tower(own, output_hidden_states=layers).hidden_states
        selected = torch.cat([states[layer][0] for layer in layers], dim=-1)
        features.append(selected.unflatten(0, (height // patch, width // patch)))
    return features


def pixtral_connect(model: Any, features: Tensor) -> Tensor:
    """Connect [B, R, C, E] with the projector, which merges neighboring patches to one token."""
    patch = model.config.vision_config.patch_size
    sizes = [(features.shape[1] * patch, features.shape[2] * patch)] * len(features)
    return model.model.multi_modal_projector(features.flatten(0, 2), sizes).unflatten(0, (len(features), -1))


def pixtral_spell(model: Any, tokenizer: Any, grid: Grid) -> str:
    """Write one image token for each merged patch, a mark between rows and another mark after the last row."""
    merge = model.config.spatial_merge_size
    row = image_token(model, tokenizer) * (grid[1] // merge)
    return "[IMG_BREAK]".join([row] * (grid[0] // merge)) + "[IMG_END]"


def anyres_encode(model: Any, inputs: Mapping[str, Any]) -> list[Tensor]:
    """Encode images as tiles and a thumbnail: [R + ⌈T / C⌉, C, E].

    The patches of all tiles form one map of R × C patches without the padding of the image. The T features of the
    thumbnail follow in further rows, padded with zeros.
    """
    from transformers.models.llava_next.modeling_llava_next import (
        get_anyres_image_grid_shape,
        unpad_image,
    )

    config, features = model.config, []
    side = config.vision_config.image_size // config.vision_config.patch_size
    for pixels, size in zip(inputs["pixel_values"], inputs["image_sizes"], strict=True):
        pinpoints, pixels_each = config.image_grid_pinpoints, config.vision_config.image_size
        rows, columns = get_anyres_image_grid_shape(size, pinpoints, pixels_each)
        states = chosen_layers(model, pixels[: rows * columns + 1])  # [N, T, E]
        tiles = states[1:].view(rows, columns, side, side, -1).permute(4, 0, 2, 1, 3)
        grid = unpad_image(tiles.flatten(1, 2).flatten(2, 3), size).permute(1, 2, 0)  # [R, C, E]
        width = grid.shape[1]
        thumbnail = F.pad(states[0], (0, 0, 0, -states.shape[1] % width))
        features.append(torch.cat((grid, thumbnail.view(-1, width, thumbnail.shape[-1]))))
    return features


def _anyres_sizes(model: Any, grid: Grid) -> tuple[int, int, int, int]:
    """Return T, R, and the rows and columns to which R × C is reduced if the number of tokens is limited."""
    config = model.config
    side = config.vision_config.image_size // config.vision_config.patch_size
    rows, columns = grid[0] - ceil(side**2 / grid[1]), grid[1]
    most = getattr(config, "vision_aspect_ratio", None)  # "anyres_max_9": at most nine tiles' worth of tokens
    ratio = sqrt(rows * columns / (int(most.removeprefix("anyres_max_")) * side**2)) if most else 0.0
    if ratio > 1.1:
        return side**2, rows, int(rows // ratio), int(columns // ratio)
    return side**2, rows, rows, columns


def anyres_connect(model: Any, features: Tensor) -> Tensor:
    """Connect the features of `anyres_encode`: the thumbnail, then the rows of patches, each followed by a learned mark."""
    thumbnail, rows, height, width = _anyres_sizes(model, tuple(features.shape[1:-1]))
    tokens = model.model.multi_modal_projector(features)  # [B, R + …, C, D]
    grid = tokens[:, :rows]
    if (height, width) != tuple(grid.shape[1:3]):
        smaller = F.interpolate(grid.permute(0, 3, 1, 2), [height, width], mode="bilinear")
        grid = smaller.permute(0, 2, 3, 1)
    end = model.model.image_newline.to(grid).expand(*grid.shape[:2], 1, -1)
    return torch.cat(
        (tokens[:, rows:].flatten(1, 2)[:, :thumbnail], torch.cat((grid, end), 2).flatten(1, 2)), 1
    )


def anyres_spell(model: Any, tokenizer: Any, grid: Grid) -> str:
    """Write one image token for each patch and each end of a row."""
    thumbnail, _, height, width = _anyres_sizes(model, grid)
    return image_token(model, tokenizer) * (thumbnail + height * (width + 1))


def internvl_encode(model: Any, inputs: Mapping[str, Any]) -> Sequence[Tensor]:
    """Encode the tiles of each image and merge neighboring patches: [N, T / 4, 4 · E]."""
    config = model.config
    tower, layer = model.model.vision_tower, config.vision_feature_layer
    selected = False if layer == -1 else [layer]
    outputs = tower(inputs["pixel_values"].to(dtype_of(tower)), output_hidden_states=selected)
    states = outputs.last_hidden_state if layer == -1 else outputs.hidden_states[layer]
    if config.vision_feature_select_strategy == "default":
        states = states[:, 1:]
    side = int(states.shape[1] ** 0.5)
    shuffled = model.model.pixel_shuffle(
        states.reshape(len(states), side, side, -1), scale_factor=config.downsample_ratio
    ).flatten(1, 2)
    return shuffled.split([int(count) for count in inputs["num_patches"]])


def internvl_spell(model: Any, tokenizer: Any, grid: Grid) -> str:
    """Write one image token for each feature between start and end of the image."""
    return f"{tokenizer.start_image_token}{image_token(model, tokenizer) * (grid[0] * grid[1])}{tokenizer.end_image_token}"


def aya_encode(model: Any, inputs: Mapping[str, Any]) -> Sequence[Tensor]:
    """Encode the tiles of each image, the thumbnail last: [N, T, E]."""
    return chosen_layers(model, inputs["pixel_values"]).split([int(count) for count in inputs["num_patches"]])


def aya_connect(model: Any, features: Tensor) -> Tensor:
    """Connect [B, N, T, E] tile by tile; the projector merges neighboring patches."""
    maps = model.model.multi_modal_projector(features.flatten(0, 1))  # [B · N, R, C, D]
    return maps.unflatten(0, features.shape[:2]).flatten(1, -2)


def aya_placeholder(model: Any, tokenizer: Any) -> str:
    """Return the text that Aya Vision's chat template writes for an image; it need not be a token."""
    del model, tokenizer
    return "<image>"


def aya_spell(model: Any, tokenizer: Any, grid: Grid) -> str:
    """Write the number of each tile and its image tokens, then those of the thumbnail."""
    tile = image_token(model, tokenizer) * (grid[1] // model.config.downsample_factor**2)
    tiles = "".join(f"TILE_{number}{tile}" for number in range(1, grid[0]))
    return f"<|START_OF_IMG|>{tiles}TILE_GLOBAL{tile}<|END_OF_IMG|>"


def idefics_encode(model: Any, inputs: Mapping[str, Any]) -> list[Tensor]:
    """Encode R × C tiles and a thumbnail of each image: [R + 1, C, T, E], the thumbnail first in the last row."""
    patch, features, tower = model.config.vision_config.patch_size, [], model.model.vision_model
    masks = inputs["pixel_attention_mask"]
    for pixels, mask, rows, columns in zip(
        inputs["pixel_values"], masks, _flat(inputs["rows"]), _flat(inputs["cols"]), strict=True
    ):
        count = rows * columns + 1
        squares = mask[:count].unfold(1, patch, patch).unfold(2, patch, patch)
        seen = squares.sum((-1, -2)) > 0  # a patch counts if any of it shows the image
        outputs = tower(pixels[:count].to(dtype_of(tower)), patch_attention_mask=seen)
        states = outputs.last_hidden_state  # [N, T, E]
        empty = states.new_zeros(max(columns, 1) - 1, *states.shape[1:])
        features.append(torch.cat((states, empty)).unflatten(0, (rows + 1, -1)))
    return features


def _flat(nested: Any) -> list[int]:
    return [int(value) for value in torch.as_tensor(nested).flatten()]


def idefics_connect(model: Any, features: Tensor) -> Tensor:
    """Connect tile by tile, without the padding of the last row."""
    rows, columns = features.shape[1] - 1, features.shape[2]
    real = features.flatten(1, 2)[:, : rows * columns + 1]  # [B, N, T, E]
    return model.model.connector(real.flatten(0, 1)).unflatten(0, real.shape[:2]).flatten(1, 2)


def idefics_spell(model: Any, tokenizer: Any, grid: Grid) -> str:
    """Write tiles by row and column, then the thumbnail, as Idefics3's processor does."""
    edge, image = "<fake_token_around_image>", image_token(model, tokenizer)
    tile = image * tokens_out(model, grid[2] // model.config.scale_factor**2)
    rows, columns = grid[0] - 1, grid[1]
    lines = [
        "".join(f"{edge}<row_{row + 1}_col_{column + 1}>{tile}" for column in range(columns)) + "\n"
        for row in range(rows)
    ]
    return "".join(lines) + ("\n" if rows else "") + f"{edge}<global-img>{tile}{edge}"


def janus_encode(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """Encode images of one size: [B, T, E]."""
    tower = model.model.vision_model
    return tower(inputs["pixel_values"].to(dtype_of(tower))).last_hidden_state


def janus_connect(model: Any, features: Tensor) -> Tensor:
    """Connect [B, T, E] to [B, T, D] with the aligner."""
    return model.model.aligner(features)


def janus_spell(model: Any, tokenizer: Any, grid: Grid) -> str:
    """Write one image token for each patch between start and end of the image."""
    return f"{tokenizer.boi_token}{one_each(model, tokenizer, grid)}{tokenizer.eoi_token}"


def paligemma_spell(model: Any, tokenizer: Any, grid: Grid) -> str:
    """Write one image token for each patch; the sequence begins after them."""
    return one_each(model, tokenizer, grid) + (tokenizer.bos_token or "")


def prefix_block(model: Any, ids: Tensor) -> Tensor:
    """Return block numbers: the whole prompt is one block, whose tokens see each other."""
    del model
    return torch.zeros_like(ids)


def capped_head(model: Any, states: Tensor) -> Tensor:
    """Compute logits and cap them if the decoder has a bound, as that of PaliGemma 2 has."""
    logits = plain_head(model, states)
    most = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return logits if most is None else torch.tanh(logits / most) * most
