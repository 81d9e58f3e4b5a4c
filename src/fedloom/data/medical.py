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

from fedloom.data.flashcards import FLASHCARDS
from fedloom.data.joined_data_sets import below
from fedloom.data.published_data_set import Count, Source
from fedloom.data.slake import SLAKE
from fedloom.data.vqa_rad import VQA_RAD

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
        *below(VQA_RAD, ".", variants=("vqa-rad",)),
        *below(VQA_RAD, ".", parts=("train",), variants=("slake",)),
        *below(FLASHCARDS, "."),
        *below(SLAKE, "Slake1.0", parts=("test",), variants=("slake",)),
    ),
    counts=(
        Count("train", 1797 + 33955),
        *(count._replace(variant="vqa-rad") for count in VQA_RAD.counts if count.part == "test"),
        *(
            count._replace(variant="slake")
            for count in SLAKE.counts
            if (count.part, count.variant) == ("test", "all")
        ),
    ),
    variants=("vqa-rad", "slake"),
)
