"""Map a model's modules to its parts: encoder, connector and language model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

PARTS = ("encoder", "connector", "llm")


@dataclass(frozen=True, slots=True)
class Parts:
    """Module prefixes of each part; the longest matching prefix decides.

    Attributes:
        encoder: Prefixes of the vision encoder; empty for an encoder-free model.
        connector: Prefixes of the modules that turn image features into token embeddings.
        llm: Prefixes of the language model, its embeddings and its head.

    Example:
        >>> parts = Parts(("model.visual",), ("model.visual.merger",), ("model.language_model",))
        >>> parts.part_of("model.visual.merger.mlp.weight")
        'connector'
    """

    encoder: tuple[str, ...]
    connector: tuple[str, ...]
    llm: tuple[str, ...]

    def part_of(self, name: str) -> str:
        """Return "encoder", "connector" or "llm" for a parameter or module name.

        Raises:
            ValueError: No prefix matches.
        """
        matches = [
            (len(prefix), part)
            for part in PARTS
            for prefix in getattr(self, part)
            if name == prefix or name.startswith(prefix + ".")
        ]
        if not matches:
            raise ValueError(f"{name!r} belongs to no part of the model")
        return max(matches)[1]

    def split(self, names: Iterable[str]) -> dict[str, list[str]]:
        """Group names by part; every name belongs to exactly one."""
        groups: dict[str, list[str]] = {part: [] for part in PARTS}
        for name in names:
            groups[self.part_of(name)].append(name)
        return groups
