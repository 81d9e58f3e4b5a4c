"""What the decoder is given: embeddings with pictures in them, who sees whom, and positions.

Shape legend: B conversations, L tokens in the longest, T image tokens of a picture, D model width, A axes of
positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedloom.models.family_interface import Grid
from fedloom.models.load_model import Vlm

Connect = Callable[[Tensor], Tensor]
"""Encoder features [B, *grid, E] → token embeddings [B, T, D]: the model's connector, or one client's."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Token ids as the decoder sees them.

    Attributes:
        ids: Prompts with what follows them, padded on the right, shape [B, L].
        mask: 1 on real tokens, 0 on padding, shape [B, L].
        lengths: Tokens of each row's prompt; only it holds pictures.
        grids: Grids of each row's pictures.
    """

    ids: Tensor
    mask: Tensor
    lengths: tuple[int, ...]
    grids: tuple[tuple[Grid, ...], ...]


def decoder_inputs(
    vlm: Vlm,
    rows: Rows,
    tokens: Sequence[Tensor],
    *,
    allowed: Tensor | None = None,
    position: Tensor | None = None,
) -> dict[str, Any]:
    """Return the arguments of the decoder for conversations padded on the right.

    Args:
        vlm: The model.
        rows: What it sees.
        tokens: Connected features of all pictures in reading order, shape [T, D] each.
        allowed: Which token (second dimension) sees which (third), shape [B, L, L]; None lets every token see
            those before it.
        position: Positions counted in tokens, shape [B, L]; None counts along the row.
    """
    family, model = vlm.family, vlm.model
    inputs = family.place(model, rows.ids, model.get_input_embeddings()(rows.ids), tokens)
    within = None
    if family.blocks is not None:
        width = rows.ids.shape[1]
        if allowed is None:
            before = torch.ones(width, width, dtype=torch.bool, device=vlm.device).tril()
            allowed = before & rows.mask[:, None, :].bool()
        within = torch.zeros_like(allowed)
        for row, length in enumerate(rows.lengths):
            block = family.blocks(model, rows.ids[row, :length])
            within[row, :length, :length] = (block[:, None] == block) & (block >= 0)
    inputs["attention_mask"] = rows.mask if allowed is None else attention(vlm, allowed, position, within)
    if family.positions is not None:
        position = _axes(vlm, rows, position)
    if position is not None:
        inputs["position_ids"] = position
    return inputs


def connected(
    vlm: Vlm, features: Sequence[Sequence[Tensor]], connects: Sequence[Connect] | None = None
) -> list[Tensor]:
    """Return the token embeddings of pictures, shape [T, D] each; a client's pictures of one grid go together.

    Args:
        vlm: The model.
        features: Each client's pictures, [*grid, E] each.
        connects: Each client's connector; None is the model's own for all.
    """
    found: list[Tensor] = []
    for connect, pictures in zip(connects or [vlm.connect] * len(features), features, strict=True):
        mine: dict[int, Tensor] = {}
        for shape in dict.fromkeys(one.shape for one in pictures):
            places = [place for place, one in enumerate(pictures) if one.shape == shape]
            tokens = connect(vlm.send(torch.stack([pictures[place] for place in places])))
            mine.update(zip(places, tokens, strict=True))
        found += [mine[place] for place in range(len(pictures))]
    return found


def next_positions(vlm: Vlm, inputs: Mapping[str, Any], rows: Rows) -> Tensor:
    """Return the positions of the tokens that follow the prompts: [B, 1], or [A, B, 1]."""
    if vlm.family.positions is None:
        return torch.tensor(rows.lengths, device=vlm.device)[:, None]
    axes = inputs["position_ids"]  # [A, B, L]
    ends = [axes[:, row, :length].max() + 1 for row, length in enumerate(rows.lengths)]
    return torch.stack(ends)[:, None].expand(len(axes), -1, -1)


def _axes(vlm: Vlm, rows: Rows, position: Tensor | None) -> Tensor:
    """Count positions on the family's axes, [A, B, L]; what follows a prompt goes on from its largest."""
    assert vlm.family.positions is not None
    found = []
    for row, (length, grids) in enumerate(zip(rows.lengths, rows.grids, strict=True)):
        length = max(length, 1)  # a row of padding counts like a prompt of one token
        axes = vlm.family.positions(vlm.model, rows.ids[row, :length], grids)
        along = torch.arange(rows.ids.shape[1], device=vlm.device) if position is None else position[row]
        rest = along[length:] - length + axes.max() + 1
        found.append(torch.cat((axes, rest.expand(len(axes), -1)), dim=1))
    return torch.stack(found, dim=1)


def windows(vlm: Vlm) -> tuple[frozenset[str], int | None]:
    """Return the kinds of layers that the decoder asks masks for, by name, and how many positions a window shows.

    Decoders that list their layers (Gemma, Qwen2) ask for a mask of each kind. Those that do not (Mistral, Phi-3) take one
    mask, and where their configuration has a window, every layer sees through it. That is how transformers' models
    read their configurations; see `create_masks_for_generate`.
    """
    config = vlm.model.config.get_text_config()
    kinds, window = getattr(config, "layer_types", None), getattr(config, "sliding_window", None)
    if kinds is None:
        return frozenset(), window
    return (frozenset(kinds), window) if "sliding_attention" in kinds else (frozenset(), None)


def positions_of(vlm: Vlm) -> int | None:
    """Return how many positions the decoder was made for, or None where its configuration gives no number."""
    config = vlm.model.config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len"):
        found = getattr(config, name, None)
        if isinstance(found, int) and found > 0:
            return found
    return None


def slides(vlm: Vlm) -> bool:
    """Return whether some layers of the decoder see a window only."""
    return windows(vlm)[1] is not None


def attention(
    vlm: Vlm, allowed: Tensor, position: Tensor | None = None, within: Tensor | None = None
) -> Tensor | dict[str, Tensor]:
    """Turn who may see whom into what is added to attention, for layers with a window within that window.

    A mask of this kind says everything, because a decoder that is given one makes none of its own.

    Args:
        vlm: The model.
        allowed: Which of the last Q tokens sees which of all K, shape [B, Q, K].
        position: Positions of all K, counted in tokens, shape [B, K]; None counts along the row.
        within: Which tokens see each other in both directions besides, shape [B, Q, K]; None is none. The family says
            whether they do so in whole layers too (`near`) and across a window (`across`).

    Returns:
        Values to add, shape [B, 1, Q, K], or such values by kind of layer.
    """
    queries, keys = allowed.shape[1:]
    itself = torch.eye(keys, dtype=torch.bool, device=vlm.device)[
        keys - queries :
    ]  # so that padding has something to see
    dtype = vlm.precision

    def added(seen: Tensor) -> Tensor:
        return torch.zeros(seen.shape, dtype=dtype, device=vlm.device).masked_fill(
            ~seen, torch.finfo(dtype).min
        )[:, None]

    kinds, window = windows(vlm)
    family, both = vlm.family, allowed if within is None else allowed | within
    whole = added((allowed if family.near else both) | itself)
    if window is None:
        return whole
    always = itself if within is None or not family.across else within | itself
    along = torch.arange(keys, device=vlm.device)[None] if position is None else position
    away = along[:, keys - queries :, None] - along[:, None]  # [B, Q, K]
    near = added((both & (away < window)) | always)
    return {"full_attention": whole, "sliding_attention": near} if kinds else near
