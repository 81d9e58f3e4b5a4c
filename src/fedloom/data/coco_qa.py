"""COCO-QA: questions about COCO's photographs with an answer of one word.

The folder holds `train` and `test`, each with `questions.txt`, `answers.txt`, `types.txt` and `img_ids.txt`,
whose lines of one number belong together; and COCO's images of 2014 in `train2014` and `val2014`. A type is 0 to 3
for object, number, color or location; it is the kind and the group.

Reference: M. Ren, R. Kiros, R. Zemel, "Exploring Models and Data for Image Question Answering", arXiv
1505.02074v4; used by FedVLMBench (arXiv 2506.09638).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePath

from fedloom.data.images import FileImage
from fedloom.data.published_data_set import Count, RecordContext, Source, Table
from fedloom.data.record_fields import InvalidRecord, one_of, required
from fedloom.data.record_files import Record, quoted, read_lines
from fedloom.system.errors import UserError
from fedloom.types import Example, Rejected

TYPES = ("object", "number", "color", "location")
DIGITS = 12
"""Digits of the number in the name of one of COCO's photographs."""

COLUMNS = ("questions", "answers", "types", "img_ids")


def read(path: Path, name: str) -> Iterator[Record | Rejected]:
    """Yield one record for the lines of one number.

    Args:
        path: The file of questions; the other files are in the same folder.
        name: The name of the file in messages.

    Raises:
        UserError: One of the files is missing, is not UTF-8 text, or has another number of lines.
    """
    columns = [read_lines(path.with_name(f"{column}.txt")) for column in COLUMNS]
    if len(set(map(len, columns))) > 1:
        lengths = ", ".join(f"{name} {len(lines):,}" for name, lines in zip(COLUMNS, columns, strict=True))
        raise UserError(f"{path.parent}: the files differ in their number of lines ({lengths})")
    for number, cells in enumerate(zip(*columns, strict=True), 1):
        yield Record(name, "line", number, dict(zip(COLUMNS, cells, strict=True)))


def make(record: Record, context: RecordContext) -> Example:
    """Make an example of a line; see `fedloom.data.published_data_set.Make`."""
    values = record.values
    kind = TYPES[int(one_of(values, "types", tuple(map(str, range(len(TYPES))))))]
    return Example(
        id=f"{PurePath(record.file).parent.name}-{record.number}",
        question=required(values, "questions"),
        answer=required(values, "answers"),
        image=_photograph(required(values, "img_ids"), context),
        group=kind,
        task="vqa",
        kind=kind,
    )


def _photograph(number: str, context: RecordContext) -> FileImage:
    """Find a photograph by its number, which may belong to train or to val."""
    if not number.isdecimal() or len(number) > DIGITS:
        raise InvalidRecord(f"img_ids is {quoted(number)}, not a number of at most {DIGITS} digits")
    names = [f"COCO_{split}2014_{int(number):0{DIGITS}}.jpg" for split in ("train", "val")]
    try:
        return context.find_image(names[0])
    except InvalidRecord:
        return context.find_image(names[1])


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
