"""The decoder's inputs: embeddings that include images, attention masks, and positions.

Shape legend: B conversations, L tokens in the longest, T image tokens of an image, D model width, A axes of
positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fedloom.models.family_interface import ADDED, Grid
from fedloom.models.last_layer import layers_of
from fedloom.models.load_model import Vlm
from fedloom.models.replaced_forwards import Forward, replaced_forwards

Connect = Callable[[Tensor], Tensor]
"""Encoder features [B, *grid, E] → token embeddings [B, T, D]: the model's connector, or one client's."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Padded token ids of conversations.

    Attributes:
        ids: Prompts and the tokens after them, padded on the right, shape [B, L], on the processor: everything that depends
            on their values is computed there and copied to the model's device.
        mask: 1 on real tokens, 0 on padding, shape [B, L], on the processor.
        lengths: Tokens of each row's prompt; only prompts hold images.
        grids: Grids of each row's images.
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
        rows: The conversations.
        tokens: Token embeddings of all images in reading order, shape [T, D] each.
        allowed: Whether a token (second dimension) sees another (third), shape [B, L, L], on the CPU; None lets every
            token see the earlier ones.
        position: Positions counted in tokens, shape [B, L], on the CPU; None counts along the row.
    """
    family, model = vlm.family, vlm.model
    embeddings = model.get_input_embeddings()(vlm.send(rows.ids))
    inputs = family.place(model, rows.ids, embeddings, tokens)
    within, blocks = None, list[Tensor]()
    if family.blocks is not None:
        blocks = [family.blocks(model, rows.ids[row, :length]) for row, length in enumerate(rows.lengths)]
    # Block numbers are on the CPU, so nothing synchronizes here. Without blocks, faster kernels take the batch.
    if any((block >= 0).any() for block in blocks):
        width = rows.ids.shape[1]
        if allowed is None:
            before = torch.ones(width, width, dtype=torch.bool).tril()
            allowed = before & rows.mask[:, None, :].bool()
        within = torch.zeros_like(allowed)
        for row, block in enumerate(blocks):
            within[row, : len(block), : len(block)] = (block[:, None] == block) & (block >= 0)
    if allowed is None:
        inputs["attention_mask"] = vlm.send(rows.mask)
    else:
        others = (one if one is None else vlm.send(one) for one in (position, within))
        inputs["attention_mask"] = attention_mask(vlm, vlm.send(allowed), *others)
    if family.positions is not None:
        position = _axes(vlm, rows, position)
    if position is not None:
        inputs["position_ids"] = vlm.send(position)
    return inputs


def run_decoder(vlm: Vlm, inputs: Mapping[str, Any], **more: Any) -> Tensor:
    """Return the decoder's hidden states, shape [B, L, D], for arguments of `decoder_inputs` and further ones."""
    added: Mapping[int, tuple[Tensor, Tensor]] = inputs.get(ADDED, {})
    given = {name: value for name, value in inputs.items() if name != ADDED}
    with ExitStack() as stack:
        for number, (where, features) in added.items():
            change = partial(_with_added, where, features)
            stack.enter_context(replaced_forwards([layers_of(vlm)[number]], change))
        return vlm.decoder(**given, **more)[0]


