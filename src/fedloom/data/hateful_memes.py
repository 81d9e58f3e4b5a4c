"""Hateful-Memes: decide if a meme, an image with text on it, is hateful.

The folder holds `train.jsonl`, `dev.jsonl` or `dev_seen.jsonl`, `test_seen.jsonl` with labels, and the
images in `img`. A line is

    {"id": 42953, "img": "img/42953.png", "label": 0, "text": "what is written on the image"}

Reference: D. Kiela et al., "The Hateful Memes Challenge: Detecting Hate Speech in Multimodal Memes",
arXiv 2005.04790v3; as multiple choice, as in FedMLLM (arXiv 2411.14717v2).
"""

from __future__ import annotations

from fedloom.data.published_data_set import Count, RecordContext, Source, Table
from fedloom.data.record_fields import InvalidRecord, required, text, text_or_integer
from fedloom.data.record_files import Record, quoted
from fedloom.types import Example

QUESTION = "Is the content hateful?"
OPTIONS = ("not-hateful", "hateful")


def make(record: Record, context: RecordContext) -> Example:
    """Make an example of a line; see `fedloom.data.published_data_set.Make`."""
    values = record.values
    if values.get("label") is None:
        raise InvalidRecord("label is missing; this is the copy without labels")
    label = required(values, "label", text_or_integer)
    if label not in ("0", "1"):
        raise InvalidRecord(f"label is {quoted(label)}, not 0 or 1")
    answer = OPTIONS[int(label)]
    return Example(
        id=required(values, "id", text_or_integer),
        question=QUESTION,
        answer=answer,
        image=context.find_image(required(values, "img").removeprefix("img/")),
        text=text(values, "text"),
        label=int(label),
        group=answer,
        options=OPTIONS,
    )


HATEFUL_MEMES = Source(
    name="hateful-memes",
    title="Hateful-Memes: decide if a meme, an image with text on it, is hateful.",
    home=(
        "Accept the license at https://ai.meta.com/tools/hatefulmemes/ and unpack the archive. Its test file "
        "has no labels; the copy at https://www.kaggle.com/datasets/williamberrios/hateful-memes has them. "
        "The root is the folder with train.jsonl, test_seen.jsonl and img."
    ),
    tables=(
        Table("train", ("train.jsonl",), make, ("img",)),
        Table("dev", ("dev.jsonl", "dev_seen.jsonl"), make, ("img",), optional=True),
        Table("test", ("test_seen.jsonl",), make, ("img",)),
    ),
    counts=(
        Count("train", 8500),
        Count("train", 5450, "not-hateful"),
        Count("train", 3050, "hateful"),
        Count("dev", 500),
        Count("test", 1000),
    ),
)
