"""FGVC-Aircraft: classify aircraft by one of 100 variants, 70 families or 30 manufacturers.

The folder is `fgvc-aircraft-2013b`, or its `data`. It holds `images_variant_train.txt` and the same files for _family_,
_manufacturer_, _val and _test, with lines such as "1025794 707-320", `variants.txt`, `families.txt` and
`manufacturers.txt` with the classes in their order, and `images/1025794.jpg`. `data.variant` is the level.
The owners' parts train and val are both trained on, unless `data.validation` is published; then val is the validation
part. The group is the class.

Reference: S. Maji et al., "Fine-Grained Visual Classification of Aircraft", arXiv 1306.5151v1; used by
FedVLMBench (arXiv 2506.09638).

Differs from the paper: questions are multiple choice, where FedVLMBench asks for free text. The owners advise to
cut off the 20 pixels at the bottom that name the photographer; fedloom does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fedloom.data.published_data_set import Count, RecordContext, Source, Table
from fedloom.data.record_fields import one_of
from fedloom.data.record_files import Record, read_lines
from fedloom.types import Example, Rejected

QUESTIONS = {
    "variant": "Which variant of aircraft is shown?",
    "family": "Which family of aircraft is shown?",
    "manufacturer": "Which manufacturer made the aircraft?",
}
_CLASSES = {"variant": "variants.txt", "family": "families.txt", "manufacturer": "manufacturers.txt"}


def read(path: Path, name: str) -> Iterator[Record | Rejected]:
    """Yield the lines of a list of images, each with all classes of its level.

    Raises:
        UserError: The list of classes is missing, or a file is not UTF-8 text.
    """
    classes = read_lines(path.with_name(_CLASSES[path.name.split("_")[1]]))
    for number, line in enumerate(read_lines(path), 1):
        if line:
            image, _, label = line.partition(" ")
            yield Record(
                name, "line", number, {"image": image, "class": label.strip(), "classes": tuple(classes)}
            )


def make(record: Record, context: RecordContext) -> Example:
    """Make an example of a line; see `fedloom.data.published_data_set.Make`."""
    options = tuple(filter(None, record.values["classes"]))
    answer = one_of(record.values, "class", options)
    image = record.values["image"]
    return Example(
        id=image,
        question=QUESTIONS[context.variant],
        answer=answer,
        image=context.find_image(f"{image}.jpg"),
        label=options.index(answer),
        group=answer,
        options=options,
    )


def _table(part: str, file: str, *, dev: bool = False) -> Table:
    name = f"images_{{variant}}_{file}.txt"
    return Table(part, (f"data/{name}", name), make, ("data/images", "images"), read=read, dev=dev)


AIRCRAFT = Source(
    name="fgvc-aircraft",
    title="FGVC-Aircraft: which aircraft is shown, by variant, family or manufacturer.",
    home=(
        "Get fgvc-aircraft-2013b.tar.gz from https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/ and unpack "
        "it. The root is the folder fgvc-aircraft-2013b."
    ),
    tables=(_table("train", "train"), _table("train", "val", dev=True), _table("test", "test")),
    counts=(Count("train", 6667), Count("test", 3333)),
    variants=tuple(QUESTIONS),
)
