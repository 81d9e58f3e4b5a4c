"""Load a vision-language model; with `batch.py` the only door to transformers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedloom.models.checks import (
    SQUARES,
    check_decoder,
    check_features,
    check_processor,
    check_sizes,
    check_vocabulary,
    placeholder_of,
)
from fedloom.models.families import FAMILIES
from fedloom.models.family import PLAIN, Family, Grid
from fedloom.models.features import FeatureStore
from fedloom.models.source import SHIPPED, Source, first_line
from fedloom.models.templates import TODAY, Turn, dated
from fedloom.startup import uncollected
from fedloom.types import Picture, UserError

__all__ = [
    "SHIPPED",
    "Processor",
    "Vlm",
    "encoder_identity",
    "load_vlm",
    "not_storable",
    "others",
    "placed",
    "with_store",
]

SHARD = 512
"""Pictures whose features go into one file."""

HELD = 2**30
"""Bytes of features that are held in memory; the rest is read again or computed again."""


@dataclass(frozen=True, eq=False)
class Processor:
    """A tokenizer and an image processor.

    transformers' own processors do the same and more, but those that also take videos cannot be made without
    torchvision.

    Attributes:
        tokenizer: With the chat template, if the model has one.
        image_processor: Pictures to tensors.
        template: The chat template of a model that has none.
        image: What stands for a picture in a prompt.
        flat: Whether the chat template takes text only, as those of plain language models do.
    """

    tokenizer: Any
    image_processor: Any
    template: str = PLAIN
    image: str = ""
    flat: bool = False

    @property
    def chat_template(self) -> str:
        """The chat template that is used."""
        return dated(self.tokenizer.chat_template or self.template)

    @property
    def given(self) -> dict[str, Any]:
        """What the chat template is given besides the turns."""
        return {"image": self.image, "date_string": TODAY}

    def apply_chat_template(self, turns: Sequence[Turn], **choices: Any) -> str:
        """Write turns as text; choices are those of the tokenizer's method of this name.

        Raises:
            UserError: The template fails.
        """
        if self.flat:
            turns = [{**turn, "content": self._flat(turn["content"])} for turn in turns]
        try:
            return self.tokenizer.apply_chat_template(
                turns, chat_template=self.chat_template, **self.given, **choices
            )
        except Exception as error:  # a template is a program that came with a model
            raise UserError(f"model: the chat template fails ({first_line(error)})") from error

    def _flat(self, content: Sequence[dict[str, str]]) -> str:
        return "".join(f"{self.image}\n" if part["type"] == "image" else part["text"] for part in content)


@dataclass(frozen=True, eq=False)
class Vlm:
    """A model with its processor, and what is known of its family.

    Attributes:
        name: What the user asked for: a name in `SHIPPED`, a folder, or a hub id.
        model: The transformers model, float32, in evaluation mode, all parameters frozen.
        processor: Its processor (image processor, tokenizer, chat template).
        family: Its row of `FAMILIES`.
        digest: SHA-256 over configuration, processor and weights, as `base_digest` gives it.
        store: Encoder features on disk, shared between runs, or None.
        features: Encoder features by picture key, as many as `HELD` bytes hold. The encoder is frozen in
            every strategy, so this is a memo, not state: a cold one gives the same numbers.
        grids_known: Shapes of features without E by picture key, a memo likewise.
        tokens: Token ids by conversation text, a memo likewise.
    """

    name: str
    model: Any
    processor: Any
    family: Family
    digest: str
    store: FeatureStore | None = field(default=None, repr=False)
    features: dict[str, Tensor] = field(default_factory=dict, repr=False)
    grids_known: dict[str, Grid] = field(default_factory=dict, repr=False)
    tokens: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    def send(self, value: Tensor) -> Tensor:
        """Copy a tensor to the model's device; to an accelerator from pinned memory, without waiting for it.

        So the next batch is made and sent while the device computes with the last one.
        """
        if self.device.type == "cpu":
            return value
        return value.pin_memory().to(self.device, non_blocking=True)

    @property
    def precision(self) -> torch.dtype:
        """What the language model computes in."""
        return self.model.get_input_embeddings().weight.dtype

    def connect(self, features: Tensor) -> Tensor:
        """Turn encoder features [B, *grid, E] into token embeddings [B, T, D] with the model's connector."""
        return self.family.connect(self.model, features)

    @property
    def filler(self) -> int:
        """The token that pads a batch; it is masked, so which one it is makes no difference."""
        tokenizer = self.tokenizer
        return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    @property
    def decoder(self) -> nn.Module:
        """The language model without embeddings' lookup and head: embeddings in, hidden states out."""
        return self.model.get_decoder()

    def encode(self, pictures: Sequence[Picture]) -> Tensor:
        """Return encoder features of pictures of one grid, shape [B, *grid, E]; each picture is encoded once."""
        return torch.stack(self.look(pictures))

    def grids(self, pictures: Sequence[Picture]) -> tuple[Grid, ...]:
        """Return the grid of each picture's features: their shape without E."""
        self.look([picture for picture in pictures if picture.key not in self.grids_known])
        return tuple(self.grids_known[picture.key] for picture in pictures)

    def look(self, pictures: Sequence[Picture]) -> list[Tensor]:
        """Return the encoder features of each picture, shape [*grid, E]; each picture is encoded once."""
        found = {picture.key: self._known(picture.key) for picture in pictures}
        missing = {picture.key: picture for picture in pictures if found[picture.key] is None}
        todo = list(missing.values())
        for start in range(0, len(todo), SHARD):
            fresh = self._compute(todo[start : start + SHARD])
            if self.store is not None:
                for shape in {value.shape for value in fresh.values()}:
                    self.store.write({key: value for key, value in fresh.items() if value.shape == shape})
            for key, value in fresh.items():
                found[key] = value
                self._hold(key, value)
        known = {key: value for key, value in found.items() if value is not None}
        self.grids_known.update({key: tuple(value.shape[:-1]) for key, value in known.items()})
        return [known[picture.key] for picture in pictures]

    def warm(self, pictures: Iterable[Picture]) -> int:
        """Encode all pictures that are not known yet, so that no client waits for it; return how many."""
        missing = {one.key: one for one in pictures if one.key not in self.features}
        if self.store is not None:
            missing = {key: one for key, one in missing.items() if key not in self.store}
        todo = list(missing.values())
        for start in range(0, len(todo), SHARD):
            self.look(todo[start : start + SHARD])
        return len(todo)

    def _known(self, key: str) -> Tensor | None:
        value = self.features.get(key)
        if value is None and self.store is not None:
            value = self.store.read(key)
            if value is not None:
                self._hold(key, value)
        return value

    def _hold(self, key: str, value: Tensor) -> None:
        if (len(self.features) + 1) * value.numel() * value.element_size() <= HELD:
            self.features[key] = value

    @torch.no_grad()
    def _compute(self, pictures: Sequence[Picture], batch_size: int = 32) -> dict[str, Tensor]:
        fresh: dict[str, Tensor] = {}
        for start in range(0, len(pictures), batch_size):
            some = pictures[start : start + batch_size]
            images = [[one.pixels()] for one in some]
            inputs = self.processor.image_processor(images, return_tensors="pt", **self.family.settings)
            there = {
                key: value.to(self.device) if isinstance(value, Tensor) else value
                for key, value in inputs.items()
            }
            encoded = self.family.encode(self.model, there)
            fresh.update({one.key: row.cpu().clone() for one, row in zip(some, encoded, strict=True)})
        return fresh


