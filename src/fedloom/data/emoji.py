"""Emoji: classify images with Unicode's keywords into eight groups.

Images are Noto Color Emoji at 64 px, keywords are the English ones of Unicode CLDR; scripts/make_emoji.py
makes both files. The bundled model was pretrained on the pool "pretrain"; this data set is the pool "federated".
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from fedloom.data.images import ZipImage
from fedloom.data.loading import FILES, divide
from fedloom.types import DataSet, Example

if TYPE_CHECKING:
    from fedloom.config.schema import Data

QUESTION = "Which group does it belong to?"
GROUPS = ("face", "person", "animal", "food", "place", "object", "symbol", "flag")


def load_emoji(settings: Data, seed: int) -> DataSet:
    """Load the pool "federated", with near-duplicates in one part.

    Skin-tone and gender variants of one emoji share its `base` and stay together, and so do flags with equal
    pixels (Australia, Heard & McDonald Islands). Emoji that look exactly like one of
    the pool "pretrain" (Norway, like Bouvet Island) are left out: the bundled model has seen them.

    Args:
        settings: `test_share` is used.
        seed: Seed of the division.
    """
    seen = {image_of(record).key for record in pool("pretrain")}
    drawings = [(record, image_of(record)) for record in pool("federated")]
    drawings = [(record, image) for record, image in drawings if image.key not in seen]
    examples = [_example(record, image) for record, image in drawings]
    keys = [(record["base"], image.key) for record, image in drawings]
    train, test = divide(examples, keys, settings.test_share, seed)
    return DataSet("emoji", train, test)


def pool(name: Literal["pretrain", "federated"]) -> list[dict[str, Any]]:
    """Return the records of a pool: `id`, `base`, `group`, `subgroup`, `name`, `keywords`."""
    return [dict(record) for record in _records() if record["pool"] == name]


def image_of(record: dict[str, Any]) -> ZipImage:
    """Return the image of a record of either pool."""
    return ZipImage(FILES / "emoji.zip", f"{record['id']}.png")


def _example(record: dict[str, Any], image: ZipImage) -> Example:
    group = record["group"]
    return Example(
        id=record["id"],
        question=QUESTION,
        answer=group,
        image=image,
        text=", ".join(record["keywords"]),
        label=GROUPS.index(group),
        group=group,
        options=GROUPS,
        base=record["base"],
    )


@lru_cache(maxsize=1)
def _records() -> tuple[dict[str, Any], ...]:
    with open(FILES / "emoji.jsonl", encoding="utf-8") as lines:
        return tuple(json.loads(line) for line in lines)
