"""VQA-RAD: questions of clinicians about radiological pictures.

The folder holds `VQA_RAD Dataset Public.json`, a list of objects, and the pictures in `VQA_RAD Image
Folder` or `images`. Of an object are read qid, image_name, image_organ, question, answer (text or a number),
answer_type ("OPEN" or "CLOSED") and phrase_type: "freeform" and "para" are to train, "test_freeform" and
"test_para" to test on. That is the published division; both parts ask about the same pictures. The kind is
the answer type, the group is the organ.

Reference: J. J. Lau et al., "A dataset of clinically generated visual questions and answers about radiology
images", Scientific Data 5, 180251, 2018; divided like FedMLLM (arXiv 2411.14717v2).
"""

from __future__ import annotations

from typing import Any

from fedloom.data.published_data_set import Count, Reading, Source, Table
from fedloom.data.record_fields import Bad, needed, one_of, text, word
from fedloom.data.record_files import Raw, shown
from fedloom.types import Example

FILES = ("VQA_RAD Dataset Public.json",)
FOLDERS = ("VQA_RAD Image Folder", "images")
PARTS = {"freeform": "train", "para": "train", "test_freeform": "test", "test_para": "test"}


def part_of(record: dict[str, Any]) -> str:
    """Return the part an entry belongs to by its phrase type; see `fedloom.data.published_data_set.PartOf`."""
    return PARTS[one_of(record, "phrase_type", tuple(PARTS))]


def make(raw: Raw, reading: Reading) -> Example:
    """Make an example of an entry; see `fedloom.data.published_data_set.Make`."""
    record = raw.values
    return Example(
        id=needed(record, "qid", word),
        question=needed(record, "question"),
        answer=needed(record, "answer", spoken),
        image=reading.picture(needed(record, "image_name")),
        group=text(record, "image_organ"),
        task="vqa",
        kind=answer_kind(record),
    )


def spoken(record: dict[str, Any], key: str) -> str | None:
    """Return a value that is a text or any number, as text."""
    value = record.get(key)
    return str(value) if type(value) is float else word(record, key)


def answer_kind(record: dict[str, Any]) -> str:
    """Return "open" or "closed", by the entry's answer_type in any case.

    Raises:
        Bad: It is something else.
    """
    given = needed(record, "answer_type")
    if given.lower() not in ("open", "closed"):
        raise Bad(f"answer_type is {shown(given)}, not OPEN or CLOSED")
    return given.lower()


COUNTS = (
    Count("train", 1797),
    Count("test", 451),
    Count("test", 179, "open"),
    Count("test", 272, "closed"),
)

VQA_RAD = Source(
    name="vqa-rad",
    title="VQA-RAD: questions of clinicians about radiological pictures.",
    home=(
        "Get VQA_RAD Dataset Public.json and VQA_RAD Image Folder from https://osf.io/89kps/. The root is "
        "the folder with both."
    ),
    tables=(Table(part_of, FILES, make, FOLDERS),),
    counts=COUNTS,
)
