"""The interface of a model family, and functions that most families share.

Shape legend: B conversations (for `encode` and `connect`: images), L tokens, T image tokens of an image,
E encoder width, D language-model width, A axes of positions, V vocabulary. A *grid* is the shape of one image's features
without E: (16,) for sixteen patches in a row, (4, 6, 16) for tiles of sixteen patches.
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

ADDED = "added before layers"
"""What `Family.place` calls features that layers of the decoder add to their inputs."""

PLAIN = (
    "{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{{ image if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "{% endif %}{% if message['role'] == 'user' %}{{ '\n' }}{% else %}{{ eos_token }}{% endif %}{% endfor %}"
)
"""The chat template of models that have none: image, question, line break, answer."""


def dtype_of(module: Any) -> torch.dtype:
    """Return the data type of a module's weights; encoder, connector and language model of one model may have different ones."""
    return next(module.parameters()).dtype


def send(value: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the CPU to a device; to an accelerator from pinned memory, without synchronization.

    So the next batch is built and copied while the device computes the last one. A tensor that is there already is returned
    itself. Other devices than CUDA's get a plain copy.
    """
    if value.device == device:
        return value
    return value.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else value.to(device)


def image_token(model: Any, tokenizer: Any) -> str:
    """Return the token that image embeddings replace."""
    return tokenizer.convert_ids_to_tokens(model.config.image_token_id)


def one_each(model: Any, tokenizer: Any, grid: Grid) -> str:
    """Write one image token for each feature, or as many as a resampler gives."""
    return image_token(model, tokenizer) * tokens_out(model, prod(grid))


def scatter(model: Any, ids: Tensor, embeddings: Tensor, tokens: Sequence[Tensor]) -> dict[str, Any]:
    """Put image embeddings where the image tokens are.

    Args:
        model: The model.
        ids: Token ids, shape [B, L]; on the CPU, where counting image tokens synchronizes with no accelerator.
        embeddings: Their embeddings, shape [B, L, D], on the model's device.
        tokens: Token embeddings of all images in reading order, shape [T, D] each.

    Returns:
        Arguments of the decoder.

    Raises:
        UserError: There are more or fewer image tokens than image embeddings.
    """
    if not tokens:
        return {"inputs_embeds": embeddings}
    places, images = image_places(model, ids), torch.cat(list(tokens))
    if len(places) != len(images):
        raise UserError(
            f"model: the prompts hold {len(places)} image tokens, but encoder and connector give "
            f"{len(images)}; the tokenizer and the image processor belong to another model"
        )
    # By places and not by a mask, whose backward pass would make an accelerator wait.
    flat = embeddings.flatten(0, 1).index_copy(
        0, send(places, embeddings.device), images.to(embeddings.dtype)
    )
    return {"inputs_embeds": flat.view_as(embeddings)}


def image_places(model: Any, ids: Tensor) -> Tensor:
    """Return the places of image tokens in reading order, counted over all rows: of ids [B, L], on the processor."""
    return (ids == model.config.image_token_id).flatten().nonzero()[:, 0]


def plain_head(model: Any, states: Tensor) -> Tensor:
    """Turn hidden states [..., D] into logits [..., V]."""
    return model.get_output_embeddings()(states)


def unchanged(tokenizer: Any, text: str) -> str:
    """Return a prompt unchanged."""
    del tokenizer
    return text


def no_arguments(_: Any) -> dict[str, Any]:
    """Return no arguments."""
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A model family; the defaults are those of LLaVA.

    Attributes:
        summary: One line for `fedloom list models`.
        parts: Module prefixes.
        encode: (model, output of the image processor) → the features of each image, shape [*grid, E].
            It uses only frozen modules, so features are computed once per image.
        connect: (model, features [B, *grid, E]) → token embeddings [B, T, D].
        spell: (model, tokenizer, grid) → the text that represents an image in the prompt.
        tidy: (tokenizer, a whole prompt with the text of `spell`) → the prompt that is tokenized.
        placeholder: (model, tokenizer) → the text that the chat template writes for an image; `spell` replaces it.
        place: (model, ids, embeddings, token embeddings of images) → arguments of the decoder, see `scatter`. The value of
            `ADDED` is no argument: layer → (places [N] of `image_places`, features [N, D]), which are added to the layer's inputs there.
        later: (these arguments) → those that later tokens need, in generation.
        positions: (model, ids of a prompt [L], grids of its images) → positions [A, L], all on the CPU; None counts
            tokens.
        blocks: (model, ids of a prompt [L]) → block numbers [L], both on the processor. Tokens of a block see each other in both
            directions; tokens with −1 see only earlier ones. None: every token sees only earlier ones.
        near: Whether blocks apply only in layers with a sliding window, and other layers are causal.
        across: Whether a block's tokens see each other even beyond a sliding window.
        head: (model, hidden states) → logits.
        settings: (model) → arguments of the image processor.
        bound: (model, image processor, pixels) → the settings with which the image processor makes images of at most so many
            pixels; None for families whose images have a size or tiles of the model's own.
        template: The chat template of models that have none.
        swap: Path of the connector that can be replaced; empty if it cannot be.
        images: Whether the model sees images; otherwise it is loaded as a language model.
    """

    summary: str
    parts: Parts
    encode: Callable[[Any, Mapping[str, Any]], Sequence[Tensor] | Tensor]
    connect: Callable[[Any, Tensor], Tensor]
    spell: Callable[[Any, Any, Grid], str] = one_each
    tidy: Callable[[Any, str], str] = unchanged
    placeholder: Callable[[Any, Any], str] = image_token
    place: Callable[[Any, Tensor, Tensor, Sequence[Tensor]], dict[str, Any]] = scatter
    later: Callable[[Mapping[str, Any]], dict[str, Any]] = no_arguments
    positions: Callable[[Any, Tensor, Sequence[Grid]], Tensor] | None = None
    blocks: Callable[[Any, Tensor], Tensor] | None = None
    near: bool = False
    across: bool = False
    head: Callable[[Any, Tensor], Tensor] = plain_head
    settings: Callable[[Any], Mapping[str, Any]] = no_arguments
    bound: Callable[[Any, Any, int], Mapping[str, Any]] | None = None
    template: str = PLAIN
    swap: str = ""
    images: bool = True
