"""FedMLLM's medical domain: training on VQA-RAD and flashcards, test on VQA-RAD or SLAKE.

The folder holds the files of the three data sets side by side: `VQA_RAD Dataset Public.json` with `images` (or
`VQA_RAD Image Folder`), `medical_meadow_wikidoc_medical_flashcards.json`, and SLAKE in `Slake1.0`.
`data.variant` is the test set: "vqa-rad", of the same kind as the training data, or "slake" in both
languages, which is unlike any training data. The group is the source, "vqa-rad", "flashcards" or "slake";
every training example of VQA-RAD has an image, and no flashcard has one.

Reference: B. Xu et al., "FedMLLM: Federated Fine-tuning MLLM on Multimodal Heterogeneity Data", arXiv
2411.14717v2.
"""

from __future__ import annotations

from fedloom.data.flashcards import FLASHCARDS
from fedloom.data.joined_data_sets import tables_below
from fedloom.data.published_data_set import Count, Source
from fedloom.data.slake import SLAKE
from fedloom.data.vqa_rad import VQA_RAD

MEDICAL = Source(
    name="medical",
    title="FedMLLM's medical domain: training on VQA-RAD and flashcards, test on VQA-RAD or SLAKE.",
    home=(
        "Put side by side: VQA_RAD Dataset Public.json and its images in the folder images (https://osf.io/89kps/), "
        "medical_meadow_wikidoc_medical_flashcards.json "
        "(https://huggingface.co/datasets/medalpaca/medical_meadow_medical_flashcards), and Slake1.0 "
        "(https://www.med-vqa.com/slake/). The root is the folder with all of them."
    ),
    tables=(
        *tables_below(VQA_RAD, ".", variants=("vqa-rad",)),
        *tables_below(VQA_RAD, ".", parts=("train",), variants=("slake",)),
        *tables_below(FLASHCARDS, "."),
        *tables_below(SLAKE, "Slake1.0", parts=("test",), variants=("slake",)),
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
