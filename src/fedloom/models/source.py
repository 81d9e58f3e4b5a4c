"""Read models and parts of models in the Hugging Face layout, from a folder or a hub."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedloom.types import UserError

SHIPPED = {name: Path(__file__).parent / name for name in ("shipped", "shipped-free")}
"""The models that come with fedloom, name → folder: with a vision encoder, and without one."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model or a part of one lies.

    Attributes:
        key: The key of the experiment that says so, for messages.
        path: A name in `SHIPPED`, a local folder, or a hub id.
        network: Whether a hub may be contacted; without it only what lies on this machine is used.
    """

    key: str
    path: str
    network: bool

    def read(self, kind: Any, **choices: Any) -> Any:
        """Read one thing, say a configuration or a tokenizer.

        Args:
            kind: A transformers class with `from_pretrained`.
            **choices: Further arguments of it.

        Raises:
            UserError: It is not there or not whole, or its weights are not safetensors.
        """
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()  # its warnings speak to programmers: torchvision is meant to be missing
        place = {"local_files_only": not self.network, "trust_remote_code": False}
        try:
            return kind.from_pretrained(self._place, **place, **choices)
        except (OSError, ValueError, KeyError, ImportError) as error:
            hint = "" if self.network else "; a hub is only contacted with model.network: true"
            raise UserError(f"{self.key}: cannot load {self.path!r}{hint} ({_first_line(error)})") from error

    def tokenizer(self) -> Any:
        """Read the tokenizer, with a chat template that lies in a file of its own, as processors keep it."""
        from transformers import AutoTokenizer
        from transformers.utils.hub import cached_file

        found = self.read(AutoTokenizer)
        if found.chat_template is None:
            file = cached_file(
                self._place,
                "chat_template.json",
                local_files_only=not self.network,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
            if file is not None:
                found.chat_template = json.loads(Path(file).read_text(encoding="utf-8"))["chat_template"]
        return found

    @property
    def digest(self) -> str:
        """PROVISIONAL."""
        from fedloom.hashes import combined, file_digests

        folder = Path(self._place)
        return combined({one.name: value for one, value in file_digests(folder.glob("*.*")).items()})

    @property
    def _place(self) -> str:
        if not self.network:
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
        return str(SHIPPED.get(self.path, self.path))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
