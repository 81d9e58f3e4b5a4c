"""Ovis2: an image becomes probabilities of visual words, whose embeddings are averaged.

Shape legend: B images, R and C rows and columns of tiles, N tiles with the thumbnail, T features of a tile, E encoder
width, W visual words, D language-model width, L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedloom.models.family_interface import Grid, dtype_of, image_token, scatter

MARKS = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
"""Tokens around and between tiles, in the order of the last words of the table of visual words."""


def ovis_encode(model: Any, inputs: Mapping[str, Any]) -> list[Tensor]:
    """Encode R × C tiles and a thumbnail of each image: [R + 1, C, T, E], the thumbnail first in the last row."""
    tower = model.model.vision_tower
    states = tower(inputs["pixel_values"].to(dtype_of(tower))).last_hidden_state
    sides = [(int(rows), int(columns)) for rows, columns in inputs["grids"]]
    sides = [side if side != (1, 1) else (0, 1) for side in sides]  # a single tile is the thumbnail
    features = []
    counts = [rows * columns + 1 for rows, columns in sides]
    for own, (rows, columns) in zip(states.split(counts), sides, strict=True):
        empty = own.new_zeros(columns - 1, *own.shape[1:])
        features.append(torch.cat((own[1:], own[:1], empty)).unflatten(0, (rows + 1, columns)))
    return features


def ovis_connect(model: Any, features: Tensor) -> Tensor:
    """Connect [B, R + 1, C, T, E] to [B, L, D]: the tokens of an image, with the marks between its tiles."""
    tower, table = model.model.vision_tower, model.model.visual_embeddings_table.weight  # [W, D]
    rows, columns = features.shape[1] - 1, features.shape[2]
    real = features.flatten(1, 2)[:, : rows * columns + 1]  # [B, N, T, E]
    words = tower.head_norm(tower.head_linear(real)).softmax(-1)
    # st_argmax takes the most likely word, with the gradient of the probabilities.
    if tower.config.tokenize_function == "st_argmax":
        likeliest = torch.zeros_like(words).scatter_(-1, words.argmax(-1, keepdim=True), 1.0)
        words = likeliest - words.detach() + words
    seen, marks = table.split([words.shape[-1], len(table) - words.shape[-1]])
    tiles = words @ seen  # [B, N, T, D]
    start, whole, column, row, end = marks[:, None].expand(-1, len(features), -1)[
        :, :, None
    ]  # [B, 1, D] each
    parts = [start, tiles[:, -1], whole]
    for number in range(rows * columns):
        last = number + 1 == rows * columns
        parts += [tiles[:, number], *([] if last else [row if (number + 1) % columns == 0 else column])]
    return torch.cat((*parts, end), 1)


def ovis_placeholder(model: Any, tokenizer: Any) -> str:
    """Return the text that Ovis2's chat template writes for an image.

    Raises:
        ValueError: The tokens of the marks around an image differ from those in the configuration.
    """
    numbers = tokenizer.convert_tokens_to_ids([*MARKS])
    if numbers != [*model.config.visual_indicator_token_ids]:
        raise ValueError(f"{', '.join(MARKS)} do not have the ids in visual_indicator_token_ids")
    return "<image>"


def ovis_spell(model: Any, tokenizer: Any, grid: Grid) -> str:
    """Write the thumbnail and then the tiles by row, with marks between them, as Ovis2's processor does."""
    start, whole, column, row, end = MARKS
    tile, rows, columns = image_token(model, tokenizer) * grid[2], grid[0] - 1, grid[1]
    return f"{start}{tile}{whole}{row.join([column.join([tile] * columns)] * rows)}{end}"


def ovis_place(model: Any, ids: Tensor, embeddings: Tensor, tokens: Sequence[Tensor]) -> dict[str, Any]:
    """Put image embeddings where image tokens and the marks around them are."""
    if not tokens:
        return {"inputs_embeds": embeddings}
    marked = torch.isin(ids, ids.new_tensor([*model.config.visual_indicator_token_ids]))
    return scatter(model, ids.masked_fill(marked, model.config.image_token_id), embeddings, tokens)
