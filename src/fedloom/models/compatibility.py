"""Whether the parts of a loaded model fit each other and what is done with them: decoder, tokenizer, chat template."""

from __future__ import annotations

import inspect
import re
from typing import Any

import numpy as np

from fedloom.models.chat_templates import trial
from fedloom.models.family_interface import Family, image_token
from fedloom.models.hub import Source, first_line
from fedloom.models.query_connectors import granite4_layers
from fedloom.system.errors import UserError

EXPERTS = re.compile(r"MoE|Moe|Experts|MOE")
"""Names of modules that send tokens to experts."""

SPARSE = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "qwen3_vl_moe_text", "gemma4_text")
"""Mixtures of experts that the tests compare with the stock model, by `model_type`: each token goes its own way."""

SQUARES = (
    "llava", "vipllava", "llava_next", "llava_onevision", "granite4_vision", "aya_vision", "ovis2", "paligemma",
    "gemma3", "janus",
)  # fmt: skip
"""Families whose encoder takes squares of one size only."""


def check_decoder(source: Source, model: Any, family: Family | None = None) -> None:
    """Refuse decoders in which an answer cannot be scored beside others in one pass.

    Args:
        source: Where the model lies.
        model: The model, or a decoder by itself.
        family: The model's family; None for a decoder that is to be assembled with an encoder.

    Raises:
        UserError: There are layers of another kind than attention, experts of an untested kind, positions that are no
            argument, or attention in both directions.
    """
    config, decoder = model.config.get_text_config(), model.get_decoder()
    layers = set(getattr(config, "layer_types", None) or ())
    other = layers - {"full_attention", "sliding_attention"}
    taken = inspect.signature(type(decoder).forward).parameters
    blocks = family and family.blocks  # families that have them decide themselves who sees later tokens
    sees = getattr(config, "use_bidirectional_attention", None)
    both = not getattr(config, "is_causal", True) or sees
    experts = sorted({type(one).__name__ for one in decoder.modules() if EXPERTS.search(type(one).__name__)})
    if other or getattr(decoder, "_is_stateful", False):
        kinds = ", ".join(sorted(other)) or config.model_type
        reason = f"has layers other than attention ({kinds}); choose a model whose decoder has attention only"
    elif experts and config.model_type not in SPARSE:
        known = ", ".join(SPARSE)
        reason = f"is a mixture of experts ({config.model_type}); choose a dense decoder, or one of {known}"
    elif getattr(config, "is_encoder_decoder", False):
        reason = f"is half of an encoder-decoder ({config.model_type}); choose a decoder-only model"
    elif not {"inputs_embeds", "position_ids", "past_key_values"} <= set(taken) or getattr(
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
    """Return what the chat template writes for an image; the image token must be in the tokenizer's vocabulary.

    Raises:
        UserError: The tokenizer has no such token.
    """
    try:
        found, token = family.placeholder(model, tokenizer), image_token(model, tokenizer)
    except Exception as error:  # a token without a name, or a number that is no token
        raise UserError(
            f"{source.key}: the tokenizer of {source.path!r} has no image token ({first_line(error)})"
        ) from error
    if not isinstance(found, str) or token not in tokenizer.get_vocab():
        raise UserError(
            f"{source.key}: the tokenizer of {source.path!r} has no image token; config.json says that it is number "
            f"{getattr(model.config, 'image_token_id', None)} of {len(tokenizer)}"
        )
    return found


def check_vocabulary(source: Source, model: Any, tokenizer: Any) -> None:
    """Refuse a tokenizer with tokens that have no embedding; the image token needs none.

    Raises:
        UserError: There are such tokens.
    """
    known = model.get_input_embeddings().num_embeddings
    image = getattr(model.config, "image_token_id", None)
    beyond = sorted(name for name, id in tokenizer.get_vocab().items() if id >= known and id != image)
    if beyond:
        raise UserError(
            f"{source.key}: the tokenizer of {source.path!r} has {len(beyond)} tokens without an embedding, such as "
            f"{beyond[0]!r}; the model has {known:,} embeddings"
        )


def check_processor(source: Source, processor: Any, image: str) -> None:
    """Refuse a chat template that cannot be used; see `fedloom.models.chat_templates`.

    Args:
        source: Where it comes from.
        processor: The processor with the template.
        image: What the template writes for an image; "" for a model that sees none.

    Raises:
        UserError: It fails, does not end, or leaves out or changes what it is given.
    """
    special = processor.tokenizer.special_tokens_map
    named = {name: value for name, value in special.items() if isinstance(value, str)} | processor.given
    template = processor.chat_template
    trial(source.key, source.path, template, named, image=image, flat=processor.flat, token=processor.image)


def check_features(source: Source, model: Any) -> None:
    """Refuse a configuration that takes features from a layer which the encoder does not have, or features at random.

    Raises:
        UserError: There is no such layer, or what the encoder gives is drawn.
    """
    if getattr(getattr(model.config, "vision_config", None), "tokenize_function", "") == "gumbel_argmax":
        raise UserError(
            f"{source.key}: the encoder of {source.path!r} draws visual words at random (tokenize_function is "
            "gumbel_argmax); choose a model in which it is softmax or st_argmax"
        )
    wanted = getattr(model.config, "vision_feature_layer", None)
    if model.config.model_type == "granite4_vision":
        wanted = granite4_layers(model.config)
    depth = getattr(getattr(model.config, "vision_config", None), "num_hidden_layers", None)
    for layer in [wanted] if isinstance(wanted, int) else wanted or []:
        if isinstance(depth, int) and not -depth - 1 <= layer <= depth:
            raise UserError(
                f"{source.key}: config.json of {source.path!r} takes features from layer {layer} "
                f"(vision_feature_layer), but the encoder has {depth} layers"
            )


def check_sizes(source: Source, images: Any, size: Any) -> None:
    """Refuse an image processor that makes images of another size than the encoder takes.

    Args:
        source: Where both come from.
        images: The image processor.
        size: The side of the squares that the encoder takes; nothing is checked where it is no whole number.

    Raises:
        UserError: The sizes differ, or the processor fails on an image.
    """
    if not isinstance(size, int):
        return
    blank = np.zeros((2 * size, size, 3), np.uint8)
    try:
        height, width = images([blank], return_tensors="pt")["pixel_values"].shape[-2:]
    except Exception as error:  # settings that go together with no image
        raise UserError(
            f"{source.key}: the image processor of {source.path!r} fails on an image ({first_line(error)})"
        ) from error
    if (height, width) != (size, size):
        raise UserError(
            f"{source.key}: the image processor of {source.path!r} makes images of {width} × {height} pixels, but the "
            f"encoder takes {size} × {size}"
        )
