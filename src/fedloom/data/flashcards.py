"""MedAlpaca's medical flashcards: questions and answers of medical students, without pictures.

The folder holds `medical_meadow_wikidoc_medical_flashcards.json`, a list of {"instruction", "input",
"output"}: input is the question, output the answer. There is no evidence besides the question, so an example
has neither picture nor text. All cards are to train; `data.test_share` of them is held out, equal questions
on one side. Cards without question or answer are skipped, which may take more than the default of
`data.max_rejected`.

Reference: T. Han et al., "MedAlpaca: An Open-Source Collection of Medical Conversational AI Models and
Training Data", arXiv 2304.08247v3; used to train by FedMLLM (arXiv 2411.14717v2).
"""

from __future__ import annotations

from fedloom.data.published_data_set import Count, Reading, Source, Table
from fedloom.data.record_fields import needed
from fedloom.data.record_files import Raw
from fedloom.types import Example

FILES = ("medical_meadow_wikidoc_medical_flashcards.json", "medical_meadow_medical_flashcards.json")


def make(raw: Raw, reading: Reading) -> Example:
    """Make an example of a card; see `fedloom.data.published_data_set.Make`."""
    del reading
    return Example(
        id=f"card-{raw.number}",
        question=needed(raw.values, "input"),
        answer=needed(raw.values, "output"),
        task="vqa",
    )


def blank(raw: Raw, reading: Reading) -> Example:
    """Make what is known of a card without question or answer; FedMLLM's draws count it."""
    del reading
    return Example(id=f"card-{raw.number}", question="", answer="", task="vqa")


COUNTS = (Count("train", 33955),)

FLASHCARDS = Source(
    name="flashcards",
    title="MedAlpaca's medical flashcards: questions and answers of medical students, without pictures.",
    home=(
        "Get medical_meadow_wikidoc_medical_flashcards.json from "
        "https://huggingface.co/datasets/medalpaca/medical_meadow_medical_flashcards. The root is its folder."
    ),
    tables=(Table("train", FILES, make, blank=blank),),
    counts=COUNTS,
)