def _with_added(places: Tensor, features: Tensor, forward: Forward) -> Forward:
    """Return a layer's forward that first adds features [N, D] to its inputs [B, L, D], at places [N] of all B · L."""

    def with_added(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return forward(x.flatten(0, 1).index_add(0, places, features).view_as(x), *args, **kwargs)

    return with_added


def connect_images(
    vlm: Vlm, features: Sequence[Sequence[Tensor]], connects: Sequence[Connect] | None = None
) -> list[Tensor]:
    """Return the token embeddings of images, shape [T, D] each; a client's images of one grid form one batch.

    Args:
        vlm: The model.
        features: The features of each client's images, [*grid, E] each.
        connects: Each client's connector; None for the model's own.
    """
    embeddings: list[Tensor] = []
    for connect, images in zip(connects or [vlm.connect] * len(features), features, strict=True):
        by_index: dict[int, Tensor] = {}
        for shape in dict.fromkeys(image.shape for image in images):
            indices = [index for index, image in enumerate(images) if image.shape == shape]
            tokens = connect(vlm.send(torch.stack([images[index] for index in indices])).float())
            by_index.update(zip(indices, tokens, strict=True))
        embeddings += [by_index[index] for index in range(len(images))]
    return embeddings


def next_positions(vlm: Vlm, inputs: Mapping[str, Any], rows: Rows) -> Tensor:
    """Return the positions of the tokens that follow the prompts: [B, 1], or [A, B, 1]."""
    if vlm.family.positions is None:
        return vlm.send(torch.tensor(rows.lengths))[:, None]
    axes = inputs["position_ids"]  # [A, B, L]
    ends = [axes[:, row, :length].max() + 1 for row, length in enumerate(rows.lengths)]
    return torch.stack(ends)[:, None].expand(len(axes), -1, -1)


def _axes(vlm: Vlm, rows: Rows, position: Tensor | None) -> Tensor:
    """Return positions on the family's axes, [A, B, L], on the CPU; tokens after a prompt continue from its largest one."""
    assert vlm.family.positions is not None
    positions = []
    for row, (length, grids) in enumerate(zip(rows.lengths, rows.grids, strict=True)):
        length = max(length, 1)  # a row of padding has a prompt of one token
        axes = vlm.family.positions(vlm.model, rows.ids[row, :length], grids)
        along = torch.arange(rows.ids.shape[1]) if position is None else position[row]
        following = along[length:] - length + axes.max() + 1
        positions.append(torch.cat((axes, following.expand(len(axes), -1)), dim=1))
    return torch.stack(positions, dim=1)


def attention_windows(vlm: Vlm) -> tuple[frozenset[str], int | None]:
    """Return the kinds of layers for which the decoder needs masks, by name, and the positions in a sliding window.

    Decoders that list their layers (Gemma, Qwen2) need one mask of each kind. Others (Mistral, Phi-3) take one mask; if
    their configuration has a window, it applies to every layer. transformers' models read their configurations in
    this way; see `create_masks_for_generate`.
    """
    config = vlm.model.config.get_text_config()
    kinds, window = getattr(config, "layer_types", None), getattr(config, "sliding_window", None)
    if kinds is None:
        return frozenset(), window
    return (frozenset(kinds), window) if "sliding_attention" in kinds else (frozenset(), None)


def max_positions(vlm: Vlm) -> int | None:
    """Return the most positions that the decoder supports, or None if its configuration gives no number."""
    config = vlm.model.config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len"):
        count = getattr(config, name, None)
        if isinstance(count, int) and count > 0:
            return count
    return None


def has_sliding_window(vlm: Vlm) -> bool:
    """Return whether some layers of the decoder see only a sliding window."""
    return attention_windows(vlm)[1] is not None


def attention_mask(
    vlm: Vlm, allowed: Tensor, position: Tensor | None = None, within: Tensor | None = None
) -> Tensor | dict[str, Tensor]:
    """Return the values that are added to attention scores, 0 or the lowest number, for each kind of layer.

    The mask must be complete, because a decoder that gets one builds none of its own.

    Args:
        vlm: The model.
        allowed: Whether one of the last Q tokens sees one of all K, shape [B, Q, K].
        position: Positions of all K tokens, counted in tokens, shape [B, K]; None counts along the row.
        within: Which tokens also see each other in both directions, shape [B, Q, K]; None for no such tokens. The
            family's `near` and `across` decide in which layers they do.

    Returns:
        Values to add, shape [B, 1, Q, K], or a dict of them by kind of layer.
    """
    queries, keys = allowed.shape[1:]
    # A token always sees itself, so that padding sees something.
    itself = torch.eye(keys, dtype=torch.bool, device=vlm.device)[keys - queries :]
    dtype = vlm.precision

    def added(seen: Tensor) -> Tensor:
        return torch.zeros(seen.shape, dtype=dtype, device=vlm.device).masked_fill(
            ~seen, torch.finfo(dtype).min
        )[:, None]

    kinds, window = attention_windows(vlm)
    family, both = vlm.family, allowed if within is None else allowed | within
    whole = added((allowed if family.near else both) | itself)
    if window is None:
        return whole
    always = itself if within is None or not family.across else within | itself
    along = torch.arange(keys, device=vlm.device)[None] if position is None else position
    away = along[:, keys - queries :, None] - along[:, None]  # [B, Q, K]
    near = added((both & (away < window)) | always)
    return {"full_attention": whole, "sliding_attention": near} if kinds else near
