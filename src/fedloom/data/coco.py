"""COCO captions: describe a photograph.

The folder holds `annotations/captions_train2014.json` and `annotations/captions_val2014.json` (or 2017; test
answers were never published), and the images in `train2014` and `val2014`. An annotation file is an object
with "images", a list of {"id", "file_name"}, and "annotations", a list of {"id", "image_id", "caption"}.
`data.variant` is the year. The answer is the first of the five captions of an image.

Reference: X. Chen et al., "Microsoft COCO Captions: Data Collection and Evaluation Server", arXiv
1504.00325v2; used by FedVLMBench (arXiv 2506.09638).

Differs from the paper: one caption for each image; FedVLMBench uses 6,000 images and does not say which.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedloom.data.published_data_set import Count, RecordContext, Source, Table
from fedloom.data.record_fields import required, text_or_integer
from fedloom.data.record_files import Record, json_type, read_json
from fedloom.system.errors import UserError
from fedloom.types import Example, Rejected

QUESTION = "Describe the picture."


def required_list(value: Any, key: str, path: Path) -> list[Any]:
    """Return a list that every annotation file has.

    Raises:
        UserError: The file is not an object, or the value is not a list.
    """
    entries = value.get(key) if isinstance(value, dict) else None
    if not isinstance(entries, list):
        raise UserError(f"{path}: holds no list {key!r}; it is not an annotation file of COCO")
    return entries


def values_by_id(value: Any, key: str, field: str, path: Path) -> dict[str, Any]:
    """Return id as text → value of a field, for each object in a list of an annotation file."""
    return {
        str(entry.get("id")): entry.get(field)
        for entry in required_list(value, key, path)
        if isinstance(entry, dict)
    }


def read(path: Path, name: str) -> Iterator[Record | Rejected]:
    """Yield the first nonempty caption of every image, with the image's file name."""
    value = read_json(path)
    names, first = values_by_id(value, "images", "file_name", path), dict[str, int]()
    records: dict[int, Record | Rejected] = {}
    for number, entry in enumerate(required_list(value, "annotations", path), 1):
        if not isinstance(entry, dict):
            reason = f"annotation {number}: {json_type(entry)} instead of an object"
            records[number] = Rejected(name, None, reason)
            continue
        image = str(entry.get("image_id"))
        before = records.get(first.setdefault(image, number))
        if before is None or (
            isinstance(before, Record)
            and _empty(before.values.get("caption"))
            and not _empty(entry.get("caption"))
        ):
            records[first[image]] = Record(
                name, "annotation", number, entry | {"file_name": names.get(image)}
            )
    yield from records.values()


def _empty(caption: Any) -> bool:
    return not isinstance(caption, str) or not caption.strip()


def make(record: Record, context: RecordContext) -> Example:
    """Make an example of an annotation; see `fedloom.data.published_data_set.Make`."""
    return Example(
        id=required(record.values, "image_id", text_or_integer),
        question=QUESTION,
        answer=required(record.values, "caption"),
        image=context.find_image(required(record.values, "file_name")),
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
