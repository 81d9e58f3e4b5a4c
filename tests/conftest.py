"""What many tests need: a tiny random model, small data sets, and a global state that nobody may read."""

from __future__ import annotations

import importlib.util
import io
import os
import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import hypothesis
import numpy as np
import pytest
import torch
from PIL import Image

torch.set_num_threads(1)

# How long an example takes depends on what else the machine does.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def poisoned_generators() -> None:
    """Put the global generators into another state for every test: results must not depend on them."""
    entropy = random.SystemRandom().randrange(2**31)
    random.seed(entropy)
    np.random.seed(entropy)  # noqa: NPY002
    torch.manual_seed(entropy)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep what tests cache out of the user's folder."""
    os.environ["FEDLOOM_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA of the shipped model's kind with random weights, saved in the standard layout."""
    from transformers import (
        AutoModelForImageTextToText,
        AutoProcessor,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        SiglipVisionConfig,
    )

    from fedloom.models.load import SHIPPED

    folder = tmp_path_factory.mktemp("tiny") / "model"
    processor = AutoProcessor.from_pretrained(SHIPPED["shipped"])
    shipped = AutoModelForImageTextToText.from_pretrained(SHIPPED["shipped"]).config
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        image_size=64, patch_size=16, vision_use_head=False,
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=shipped.text_config.vocab_size, tie_word_embeddings=True,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=shipped.image_token_id, image_seq_length=16,
        vision_feature_layer=-1, vision_feature_select_strategy="full", tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(config)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def encoded() -> Callable[..., bytes]:
    """Return a function from a number to the bytes of a small picture, different for each number."""

    def encode(number: int, format: str = "PNG", side: int = 12) -> bytes:
        values = np.random.default_rng(number).integers(0, 256, (side, side + 1, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(values).save(buffer, format)
        return buffer.getvalue()

    return encode


@pytest.fixture(scope="session")
def trees() -> ModuleType:
    """Return the module that writes folders in the layouts in which data sets are shipped."""
    spec = importlib.util.spec_from_file_location("trees", Path(__file__).parent / "trees.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