def with_store(vlm: Vlm, folder: Path, limit: int) -> Vlm:
    """Keep a model's encoder features in files below `folder`, at most `limit` bytes of them.

    Raises:
        UserError: Features could differ from one time to the next, so that kept ones would be wrong.
    """
    reason = not_storable(vlm)
    if reason is not None:
        raise UserError(f"engine.cache: features cannot be kept, because {reason}")
    return replace(vlm, store=FeatureStore(folder, encoder_identity(vlm), limit))


def not_storable(vlm: Vlm) -> str | None:
    """Say why kept features could be wrong, or None: the encoder is trained, or drops values at random."""
    parts = vlm.family.parts.split(name for name, _ in vlm.model.named_parameters())
    for name in parts["encoder"]:
        if vlm.model.get_parameter(name).requires_grad:
            return f"the encoder is trained ({name})"
    for name, module in vlm.model.named_modules():
        if isinstance(module, nn.Dropout) and module.training and module.p > 0 and _inside(vlm, name):
            return f"the encoder drops values at random ({name})"
    return None


def _inside(vlm: Vlm, name: str) -> bool:
    return any(name.startswith(prefix) for prefix in vlm.family.parts.encoder)


def encoder_identity(vlm: Vlm) -> dict[str, Any]:
    """Say what encoder features depend on besides the picture: weights, configuration, processor, precision."""
    sha = hashlib.sha256()
    for name in sorted(vlm.family.parts.split(name for name, _ in vlm.model.named_parameters())["encoder"]):
        sha.update(name.encode())
        sha.update(vlm.model.get_parameter(name).detach().cpu().float().contiguous().numpy().tobytes())
    return {
        "encoder": sha.hexdigest(),
        "config": vlm.model.config.to_dict(),
        "processor": vlm.processor.image_processor.to_dict(),
        "dtype": str(vlm.model.dtype),
        "format": 1,
    }


