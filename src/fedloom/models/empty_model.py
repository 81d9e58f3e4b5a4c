"""Build the model of an experiment without values, from its configuration and its tokenizer, to compute sizes before a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fedloom.models.assemble_model import (
    DEFAULT_CONNECTOR,
    ENCODERS,
    IMAGE_TOKEN,
    _empty_model,
    _with_module,
    vocabulary_size,
)
from fedloom.models.compatibility import placeholder_of
from fedloom.models.connectors import new_connector
from fedloom.models.family_interface import Family
from fedloom.models.family_table import FAMILIES
from fedloom.models.hub import Source
from fedloom.models.load_model import Vlm, with_pixels
from fedloom.models.processor import Processor
from fedloom.models.quantized_layers import quantized_bytes, quantized_names
from fedloom.system.errors import UserError
from fedloom.types import LazyImage

if TYPE_CHECKING:
    from fedloom.config.schema import Model


def empty_vlm(settings: Model, families: Mapping[str, Family] = FAMILIES) -> Vlm:
    """Return the model that `fedloom.models.assemble_model.load_model` would load, on torch's device "meta", without values.

    Only configuration, tokenizer and image processor are read. The digest is that of nothing.

    Args:
        settings: What would be loaded.
        families: `model_type` → family.

    Raises:
        UserError: There is no such model, or it is of another family.
    """
    if settings.encoder is not None and settings.llm is not None:
        vlm = _assembled(settings.encoder, settings.llm, settings.network)
    else:
        vlm = _whole(settings, families)
    vlm = with_pixels(vlm, settings.pixels)
    name = settings.connector or (DEFAULT_CONNECTOR if settings.encoder is not None else None)
    path = vlm.family.swap
    if name is None or not path:
        return vlm
    linears = [layer for layer in vlm.model.get_submodule(path).modules() if isinstance(layer, nn.Linear)]
    connector = new_connector(name, linears[0].in_features, linears[-1].out_features, 0, settings.queries)
    return replace(vlm, model=_with_module(vlm.model, path, connector.to("meta")))


def _whole(settings: Model, families: Mapping[str, Family]) -> Vlm:
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    source = Source("model.path", settings.path, settings.network)
    config = source.read(AutoConfig)
    if (kind := config.model_type) not in families:
        raise UserError(
            f"model.path: {settings.path!r} is of family {kind!r}; supported families: {', '.join(families)}"
        )
    family = families[kind]
    tokenizer = source.tokenizer(images=family.images)
    images = source.read(AutoImageProcessor) if family.images else None
    with torch.device("meta"):
        model = (AutoModelForImageTextToText if family.images else AutoModelForCausalLM).from_config(config)
    model.requires_grad_(False).eval()
    placeholder = placeholder_of(source, family, model, tokenizer) if family.images else ""
    flat = not family.images and tokenizer.chat_template is not None
    processor = Processor(tokenizer, images, family.template, placeholder, flat)
    return Vlm(settings.path, model, processor, family, "")


def _assembled(encoder: str, llm: str, network: bool) -> Vlm:
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForCausalLM

    encoder_source = Source("model.encoder", encoder, network)
    llm_source = Source("model.llm", llm, network)
    vision = encoder_source.read(AutoConfig)
    vision = getattr(vision, "vision_config", vision)
    if vision.model_type not in ENCODERS:
        raise UserError(
            f"model.encoder: {encoder!r} is a {vision.model_type!r}; can be assembled: {', '.join(ENCODERS)}"
        )
    tokenizer = llm_source.tokenizer()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False
    )
    image, config = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN), llm_source.read(AutoConfig)
    config.vocab_size = max(config.vocab_size, vocabulary_size(tokenizer))
    with torch.device("meta"):
        decoder = AutoModelForCausalLM.from_config(config)
    name = ENCODERS[vision.model_type][1]
    model = _empty_model(name, SimpleNamespace(config=vision), decoder, image)
    model.requires_grad_(False).eval()
    family = FAMILIES[name]
    flat = tokenizer.chat_template is not None
    images = encoder_source.read(AutoImageProcessor)
    processor = Processor(tokenizer, images, family.template, IMAGE_TOKEN, flat)
    return Vlm(f"{encoder} + {llm}", model, processor, family, "")


def weight_bytes(vlm: Vlm, precision: str, quantize: str | None = None) -> dict[str, int]:
    """Return the bytes of each part's weights as a run loads them: the language model in a precision, the rest in float32.

    Args:
        vlm: The model, whose values are not used.
        precision: A value of `model.precision` other than auto.
        quantize: The value of `model.quantize`.

    Example:
        >>> from fedloom.config.schema import Model
        >>> sorted(weight_bytes(empty_vlm(Model()), "float32"))
        ['connector', 'encoder', 'llm']
    """
    shapes = {name: value.numel() for name, value in vlm.model.named_parameters()}
    width = getattr(torch, precision).itemsize
    sizes = {
        part: sum(shapes[name] for name in names) * (width if part == "llm" else 4)
        for part, names in vlm.family.parts.split(shapes).items()
    }
    if quantize is None:
        return sizes
    for name in quantized_names(vlm.model, vlm.family.parts):
        layer = vlm.model.get_submodule(name)
        sizes["llm"] += quantized_bytes(quantize, layer.in_features, layer.out_features)
        sizes["llm"] -= layer.weight.numel() * width
    return sizes


def learn_grids(vlm: Vlm, images: list[LazyImage]) -> None:
    """Put the grids of images into a model's cache, without computing features.

    The image processor runs, and the encoder runs on shapes alone. Of models whose encoder cannot do that, the grid is the
    number of image tokens in the configuration.
    """
    for image in images:
        if image.key not in vlm.memo.known_grids:
            vlm.memo.known_grids[image.key] = _grid(vlm, image)


def _grid(vlm: Vlm, image: LazyImage) -> tuple[int, ...]:
    inputs = vlm.processor.image_processor(
        [[image.pixels()]], return_tensors="pt", **vlm.family.settings(vlm.model)
    )
    sizes: dict[str, Any] = {
        # Pixels have no values here; numbers of patches or tiles have them, because shapes depend on them.
        key: value.to("meta") if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for key, value in inputs.items()
    }
    try:
        with torch.no_grad():
            return tuple(next(iter(vlm.family.encode(vlm.model, sizes))).shape[:-1])
    except Exception:  # an encoder that reads values
        config = vlm.model.config
        count = getattr(config, "image_seq_length", None) or getattr(config, "mm_tokens_per_image", None)
        vision = getattr(config, "vision_config", None)
        size, patch = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
        if count is None and isinstance(size, int) and isinstance(patch, int):
            count = (size // patch) ** 2
        return (int(count or 1024),)
