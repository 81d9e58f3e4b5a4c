"""Load the model that an experiment names: unchanged, with a new connector, or assembled from parts.

Assembled models follow FedVLMBench (arXiv 2506.09638), which joins CLIP ViT-B/32 and LLaMA-3.2-3B with a connector of
random weights: an image of 224 px becomes the 49 patch tokens of the encoder's second-to-last layer, without its class
token. A convolutional encoder gives one token for each position of its last feature map instead.

Differs from the paper: images are prepared by the encoder's own image processor (CLIP's crops the central square) and
are not padded to a square.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fedloom.models.check_weights import UNUSED_BESIDE_ENCODER
from fedloom.models.compatibility import check_decoder, check_processor, check_sizes
from fedloom.models.connectors import load_trained, new_connector, trained_file
from fedloom.models.family_interface import Family
from fedloom.models.family_table import FAMILIES
from fedloom.models.hub import Source
from fedloom.models.load_model import Processor, Vlm, load_vlm, with_pixels
from fedloom.system.errors import UserError
from fedloom.system.file_hashes import combine_digests, file_digest
from fedloom.system.garbage_collection import without_garbage_collection

if TYPE_CHECKING:
    from fedloom.config.schema import Model

ENCODERS = {
    "clip_vision_model": ("CLIPVisionModel", "llava"),
    "siglip_vision_model": ("SiglipVisionModel", "llava"),
    "efficientnet": ("EfficientNetModel", "fast_vlm"),
}
"""Encoders that can be assembled, by `model_type`: the class, and the family of the assembled model."""

IMAGE_TOKEN = "<image>"
DEFAULT_CONNECTOR = "mlp2"
"""The connector of an assembled model whose experiment names none."""


def load_model(settings: Model, seed: int) -> Vlm:
    """Load the model of an experiment.

    Args:
        settings: What to load.
        seed: Seed of the random streams of a new connector.

    Raises:
        UserError: Something cannot be loaded or does not fit.
    """
    return with_connector(load_base(settings), settings, seed)


def load_base(settings: Model, families: Mapping[str, Family] = FAMILIES) -> Vlm:
    """Load the base model that models with different connectors share; see `with_connector`.

    The connector of an assembled model has no values yet. If `model.precision` has 16 bits, so has a language model that is
    stored in 16 bits; `move_model` converts it where the two differ.

    Args:
        settings: What to load.
        families: `model_type` → family, for models that are not assembled.

    Raises:
        UserError: Something cannot be loaded or does not fit.
    """
    if settings.encoder is not None and settings.llm is not None:
        vlm = assemble(settings.encoder, settings.llm, settings.network, lean=_lean(settings))
    else:
        vlm = load_vlm(settings.path, network=settings.network, families=families, lean=_lean(settings))
    return with_pixels(vlm, settings.pixels)


def _lean(settings: Model) -> bool:
    return getattr(settings, "precision", "float32") in ("bfloat16", "float16")


def with_connector(base: Vlm, settings: Model, seed: int) -> Vlm:
    """Return a base model with the connector of an experiment; see `replace_connector`.

    Args:
        base: The result of `load_base` for these settings, on any device; it is not changed.
        settings: Names the connector. If it names none, a model that is not assembled is returned itself.
        seed: Seed of the random streams of a new connector.

    Raises:
        UserError: The model's connector cannot be replaced, or the file of a trained connector cannot be used.
    """
    name = _connector(settings)
    if name is None:
        return base
    return replace_connector(base, name, seed, settings.queries, settings.connector_weights)


def _connector(settings: Model) -> str | None:
    """Return the name of the connector that replaces the model's own, or None."""
    assembled = settings.encoder is not None and settings.llm is not None
    return settings.connector or (DEFAULT_CONNECTOR if assembled else None)


def base_digest(settings: Model, seed: int) -> str:
    """Return the digest (`Vlm.digest`) of the model that `load_model` would load, without loading it.

    It covers configuration, tokenizer, processor, chat template and weights of each folder, and everything that a
    replaced connector depends on. Files that have not changed since they were last read are not read again; see
    `file_digests`.

    Args:
        settings: What would be loaded.
        seed: Seed of the random streams of a new connector.

    Raises:
        UserError: A folder is missing or damaged.
    """
    digest, name = parts_digest(settings), _connector(settings)
    if name is None:
        return digest
    return _connector_digest(digest, name, seed, settings.queries, settings.connector_weights)