@uncollected()
def load_vlm(path: str = "shipped", *, network: bool = False) -> Vlm:
    """Load a model in float32 with every parameter frozen.

    Args:
        path: A name in `SHIPPED`, a local folder in the Hugging Face layout, or a hub id.
        network: Whether a hub may be contacted; without it only what lies on this machine is used.

    Raises:
        UserError: Nothing at `path`, a family that is not in `FAMILIES`, or weights that are not safetensors.
    """
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText

    source = Source("model.path", path, network)
    kind = source.read(AutoConfig).model_type
    if kind not in FAMILIES:
        raise UserError(
            f"model.path: {path!r} is of family {kind!r}; supported families: {', '.join(FAMILIES)}"
        )
    tokenizer, images = source.tokenizer(), source.read(AutoImageProcessor)
    model = source.model(AutoModelForImageTextToText)
    check_decoder(source, model)
    check_features(source, model)
    if kind in SQUARES:
        check_sizes(source, images, model.config.vision_config.image_size)
    model.requires_grad_(False).eval()
    family = FAMILIES[kind]
    placeholder = placeholder_of(source, family, model, tokenizer)
    check_vocabulary(source, model, tokenizer)
    processor = Processor(tokenizer, images, family.template, placeholder)
    check_processor(source, processor, placeholder)
    return Vlm(path, model, processor, family, source.digest)


def placed(vlm: Vlm, device: str, precision: str) -> Vlm:
    """Move a model to a device and let its language model compute in another precision, in place.

    Args:
        vlm: The model.
        device: "cpu", "cuda", or "auto" for cuda where there is one.
        precision: "float32" or "bfloat16". Encoder and connector stay in float32.

    Raises:
        UserError: There is no such device here.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("model.device: there is no cuda device here; choose cpu or auto")
    modules, dtype = dict(vlm.model.named_modules()), getattr(torch, precision)
    for prefix in vlm.family.parts.llm:
        if prefix in modules:
            modules[prefix].to(dtype)
        else:  # a tensor by itself, such as the mark at the end of a row of patches
            alone = vlm.model.get_parameter(prefix)
            alone.data = alone.data.to(dtype)
    if device != "cpu" and torch.cuda.is_available():
        vlm.model.to("cuda")
    return vlm


def others(vlm: Vlm) -> list[torch.device]:
    """Return the devices of this machine that are like the model's, without its own; none beside a processor."""
    if vlm.device.type != "cuda":
        return []
    own = vlm.device.index
    return [torch.device("cuda", index) for index in range(torch.cuda.device_count()) if index != own]
