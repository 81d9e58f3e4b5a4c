"""Fixtures of many tests: a tiny random model, small images, and random global generators, which no test may use."""

from __future__ import annotations

import importlib.util
import io
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import hypothesis
import numpy as np
import pytest
import torch
from PIL import Image
from tests.tiny_model import make_tiny

if TYPE_CHECKING:
    from fedloom.tuning.adapters import Tuned

torch.set_num_threads(1)

# Shells start what runs in the background with Ctrl-C ignored, and the commands that tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# `make test-slow` draws many more examples. How long one takes depends on what else the machine does.
hypothesis.settings.register_profile("few", deadline=None, max_examples=25)
hypothesis.settings.register_profile("many", deadline=None, max_examples=400)
hypothesis.settings.load_profile("few")


@pytest.fixture(autouse=True)
def poisoned_generators() -> None:
    """Give the global generators a random state in every test: results must not depend on them."""
    entropy = random.SystemRandom().randrange(2**31)
    random.seed(entropy)
    np.random.seed(entropy)  # noqa: NPY002
    torch.manual_seed(entropy)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Use a temporary folder for the cache, instead of the user's."""
    os.environ["FEDLOOM_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA with random weights, saved in the standard layout."""
    return make_tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def tuned(tiny_model: Path) -> Tuned:
    """That model, anew, with adapters that train connector and decoder."""
    from tests.clients import tune

    return tune(tiny_model)


@pytest.fixture(scope="session")
def encoded() -> Callable[..., bytes]:
    """Return a function from a number to the bytes of a small image, different for each number."""

    def encode(number: int, format: str = "PNG", side: int = 12) -> bytes:
        values = np.random.default_rng(number).integers(0, 256, (side, side + 1, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(values).save(buffer, format)
        return buffer.getvalue()

    return encode


@pytest.fixture(scope="session")
def trees() -> ModuleType:
    """Return the module that writes folders in the layouts in which data sets are bundled."""
    spec = importlib.util.spec_from_file_location("trees", Path(__file__).parent / "trees.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
