"""CrisisMMD v2.0: classify tweets with images about disasters.

The folder holds `crisismmd_datasplit_all` with `task_humanitarian_text_img_train.tsv` and the same files for
_informative_, _damage_, _dev and _test, and the images in `data_image`. The first line
of a file names its columns: event_name, tweet_id, image_id, tweet_text, image, label, and for two of the
tasks label_text, label_image, label_text_image. Quotation marks in tweets have no special meaning.

`data.variant` is the task. The answer is the label of the image, as in FedMLLM; files of the task damage,
which was judged by images alone, may have it under `label`. Links are removed from tweets; if
nothing else is left, the example has no text. The group is the disaster.

Reference: F. Alam, F. Ofli, M. Imran, "CrisisMMD: Multimodal Twitter Datasets from Natural Disasters",
arXiv 1805.00713v1, and for the division F. Ofli, F. Alam, M. Imran, "Analysis of Social Media Data using
Multimodal Deep Learning for Disaster Response", arXiv 2004.11838v1; options in the order of FedMLLM
(arXiv 2411.14717v2).

Differs from the paper: FedMLLM's published code reads quotation marks as in CSV, so that an unpaired one
may join rows.
"""

from __future__ import annotations

import re

from fedloom.data.published_data_set import Count, RecordContext, Source, Table
from fedloom.data.record_fields import one_of, required, text
from fedloom.data.record_files import Record
from fedloom.types import Example

QUESTIONS = {
    "humanitarian": "What is the humanitarian category?",
    "informative": "Is the content informative?",
    "damage": "How severe is the damage?",
}
OPTIONS = {
    "humanitarian": (
        "affected_individuals",
        "infrastructure_and_utility_damage",
        "injured_or_dead_people",
        "missing_or_found_people",
        "rescue_volunteering_or_donation_effort",
        "vehicle_damage",
        "other_relevant_information",
        "not_humanitarian",
    ),
    "informative": ("informative", "not_informative"),
    "damage": ("severe_damage", "mild_damage", "little_or_no_damage"),
}
_TEST_COUNTS = (88, 458, 10, 3, 256, 36, 331, 1055)


def make(record: Record, context: RecordContext) -> Example:
    """Make an example of a row; see `fedloom.data.published_data_set.Make`."""
    row, options = record.values, OPTIONS[context.variant]
    column = "label" if context.variant == "damage" and "label_image" not in row else "label_image"
    answer = one_of(row, column, options)
    tweet = required(row, "tweet_text") if "tweet_text" not in row else text(row, "tweet_text")
    return Example(
        id=required(row, "image_id"),
        question=QUESTIONS[context.variant],
        answer=answer,
        image=context.find_image(required(row, "image").removeprefix("data_image/")),
        text=without_links(tweet or "") or None,
        label=options.index(answer),
        group=text(row, "event_name"),
        options=options,
    )


def without_links(tweet: str) -> str:
    """Return a tweet without links (all characters from "http" to the next white space) and surrounding space.

    Example:
        >>> without_links("Flood in the east https://t.co/a1 http://t.co/b2")
        'Flood in the east'
    """
    return re.sub(r"http\S+", "", tweet).strip()


def _table(part: str, *, optional: bool = False) -> Table:
    name = f"task_{{variant}}_text_img_{part}.tsv"
    folders = ("crisismmd_datasplit_all", "crisisMMD_datasplit_all", "crisismmd_datasplit_all/*")
    files = (*(f"{folder}/{name}" for folder in folders), name)
    return Table(part, files, make, ("data_image",), optional=optional)


_SIZES = {"humanitarian": (13608, 2237, 2237), "informative": (13608, 2237, 2237), "damage": (2468, 529, 529)}

CRISIS_MMD = Source(
    name="crisis-mmd",
    title="CrisisMMD v2.0: classify tweets with images about disasters.",
    home=(
        "Get CrisisMMD_v2.0.tar.gz and crisismmd_datasplit_all.zip from https://crisisnlp.qcri.org/crisismmd "
        "and unpack the second inside the folder of the first. The root is the folder with "
        "crisismmd_datasplit_all and data_image."
    ),
    tables=(_table("train"), _table("dev", optional=True), _table("test")),
    counts=(
        *(
            Count(part, number, variant=variant)
            for variant, numbers in _SIZES.items()
            for part, number in zip(("train", "dev", "test"), numbers, strict=True)
        ),
        *(
            Count("test", number, option, "humanitarian")
            for option, number in zip(OPTIONS["humanitarian"], _TEST_COUNTS, strict=True)
        ),
    ),
    variants=tuple(OPTIONS),
)