def parts_digest(settings: Model) -> str:
    """Return the digest of the base model that `load_base` would load, without loading it.

    Raises:
        UserError: A folder is missing or damaged.
    """
    if settings.encoder is not None and settings.llm is not None:
        return _assembled_digest(*_sources(settings.encoder, settings.llm, settings.network))
    return Source("model.path", settings.path, settings.network).digest


def _sources(encoder: str, llm: str, network: bool) -> tuple[Source, Source]:
    return Source("model.encoder", encoder, network), Source("model.llm", llm, network)


def _assembled_digest(encoder: Source, llm: Source) -> str:
    return combine_digests({"encoder": encoder.digest, "llm": llm.digest})


def _connector_digest(base: str, name: str, seed: int, queries: int, weights: str | None = None) -> str:
    """Return the digest of a model with another connector, whose values depend only on its form and a seed or file."""
    form = f"{name} of {queries} queries" if name == "resampler" else name
    values = f"seed {seed}" if weights is None else f"SHA-256 {file_digest(trained_file(weights))}"
    return combine_digests({"base": base, "connector": f"{form}, {values}"})


def replace_connector(vlm: Vlm, name: str, seed: int, queries: int = 16, weights: str | None = None) -> Vlm:
    """Return a model with another connector, new or trained, which shares all other modules with the original.

    Both models have the same encoder and language model, so adapters that are inserted there are in both. A connector
    of the same form as the model's own has the same parameter names, so its tensors fit the stock model.

    Args:
        vlm: A model of a family whose connector can be replaced (`Family.swap`); it is not changed.
        name: A key of `CONNECTORS`.
        seed: Seed of the random streams.
        queries: Image tokens that a resampler gives.
        weights: A name in `BUNDLED_CONNECTORS` or a safetensors file with the connector's values; None draws new ones.

    Raises:
        UserError: The family's connector cannot be replaced, or the file is damaged or holds another connector.
    """
    path = vlm.family.swap
    if not path:
        fitting = ", ".join(name for name, row in FAMILIES.items() if row.swap)
        raise UserError(
            f"model.connector: the family of {vlm.name!r} has a connector of a form of its own, or none; leave the key "
            f"out. Families whose connector can be replaced: {fitting}"
        )
    own = vlm.model.get_submodule(path)
    linears = [layer for layer in own.modules() if isinstance(layer, nn.Linear)]
    connector = new_connector(name, linears[0].in_features, linears[-1].out_features, seed, queries)
    if weights is not None:
        load_trained(connector, name, weights)
    renamed = _with_names_of(own, connector, linears[0].in_features).eval().to(vlm.device)
    digest = _connector_digest(vlm.digest, name, seed, queries, weights)
    return replace(vlm, model=_with_module(vlm.model, path, renamed), digest=digest)


@torch.no_grad()
def _with_names_of(own: nn.Module, connector: nn.Module, width: int) -> nn.Module:
    """Return a copy of a model's own connector with the values of another, if both compute the same; else the other."""
    if [value.shape for value in own.parameters()] != [value.shape for value in connector.parameters()]:
        return connector
    renamed = copy.deepcopy(own).cpu()
    for parameter, value in zip(renamed.parameters(), connector.parameters(), strict=True):
        parameter.copy_(value)
    probe = torch.linspace(-2, 2, 3 * width).view(1, 3, width)
    return renamed if torch.allclose(renamed(probe), connector(probe), atol=1e-5) else connector


def _with_module(model: Any, path: str, module: nn.Module) -> Any:
    """Return a model with another module at a path: modules on the path are copied, all others are shared."""
    name, _, below = path.partition(".")
    frame = copy.copy(model)
    frame._parameters = dict(model._parameters)
    frame._modules = {
        **model._modules,
        name: _with_module(model.get_submodule(name), below, module) if below else module,
    }
    return frame


