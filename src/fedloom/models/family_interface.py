"""What fedloom must know of a model family, and what most families have in common.

Shape legend: B conversations (for `encode` and `connect`: pictures), L tokens, T image tokens of a picture,
E encoder width, D language-model width, A axes of positions, V vocabulary. A *grid* is what stands before E in
the features of one picture: (16,) for sixteen patches in a row, (4, 6, 16) for tiles of sixteen patches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from fedloom.models.connectors import tokens_out
from fedloom.models.module_paths import Parts
from fedloom.system.errors import UserError

Grid = tuple[int, ...]

PLAIN = (
    "{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{{ image if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "{% endif %}{% if message['role'] == 'user' %}{{ '\n' }}{% else %}{{ eos_token }}{% endif %}{% endfor %}"
)
"""The chat template of a model that has none: image, question, line break, answer."""


def image_token(model: Any, tokenizer: Any) -> str:
    """Name the token at whose places image embeddings go."""
    return tokenizer.convert_ids_to_tokens(model.config.image_token_id)


def one_each(model: Any, tokenizer: Any, grid: Grid) -> str:
    """Stand for a picture by one image token for each feature, or as many as a resampler gives."""
    return image_token(model, tokenizer) * tokens_out(model, prod(grid))


def scatter(model: Any, ids: Tensor, embeddings: Tensor, tokens: Sequence[Tensor]) -> dict[str, Any]:
    """Put image embeddings where the image tokens are.

    Args:
        model: The model.
        ids: Token ids, shape [B, L].
        embeddings: Their embeddings, shape [B, L, D].
        tokens: Connected features of all pictures in reading order, shape [T, D] each.

    Returns:
        Arguments of the decoder.

    Raises:
        UserError: There are more or fewer image tokens than image embeddings.
    """
    if not tokens:
        return {"inputs_embeds": embeddings}
    place, together = ids == model.config.image_token_id, torch.cat(list(tokens))
    if int(place.sum()) != len(together):
        raise UserError(
            f"model: the prompts hold {int(place.sum())} image tokens, but encoder and connector give "
            f"{len(together)}; the tokenizer and the image processor belong to another model"
        )
    spread = place[..., None].expand_as(embeddings)
    return {"inputs_embeds": embeddings.masked_scatter(spread, together.to(embeddings.dtype))}


def plain_head(model: Any, states: Tensor) -> Tensor:
    """Turn hidden states [..., D] into logits [..., V]."""
    return model.get_output_embeddings()(states)


def as_written(tokenizer: Any, text: str) -> str:
    """Return a prompt as it is."""
    del tokenizer
    return text


def nothing(given: Any) -> dict[str, Any]:
    """Return no arguments."""
    del given
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What fedloom must know of a family; what is not given is as in LLaVA.

    Attributes:
        summary: One line for `fedloom list models`.
        parts: Module prefixes.
        encode: (model, what the image processor returns) → the features of each picture, shape [*grid, E].
            Only frozen modules take part, so features are computed once per picture.
        connect: (model, features [B, *grid, E]) → token embeddings [B, T, D].
        spell: (model, tokenizer, grid) → the text that stands for a picture in the prompt.
        tidy: (tokenizer, a whole prompt with `spell` in it) → the prompt as it is tokenized.
        placeholder: (model, tokenizer) → what the chat template writes for a picture; `spell` replaces it.
        place: (model, ids, embeddings, connected features) → arguments of the decoder, see `scatter`.
        later: What of these arguments the tokens after the first call need, in generation.
        positions: (model, ids of a prompt [L], grids of its pictures) → positions [A, L]; None counts tokens.
        blocks: (model, ids of a prompt [L]) → block numbers [L]; tokens of a block see each other in both
            directions, −1 sees backwards only. None: every token sees backwards only.
        near: Whether they do so in layers with a sliding window only, and whole layers see backwards.
        across: Whether a block's tokens see each other across a sliding window too.
        head: (model, hidden states) → logits.
        settings: (model) → arguments of the image processor.
        template: The chat template of models that have none.
        swap: The module that a fresh connector may replace; empty where none may.
        images: Whether the model sees images; one that does not is loaded as a plain language model.
    """

    summary: str
    parts: Parts
    encode: Callable[[Any, Mapping[str, Any]], Sequence[Tensor] | Tensor]
    connect: Callable[[Any, Tensor], Tensor]
    spell: Callable[[Any, Any, Grid], str] = one_each
    tidy: Callable[[Any, str], str] = as_written
    placeholder: Callable[[Any, Any], str] = image_token
    place: Callable[[Any, Tensor, Tensor, Sequence[Tensor]], dict[str, Any]] = scatter
    later: Callable[[Mapping[str, Any]], dict[str, Any]] = nothing
    positions: Callable[[Any, Tensor, Sequence[Grid]], Tensor] | None = None
    blocks: Callable[[Any, Tensor], Tensor] | None = None
    near: bool = False
    across: bool = False
    head: Callable[[Any, Tensor], Tensor] = plain_head
    settings: Callable[[Any], Mapping[str, Any]] = nothing
    template: str = PLAIN
    swap: str = ""
    images: bool = True
