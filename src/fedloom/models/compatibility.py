"""Check that the parts of a loaded model fit each other and can be used here: decoder, tokenizer, chat template."""

from __future__ import annotations

import inspect
import re
from typing import Any

import numpy as np

from fedloom.models.chat_templates import check_template
from fedloom.models.family_interface import Family, image_token
from fedloom.models.hub import Source, first_line
from fedloom.models.query_connectors import granite4_layers
from fedloom.system.errors import UserError

EXPERTS = re.compile(r"MoE|Moe|Experts|MOE")
"""Names of modules that route tokens to experts."""

SPARSE = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "qwen3_vl_moe_text", "gemma4_text")
"""Mixtures of experts that the tests compare with the stock model, by `model_type`; each token is routed by itself."""

SQUARES = (
    "llava", "vipllava", "llava_next", "llava_onevision", "granite4_vision", "aya_vision", "ovis2", "paligemma",
    "gemma3", "janus",
)  # fmt: skip
"""Families whose encoder takes square images of one size only."""


def check_decoder(source: Source, model: Any, family: Family | None = None) -> None:
    """Raise an error for a decoder in which several answers cannot be scored in one pass.

    Args:
        source: Where the model is.
        model: The model, or a decoder by itself.
        family: The model's family; None for a decoder that will be assembled with an encoder.

    Raises:
        UserError: It has layers other than attention, untested experts or attention in both directions, or does not take
            positions as an argument.
    """
    config, decoder = model.config.get_text_config(), model.get_decoder()
    layers = set(getattr(config, "layer_types", None) or ())
    other = layers - {"full_attention", "sliding_attention"}
    arguments = inspect.signature(type(decoder).forward).parameters
    blocks = family and family.blocks  # families with blocks decide themselves which tokens see later ones
    sees = getattr(config, "use_bidirectional_attention", None)
    both = not getattr(config, "is_causal", True) or sees
    kinds_of_modules = {type(module).__name__ for module in decoder.modules()}
    experts = sorted(kind for kind in kinds_of_modules if EXPERTS.search(kind))
    if other or getattr(decoder, "_is_stateful", False):
        kinds = ", ".join(sorted(other)) or config.model_type
        reason = f"has layers other than attention ({kinds}); choose a model whose decoder has attention only"
    elif experts and config.model_type not in SPARSE:
        tested = ", ".join(SPARSE)
        reason = f"is a mixture of experts ({config.model_type}); choose a dense decoder, or one of {tested}"
    elif getattr(config, "is_encoder_decoder", False):
        reason = f"is half of an encoder-decoder ({config.model_type}); choose a decoder-only model"
    elif not {"inputs_embeds", "position_ids", "past_key_values"} <= set(arguments) or getattr(
        config, "alibi", False
    ):
        reason = (
            f"does not take positions as an argument ({config.model_type}); choose one with rotary positions"
        )
    elif (blocks is None and both) or sees == "all" or (sees is True and model.config.model_type == "gemma3"):
        reason = "sees later tokens; choose one that sees backwards only"
    else:
        return
    raise UserError(f"{source.key}: the decoder of {source.path!r} {reason}")


def placeholder_of(source: Source, family: Family, model: Any, tokenizer: Any) -> str:
    """Return the text that the chat template writes for an image, after checking that the vocabulary has the image token.

    Raises:
        UserError: The tokenizer has no such token.
    """
    try:
        placeholder, token = family.placeholder(model, tokenizer), image_token(model, tokenizer)
    except Exception as error:  # a token without a name, or a number that is no token
        raise UserError(
            f"{source.key}: the tokenizer of {source.path!r} has no image token ({first_line(error)})"
        ) from error
    if not isinstance(placeholder, str) or token not in tokenizer.get_vocab():
        raise UserError(
            f"{source.key}: the tokenizer of {source.path!r} has no image token; config.json says that it is number "
            f"{getattr(model.config, 'image_token_id', None)} of {len(tokenizer)}"
        )
    return placeholder


def check_vocabulary(source: Source, model: Any, tokenizer: Any) -> None:
    """Raise an error for a tokenizer with tokens that have no embedding; the image token needs none.

    Raises:
        UserError: There are such tokens.
    """
    count = model.get_input_embeddings().num_embeddings
    image = getattr(model.config, "image_token_id", None)
    beyond = sorted(name for name, id in tokenizer.get_vocab().items() if id >= count and id != image)
    if beyond:
        raise UserError(
            f"{source.key}: the tokenizer of {source.path!r} has {len(beyond)} tokens without an embedding, such as "
            f"{beyond[0]!r}; the model has {count:,} embeddings"
        )


def check_processor(source: Source, processor: Any, image: str) -> None:
    """Raise an error for a chat template that cannot be used; see `fedloom.models.chat_templates`.

    Args:
        source: Where the template is from.
        processor: The processor with the template.
        image: The text that the template writes for an image; "" for a model without images.

    Raises:
        UserError: The template fails, does not end, or leaves out or changes the user's text or the answer.
    """
    special = processor.tokenizer.special_tokens_map
    named = {
        name: value for name, value in special.items() if isinstance(value, str)
    } | processor.template_arguments
    template = processor.chat_template
    check_template(
        source.key, source.path, template, named, image=image, flat=processor.flat, token=processor.image
    )


def check_features(source: Source, model: Any) -> None:
    """Raise an error for a configuration that takes features from a missing layer of the encoder, or random features.

    Raises:
        UserError: There is no such layer, or the encoder draws its features at random.
    """
    if getattr(getattr(model.config, "vision_config", None), "tokenize_function", "") == "gumbel_argmax":
        raise UserError(
            f"{source.key}: the encoder of {source.path!r} draws visual words at random (tokenize_function is "
            "gumbel_argmax); choose a model in which it is softmax or st_argmax"
        )
    layers = getattr(model.config, "vision_feature_layer", None)
    if model.config.model_type == "granite4_vision":
        layers = granite4_layers(model.config)
    depth = getattr(getattr(model.config, "vision_config", None), "num_hidden_layers", None)
    for layer in [layers] if isinstance(layers, int) else layers or []:
        if isinstance(depth, int) and not -depth - 1 <= layer <= depth:
            raise UserError(
                f"{source.key}: config.json of {source.path!r} takes features from layer {layer} "
                f"(vision_feature_layer), but the encoder has {depth} layers"
            )


def check_sizes(source: Source, images: Any, size: Any) -> None:
    """Raise an error for an image processor that makes images of another size than the encoder takes.

    Args:
        source: Where both are from.
        images: The image processor.
        size: Side of the squares that the encoder takes; nothing is checked if it is not an integer.

    Raises:
        UserError: The sizes differ, or the processor fails on an image.
    """
    if not isinstance(size, int):
        return
    blank = np.zeros((2 * size, size, 3), np.uint8)
    try:
        height, width = images([blank], return_tensors="pt")["pixel_values"].shape[-2:]
    except Exception as error:  # settings that contradict each other
        raise UserError(
            f"{source.key}: the image processor of {source.path!r} fails on an image ({first_line(error)})"
        ) from error
    if (height, width) != (size, size):
        raise UserError(
            f"{source.key}: the image processor of {source.path!r} makes images of {width} × {height} pixels, but the "
            f"encoder takes {size} × {size}"
        )
