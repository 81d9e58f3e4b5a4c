"""Load a model; with `batch.py` the only door to transformers."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

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
from fedloom.models.family import Family, Grid
from fedloom.models.features import FeatureStore
from fedloom.models.files import SHIPPED
from fedloom.models.memo import Memo
from fedloom.models.processor import Processor
from fedloom.models.source import Source
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


@dataclass(frozen=True, eq=False)
class Vlm:
    """A model with its processor, and what is known of its family.

    Attributes:
        name: What the user asked for: a name in `SHIPPED`, a folder, or a hub id.
        model: The transformers model, float32, in evaluation mode, all parameters frozen.
        processor: Its processor (image processor, tokenizer, chat template).
        family: Its row of `FAMILIES`.
        digest: SHA-256 over configuration, processor and weights, as `base_digest` gives it.
        memo: What the model has made of images and texts; it changes no result.
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

    def look(self, pictures: Sequence[Picture]) -> list[Tensor]:
        """Return the encoder features of each image, shape [*grid, E]; each image is encoded once."""
        return self.memo.look(pictures, self.encoded)

    def grids(self, pictures: Sequence[Picture]) -> tuple[Grid, ...]:
        """Return the grid of each image's features: their shape without E."""
        return self.memo.grids(pictures, self.encoded)

    @torch.no_grad()
    def encoded(self, pictures: Sequence[Picture]) -> dict[str, Tensor]:
        """Encode images in one batch, whatever is known of them, and return their features [*grid, E] by image key.

        Raises:
            UserError: The model sees no images, or one of them is too small.
        """
        if not self.family.images:
            self.family.encode(self.model, {})  # raises the error that says so
        images = [[_tall(one.pixels())] for one in pictures]
        settings = self.family.settings(self.model)
        inputs = self.processor.image_processor(images, return_tensors="pt", **settings)
        there = {
            key: value.to(self.device) if isinstance(value, Tensor) else value
            for key, value in inputs.items()
        }
        encoded = self.family.encode(self.model, there)
        if any(row.numel() == 0 for row in encoded):
            raise UserError("an image is too small in one direction: no image token is left of it")
        return {one.key: row.cpu().clone() for one, row in zip(pictures, encoded, strict=True)}


def _tall(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Write each pixel as eight by eight where image processors would take the rows for channels; [H, W, 3]."""
    return pixels.repeat(8, 0).repeat(8, 1) if pixels.shape[0] in (1, 3, 4) else pixels


def with_store(vlm: Vlm, folder: Path, limit: int, code: str = "") -> Vlm:
    """Keep a model's encoder features in files below `folder`, at most `limit` bytes of them.

    Args:
        vlm: The model.
        folder: Where to keep them.
        limit: At most so many bytes.
        code: Digest of the code of a plug-in's family, on which features depend too; "" for a family of fedloom's own.

    Raises:
        UserError: Features could differ from one time to the next, so that kept ones would be wrong.
    """
    reason = not_storable(vlm)
    if reason is not None:
        raise UserError(f"engine.cache: features cannot be kept, because {reason}")
    store = FeatureStore(folder, encoder_identity(vlm) | ({"code": code} if code else {}), limit)
    return replace(vlm, memo=replace(vlm.memo, store=store))


def not_storable(vlm: Vlm) -> str | None:
    """Return why cached features could be wrong, or None: the encoder is trained, has dropout, or depends on the batch."""
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
    """Return what encoder features depend on besides the image: weights, configuration, processor, precision."""
    sha = hashlib.sha256()
    for name in sorted(vlm.family.parts.split(name for name, _ in vlm.model.named_parameters())["encoder"]):
        sha.update(name.encode())
        sha.update(_bytes(vlm.model.get_parameter(name)))
    for name, buffer in vlm.model.named_buffers():  # such as what a batch norm has measured
        if _inside(vlm, name):
            sha.update(name.encode() + _bytes(buffer))
    return {
        "encoder": sha.hexdigest(),
        "config": vlm.model.config.to_dict(),
        "processor": vlm.processor.image_processor.to_dict(),
        "dtype": str(vlm.model.dtype),
        "format": 2,
    }


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().float().contiguous().numpy().tobytes()


@uncollected()
def load_vlm(
    path: str = "shipped", *, network: bool = False, families: Mapping[str, Family] = FAMILIES
) -> Vlm:
    """Load a model in float32 with every parameter frozen.

    Args:
        path: A name in `SHIPPED`, a local folder in the Hugging Face layout, or a hub id.
        network: Whether a hub may be contacted; without it only what lies on this machine is used.
        families: `model_type` → family.

    Raises:
        UserError: Nothing at `path`, a family that is not in `families`, or weights that are not safetensors.
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
    family, tokenizer = families[kind], source.tokenizer()
    images = source.read(AutoImageProcessor) if family.images else None
    model = source.model(AutoModelForImageTextToText if family.images else AutoModelForCausalLM)
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


def versions() -> dict[str, str]:
    """Return the versions that last bits may depend on."""
    import torch
    import transformers

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
    }
