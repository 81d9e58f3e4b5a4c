"""FedVLMBench's two multi-task settings, rebuilt from the published data sets that they consist of.

`nature`: COCO captions, RefCOCO and COCO-QA over the same photographs. The folder holds `annotations`,
`train2014` and `val2014` of COCO, `refs(unc).json` and `instances.json` of RefCOCO in `refcoco`, and the
folders `train` and `test` of COCO-QA in `cocoqa`. The group is the task: "caption", "grounding" or "vqa".

`radiology`: the questions of SLAKE in English and of VQA-RAD, and the reports of MIMIC-CXR, in the folders
`slake`, `vqa-rad` and `mimic-cxr`. The group is "vqa" or "report".

The partition by_group with as many clients as groups gives each client one task.

Reference: "FedVLMBench: Benchmarking Federated Fine-Tuning of Vision-Language Models", arXiv 2506.09638.

Differs from the paper: all examples are used, where FedVLMBench takes some thousands of each and does not say
which. Its classification client of Fed-Nature and its RadGenome-ChestCT client of Fed-Med (slices of volumes)
cannot be rebuilt from published data; `fedvlmbench-prepared` reads them from its own files.
"""

from __future__ import annotations

from dataclasses import replace

from fedloom.data.coco import COCO
from fedloom.data.coco_qa import COCO_QA
from fedloom.data.joined_data_sets import tables_below
from fedloom.data.mimic_cxr import MIMIC_CXR
from fedloom.data.published_data_set import Source
from fedloom.data.refcoco import REFCOCO
from fedloom.data.slake import SLAKE
from fedloom.data.vqa_rad import VQA_RAD

# All three use COCO's photographs, which are at the root.
_REFCOCO = replace(
    REFCOCO, tables=tuple(replace(table, image_folders=("../train2014",)) for table in REFCOCO.tables)
)
_COCO_QA = replace(
    COCO_QA,
    tables=tuple(replace(table, image_folders=("../train2014", "../val2014")) for table in COCO_QA.tables),
)

NATURE = Source(
    name="nature",
    title="FedVLMBench's Fed-Nature from its sources: captions, grounding and questions on COCO.",
    home=(
        "Unpack side by side train2014, val2014 and annotations of https://cocodataset.org/#download, "
        "RefCOCO in refcoco (see `fedloom data check refcoco`) and COCO-QA in cocoqa (see `fedloom data check "
        "coco-qa`). The root is the folder with all of them."
    ),
    tables=(
        *tables_below(COCO, ".", group="caption", variant="2014"),
        *tables_below(_REFCOCO, "refcoco", group="grounding"),
        *tables_below(_COCO_QA, "cocoqa", group="vqa"),
    ),
)

RADIOLOGY = Source(
    name="radiology",
    title="FedVLMBench's Fed-Med from its sources: SLAKE and VQA-RAD questions, MIMIC-CXR reports.",
    home=(
        "Put SLAKE in slake, VQA-RAD in vqa-rad and MIMIC-CXR in mimic-cxr; `fedloom data check` of each "
        "says where to get it, MIMIC-CXR at https://physionet.org. The root is the folder with the three."
    ),
    tables=(
        *tables_below(SLAKE, "slake", group="vqa", variant="en"),
        *tables_below(VQA_RAD, "vqa-rad", group="vqa"),
        *tables_below(MIMIC_CXR, "mimic-cxr", group="report"),
    ),
)
