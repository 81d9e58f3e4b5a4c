"""RefCOCO: find the object in a photograph that a phrase means.

The folder holds `refs(unc).json`, `instances.json` with the boxes, and COCO's images in `train2014`. The
owners ship the first as a pickle, which may run code when it is opened; fedloom does not read pickles. This command
converts it to JSON:

    python -c "import json, pickle
    json.dump(pickle.load(open('refs(unc).p', 'rb')), open('refs(unc).json', 'w'))"

A reference has the keys ref_id, ann_id, image_id, split and sentences, a list of {"sent_id", "sent"}; each
sentence is an example. The parts testA (people) and testB (other objects) form the test set, and are the kind of
its examples. Boxes are in whole pixels.

Reference: L. Yu et al., "Modeling Context in Referring Expressions", arXiv 1608.00272v3; used by FedVLMBench
(arXiv 2506.09638), which takes 6,000 and does not say which.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedloom.data.bounding_boxes import in_pixels
from fedloom.data.coco import values_by_id
from fedloom.data.published_data_set import Count, RecordContext, Source, Table
from fedloom.data.record_fields import InvalidRecord, one_of, required, text_or_integer
from fedloom.data.record_files import Record, json_type, read_json, read_records
from fedloom.system.errors import UserError
from fedloom.types import Example, Rejected

PARTS = {"train": "train", "val": "dev", "testA": "test", "testB": "test"}


def part_of(record: dict[str, Any]) -> str:
    """Return the part a reference belongs to; see `fedloom.data.published_data_set.PartOf`."""
    return PARTS[one_of(record, "split", tuple(PARTS))]


def read(path: Path, name: str) -> Iterator[Record | Rejected]:
    """Yield every sentence of every reference, with its box and the image's file name.

    Raises:
        UserError: `instances.json` is missing, or a file cannot be read.
    """
    instances = path.with_name("instances.json")
    if not instances.is_file():
        raise UserError(f"{instances} is missing; it ships with RefCOCO")
    value = read_json(instances)
    names = values_by_id(value, "images", "file_name", instances)
    boxes = values_by_id(value, "annotations", "bbox", instances)
    for record in read_records(path, name):
        sentences = record.values.get("sentences") if isinstance(record, Record) else None
        if isinstance(record, Rejected):
            yield record
        elif not isinstance(sentences, list):
            yield record.rejected("sentences is not a list of objects")
        else:
            more = {
                "bbox": boxes.get(str(record.values.get("ann_id"))),
                "file_name": names.get(str(record.values.get("image_id"))),
            }
            for sentence in sentences:
                if isinstance(sentence, dict):
                    yield Record(name, record.unit, record.number, record.values | more | sentence)
                else:
                    yield record.rejected(f"one of its sentences is {json_type(sentence)}, not an object")


def make(record: Record, context: RecordContext) -> Example:
    """Make an example of a sentence; see `fedloom.data.published_data_set.Make`."""
    values = record.values
    if values["bbox"] is None:
        raise InvalidRecord("instances.json has no box of its ann_id")
    image = context.find_image(required(values, "file_name"))
    split = required(values, "split")
    return Example(
        id=f"{required(values, 'ref_id', text_or_integer)}-{required(values, 'sent_id', text_or_integer)}",
        question=f"Where is {required(values, 'sent')}?",
        answer=in_pixels(values["bbox"], image),
        image=image,
        task="grounding",
        kind=split if split.startswith("test") else None,
    )


_FILES = ("refs(unc).json", "refcoco/refs(unc).json")
_FOLDERS = (
    "train2014",
    "images/train2014",
    "images/mscoco/images/train2014",
    "../images/mscoco/images/train2014",
)

REFCOCO = Source(
    name="refcoco",
    title="RefCOCO: find the object in a photograph that a phrase means.",
    home=(
        "Get refcoco.zip from https://github.com/lichengunc/refer and the images train2014 from "
        "https://cocodataset.org/#download. Turn the owners' pickle into refs(unc).json, which fedloom does "
        'not do because a pickle may run code: python -c "import json, pickle; '
        "json.dump(pickle.load(open('refs(unc).p', 'rb')), open('refs(unc).json', 'w'))\". The root is the "
        "folder with refs(unc).json, instances.json and train2014."
    ),
    tables=(Table(part_of, _FILES, make, _FOLDERS, read=read, dev=True),),
    counts=(
        Count("train", 120624),
        Count("dev", 10834),
        Count("test", 5657 + 5095),
        Count("test", 5657, "testA"),
        Count("test", 5095, "testB"),
    ),
)
