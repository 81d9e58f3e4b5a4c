"""MedAlpaca's medical flashcards: questions and answers of medical students, without images.

The folder holds `medical_meadow_wikidoc_medical_flashcards.json`, a list of {"instruction", "input",
"output"}: input is the question, output the answer. An example has neither image nor text. The owners
ship a training set only; `data.test_share` of it is held out, with equal questions in one part. Cards without
question or answer are skipped, which may require a `data.max_rejected` above its default.

Reference: T. Han et al., "MedAlpaca: An Open-Source Collection of Medical Conversational AI Models and
Training Data", arXiv 2304.08247v3; used for training by FedMLLM (arXiv 2411.14717v2).
"""

from __future__ import annotations

from fedloom.data.published_data_set import Count, RecordContext, Source, Table
from fedloom.data.record_fields import required
from fedloom.data.record_files import Record
from fedloom.types import Example

FILES = ("medical_meadow_wikidoc_medical_flashcards.json", "medical_meadow_medical_flashcards.json")


def make(record: Record, context: RecordContext) -> Example:
    """Make an example of a card; see `fedloom.data.published_data_set.Make`."""
    del context
    return Example(
        id=f"card-{record.number}",
        question=required(record.values, "input"),
        answer=required(record.values, "output"),
        task="vqa",
    )


def make_placeholder(record: Record, context: RecordContext) -> Example:
    """Make a placeholder of a card without question or answer, which FedMLLM's draws count."""
    del context
    return Example(id=f"card-{record.number}", question="", answer="", task="vqa")


COUNTS = (Count("train", 33955),)

FLASHCARDS = Source(
    name="flashcards",
    title="MedAlpaca's medical flashcards: questions and answers of medical students, without images.",
    home=(
        "Get medical_meadow_wikidoc_medical_flashcards.json from "
        "https://huggingface.co/datasets/medalpaca/medical_meadow_medical_flashcards. The root is its folder."
    ),
    tables=(Table("train", FILES, make, make_placeholder=make_placeholder),),
    counts=COUNTS,
)