@without_garbage_collection()
def assemble(encoder: str, llm: str, network: bool, *, lean: bool = False) -> Vlm:
    """Join an encoder and a language model to a LLaVA or, with an EfficientNet, to a FastVLM.

    The connector between them has no values; `replace_connector` gives the model one that has.

    Args:
        encoder: A CLIP or SigLIP model, the vision half of one, an EfficientNet, or a vision-language model with
            one of these as its vision tower: a name in `BUNDLED`, a folder or a hub id.
        llm: A causal language model with a plain linear head: a name in `ADDED`, a folder or a hub id.
        network: Whether a hub may be contacted.
        lean: Whether a language model that is stored in 16 bits stays so; see `Source.model`.

    Raises:
        UserError: One of them cannot be loaded or is of another kind, or the encoder's image processor makes images
            of another size than the encoder takes.
    """
    from transformers import AutoImageProcessor, AutoModelForCausalLM

    encoder_source, llm_source = _sources(encoder, llm, network)
    tower, name = _tower(encoder_source)
    images = encoder_source.read(AutoImageProcessor)
    check_sizes(encoder_source, images, tower.config.image_size)
    decoder = llm_source.model(AutoModelForCausalLM, lean=lean)
    check_decoder(llm_source, decoder)
    _check_head(llm, decoder)
    tokenizer = llm_source.tokenizer()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False
    )
    image = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    _make_room(decoder, vocabulary_size(tokenizer))
    model = _empty_model(name, tower, decoder, image)
    model.model.vision_tower, model.model.language_model = tower, decoder.get_decoder()
    model.lm_head, model.generation_config = decoder.get_output_embeddings(), decoder.generation_config
    model.model.multi_modal_projector.to_empty(device="cpu")
    model.requires_grad_(False).eval()
    family = FAMILIES[name]
    flat = tokenizer.chat_template is not None
    processor = Processor(tokenizer, images, family.template, IMAGE_TOKEN, flat)
    check_processor(llm_source, processor, IMAGE_TOKEN)
    return Vlm(f"{encoder} + {llm}", model, processor, family, _assembled_digest(encoder_source, llm_source))


def _empty_model(family: str, tower: Any, decoder: Any, image: int) -> Any:
    """Build the assembled model without values; its parts are inserted or filled later."""
    from transformers import (
        FastVlmConfig,
        FastVlmForConditionalGeneration,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    vision = tower.config.to_dict()
    # CLIP's first token is not a patch.
    select = "default" if vision["model_type"].startswith("clip") else "full"
    choices: dict[str, Any] = {
        "text_config": decoder.config.to_dict(),
        "image_token_id": image,
        "tie_word_embeddings": decoder.config.tie_word_embeddings,
    }
    with torch.device("meta"):
        if family == "fast_vlm":
            vision["hidden_size"] = tower.config.hidden_dim  # the connector reads it under this name
            return FastVlmForConditionalGeneration(FastVlmConfig(vision_config=vision, **choices))
        return LlavaForConditionalGeneration(
            LlavaConfig(
                vision_config=vision,
                vision_feature_layer=-2,
                vision_feature_select_strategy=select,
                image_seq_length=(tower.config.image_size // tower.config.patch_size) ** 2,
                **choices,
            )
        )


def _tower(source: Source) -> tuple[Any, str]:
    """Load a vision encoder, by itself or from a vision-language model; return it and the assembled model's family."""
    import transformers

    config = source.read(transformers.AutoConfig)
    kind = getattr(getattr(config, "vision_config", config), "model_type", None)
    if kind not in ENCODERS:
        raise UserError(
            f"{source.key}: {source.path!r} is a {kind!r}; can be assembled: {', '.join(ENCODERS)}"
        )
    name, family = ENCODERS[kind]
    if (
        config.model_type in FAMILIES
    ):  # the tensors of its encoder have other names than those of an encoder alone
        return source.model(transformers.AutoModelForImageTextToText).model.vision_tower, family
    return source.model(getattr(transformers, name), UNUSED_BESIDE_ENCODER), family


def _check_head(llm: str, decoder: Any) -> None:
    """Raise UserError for a language model that caps or scales its logits, which the assembled LLaVA would not do."""
    for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(decoder.config, name, None) not in (None, 1, 1.0):
            raise UserError(
                f"model.llm: {llm!r} has a head that is not plain ({name}); choose a language model with a linear head"
            )


def vocabulary_size(tokenizer: Any) -> int:
    """Return how many embeddings a tokenizer needs: one more than the largest number of a token."""
    return 1 + max(tokenizer.get_vocab().values())


@torch.no_grad()
def _make_room(decoder: Any, tokens: int) -> None:
    """Extend the vocabulary to a number of tokens; the new embeddings start as the mean of the others."""
    count = decoder.get_input_embeddings().num_embeddings
    if tokens <= count:
        return
    decoder.resize_token_embeddings(tokens, mean_resizing=False)
    for layer in (decoder.get_input_embeddings(), decoder.get_output_embeddings()):
        layer.weight[count:] = layer.weight[:count].mean(0)
