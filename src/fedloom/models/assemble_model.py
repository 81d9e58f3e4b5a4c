"""Load the model that an experiment names: as it is, with a fresh connector, or assembled from parts.

Assembled models follow FedVLMBench (arXiv 2506.09638), which joins CLIP ViT-B/32 and LLaMA-3.2-3B by a connector with
random weights: images of 224 px become the 49 patch tokens of the encoder's last layer but one, without its class
token. A convolutional encoder gives one token for each place of its last map instead.

Differs from the paper: images are prepared as the encoder's own image processor prepares them (CLIP's cuts out the
middle square), not padded to a square.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fedloom.models.compatibility import check_decoder, check_processor, check_sizes
from fedloom.models.connectors import fresh, put_trained, trained_file
from fedloom.models.family_interface import Family
from fedloom.models.family_table import FAMILIES
from fedloom.models.hub import Source
from fedloom.models.load_model import Processor, Vlm, load_vlm
from fedloom.models.load_weights import BESIDE
from fedloom.system.errors import UserError
from fedloom.system.file_hashes import combine_digests, file_digest
from fedloom.system.startup import without_garbage_collection

if TYPE_CHECKING:
    from fedloom.config.schema import Model

ENCODERS = {
    "clip_vision_model": ("CLIPVisionModel", "llava"),
    "siglip_vision_model": ("SiglipVisionModel", "llava"),
    "efficientnet": ("EfficientNetModel", "fast_vlm"),
}
"""Encoders that can be assembled, by `model_type`: the class, and the family of the assembled model."""

IMAGE = "<image>"
OWN = "mlp2"
"""The connector of an assembled model that names none."""


def load_model(settings: Model, seed: int) -> Vlm:
    """Load the model of an experiment.

    Args:
        settings: What to load.
        seed: Names the random streams of a fresh connector.

    Raises:
        UserError: Something cannot be loaded or does not fit.
    """
    return connected(load_base(settings), settings, seed)


def load_base(settings: Model, families: Mapping[str, Family] = FAMILIES) -> Vlm:
    """Load the base model, which models that differ only in the connector have in common; see `connected`.

    The connector of an assembled model holds no values yet.

    Args:
        settings: What to load.
        families: `model_type` → family, of models that are not assembled.

    Raises:
        UserError: Something cannot be loaded or does not fit.
    """
    if settings.encoder is not None and settings.llm is not None:
        return assemble(settings.encoder, settings.llm, settings.network)
    return load_vlm(settings.path, network=settings.network, families=families)


def connected(base: Vlm, settings: Model, seed: int) -> Vlm:
    """Return a base model with the connector of an experiment; see `replace_connector`.

    Args:
        base: What `load_base` gave for these settings, on whatever device; it is left as it is.
        settings: Which connector; with none, a model that is not assembled keeps its own and is returned itself.
        seed: Names the random streams of a fresh connector.

    Raises:
        UserError: The model takes no other connector, or the file of a trained one cannot be used.
    """
    name = _connector(settings)
    if name is None:
        return base
    return replace_connector(base, name, seed, settings.queries, settings.connector_weights)


def _connector(settings: Model) -> str | None:
    """Return which connector takes the place of the model's own, or None."""
    assembled = settings.encoder is not None and settings.llm is not None
    return settings.connector or (OWN if assembled else None)


def base_digest(settings: Model, seed: int) -> str:
    """Return the SHA-256 of what `load_model` would load, `Vlm.digest`, without loading it.

    It covers configuration, tokenizer, processor, chat template and weights of each folder, and what a connector other
    than the model's own depends on. Files that have not changed since they were last read are not read again; see
    `file_digests`.

    Args:
        settings: What would be loaded.
        seed: Names the random streams of a fresh connector.

    Raises:
        UserError: A folder is missing or damaged.
    """
    found, name = parts_digest(settings), _connector(settings)
    if name is None:
        return found
    return _with_connector(found, name, seed, settings.queries, settings.connector_weights)


def parts_digest(settings: Model) -> str:
    """Return the SHA-256 of what `load_base` would load, as `base_digest` does for `load_model`.

    Raises:
        UserError: A folder is missing or damaged.
    """
    if settings.encoder is not None and settings.llm is not None:
        return _joined(*_sources(settings.encoder, settings.llm, settings.network))
    return Source("model.path", settings.path, settings.network).digest


def _sources(encoder: str, llm: str, network: bool) -> tuple[Source, Source]:
    return Source("model.encoder", encoder, network), Source("model.llm", llm, network)


def _joined(encoder: Source, llm: Source) -> str:
    return combine_digests({"encoder": encoder.digest, "llm": llm.digest})


def _with_connector(base: str, name: str, seed: int, queries: int, weights: str | None = None) -> str:
    """Digest a model with another connector, whose values depend on its form and on the seed or a file only."""
    form = f"{name} of {queries} queries" if name == "resampler" else name
    values = f"seed {seed}" if weights is None else f"SHA-256 {file_digest(trained_file(weights))}"
    return combine_digests({"base": base, "connector": f"{form}, {values}"})


