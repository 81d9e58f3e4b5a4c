"""Idefics2 and Granite 4 Vision: connectors with learned queries that attend to all patches of a tile.

Shape legend: B images, N tiles of all images, T patches of a tile, E encoder width, D language-model width, R and C
rows and columns of tiles, Q queries, S features of each patch, from different layers, that the decoder receives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fedloom.models.family_interface import ADDED, Grid, dtype_of, image_places, image_token, scatter, send


def idefics2_encode(model: Any, inputs: Mapping[str, Any]) -> list[Tensor]:
    """Encode the parts of each image, each at its own size: [parts, T, E]; smaller parts are padded with zeros."""
    features, patch = [], model.config.vision_config.patch_size
    for parts, masks in zip(inputs["pixel_values"], inputs["pixel_attention_mask"], strict=True):
        states = []
        for pixels, mask in zip(parts, masks, strict=True):
            height, width = int(mask[:, 0].sum()) // patch * patch, int(mask[0].sum()) // patch * patch
            own = pixels[None, :, :height, :width].to(dtype_of(model.model.vision_model))
            states.append(model.model.vision_model(own).last_hidden_state[0])
        features.append(pad_sequence(states, batch_first=True))
    return features


def idefics2_connect(model: Any, features: Tensor) -> Tensor:
    """Connect [B, parts, T, E] to [B, parts · Q, D]; the padding of smaller parts is masked.

    The stock resampler asks whether anything is masked, for which an accelerator would have to wait.
    """
    parts, connector = features.flatten(0, 1), model.model.connector
    resampler = connector.perceiver_resampler
    latents = resampler.latents.expand(len(parts), -1, -1)
    seen = F.pad(parts.ne(0).any(-1), (0, latents.shape[1]), value=True)[:, None, None]
    mask = torch.zeros_like(seen, dtype=latents.dtype).masked_fill(~seen, torch.finfo(latents.dtype).min)
    context = connector.modality_projection(parts)
    for layer in resampler.layers:
        latents = layer(latents, context, attention_mask=mask.expand(-1, -1, latents.shape[1], -1))
    return resampler.norm(latents).unflatten(0, features.shape[:2]).flatten(1, 2)


def idefics2_edge(tokenizer: Any) -> str:
    """Return the mark before and after every part of an image."""
    return getattr(tokenizer, "image_boundary_token", None) or "<fake_token_around_image>"


def idefics2_spell(model: Any, tokenizer: Any, grid: Grid) -> str:
    """Write one image token for each query of each part, with a mark before and after a part."""
    tokens = image_token(model, tokenizer) * model.config.perceiver_config.resampler_n_latents
    return f"{(idefics2_edge(tokenizer) + tokens) * grid[0]}{idefics2_edge(tokenizer)}"


def idefics2_tidy(tokenizer: Any, text: str) -> str:
    """Merge the two marks between adjacent images into one, and write a space before a word that follows an image."""
    edge = idefics2_edge(tokenizer)
    first, *pieces = text.replace(edge * 2, edge).split(edge)
    spaced = (
        f" {piece}" if piece and not piece[0].isspace() and piece[0] != "<" else piece for piece in pieces
    )
    return edge.join((first, *spaced))


def granite4_encode(model: Any, inputs: Mapping[str, Any]) -> list[Tensor]:
    """Encode tiles and a thumbnail of each image: [R + 1, C, T + 2 · cut + side, S · E].

    The thumbnail is first in the last row. The padding of an image is cut off only after the connector, so the shape
    encodes its size: `cut` rows (side 0) or columns (side 1) of tokens at either end, as rows of zeros after the
    patches of each tile.
    """
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

    config, features = model.config, []
    side, size = _side(model), config.vision_config.image_size
    start = 1 if config.vision_feature_select_strategy == "default" else 0
    for pixels, shape in zip(inputs["pixel_values"], inputs["image_sizes"], strict=True):
        rows, columns = get_anyres_image_grid_shape(shape, config.image_grid_pinpoints, size)
        tiles = pixels[: rows * columns + 1].to(dtype_of(model.model.vision_tower))
        outputs = model.model.vision_tower(tiles, output_hidden_states=granite4_layers(config))
        states = torch.cat([outputs.hidden_states[layer][:, start:] for layer in granite4_layers(config)], -1)
        ordered = torch.cat((states[1:], states[:1], states.new_zeros(columns - 1, *states.shape[1:])))
        extra = _cut([int(length) for length in shape], rows * side, columns * side)
        padded = torch.nn.functional.pad(ordered, (0, 0, 0, extra))
        features.append(padded.unflatten(0, (rows + 1, columns)))
    return features


def granite4_layers(config: Any) -> list[int]:
    """Return the encoder layers whose features the decoder receives, each once, in order of first use."""
    return list(
        dict.fromkeys((*(layer for layer, _ in config.deepstack_layer_map), config.spatial_vision_layer))
    )


def _side(model: Any) -> int:
    """Return the side of a tile in tokens."""
    config = model.config
    patches = config.vision_config.image_size // config.vision_config.patch_size
    return int(patches * Fraction(config.downsample_rate))


def _cut(shape: list[int], height: int, width: int) -> int:
    """Return 2 · rows to cut off, or 2 · columns + 1, for a map of tokens with an image of some shape in its middle."""
    from transformers.models.llava_next.modeling_llava_next import unpad_image

    kept = unpad_image(torch.empty(1, height, width, device="meta"), shape).shape
    return height - kept[1] if kept[1] < height else 0 if kept[2] == width else width - kept[2] + 1


def _kept(model: Any, grid: Grid) -> tuple[slice, slice]:
    """Return the rows and columns of tokens without padding."""
    patches = (model.config.vision_config.image_size // model.config.vision_config.patch_size) ** 2
    extra, side = grid[2] - patches, _side(model)
    cut, height, width = extra // 2, (grid[0] - 1) * side, grid[1] * side
    whole = slice(0, height), slice(0, width)
    return (whole[0], slice(cut, width - cut)) if extra % 2 else (slice(cut, height - cut), whole[1])


def granite4_connect(model: Any, features: Tensor) -> Tensor:
    """Connect to [B, tokens, S · D]: the thumbnail, then the rows of the tiles, each followed by a learned mark."""
    config, side, grid = model.config, _side(model), tuple(features.shape[1:-1])
    rows, columns = _kept(model, grid)
    patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
    count = (grid[0] - 1) * grid[1] + 1
    real = features.flatten(1, 2)[:, :count, :patches].flatten(0, 1)  # [B · N, T, …]
    layers = granite4_layers(config)
    states = dict(zip(layers, real.chunk(len(layers), -1), strict=True))
    spatial = states[config.spatial_vision_layer]
    sources = [states[layer] for layer, _ in config.deepstack_layer_map] + [spatial] * len(
        config.spatial_target_layers
    )
    connected = []
    projectors = [*model.model.layerwise_projectors, *model.model.spatial_projectors]
    for projector, source in zip(projectors, sources, strict=False):
        tokens = projector(source).unflatten(0, (len(features), count))  # [B, N, side², D]
        tiles = tokens[:, :-1].unflatten(1, (-1, grid[1])).unflatten(3, (side, side)).transpose(2, 3)
        shown = tiles.flatten(1, 2).flatten(2, 3)[:, rows, columns]
        end = model.model.image_newline.to(shown).expand(*shown.shape[:2], 1, -1)
        connected.append(torch.cat((tokens[:, -1], torch.cat((shown, end), 2).flatten(1, 2)), 1))
    return torch.cat(connected, -1)


def granite4_spell(model: Any, tokenizer: Any, grid: Grid) -> str:
    """Write one image token for each token of the thumbnail and of the tiles, and for each end of a row."""
    rows, columns = _kept(model, grid)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    return image_token(model, tokenizer) * (_side(model) ** 2 + height * (width + 1))


def granite4_place(model: Any, ids: Tensor, embeddings: Tensor, tokens: Sequence[Tensor]) -> dict[str, Any]:
    """Embed image tokens as zeros; several layers of the decoder add features there."""
    if not tokens:
        return {"inputs_embeds": embeddings}
    parts = torch.cat(list(tokens)).to(embeddings.dtype).split(embeddings.shape[-1], dim=-1)
    into = [*(layer for _, layer in model.config.deepstack_layer_map), *model.config.spatial_target_layers]
    empty = scatter(model, ids, embeddings, [torch.zeros_like(parts[0])])  # raises where the numbers differ
    shown = send(image_places(model, ids), embeddings.device)
    return {
        **empty,
        ADDED: {layer: (shown, features) for layer, features in zip(into, parts, strict=True)},
    }
