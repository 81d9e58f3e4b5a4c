"""Keep what a model has computed of images and texts, so that nothing is computed twice.

Encoder features do not depend on the connector, so models that differ only in it share one memo.

Shape legend: E encoder width; a grid is the shape of one image's features without E.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fedloom.models.family_interface import Grid
from fedloom.models.feature_cache import FeatureStore
from fedloom.types import LazyImage

SHARD = 512
"""Images whose features go into one file."""

HELD = 2**30
"""Bytes of features that are held in memory; the rest is read again or computed again."""

TOGETHER = 32
"""Images that are encoded at once."""

Encode = Callable[[Sequence[LazyImage]], Mapping[str, Tensor]]
"""Images → their encoder features [*grid, E] by image key, computed in one batch."""


@dataclass(frozen=True, eq=False)
class Memo:
    """Encoder features and token ids by what they were computed from.

    The encoder is frozen in every strategy, so an empty memo gives the same numbers as a full one.

    Attributes:
        features: Encoder features [*grid, E] by image key, at most `HELD` bytes.
        grids_known: Grids by image key.
        tokens: What tokenizing conversations gives, each by everything that it depends on.
        store: Encoder features on disk, shared between runs, or None.
    """

    features: dict[str, Tensor] = field(default_factory=dict)
    grids_known: dict[str, Grid] = field(default_factory=dict)
    tokens: dict[Any, Any] = field(default_factory=dict)
    store: FeatureStore | None = None

    def look(self, pictures: Sequence[LazyImage], encode: Encode) -> list[Tensor]:
        """Return the encoder features of each image, shape [*grid, E]; those that are not known yet are computed once."""
        found = {picture.key: self._known(picture.key) for picture in pictures}
        missing = {picture.key: picture for picture in pictures if found[picture.key] is None}
        todo = list(missing.values())
        for start in range(0, len(todo), SHARD):
            fresh = _computed(todo[start : start + SHARD], encode)
            if self.store is not None:
                for shape in {value.shape for value in fresh.values()}:
                    self.store.write({key: value for key, value in fresh.items() if value.shape == shape})
            for key, value in fresh.items():
                found[key] = value
                self._hold(key, value)
        known = {key: value for key, value in found.items() if value is not None}
        self.grids_known.update({key: tuple(value.shape[:-1]) for key, value in known.items()})
        return [known[picture.key] for picture in pictures]

    def grids(self, pictures: Sequence[LazyImage], encode: Encode) -> tuple[Grid, ...]:
        """Return the grid of each image; features are read or computed only where no grid is known."""
        unknown = [picture for picture in pictures if picture.key not in self.grids_known]
        if self.store is not None:
            kept = {picture.key: self.store.grid(picture.key) for picture in unknown}
            self.grids_known.update({key: grid for key, grid in kept.items() if grid is not None})
        self.look([picture for picture in unknown if picture.key not in self.grids_known], encode)
        return tuple(self.grids_known[picture.key] for picture in pictures)

    def unknown(self, pictures: Iterable[LazyImage]) -> list[LazyImage]:
        """Return the images whose features are neither held in memory nor kept in files, each once."""
        missing = {one.key: one for one in pictures if one.key not in self.features}
        if self.store is not None:
            missing = {key: one for key, one in missing.items() if key not in self.store}
        return list(missing.values())

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


def _computed(pictures: Sequence[LazyImage], encode: Encode) -> dict[str, Tensor]:
    fresh: dict[str, Tensor] = {}
    for start in range(0, len(pictures), TOGETHER):
        some = pictures[start : start + TOGETHER]
        try:
            fresh.update(encode(some))
        except Exception:  # an image processor may refuse images together that it takes one by one
            if len(some) == 1:
                raise
            for one in some:
                fresh.update(encode([one]))
    return fresh
