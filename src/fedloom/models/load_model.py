"""Load a vision-language model or a language model, with its processor and its family."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedloom.models.compatibility import (
    SQUARES,
    check_decoder,
    check_features,
    check_processor,
    check_sizes,
    check_vocabulary,
    placeholder_of,
)
from fedloom.models.family_interface import Family, Grid, send
from fedloom.models.family_table import FAMILIES
from fedloom.models.feature_cache import FeatureStore
from fedloom.models.folder_checks import BUNDLED
from fedloom.models.hub import Source
from fedloom.models.memory_cache import Memo
from fedloom.models.precision import device_of, precision_of
from fedloom.models.processor import Processor
from fedloom.models.quantized_layers import QuantizedLinear, quantize_decoder
from fedloom.system.allocator import release_freed
from fedloom.system.errors import UserError
from fedloom.system.garbage_collection import without_garbage_collection
from fedloom.types import LazyImage

__all__ = [
    "BUNDLED",
    "Processor",
    "Vlm",
    "encoder_identity",
    "load_vlm",
    "move_model",
    "rest_encoder",
    "why_not_storable",
    "with_feature_store",
    "with_pixels",
]

ENCODE_VALUES = 2**24
"""The most values of images, resized and cut into tiles, that are encoded in one batch, unless a single image has more. 32
images of 384 × 384 pixels, which most models take, have fewer."""


@dataclass(frozen=True, eq=False)
class Vlm:
    """A model with its processor and its family.

    Attributes:
        name: The name or path that the user gave: a name in `BUNDLED`, a folder, or a hub id.
        model: The transformers model, float32, in evaluation mode, all parameters frozen.
        processor: Its processor (image processor, tokenizer, chat template).
        family: Its entry in `FAMILIES`.
        digest: SHA-256 over configuration, processor and weights, as in `base_digest`.
        memo: A cache of features and tokens; it changes no result.
    """

    name: str
    model: Any
    processor: Any
    family: Family
    digest: str
    memo: Memo = field(default_factory=Memo, repr=False)

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    @property
    def device(self) -> torch.device:
        """The language model's device; the encoder may be elsewhere, see `rest_encoder`."""
        return self.model.get_input_embeddings().weight.device

    def send(self, value: Tensor) -> Tensor:
        """Copy a tensor of the CPU to the model's device, without synchronization."""
        return send(value, self.device)

    @property
    def precision(self) -> torch.dtype:
        """The data type in which the language model computes."""
        return self.model.get_input_embeddings().weight.dtype

    def connect(self, features: Tensor) -> Tensor:
        """Turn encoder features [B, *grid, E] into token embeddings [B, T, D] with the model's connector."""
        return self.family.connect(self.model, features)

    @property
    def padding_token(self) -> int:
        """The token that pads a batch; it is masked, so any token gives the same results."""
        tokenizer = self.tokenizer
        return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    @property
    def decoder(self) -> nn.Module:
        """The language model without embedding layer and head: embeddings in, hidden states out."""
        return self.model.get_decoder()

    def image_features(self, images: Sequence[LazyImage]) -> list[Tensor]:
        """Return the encoder features of each image, shape [*grid, E]; each image is encoded once.

        They are float32, or bfloat16 if the language model has 16 bits and a connector reads them.
        """
        return self.memo.image_features(images, self.encode_images)

    def compute_features(self, images: Sequence[LazyImage]) -> None:
        """Compute the encoder features that are not cached, and keep those that fit; see `Memo.compute`."""
        self.memo.compute(images, self.encode_images)

    def grids(self, images: Sequence[LazyImage]) -> tuple[Grid, ...]:
        """Return the grid of each image's features: their shape without E."""
        return self.memo.grids(images, self.encode_images)

    @torch.no_grad()
    def encode_images(self, images: Sequence[LazyImage]) -> dict[str, Tensor]:
        """Encode images without the cache, and return their features [*grid, E] by image key.

        They form one batch, or several of at most `ENCODE_VALUES` values.

        Raises:
            UserError: The model sees no images, or one of them is too small.
        """
        if not self.family.images:
            self.family.encode(self.model, {})  # raises the error
        pixels = [[_with_clear_channels(image.pixels())] for image in images]
        settings = self.family.settings(self.model)
        inputs = self.processor.image_processor(pixels, return_tensors="pt", **settings)
        values = sum(value.numel() for value in inputs.values() if isinstance(value, Tensor))
        if values > ENCODE_VALUES and len(images) > 1:
            size = max(1, len(images) * ENCODE_VALUES // values)
            parts = (images[start : start + size] for start in range(0, len(images), size))
            return {key: row for part in parts for key, row in self.encode_images(part).items()}
        on_device = {
            key: value.to(self.device) if isinstance(value, Tensor) else value
            for key, value in inputs.items()
        }
        _move_encoder(self, self.device)
        encoded = self.family.encode(self.model, on_device)
        if any(row.numel() == 0 for row in encoded):
            raise UserError("an image is too small in one direction: no image token is left of it")
        dtype = self.feature_dtype
        return {
            image.key: (row if dtype is None else row.to(dtype)).cpu().clone()
            for image, row in zip(images, encoded, strict=True)
        }

    @property
    def feature_dtype(self) -> torch.dtype | None:
        """The data type in which features are kept, or None for that which the encoder gives.

        Features without a connector are tokens, whose numbers bfloat16 would round.
        """
        return torch.bfloat16 if self.precision.itemsize == 2 and self.family.parts.connector else None


def _with_clear_channels(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Enlarge each pixel to 8 × 8 if image processors would mistake the rows of [H, W, 3] for channels.

    Raises:
        UserError: The pixels of a plug-in's image have another form, which image processors would misread.
    """
    if (reason := wrong_pixels(pixels)) is not None:
        raise UserError(reason)
    return pixels.repeat(8, 0).repeat(8, 1) if pixels.shape[0] in (1, 3, 4) else pixels


def wrong_pixels(pixels: Any) -> str | None:
    """Return why pixels do not have the form of `LazyImage.pixels`, or None."""
    dtype, shape = getattr(pixels, "dtype", None), getattr(pixels, "shape", ())
    if isinstance(pixels, np.ndarray) and dtype == np.uint8 and len(shape) == 3 and shape[2] == 3:
        return None
    kind = (
        f"{dtype} of shape {list(shape)}"
        if isinstance(pixels, np.ndarray)
        else f"of type {type(pixels).__name__}"
    )
    return f"its pixels are {kind}; they must be a numpy array of uint8 of shape [height, width, 3]"


def rest_encoder(vlm: Vlm) -> None:
    """Move a model's encoder to the CPU, in place, so that an accelerator has its memory for training.

    It comes back when an image has to be encoded.
    """
    _move_encoder(vlm, torch.device("cpu"))


def _move_encoder(vlm: Vlm, device: torch.device) -> None:
    parts = vlm.family.parts
    for name, value in [*vlm.model.named_parameters(), *vlm.model.named_buffers()]:
        if value.device != device and _inside(vlm, name) and parts.part_of(name) == "encoder":
            value.data = value.data.to(device)


def with_pixels(vlm: Vlm, pixels: int | None) -> Vlm:
    """Return a model whose images have at most so many pixels; smaller bounds of its own stay.

    Args:
        vlm: The model, which is not changed.
        pixels: The bound, ≥ 1; None returns the model itself.

    Raises:
        UserError: The family does not encode images in their own size, or no image token fits the bound.
    """
    if pixels is None:
        return vlm
    if vlm.family.bound is None:
        raise UserError(
            f"model.pixels: the image size of {vlm.name!r} is that of its image processor and cannot be bounded; leave the key out"
        )
    own = vlm.processor.image_processor
    processor = type(own).from_dict({**own.to_dict(), **vlm.family.bound(vlm.model, own, pixels)})
    return replace(vlm, processor=replace(vlm.processor, image_processor=processor))


def with_feature_store(vlm: Vlm, folder: Path, limit: int, code: str = "") -> Vlm:
    """Return a model that stores its encoder features in files.

    Args:
        vlm: The model.
        folder: Folder of the files.
        limit: The most bytes of all files.
        code: Digest of the code of a plug-in's family, on which features also depend; "" for a built-in family.

    Raises:
        UserError: Features could differ between computations, so stored ones would be wrong.
    """
    reason = why_not_storable(vlm)
    if reason is not None:
        raise UserError(f"engine.cache: features cannot be kept, because {reason}")
    store = FeatureStore(folder, encoder_identity(vlm) | ({"code": code} if code else {}), limit)
    return replace(vlm, memo=replace(vlm.memo, store=store))


def why_not_storable(vlm: Vlm) -> str | None:
    """Return why stored features could be wrong, or None: the encoder is trained, has dropout, or depends on the batch."""
    parts = vlm.family.parts.split(name for name, _ in vlm.model.named_parameters())
    for name in parts["encoder"]:
        if vlm.model.get_parameter(name).requires_grad:
            return f"the encoder is trained ({name})"
    for name, module in vlm.model.named_modules():
        if isinstance(module, nn.Dropout) and module.training and module.p > 0 and _inside(vlm, name):
            return f"the encoder drops values at random ({name})"
        if isinstance(module, _BatchNorm) and module.training and _inside(vlm, name):
            return f"the encoder normalizes over the images of a batch ({name})"
    return None


def _inside(vlm: Vlm, name: str) -> bool:
    return any(name.startswith(prefix) for prefix in vlm.family.parts.encoder)


def encoder_identity(vlm: Vlm) -> dict[str, Any]:
    """Return everything that encoder features depend on besides the image: weights, configuration, processor, precision."""
    sha = hashlib.sha256()
    for name in sorted(vlm.family.parts.split(name for name, _ in vlm.model.named_parameters())["encoder"]):
        sha.update(name.encode())
        sha.update(_bytes(vlm.model.get_parameter(name)))
    for name, buffer in vlm.model.named_buffers():  # such as the statistics of a batch norm
        if _inside(vlm, name):
            sha.update(name.encode() + _bytes(buffer))
    return {
        "encoder": sha.hexdigest(),
        "config": vlm.model.config.to_dict(),
        "processor": vlm.processor.image_processor.to_dict(),
        "dtype": str(_encoder_dtype(vlm)),
        "format": 2,
        **({} if vlm.feature_dtype is None else {"kept": str(vlm.feature_dtype)}),
    }


def _encoder_dtype(vlm: Vlm) -> torch.dtype:
    names = vlm.family.parts.split(name for name, _ in vlm.model.named_parameters())["encoder"]
    return vlm.model.get_parameter(names[0]).dtype if names else torch.float32


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().float().contiguous().numpy().tobytes()


@without_garbage_collection()
def load_vlm(
    path: str = "bundled",
    *,
    network: bool = False,
    families: Mapping[str, Family] = FAMILIES,
    lean: bool = False,
) -> Vlm:
    """Load a model in float32 with every parameter frozen.

    Args:
        path: A name in `BUNDLED`, a local folder in the Hugging Face layout, or a hub id.
        network: Whether a hub may be contacted; otherwise only files on this machine are used.
        families: `model_type` → family.
        lean: Whether a language model that is stored in 16 bits stays so, for `move_model`; see `Source.model`.

    Raises:
        UserError: There is no model at `path`, its family is not in `families`, or its weights are not safetensors.
    """
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    source = Source("model.path", path, network)
    kind = source.read(AutoConfig).model_type
    if kind not in families:
        raise UserError(
            f"model.path: {path!r} is of family {kind!r}; supported families: {', '.join(families)}"
        )
    family = families[kind]
    tokenizer = source.tokenizer(images=family.images)
    images = source.read(AutoImageProcessor) if family.images else None
    model = source.model(AutoModelForImageTextToText if family.images else AutoModelForCausalLM, lean=lean)
    if lean:
        _widen(model, family)
    check_decoder(source, model, family)
    check_features(source, model)
    if kind in SQUARES:
        check_sizes(source, images, model.config.vision_config.image_size)
    model.requires_grad_(False).eval()
    placeholder = placeholder_of(source, family, model, tokenizer) if family.images else ""
    check_vocabulary(source, model, tokenizer)
    flat = not family.images and tokenizer.chat_template is not None
    processor = Processor(tokenizer, images, family.template, placeholder, flat)
    check_processor(source, processor, placeholder)
    return Vlm(path, model, processor, family, source.digest)


def _widen(model: nn.Module, family: Family) -> None:
    """Convert all parameters to float32 but those of the language model, in place."""
    names = family.parts.split(name for name, _ in model.named_parameters())
    for name, parameter in model.named_parameters():
        if name not in names["llm"]:
            parameter.data = parameter.data.float()


def move_model(vlm: Vlm, device: str, precision: str, quantize: str | None = None) -> Vlm:
    """Move a model to a device and convert its language model to a precision, in place.

    Weights are converted and moved one by one, so there is never a second copy of a part. Buffers that the model computes,
    such as the frequencies of rotary positions, stay in float32, as they do when transformers loads in another precision.

    Args:
        vlm: The model.
        device: As `model.device`: "cpu", "cuda", or "auto" for cuda if there is one.
        precision: As `model.precision`; see `fedloom.models.precision`. Encoder and connector stay in float32.
        quantize: As `model.quantize`: "nf4" or "int8" for quantized linear layers of the decoder, or None.

    Raises:
        UserError: There is no such device here, or bitsandbytes, which quantizes, is not installed.
    """
    device = device_of(device)
    dtype = getattr(torch, precision_of(precision, device))
    if quantize is not None:
        quantize_decoder(vlm.model, vlm.family.parts, quantize, device, dtype)
    stored = vlm.model.state_dict(keep_vars=True)
    kept = {f"{name}." for name, module in vlm.model.named_modules() if isinstance(module, QuantizedLinear)}
    if quantize is not None:  # the other weights leave the pages of the file, which then need no memory
        for value in vlm.model.parameters():
            value.data = value.data.clone()
        release_freed()
    for name in vlm.family.parts.split(stored)["llm"]:
        # What belongs to a quantized layer has its data type already.
        if (value := stored[name]).is_floating_point() and name[: name.rfind(".") + 1] not in kept:
            value.data = value.data.to(dtype)
    if device != "cpu":
        vlm.model.to(device)
    return vlm
