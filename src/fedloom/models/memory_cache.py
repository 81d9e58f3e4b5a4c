"""Cache what a model computes from images and texts, so that nothing is computed twice.

Encoder features do not depend on the connector, so models that differ only in their connectors share one cache.

Shape legend: E encoder width; a grid is the shape of one image's features without E.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fedloom.models.family_interface import Grid
from fedloom.models.feature_cache import FeatureStore
from fedloom.system.errors import is_of_accelerator
from fedloom.types import LazyImage

SHARD = 512
"""The most images whose features are stored in one file."""

SHARD_BYTES = 2**28
"""The most bytes of features that are stored in one file, unless a single image has more. Files are written whole or not at
all, so large ones would leave much of a bounded store empty, and take as much memory while they are built."""

MEMORY_LIMIT = 2**30
"""Bytes of features that are kept in memory; others are read or computed again."""

ENCODE_BATCH = 32
"""Images that are encoded in one batch."""

Encode = Callable[[Sequence[LazyImage]], Mapping[str, Tensor]]
"""Images → their encoder features [*grid, E] by image key, computed in one batch."""


@dataclass(frozen=True, eq=False)
class Memo:
    """A cache of encoder features and token ids.

    The encoder is frozen in every strategy, so an empty cache gives the same results as a full one.

    Attributes:
        features: Encoder features [*grid, E] by image key, at most `MEMORY_LIMIT` bytes.
        known_grids: Grids by image key.
        tokens: Tokenized conversations and images, by everything that they depend on.
        store: Encoder features on disk, shared between runs, or None.
    """

    features: dict[str, Tensor] = field(default_factory=dict)
    known_grids: dict[str, Grid] = field(default_factory=dict)
    tokens: dict[Any, Any] = field(default_factory=dict)
    store: FeatureStore | None = None

    def image_features(self, images: Sequence[LazyImage], encode: Encode) -> list[Tensor]:
        """Return the encoder features of each image, shape [*grid, E]; features that are not cached are computed once."""
        features = {image.key: self._cached(image.key) for image in images}
        missing = {image.key: image for image in images if features[image.key] is None}
        for computed in self._computed([*missing.values()], encode):
            features.update(computed)
        complete = {key: value for key, value in features.items() if value is not None}
        self.known_grids.update({key: tuple(value.shape[:-1]) for key, value in complete.items()})
        return [complete[image.key] for image in images]

    def compute(self, images: Iterable[LazyImage], encode: Encode) -> None:
        """Compute the features that are not cached, which never are in memory all at once; keep those that fit."""
        for _ in self._computed(self.missing(images), encode):
            pass

    def grids(self, images: Sequence[LazyImage], encode: Encode) -> tuple[Grid, ...]:
        """Return the grid of each image; features are read or computed only if its grid is unknown."""
        unknown = [image for image in images if image.key not in self.known_grids]
        if self.store is not None:
            stored = {image.key: self.store.grid(image.key) for image in unknown}
            self.known_grids.update({key: grid for key, grid in stored.items() if grid is not None})
        self.image_features([image for image in unknown if image.key not in self.known_grids], encode)
        return tuple(self.known_grids[image.key] for image in images)

    def missing(self, images: Iterable[LazyImage]) -> list[LazyImage]:
        """Return the images whose features are neither in memory nor in files, each once."""
        missing = {image.key: image for image in images if image.key not in self.features}
        if self.store is not None:
            missing = {key: image for key, image in missing.items() if key not in self.store}
        return list(missing.values())

    def _computed(self, images: Sequence[LazyImage], encode: Encode) -> Iterator[dict[str, Tensor]]:
        """Encode images in batches; yield the features of several batches at a time, once they are kept."""
        waiting, size = dict[str, Tensor](), 0
        for start in range(0, len(images), ENCODE_BATCH):
            batch = _encoded(images[start : start + ENCODE_BATCH], encode)
            waiting |= batch
            size += sum(value.nbytes for value in batch.values())
            if size >= SHARD_BYTES or len(waiting) >= SHARD or start + ENCODE_BATCH >= len(images):
                self._keep_all(waiting)
                yield waiting
                waiting, size = {}, 0

    def _keep_all(self, features: Mapping[str, Tensor]) -> None:
        """Keep features in files and in memory as far as they fit, and all of their grids."""
        if self.store is not None:
            for shape in dict.fromkeys(value.shape for value in features.values()):
                alike = [(key, value) for key, value in features.items() if value.shape == shape]
                count = max(1, SHARD_BYTES // max(1, alike[0][1].nbytes))
                for start in range(0, len(alike), count):
                    self.store.write(dict(alike[start : start + count]))
        for key, value in features.items():
            self._keep(key, value)
        self.known_grids.update({key: tuple(value.shape[:-1]) for key, value in features.items()})

    def _cached(self, key: str) -> Tensor | None:
        value = self.features.get(key)
        if value is None and self.store is not None:
            value = self.store.read(key)
            if value is not None:
                self._keep(key, value)
        return value

    def _keep(self, key: str, value: Tensor) -> None:
        if (len(self.features) + 1) * value.numel() * value.element_size() <= MEMORY_LIMIT:
            self.features[key] = value


def _encoded(batch: Sequence[LazyImage], encode: Encode) -> dict[str, Tensor]:
    """Return the features of a batch of images by their key."""
    try:
        return dict(encode(batch))
    except Exception as error:  # an image processor may fail on a batch of images that it takes one by one
        # Smaller batches would round differently, so features would depend on the accelerator's free memory.
        if len(batch) == 1 or is_of_accelerator(error):
            raise
    features: dict[str, Tensor] = {}
    for image in batch:
        features.update(encode([image]))
    return features
