"""VQA-RAD: questions of clinicians about radiological images.

The folder holds `VQA_RAD Dataset Public.json`, a list of objects, and the images in `VQA_RAD Image
Folder` or `images`. An object has the keys qid, image_name, image_organ, question, answer (text or a number),
answer_type ("OPEN" or "CLOSED") and phrase_type: "freeform" and "para" are for training, "test_freeform" and
"test_para" for testing. That is the published division; both parts ask about the same images. The kind is
the answer type, the group is the organ.

Reference: J. J. Lau et al., "A dataset of clinically generated visual questions and answers about radiology
images", Scientific Data 5, 180251, 2018; divided as in FedMLLM (arXiv 2411.14717v2).
"""

from __future__ import annotations

from typing import Any

from fedloom.data.published_data_set import Count, RecordContext, Source, Table
from fedloom.data.record_fields import InvalidRecord, one_of, required, text, text_or_integer
from fedloom.data.record_files import Record, quoted
from fedloom.types import Example

FILES = ("VQA_RAD Dataset Public.json",)
FOLDERS = ("VQA_RAD Image Folder", "images")
PARTS = {"freeform": "train", "para": "train", "test_freeform": "test", "test_para": "test"}


def part_of(record: dict[str, Any]) -> str:
    """Return the part an entry belongs to by its phrase type; see `fedloom.data.published_data_set.PartOf`."""
    return PARTS[one_of(record, "phrase_type", tuple(PARTS))]


def make(record: Record, context: RecordContext) -> Example:
    """Make an example of an entry; see `fedloom.data.published_data_set.Make`."""
    values = record.values
    return Example(
        id=required(values, "qid", text_or_integer),
        question=required(values, "question"),
        answer=required(values, "answer", text_or_number),
        image=context.find_image(required(values, "image_name")),
        group=text(values, "image_organ"),
        task="vqa",
        kind=answer_kind(values),
    )


def text_or_number(record: dict[str, Any], key: str) -> str | None:
    """Return a text, or any number as text."""
    value = record.get(key)
    return str(value) if type(value) is float else text_or_integer(record, key)


def answer_kind(record: dict[str, Any]) -> str:
    """Return the entry's answer_type in lower case, "open" or "closed".

    Raises:
        InvalidRecord: The answer type is another one.
    """
    answer_type = required(record, "answer_type")
    if answer_type.lower() not in ("open", "closed"):
        raise InvalidRecord(f"answer_type is {quoted(answer_type)}, not OPEN or CLOSED")
    return answer_type.lower()


COUNTS = (
    Count("train", 1797),
    Count("test", 451),
    Count("test", 179, "open"),
    Count("test", 272, "closed"),
)

VQA_RAD = Source(
    name="vqa-rad",
    title="VQA-RAD: questions of clinicians about radiological images.",
    home=(
        "Get VQA_RAD Dataset Public.json and VQA_RAD Image Folder from https://osf.io/89kps/. The root is "
        "the folder with both."
    ),
    tables=(Table(part_of, FILES, make, FOLDERS),),
    counts=COUNTS,
)
