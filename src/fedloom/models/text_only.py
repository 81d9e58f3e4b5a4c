"""Language models without images: functions in place of encoder and connector, and for data that have images.

Shape legend: D language-model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NoReturn

from torch import Tensor

from fedloom.models.family_interface import Family, plain_head
from fedloom.system.errors import UserError
from fedloom.types import Example

DECODERS = (
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "smollm3", "olmo2",
    "granite", "cohere2", "starcoder2", "mixtral", "qwen2_moe", "qwen3_moe", "olmoe",
)  # fmt: skip
"""Language models that the tests compare with the stock model, by `model_type`."""

TEXT_ONLY = "the model is a language model without an encoder, which sees text only"

CLIENTS_OF_ONE_KIND = ("cross", "hybrid")
"""Patterns in which some clients hold images and no text."""


def no_features(model: Any, inputs: Mapping[str, Any] | Tensor) -> NoReturn:
    """Raise an error, in place of a function that encodes images or connects features.

    Raises:
        UserError: Always.
    """
    del model, inputs
    raise UserError(f"model: an image cannot be used: {TEXT_ONLY}")


def no_placeholder(model: Any, tokenizer: Any) -> str:
    """Return an empty text, because a chat template writes nothing for an image."""
    del model, tokenizer
    return ""


def scaled_head(model: Any, states: Tensor) -> Tensor:
    """Turn hidden states [..., D] into logits [..., V], scaled or capped as the configuration says.

    Cohere multiplies logits, Granite divides them, and Gemma 2 caps them.
    """
    config = model.config.get_text_config()
    logits = plain_head(model, states)
    logits = logits * (getattr(config, "logit_scale", None) or 1.0)
    logits = logits / (getattr(config, "logits_scaling", None) or 1.0)
    most = getattr(config, "final_logit_softcapping", None)
    return logits if most is None else (logits / most).tanh() * most


def without_images(example: Example) -> Example:
    """Return an example with its text alone."""
    turns = tuple(replace(turn, pictures=(), places=()) for turn in example.turns)
    return replace(example, image=None, spare=(), turns=turns)


def check_pattern(family: Family, pattern: str) -> None:
    """Raise an error for a scenario in which clients hold only images, if the model sees none.

    Args:
        family: The model's family.
        pattern: `scenario.pattern` of the experiment.

    Raises:
        UserError: The model sees no images, and the pattern gives some clients nothing else.
    """
    if not family.images and pattern in CLIENTS_OF_ONE_KIND:
        raise UserError(
            f"scenario.pattern is {pattern}, in which some clients hold images alone, but {TEXT_ONLY}; set "
            "scenario.pattern to aligned or missing"
        )
