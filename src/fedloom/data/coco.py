"""COCO captions: describe a photograph.

The folder holds `annotations/captions_train2014.json` and `annotations/captions_val2014.json` (or 2017; test
answers were never published) and the pictures in `train2014` and `val2014`. An annotation file is an object
with "images", a list of {"id", "file_name"}, and "annotations", a list of {"id", "image_id", "caption"}.
`data.variant` is the year. Of the five captions of a picture the first is the answer.

Reference: X. Chen et al., "Microsoft COCO Captions: Data Collection and Evaluation Server", arXiv
1504.00325v2; used by FedVLMBench (arXiv 2506.09638).

Differs from the paper: one caption for each picture; FedVLMBench uses 6,000 pictures, and does not say which.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedloom.data.published_data_set import Count, Reading, Source, Table
from fedloom.data.record_fields import needed, word
from fedloom.data.record_files import Raw, kind, read_json
from fedloom.system.errors import UserError
from fedloom.types import Example, Rejected

QUESTION = "Describe the picture."


def listed(value: Any, key: str, path: Path) -> list[Any]:
    """Return a list that an annotation file must have.

    Raises:
        UserError: The file is no object, or the value no list.
    """
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, list):
        raise UserError(f"{path}: holds no list {key!r}; it is not an annotation file of COCO")
    return found


def by_id(value: Any, key: str, wanted: str, path: Path) -> dict[str, Any]:
    """Return one value of each object in a list of an annotation file, by the object's id as text."""
    return {str(one.get("id")): one.get(wanted) for one in listed(value, key, path) if isinstance(one, dict)}


def read(path: Path, name: str) -> Iterator[Raw | Rejected]:
    """Yield the first caption of every image that says anything, with the image's file name."""
    value = read_json(path)
    names, first = by_id(value, "images", "file_name", path), dict[str, int]()
    found: dict[int, Raw | Rejected] = {}
    for number, entry in enumerate(listed(value, "annotations", path), 1):
        if not isinstance(entry, dict):
            reason = f"annotation {number}: {kind(entry)} instead of an object"
            found[number] = Rejected(name, None, reason)
            continue
        image = str(entry.get("image_id"))
        before = found.get(first.setdefault(image, number))
        if before is None or (
            isinstance(before, Raw)
            and _empty(before.values.get("caption"))
            and not _empty(entry.get("caption"))
        ):
            found[first[image]] = Raw(name, "annotation", number, entry | {"file_name": names.get(image)})
    yield from found.values()


def _empty(caption: Any) -> bool:
    return not isinstance(caption, str) or not caption.strip()


def make(raw: Raw, reading: Reading) -> Example:
    """Make an example of an annotation; see `fedloom.data.published_data_set.Make`."""
    return Example(
        id=needed(raw.values, "image_id", word),
        question=QUESTION,
        answer=needed(raw.values, "caption"),
        image=reading.picture(needed(raw.values, "file_name")),
        task="caption",
    )


def _table(part: str, split: str) -> Table:
    file = f"captions_{split}{{variant}}.json"
    folders = (f"{split}{{variant}}", f"images/{split}{{variant}}", "images")
    return Table(part, (f"annotations/{file}", file), make, folders, read=read)


COCO = Source(
    name="coco-captions",
    title="COCO captions: describe a photograph.",
    home=(
        "Get the train and val images and the train/val annotations of 2014 or 2017 from "
        "https://cocodataset.org/#download and unpack them side by side. The root is the folder with "
        "annotations, train2014 and val2014."
    ),
    tables=(_table("train", "train"), _table("test", "val")),
    counts=(
        Count("train", 82783, variant="2014"),
        Count("test", 40504, variant="2014"),
        Count("train", 118287, variant="2017"),
        Count("test", 5000, variant="2017"),
    ),
    variants=("2014", "2017"),
)
