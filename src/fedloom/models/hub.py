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

from fedloom.config.old_spellings import current_name
from fedloom.models.added_models import ADDED, find_added
from fedloom.models.check_weights import (
    UNUSED,
    check_finite,
    check_whole,
    half_dtype,
    limited_size,
    tensors_of,
)
from fedloom.models.folder_checks import (
    BUNDLED,
    SETTINGS,
    UNREAD,
    VOCABULARY,
    ModelFiles,
    check_numbers,
    model_files,
)
from fedloom.system.errors import UserError
from fedloom.system.file_hashes import cache_folder, combine_digests, file_digests

__all__ = ["BUNDLED", "Source", "first_line"]


@dataclass(frozen=True)
class Source:
    """The location of a model or of a part of one.

    Attributes:
        key: The key of the experiment that names it, for messages.
        path: A name in `BUNDLED` or `ADDED`, a local folder, or a hub id.
        network: Whether a hub may be contacted; otherwise only files on this machine are used.
    """

    key: str
    path: str
    network: bool

    @cached_property
    def files(self) -> ModelFiles:
        """The checked files of the folder; for a hub id, those in the hub's cache.

        Raises:
            UserError: There is no such folder, or something in it is wrong; see `model_files`.
        """
        if self.path in ADDED:
            folder = find_added(self.key, self.path)
        else:
            folder = BUNDLED.get(current_name(self.path), Path(self.path))
        if not folder.is_dir():
            folder = self._snapshot()
        files = model_files(self.key, self.path, folder)
        check_numbers(files, len(tensors_of(files)) if files.weights else 0)
        return files

    @property
    def digest(self) -> str:
        """SHA-256 over the files of configuration, tokenizer, processor, chat template and weights."""
        paths = (*self.files.others, *self.files.weights)
        digests = file_digests(paths, cache_folder() / "hashes" / "models.json")
        folder = self.files.folder
        return combine_digests(
            {path.relative_to(folder).as_posix(): digest for path, digest in digests.items()}
        )

    def read(self, kind: Any, **choices: Any) -> Any:
        """Load a component with a transformers class, such as that of the configuration or the tokenizer.

        Args:
            kind: A transformers class with `from_pretrained`.
            **choices: Further arguments of `from_pretrained`.

        Raises:
            UserError: The component is missing or damaged.
        """
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()  # its warnings are for programmers: torchvision is missing on purpose
        folder = str(self.files.folder)
        self._offline()
        try:
            return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **choices)
        except UserError:
            raise
        except Exception as error:  # a damaged file may raise any class
            raise self._load_error(error) from error

    def model(self, kind: Any, unused: re.Pattern[str] = UNUSED, *, lean: bool = False) -> Any:
        """Load a model with all of its weights, on the processor.

        Args:
            kind: A transformers class of models.
            unused: Names of extra tensors that are ignored.
            lean: Whether weights that are stored in 16 bits stay so, which takes no copy of them: the parameters lie in the
                file's pages. Otherwise, and where some are stored in more bits, parameters are float32.

        Raises:
            UserError: Weights are not safetensors, missing, misshapen, unknown, damaged or not finite; or the configuration
                describes a far larger model.
        """
        half = half_dtype(self.files) if lean else None
        with limited_size(self.files, half or torch.float32):
            model, info = self.read(
                kind,
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # check_whole names them below
            )
        check_whole(self.files, info, unused)
        check_finite(self.files, model)
        return model

    def tokenizer(self, *, images: bool = False) -> Any:
        """Load the tokenizer, with the chat template that stock transformers would use.

        A model that sees images may have two: that of its processor, which writes images, and that of its language model.

        Args:
            images: Whether the model sees images, so that its processor's template is used before its tokenizer's.

        Raises:
            UserError: The tokenizer is missing or damaged or has no end token, or no chat template can be chosen.
        """
        from transformers import AutoTokenizer

        tokenizer = self.read(AutoTokenizer)
        templates = [*self._processor_templates(), ("the tokenizer", tokenizer.chat_template)]
        found = [(where, one) for where, one in (templates if images else templates[::-1]) if one is not None]
        tokenizer.chat_template = self._default_template(*found[0]) if found else None
        if tokenizer.eos_token_id is None:
            raise UserError(
                f"{self.key}: the tokenizer of {self.path!r} has no end token; set eos_token in tokenizer_config.json"
            )
        return tokenizer

    def _processor_templates(self) -> list[tuple[str, Any]]:
        """Return the chat templates in the processor's own files, with the name of each file, the one used first ahead."""
        paths = [self.files.folder / name for name in ("processor_config.json", "chat_template.json")]
        contents = {
            path.name: json.loads(path.read_text(encoding="utf-8"))
            for path in paths
            if path in self.files.others
        }
        return [(name, content.get("chat_template")) for name, content in contents.items()]

    def _default_template(self, where: str, template: Any) -> str:
        """Return a chat template, or of several with names, in a list or an object, the one that is named "default".

        Raises:
            UserError: None of several is the default, or a template is not a string.
        """
        if isinstance(template, list) and all(isinstance(one, Mapping) for one in template):
            template = {one.get("name"): one.get("template") for one in template}
        if isinstance(template, Mapping):
            if "default" not in template:
                names = ", ".join(sorted(map(str, template)))
                raise UserError(
                    f"{self.key}: none of the chat templates of {self.path!r} is named 'default' ({where} has {names}); write "
                    "the one to use to chat_template.jinja"
                )
            template = template["default"]
        if not isinstance(template, str):
            raise UserError(f"{self.key}: the chat template of {self.path!r} is not a string ({where})")
        return template

    def _snapshot(self) -> Path:
        """Return the folder of a hub id in the hub's cache, after downloading its files if the network may be used."""
        from huggingface_hub import snapshot_download
        from huggingface_hub.utils import disable_progress_bars, validate_repo_id

        try:
            validate_repo_id(self.path)
        except ValueError:
            raise UserError(
                f"{self.key}: {self.path!r} is not a folder with a checkpoint, nor could a model on a hub have this name"
            ) from None
        disable_progress_bars()
        self._offline()

        def get(*names: str) -> Path:
            return Path(
                snapshot_download(self.path, local_files_only=not self.network, allow_patterns=[*names])
            )

        try:
            if not self.network:
                return get("config.json")
            folder = get(
                *SETTINGS, *VOCABULARY, *UNREAD, "chat_template.jinja", "additional_chat_templates/*.jinja"
            )
            named = model_files(self.key, self.path, folder, complete=False).weights
            get(*([path.name for path in named] or ["model.safetensors"]))
        except UserError:
            raise
        except Exception as error:
            raise self._load_error(error) from error
        return folder

    def _offline(self) -> None:
        if not self.network:
            os.environ.setdefault("HF_HUB_OFFLINE", "1")

    def _load_error(self, error: Exception) -> UserError:
        hint = (
            ""
            if self.network or not self.key.startswith("model.") or Path(self.path).is_dir()
            else "; a hub is only contacted with model.network: true"
        )
        return UserError(f"{self.key}: cannot load {self.path!r}{hint} ({first_line(error)})")


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, shortened, or the error's class if it has no message.

    A first line that ends with a colon is joined with the next.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    return first[:300] or type(error).__name__
