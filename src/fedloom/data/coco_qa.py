"""COCO-QA: questions about COCO's photographs with an answer of one word.

The folder holds `train` and `test`, each with `questions.txt`, `answers.txt`, `types.txt` and `img_ids.txt`,
of which line n belongs together; and COCO's pictures of 2014 in `train2014` and `val2014`. A type is 0 to 3
for object, number, color or location; it is the kind and the group.

Reference: M. Ren, R. Kiros, R. Zemel, "Exploring Models and Data for Image Question Answering", arXiv
1505.02074v4; used by FedVLMBench (arXiv 2506.09638).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePath

from fedloom.data.images import FileImage
from fedloom.data.published_data_set import Count, Reading, Source, Table
from fedloom.data.record_fields import Bad, needed, one_of
from fedloom.data.record_files import Raw, read_lines
from fedloom.system.errors import UserError
from fedloom.types import Example, Rejected

TYPES = ("object", "number", "color", "location")
COLUMNS = ("questions", "answers", "types", "img_ids")


def read(path: Path, name: str) -> Iterator[Raw | Rejected]:
    """Yield the lines that belong together.

    Args:
        path: The file of questions; the others lie beside it.
        name: What to call it in messages.

    Raises:
        UserError: One of the files is missing, not UTF-8 text, or of another length.
    """
    columns = [read_lines(path.with_name(f"{column}.txt")) for column in COLUMNS]
    if len(set(map(len, columns))) > 1:
        told = ", ".join(f"{name} {len(lines):,}" for name, lines in zip(COLUMNS, columns, strict=True))
        raise UserError(f"{path.parent}: the files differ in their number of lines ({told})")
    for number, cells in enumerate(zip(*columns, strict=True), 1):
        yield Raw(name, "line", number, dict(zip(COLUMNS, cells, strict=True)))


def make(raw: Raw, reading: Reading) -> Example:
    """Make an example of a line; see `fedloom.data.published_data_set.Make`."""
    record = raw.values
    kind = TYPES[int(one_of(record, "types", tuple(map(str, range(len(TYPES))))))]
    return Example(
        id=f"{PurePath(raw.file).parent.name}-{raw.number}",
        question=needed(record, "questions"),
        answer=needed(record, "answers"),
        image=_photograph(needed(record, "img_ids"), reading),
        group=kind,
        task="vqa",
        kind=kind,
    )


def _photograph(number: str, reading: Reading) -> FileImage:
    """Find a photograph by its number, which does not tell whether it is one of train or of val."""
    if not number.isdecimal():
        raise Bad(f"img_ids is {number!r}, not a number")
    names = [f"COCO_{split}2014_{int(number):012}.jpg" for split in ("train", "val")]
    try:
        return reading.picture(names[0])
    except Bad:
        return reading.picture(names[1])


def _table(part: str) -> Table:
    files = (
        f"{part}/questions.txt",
        f"cocoqa/{part}/questions.txt",
        f"cocoqa-2015-05-17/{part}/questions.txt",
    )
    return Table(part, files, make, ("train2014", "val2014"), read=read)


COCO_QA = Source(
    name="coco-qa",
    title="COCO-QA: questions about COCO's photographs with an answer of one word.",
    home=(
        "Get cocoqa-2015-05-17.zip from https://www.cs.toronto.edu/~mren/research/imageqa/data/cocoqa/ "
        "and the images train2014 and val2014 from https://cocodataset.org/#download. The root is the folder "
        "with train, test, train2014 and val2014."
    ),
    tables=(_table("train"), _table("test")),
    counts=(Count("train", 78736), Count("test", 38948)),
)
