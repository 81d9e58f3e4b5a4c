"""One row per model family: where its parts are and how an image becomes token embeddings.

Shape legend: B pictures, T image tokens each, E encoder width, D language-model width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedloom.models.parts import Parts


@dataclass(frozen=True, slots=True)
class Family:
    """What fedloom must know of a family.

    Attributes:
        summary: One line for `fedloom list models`.
        parts: Module prefixes.
        encode: (model, pixel values) → encoder features [B, T, E]; frozen in every strategy, so they are
            computed once per picture.
        connect: (model, features) → token embeddings [B, T, D].
    """

    summary: str
    parts: Parts
    encode: Callable[[Any, Tensor], Tensor]
    connect: Callable[[Any, Tensor], Tensor]


def _llava_encode(model: Any, pixel_values: Tensor) -> Tensor:
    """Pick the hidden states LLaVA's configuration names; they stand before the tower's last norm."""
    states = model.model.vision_tower(pixel_values, output_hidden_states=True).hidden_states
    layers = model.config.vision_feature_layer
    start = (
        1 if model.config.vision_feature_select_strategy == "default" else 0
    )  # "default" drops the class token
    chosen = [states[layer][:, start:] for layer in ([layers] if isinstance(layers, int) else layers)]
    return torch.cat(chosen, dim=-1)


def _llava_connect(model: Any, features: Tensor) -> Tensor:
    return model.model.multi_modal_projector(features)


FAMILIES: dict[str, Family] = {
    "llava": Family(
        "LLaVA: vision encoder, MLP connector, decoder (the shipped model, LLaVA 1.5 and its like)",
        Parts(("model.vision_tower",), ("model.multi_modal_projector",), ("model.language_model", "lm_head")),
        _llava_encode,
        _llava_connect,
    ),
}
