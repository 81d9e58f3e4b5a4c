"""Emoji: tell to which of eight groups a picture with Unicode's keywords belongs.

Pictures are Noto Color Emoji at 64 px, keywords are the English ones of Unicode CLDR; scripts/make_emoji.py
makes both files. The bundled model was pretrained on the pool "pretrain"; this data set is the rest.
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
    """Load the pool "federated", divided so that no variant and no equal picture is on both sides.

    Skin-tone and gender variants of one emoji share its `base` and stay together, and so do flags that
    look alike to the last pixel (Australia, Heard & McDonald Islands). Emoji that look exactly like one of
    the pool "pretrain" (Norway, as Bouvet Island) are left out: the bundled model has seen them.

    Args:
        settings: `test_share` is read.
        seed: Decides the division.
    """
    seen = {image_of(record).key for record in pool("pretrain")}
    found = [(record, image_of(record)) for record in pool("federated")]
    found = [(record, picture) for record, picture in found if picture.key not in seen]
    examples = [_example(record, picture) for record, picture in found]
    twins = [(record["base"], picture.key) for record, picture in found]
    train, test = divide(examples, twins, settings.test_share, seed)
    return DataSet("emoji", train, test)


def pool(name: Literal["pretrain", "federated"]) -> list[dict[str, Any]]:
    """Return the records of a pool: `id`, `base`, `group`, `subgroup`, `name`, `keywords`."""
    return [dict(record) for record in _records() if record["pool"] == name]


def image_of(record: dict[str, Any]) -> ZipImage:
    """Return the picture of a record of either pool."""
    return ZipImage(FILES / "emoji.zip", f"{record['id']}.png")


def _example(record: dict[str, Any], picture: ZipImage) -> Example:
    group = record["group"]
    return Example(
        id=record["id"],
        question=QUESTION,
        answer=group,
        image=picture,
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
