"""Load a vision-language model; with `batch.py` the only door to transformers."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedloom.models.families import FAMILIES, Family
from fedloom.types import Picture, UserError

SHIPPED = Path(__file__).parent / "shipped"


@dataclass(frozen=True, eq=False)
class Vlm:
    """A model with its processor, and what is known of its family.

    Attributes:
        name: What the user asked for: "shipped", a folder, or a hub id.
        model: The transformers model, float32, in evaluation mode, all parameters frozen.
        processor: Its processor (image processor, tokenizer, chat template).
        family: Its row of `FAMILIES`.
        digest: SHA-256 over configuration and weights.
        features: Encoder features by picture key. The encoder is frozen in every strategy, so this is a
            memo, not state: a cold one gives the same numbers.
        tokens: Token ids by conversation text, a memo likewise.
    """

    name: str
    model: Any
    processor: Any
    family: Family
    digest: str
    features: dict[str, Tensor] = field(default_factory=dict, repr=False)
    tokens: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    @property
    def decoder(self) -> nn.Module:
        """The language model without embeddings' lookup and head: embeddings in, hidden states out."""
        return self.model.get_decoder()

    @torch.no_grad()
    def encode(self, pictures: Sequence[Picture], batch_size: int = 32) -> Tensor:
        """Return encoder features of pictures, shape [B, T, E]; each picture is encoded once."""
        missing = {picture.key: picture for picture in pictures if picture.key not in self.features}
        todo = list(missing.values())
        for start in range(0, len(todo), batch_size):
            some = todo[start : start + batch_size]
            inputs = self.processor.image_processor(
                images=[one.pixels() for one in some], return_tensors="pt"
            )
            encoded = self.family.encode(self.model, inputs["pixel_values"].to(self.model.dtype))
            self.features.update({one.key: row.clone() for one, row in zip(some, encoded, strict=True)})
        return torch.stack([self.features[picture.key] for picture in pictures])


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


def model_digest(model: Any) -> str:
    """Return the SHA-256 over a model's configuration and weights."""
    sha = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True, default=str).encode())
    for name, value in sorted(model.state_dict().items()):
        sha.update(name.encode())
        sha.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return sha.hexdigest()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
