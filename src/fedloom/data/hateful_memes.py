"""Hateful-Memes: whether a meme, a picture with text on it, is hateful.

The folder holds `train.jsonl`, `dev.jsonl` or `dev_seen.jsonl`, `test_seen.jsonl` with labels, and the
pictures in `img`. A line is

    {"id": 42953, "img": "img/42953.png", "label": 0, "text": "what is written on the picture"}

Reference: D. Kiela et al., "The Hateful Memes Challenge: Detecting Hate Speech in Multimodal Memes",
arXiv 2005.04790v3; posed as multiple choice like FedMLLM (arXiv 2411.14717v2).
"""

from __future__ import annotations

from fedloom.data.published_data_set import Count, Reading, Source, Table
from fedloom.data.record_fields import Bad, needed, text, word
from fedloom.data.record_files import Raw, shown
from fedloom.types import Example

QUESTION = "Is the content hateful?"
OPTIONS = ("not-hateful", "hateful")


def make(raw: Raw, reading: Reading) -> Example:
    """Make an example of a line; see `fedloom.data.published_data_set.Make`."""
    record = raw.values
    if record.get("label") is None:
        raise Bad("label is missing; this is the copy without labels")
    label = needed(record, "label", word)
    if label not in ("0", "1"):
        raise Bad(f"label is {shown(label)}, not 0 or 1")
    answer = OPTIONS[int(label)]
    return Example(
        id=needed(record, "id", word),
        question=QUESTION,
        answer=answer,
        image=reading.picture(needed(record, "img").removeprefix("img/")),
        text=text(record, "text"),
        label=int(label),
        group=answer,
        options=OPTIONS,
    )


HATEFUL_MEMES = Source(
    name="hateful-memes",
    title="Hateful-Memes: whether a meme, a picture with text on it, is hateful.",
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
