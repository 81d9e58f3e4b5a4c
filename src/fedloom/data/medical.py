"""FedMLLM's medical domain: VQA-RAD and flashcards to train, VQA-RAD or SLAKE to test on.

The folder holds what the three data sets ship, side by side: `VQA_RAD Dataset Public.json` with `images` (or
`VQA_RAD Image Folder`), `medical_meadow_wikidoc_medical_flashcards.json`, and SLAKE in `Slake1.0`.
`data.variant` says what is tested on: "vqa-rad", of the same kind as the training data, or "slake", both
languages, which no client has seen the like of. The group is the source, "vqa-rad", "flashcards" or "slake";
every training example of the first has a picture and none of the second.

Reference: B. Xu et al., "FedMLLM: Federated Fine-tuning MLLM on Multimodal Heterogeneity Data", arXiv
2411.14717v2.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fedloom.data import flashcards, slake, vqa_rad
from fedloom.data.records import Raw
from fedloom.data.source import Count, Make, Reading, Source, Table
from fedloom.types import Example


def _of(name: str, make: Make) -> Make:
    """Make examples whose id and group tell their source."""

    def marked(raw: Raw, reading: Reading) -> Example | None:
        example = make(raw, reading)
        return example and replace(example, id=f"{name}-{example.id}", group=name)

    return marked


def _train_only(record: dict[str, Any]) -> str | None:
    part = vqa_rad.part_of(record)
    return part if part == "train" else None


_RADIOLOGY = _of("vqa-rad", vqa_rad.make)
_RADIOLOGY_FOLDERS = vqa_rad.FOLDERS[::-1]

MEDICAL = Source(
    name="medical",
    title="FedMLLM's medical domain: VQA-RAD and flashcards to train, VQA-RAD or SLAKE to test on.",
    home=(
        "Put side by side: VQA_RAD Dataset Public.json and its pictures as images (https://osf.io/89kps/), "
        "medical_meadow_wikidoc_medical_flashcards.json "
        "(https://huggingface.co/datasets/medalpaca/medical_meadow_medical_flashcards), and Slake1.0 "
        "(https://www.med-vqa.com/slake/). The root is the folder with all of them."
    ),
    tables=(
        Table(vqa_rad.part_of, vqa_rad.FILES, _RADIOLOGY, _RADIOLOGY_FOLDERS, variants=("vqa-rad",)),
        Table(_train_only, vqa_rad.FILES, _RADIOLOGY, _RADIOLOGY_FOLDERS, variants=("slake",)),
        Table("train", flashcards.FILES, _of("flashcards", flashcards.make)),
        Table("test", ("Slake1.0/test.json",), _of("slake", slake.make), ("Slake1.0/imgs",), ("slake",)),
    ),
    counts=(
        Count("train", 1797 + 33955),
        *(count._replace(variant="vqa-rad") for count in vqa_rad.COUNTS if count.part == "test"),
        *(
            count._replace(variant="slake")
            for count in slake.COUNTS
            if (count.part, count.variant) == ("test", "all")
        ),
    ),
    variants=("vqa-rad", "slake"),
)
