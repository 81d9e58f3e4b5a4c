"""SLAKE: questions in English and Chinese about radiological images.

The folder holds `train.json`, `validate.json` and `test.json`, lists of objects, and the images in `imgs`.
An object has the keys qid, img_name ("xmlab1/source.jpg"), question, answer, answer_type ("OPEN" or
"CLOSED"), q_lang ("en" or "zh") and modality ("CT", "MRI", "X-Ray"). `data.variant` is the language: "all",
"en" or "zh". The kind is the answer type, the group is the modality.

Reference: B. Liu et al., "SLAKE: A Semantically-Labeled Knowledge-Enhanced Dataset for Medical Visual
Question Answering", arXiv 2102.09542v1. FedMLLM (arXiv 2411.14717v2) tests on both languages and does not train on
it; FedVLMBench (arXiv 2506.09638) trains on it.
"""

from __future__ import annotations

from fedloom.data.published_data_set import Count, RecordContext, Source, Table
from fedloom.data.record_fields import one_of, required, text, text_or_integer
from fedloom.data.record_files import Record
from fedloom.data.vqa_rad import answer_kind, text_or_number
from fedloom.types import Example

LANGUAGES = ("en", "zh")


def make(record: Record, context: RecordContext) -> Example | None:
    """Make an example of an entry in a wanted language; see `fedloom.data.published_data_set.Make`."""
    values = record.values
    if one_of(values, "q_lang", LANGUAGES) != context.variant and context.variant in LANGUAGES:
        return None
    return Example(
        id=required(values, "qid", text_or_integer),
        question=required(values, "question"),
        answer=required(values, "answer", text_or_number),
        image=context.find_image(required(values, "img_name")),
        group=text(values, "modality"),
        task="vqa",
        kind=answer_kind(values),
    )


# By language from C. Li et al., "LLaVA-Med", arXiv 2306.00890v1 (English); Chinese is the difference.
COUNTS = (
    Count("train", 9835, variant="all"),
    Count("train", 4919, variant="en"),
    Count("train", 4916, variant="zh"),
    Count("dev", 2099, variant="all"),
    Count("dev", 1053, variant="en"),
    Count("dev", 1046, variant="zh"),
    Count("test", 2094, variant="all"),
    Count("test", 1258, "open", "all"),
    Count("test", 836, "closed", "all"),
    Count("test", 1061, variant="en"),
    Count("test", 645, "open", "en"),
    Count("test", 416, "closed", "en"),
    Count("test", 1033, variant="zh"),
    Count("test", 613, "open", "zh"),
    Count("test", 420, "closed", "zh"),
)

SLAKE = Source(
    name="slake",
    title="SLAKE: questions in English and Chinese about radiological images.",
    home=(
        "Get Slake1.0.zip from https://www.med-vqa.com/slake/ and unpack it. The root is the folder with "
        "train.json, validate.json, test.json and imgs."
    ),
    tables=(
        Table("train", ("train.json",), make, ("imgs",)),
        Table("dev", ("validate.json", "validation.json"), make, ("imgs",), optional=True),
        Table("test", ("test.json",), make, ("imgs",)),
    ),
    counts=COUNTS,
    variants=("all", *LANGUAGES),
)
