"""Read models and parts of models in the Hugging Face layout, from a folder or a hub."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from fedloom.models.added_models import ADDED, find_added
from fedloom.models.folder_checks import BUNDLED, SETTINGS, VOCABULARY, ModelFiles, model_files, numbers_fit
from fedloom.models.load_weights import UNUSED, bounded, check_finite, check_whole, tensors_of
from fedloom.system.errors import UserError
from fedloom.system.file_hashes import cache_folder, combine_digests, file_digests

__all__ = ["BUNDLED", "Source", "first_line"]


@dataclass(frozen=True)
class Source:
    """Where a model or a part of one lies.

    Attributes:
        key: The key of the experiment that says so, for messages.
        path: A name in `BUNDLED` or `ADDED`, a local folder, or a hub id.
        network: Whether a hub may be contacted; without it only what lies on this machine is used.
    """

    key: str
    path: str
    network: bool

    @cached_property
    def files(self) -> ModelFiles:
        """The files of the folder, checked; those of a hub id lie in the hub's cache.

        Raises:
            UserError: There is no such folder, or something in it is wrong; see `model_files`.
        """
        if self.path in ADDED:
            folder = find_added(self.key, self.path)
        else:
            folder = BUNDLED.get(self.path, Path(self.path))
        if not folder.is_dir():
            folder = self._snapshot()
        found = model_files(self.key, self.path, folder)
        numbers_fit(found, len(tensors_of(found)) if found.weights else 0)
        return found

    @property
    def digest(self) -> str:
        """SHA-256 over configuration, tokenizer, processor, chat template and weights, without loading them."""
        paths = (*self.files.others, *self.files.weights)
        found = file_digests(paths, cache_folder() / "hashes" / "models.json")
        return combine_digests(
            {path.relative_to(self.files.folder).as_posix(): one for path, one in found.items()}
        )

    def read(self, kind: Any, **choices: Any) -> Any:
        """Read one thing, say a configuration or a tokenizer.

        Args:
            kind: A transformers class with `from_pretrained`.
            **choices: Further arguments of it.

        Raises:
            UserError: It is not there or not whole.
        """
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()  # its warnings speak to programmers: torchvision is meant to be missing
        folder = str(self.files.folder)
        self._offline()
        try:
            return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **choices)
        except UserError:
            raise
        except Exception as error:  # a damaged file may raise whatever its reader did not expect
            raise self._wrong(error) from error

    def model(self, kind: Any, unused: re.Pattern[str] = UNUSED) -> Any:
        """Load a model in float32, with all of its weights.

        Args:
            kind: A transformers class of models.
            unused: Names of extra tensors that are no error.

        Raises:
            UserError: Weights are no safetensors, missing, misshapen, unknown, damaged or not finite; or the configuration is out
                of proportion.
        """
        with bounded(self.files):
            model, info = self.read(
                kind,
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
            )
        check_whole(self.files, info, unused)
        check_finite(self.files, model)
        return model

    def tokenizer(self) -> Any:
        """Read the tokenizer, with a chat template that lies in a file of its own, as processors keep it."""
        from transformers import AutoTokenizer

        found = self.read(AutoTokenizer)
        if (
            found.chat_template is None
            and (file := self.files.folder / "chat_template.json") in self.files.others
        ):
            held: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            found.chat_template = held.get("chat_template")
        if isinstance(found.chat_template, dict):  # several by name
            found.chat_template = found.chat_template.get("default")
        if not isinstance(found.chat_template, str | None):
            raise UserError(f"{self.key}: the chat template of {self.path!r} is no text")
        if found.eos_token_id is None:
            raise UserError(
                f"{self.key}: the tokenizer of {self.path!r} has no end token; set eos_token in tokenizer_config.json"
            )
        return found

    def _snapshot(self) -> Path:
        """Return the folder of a hub id in the hub's cache, after getting what is read if the network may be used."""
        from huggingface_hub import snapshot_download
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
        self._offline()

        def get(*names: str) -> Path:
            return Path(
                snapshot_download(self.path, local_files_only=not self.network, allow_patterns=[*names])
            )

        try:
            if not self.network:
                return get("config.json")
            folder = get(*SETTINGS, *VOCABULARY, "chat_template.jinja", "additional_chat_templates/*.jinja")
            named = model_files(self.key, self.path, folder, complete=False).weights
            get(*([path.name for path in named] or ["model.safetensors"]))
        except UserError:
            raise
        except Exception as error:
            raise self._wrong(error) from error
        return folder

    def _offline(self) -> None:
        if not self.network:
            os.environ.setdefault("HF_HUB_OFFLINE", "1")

    def _wrong(self, error: Exception) -> UserError:
        hint = (
            ""
            if self.network or not self.key.startswith("model.") or Path(self.path).is_dir()
            else "; a hub is only contacted with model.network: true"
        )
        return UserError(f"{self.key}: cannot load {self.path!r}{hint} ({first_line(error)})")


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, shortened, or its kind where it has none.

    A line that ends with a colon goes together with the next.
    """
    told = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = " ".join(told[: 2 if told and told[0].endswith(":") else 1])
    return first[:300] or type(error).__name__
