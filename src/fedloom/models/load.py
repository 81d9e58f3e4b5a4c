"""Load a vision-language model; with `batch.py` the only door to transformers."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedloom.models.families import FAMILIES, Family
from fedloom.models.features import FeatureStore
from fedloom.types import Picture, UserError

SHIPPED = Path(__file__).parent / "shipped"

SHARD = 512
"""Pictures whose features go into one file."""

HELD = 2**30
"""Bytes of features that are held in memory; the rest is read again or computed again."""


@dataclass(frozen=True, eq=False)
class Vlm:
    """A model with its processor, and what is known of its family.

    Attributes:
        name: What the user asked for: "shipped", a folder, or a hub id.
        model: The transformers model, float32, in evaluation mode, all parameters frozen.
        processor: Its processor (image processor, tokenizer, chat template).
        family: Its row of `FAMILIES`.
        digest: SHA-256 over configuration and weights.
        store: Encoder features on disk, shared between runs, or None.
        features: Encoder features by picture key, as many as `HELD` bytes hold. The encoder is frozen in
            every strategy, so this is a memo, not state: a cold one gives the same numbers.
        tokens: Token ids by conversation text, a memo likewise.
    """

    name: str
    model: Any
    processor: Any
    family: Family
    digest: str
    store: FeatureStore | None = field(default=None, repr=False)
    features: dict[str, Tensor] = field(default_factory=dict, repr=False)
    tokens: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def precision(self) -> torch.dtype:
        """What the language model computes in."""
        return self.model.get_input_embeddings().weight.dtype

    def connect(self, features: Tensor) -> Tensor:
        """Turn encoder features [B, T, E] into token embeddings [B, T, D] with the model's connector."""
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
        """Return encoder features of pictures, shape [B, T, E]; each picture is encoded once."""
        found = {picture.key: self._known(picture.key) for picture in pictures}
        missing = {picture.key: picture for picture in pictures if found[picture.key] is None}
        todo = list(missing.values())
        for start in range(0, len(todo), SHARD):
            fresh = self._compute(todo[start : start + SHARD])
            if self.store is not None:
                self.store.write(fresh)
            for key, value in fresh.items():
                found[key] = value
                self._hold(key, value)
        return torch.stack([value for picture in pictures if (value := found[picture.key]) is not None])

    def warm(self, pictures: Iterable[Picture]) -> int:
        """Encode all pictures that are not known yet, so that no client waits for it; return how many."""
        missing = {one.key: one for one in pictures if one.key not in self.features}
        if self.store is not None:
            missing = {key: one for key, one in missing.items() if key not in self.store}
        todo = list(missing.values())
        for start in range(0, len(todo), SHARD):
            self.encode(todo[start : start + SHARD])
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
            inputs = self.processor.image_processor(
                images=[one.pixels() for one in some], return_tensors="pt"
            )
            pixels = inputs["pixel_values"].to(self.device, self.model.dtype)
            encoded = self.family.encode(self.model, pixels).cpu()
            fresh.update({one.key: row.clone() for one, row in zip(some, encoded, strict=True)})
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


def load_vlm(path: str = "shipped", *, network: bool = False) -> Vlm:
    """Load a model in float32 with every parameter frozen.

    Args:
        path: "shipped", a local folder in the Hugging Face layout, or a hub id.
        network: Whether a hub may be contacted; without it only what lies on this machine is used.

    Raises:
        UserError: Nothing at `path`, a family that is not in `FAMILIES`, or weights that are not safetensors.
    """
    if not network:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # its warnings speak to programmers: a missing torchvision is meant to be missing
    place = SHIPPED if path == "shipped" else Path(path)
    source = str(place) if place.exists() else path
    try:
        config = AutoConfig.from_pretrained(source, local_files_only=not network, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        hint = "" if network else "; a hub is only contacted with model.network: true"
        raise UserError(
            f"model.path: cannot read a model at {path!r}{hint} ({_first_line(error)})"
        ) from error
    if config.model_type not in FAMILIES:
        raise UserError(
            f"model.path: {path!r} is of family {config.model_type!r}; supported families: {', '.join(FAMILIES)}"
        )
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            source,
            dtype=torch.float32,
            local_files_only=not network,
            use_safetensors=True,
            trust_remote_code=False,
        )
        processor = AutoProcessor.from_pretrained(
            source, local_files_only=not network, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise UserError(f"model.path: cannot load {path!r}: {_first_line(error)}") from error
    model.requires_grad_(False).eval()
    return Vlm(path, model, processor, FAMILIES[config.model_type], model_digest(model))


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
    for prefix in vlm.family.parts.llm:
        vlm.model.get_submodule(prefix).to(getattr(torch, precision))
    if device != "cpu" and torch.cuda.is_available():
        vlm.model.to("cuda")
    return vlm


def model_digest(model: Any) -> str:
    """Return the SHA-256 over a model's configuration and weights."""
    sha = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True, default=str).encode())
    for name, value in sorted(model.state_dict().items()):
        sha.update(name.encode())
        sha.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return sha.hexdigest()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