def replace_connector(vlm: Vlm, name: str, seed: int, queries: int = 16, weights: str | None = None) -> Vlm:
    """Return a model with another connector, a fresh one or a trained one; it shares all other modules with the given one.

    So both hold the same encoder and language model, and what is inserted into these is in both. A connector of
    the same form as the model's own goes by the same names, so that its tensors fit the stock model.

    Args:
        vlm: A model of a family with a place for it (`Family.swap`); it is left as it is.
        name: A key of `CONNECTORS`.
        seed: Names the random streams.
        queries: Image tokens that a resampler gives.
        weights: A name in `TRAINED` or a safetensors file with the connector's values; None draws fresh ones.

    Raises:
        UserError: The family's connector has a form of its own, or the file is damaged or holds another connector.
    """
    place = vlm.family.swap
    if not place:
        fitting = ", ".join(name for name, row in FAMILIES.items() if row.swap)
        raise UserError(
            f"model.connector: the family of {vlm.name!r} has a connector of a form of its own, or none; leave the key "
            f"out. Families whose connector can be replaced: {fitting}"
        )
    own = vlm.model.get_submodule(place)
    linears = [layer for layer in own.modules() if isinstance(layer, nn.Linear)]
    made = fresh(name, linears[0].in_features, linears[-1].out_features, seed, queries)
    if weights is not None:
        put_trained(made, name, weights)
    named = _named_as(own, made, linears[0].in_features).eval().to(vlm.device)
    digest = _with_connector(vlm.digest, name, seed, queries, weights)
    return replace(vlm, model=_with_module(vlm.model, place, named), digest=digest)


@torch.no_grad()
def _named_as(own: nn.Module, made: nn.Module, width: int) -> nn.Module:
    """Return `made` as a copy of a model's own connector with its values, if that computes the same; else `made`."""
    if [one.shape for one in own.parameters()] != [one.shape for one in made.parameters()]:
        return made
    named = copy.deepcopy(own).cpu()
    for mine, value in zip(named.parameters(), made.parameters(), strict=True):
        mine.copy_(value)
    probe = torch.linspace(-2, 2, 3 * width).view(1, 3, width)
    return named if torch.allclose(named(probe), made(probe), atol=1e-5) else made


def _with_module(model: Any, place: str, module: nn.Module) -> Any:
    """Return a model with another module at a place: modules on the way there are copied, and all others are shared."""
    name, _, below = place.partition(".")
    frame = copy.copy(model)
    frame._parameters = dict(model._parameters)
    frame._modules = {
        **model._modules,
        name: _with_module(model.get_submodule(name), below, module) if below else module,
    }
    return frame


@without_garbage_collection()
def assemble(encoder: str, llm: str, network: bool) -> Vlm:
    """Join an encoder and a language model, as a LLaVA or, with an EfficientNet, a FastVLM.

    The connector between them holds no values; `replace_connector` gives the model one that does.

    Args:
        encoder: A CLIP or SigLIP model, the vision half of one, an EfficientNet, or a model of images and text that has
            one of these as its vision tower: a name in `BUNDLED`, a folder or a hub id.
        llm: A causal language model with a plain linear head: a name in `ADDED`, a folder or a hub id.
        network: Whether a hub may be contacted.

    Raises:
        UserError: One of them cannot be loaded, is of another kind, or the encoder's image processor makes images
            of another size than the encoder takes.
    """
    from transformers import AutoImageProcessor, AutoModelForCausalLM

    at_encoder, at_llm = _sources(encoder, llm, network)
    tower, name = _tower(at_encoder)
    images = at_encoder.read(AutoImageProcessor)
    check_sizes(at_encoder, images, tower.config.image_size)
    decoder = at_llm.model(AutoModelForCausalLM)
    check_decoder(at_llm, decoder)
    _check_head(llm, decoder)
    tokenizer = at_llm.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]}, replace_extra_special_tokens=False)
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    _make_room(decoder, image + 1)
    model = _frame(name, tower, decoder, image)
    model.model.vision_tower, model.model.language_model = tower, decoder.get_decoder()
    model.lm_head, model.generation_config = decoder.get_output_embeddings(), decoder.generation_config
    model.model.multi_modal_projector.to_empty(device="cpu")
    model.requires_grad_(False).eval()
    family = FAMILIES[name]
    flat = tokenizer.chat_template is not None
    processor = Processor(tokenizer, images, family.template, IMAGE, flat)
    check_processor(at_llm, processor, IMAGE)
    return Vlm(f"{encoder} + {llm}", model, processor, family, _joined(at_encoder, at_llm))


def _frame(family: str, tower: Any, decoder: Any, image: int) -> Any:
    """Make the assembled model without values: every part is put in or filled later."""
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
            vision["hidden_size"] = tower.config.hidden_dim  # the name by which the connector asks for it
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
    """Read a vision encoder, alone or out of a model of images and text; return it and the family it makes."""
    import transformers

    config = source.read(transformers.AutoConfig)
    kind = getattr(getattr(config, "vision_config", config), "model_type", None)
    if kind not in ENCODERS:
        raise UserError(
            f"{source.key}: {source.path!r} is a {kind!r}; can be assembled: {', '.join(ENCODERS)}"
        )
    name, family = ENCODERS[kind]
    if config.model_type in FAMILIES:  # its encoder's tensors have other names than an encoder's own
        return source.model(transformers.AutoModelForImageTextToText).model.vision_tower, family
    return source.model(getattr(transformers, name), BESIDE), family


def _check_head(llm: str, decoder: Any) -> None:
    """Refuse a language model that bends or scales its logits, which the assembled LLaVA would not."""
    for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(decoder.config, name, None) not in (None, 1, 1.0):
            raise UserError(
                f"model.llm: {llm!r} has a head that is not plain ({name}); choose a language model with a linear head"
            )


@torch.no_grad()
def _make_room(decoder: Any, tokens: int) -> None:
    """Give the vocabulary room for new tokens; they start as the mean of the others."""
    known = decoder.get_input_embeddings().num_embeddings
    if tokens <= known:
        return
    decoder.resize_token_embeddings(tokens, mean_resizing=False)
    for layer in (decoder.get_input_embeddings(), decoder.get_output_embeddings()):
        layer.weight[known:] = layer.weight[:known].mean(0)
