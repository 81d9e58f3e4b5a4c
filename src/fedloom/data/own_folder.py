"""Load the user's own data: a folder with records and images, or with images by class (`fedloom.data.class_folders`).

A folder of records (`data.root`) holds the files `train` and `test`, or `data`, or one file of any name, and optionally
`validation`. They end in `.jsonl`, which is preferred, `.json`, `.csv` or `.tsv`. Hidden files do not count. Files that would be left
out (`data` with `train`, `test` or `val`, or two of one name) are refused. A `.jsonl` file has one object per line:

    {"question": "Is there a fracture?", "answer": "no", "image": "scans/17.png", "text": "Fell from a bike."}

`question` and `answer` are required, and at least one of `image` (a PNG, JPEG or WebP file, relative to the
folder) and `text`. Optional: `options` (list of possible answers), `group` (a site or a topic, for partitions;
text or whole number), `id` (text or whole number), `split` ("train", "validation" or "test"). Absent, null
and empty mean the same. Other keys are ignored, unless one looks like a misspelled key that is absent.

A `.json` file is a list of such objects; a table has a column for each key, with options separated by "|". JSON may also hold conversations as LLaVA, ShareGPT, LLaMA-Factory,
ms-swift or OpenAI-style trainers keep them; see `fedloom.data.conversations`:

    [{"id": "17", "image": "scans/17.png", "conversations": [
        {"from": "human", "value": "<image>\\nIs there a fracture?"}, {"from": "gpt", "value": "no"}]}]

Each answer of a conversation becomes an example with the turns before it. Its id is "17", or "17#1", "17#2" … if there
are several. A conversation may have neither image nor text.

**Ids** need not be unique, because in LLaVA's files they name images. If an id was used before, the record's file and number
are added to it ("17@data.json:5").

**Answers.** A record with `options` is multiple choice, and its label is the position of the answer. If no record
of the data set has options and there are 2 to 50 distinct answers, the sorted answers become the options of every record.
Any other record has a free answer: its task is "vqa" and its label None. Answers and options that differ only in
case, white space or Unicode form are the same. An answer takes the spelling of its option, or else the most frequent one.

**Division.** The files train and test decide; else the records' `split`, which every record then needs;
else `data.test_share` of the records is drawn as the test set, with similar answers and without near-duplicates of
training records. Near-duplicates have the same image (equal pixels in any file) or, without an image, the same text or,
without both, the same question. If files or `split` decide, a test record whose image is also in the training set is
skipped, since its score would mean nothing; repeated texts and questions are kept, and `fedloom data check` names them.

**Validation.** Records of the file `validation`, and those whose `split` is "validation", are read only if
`data.validation` is "published". They do not affect the training and test sets: their answers add no options, and a record
whose image is in one of these sets, or whose answer is not among the options of all records, is skipped.

**Invalid records** are skipped with file, line and reason, and the others are used. A record with a question but without
image and text is invalid too, since a benchmark of modalities cannot use it; put the information into `text`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedloom.data.class_folders import class_parts, class_records, is_class_folder, require_several_classes
from fedloom.data.duplicates import content_keys, normalized_text, pixel_key
from fedloom.data.loading import divide
from fedloom.data.record_examples import examples_of_record
from fedloom.data.record_fields import FindAnyImage, InvalidRecord, image_finder, is_utf8, text
from fedloom.data.record_files import Record, quoted, read_records
from fedloom.data.record_folder import SPLITS, VALIDATION, record_files
from fedloom.system.errors import UserError
from fedloom.types import DataSet, Example, LazyImage, Rejected

if TYPE_CHECKING:
    from fedloom.config.schema import Data

MAX_CLOSED = 50
"""Maximum number of distinct answers that become the options of all records."""


@dataclass(frozen=True, slots=True)
class _Row:
    """An example with its record and the part that file or record gives; None if neither does."""

    record: Record
    example: Example
    split: str | None


def load_folder(settings: Data, seed: int) -> DataSet:
    """Load the user's folder as described in this module's docstring.

    Args:
        settings: `root`, `test_share` and `validation` are used.
        seed: Seed of the division, if neither files nor records decide it.

    Raises:
        UserError: There is no folder or no file of records, the choice of files is ambiguous, a `.json` file cannot be
            parsed, or the validation set that the settings ask for is missing.
    """
    if settings.root is None:
        raise UserError("data.root: the data set folder needs the path of a folder with your records")
    root, published = Path(settings.root), settings.validation == "published"
    if published and not folder_has_validation(root):
        raise UserError(
            f"data.validation is published, but {root} holds no validation.jsonl, no record with the split "
            f"{VALIDATION}, and no folder {VALIDATION} of classes; add one, or give a share of the training examples, such as 0.1"
        )
    if _holds_classes(root):
        require_several_classes(root)
    return _data_set(*_records_and_images(root, validation=published), settings, seed)


def folder_examples(root: Path) -> tuple[list[Example], list[Rejected]]:
    """Return the examples of all records of a folder, whatever their parts, and the invalid records.

    Raises:
        UserError: The folder cannot be read, as in `load_folder`.
    """
    return _undivided(*_records_and_images(root, validation=True))


def _records_and_images(
    root: Path, *, validation: bool
) -> tuple[Iterator[tuple[str | None, Record | Rejected]], FindAnyImage]:
    """Return the records of a folder with the parts that files give, or None, and the function that finds their images."""
    if _holds_classes(root):
        images = dict[str, LazyImage]()
        found = class_records(root, images, validation=validation)
        return ((None, record) for record in found), images.__getitem__
    files = record_files(root, validation=validation)
    return ((split, record) for split, path in files for record in read_records(path)), image_finder(root)


def require_utf8(folder: Path) -> None:
    """Refuse the path of a folder that `data.root` cannot hold, because recipes and results are UTF-8 text.

    Raises:
        UserError: The path is not UTF-8.
    """
    if not is_utf8(str(folder)):
        shown = os.fsencode(folder).decode(errors="backslashreplace")
        raise UserError(f"data.root: the path {shown} is not UTF-8 text; rename the folder")


def load_records(
    records: Iterable[Record | Rejected], find_image: FindAnyImage, settings: Data, seed: int
) -> DataSet:
    """Load records from anywhere as those of a folder; see this module's docstring.

    Args:
        records: The records, and those that could not be read.
        find_image: Name of an image in a record → the image.
        settings: `test_share` and `validation` are used.
        seed: Seed of the division, if the records do not decide it.
    """
    return _data_set(((None, record) for record in records), find_image, settings, seed)


def undivided_examples(
    records: Iterable[Record | Rejected], find_image: FindAnyImage
) -> tuple[list[Example], list[Rejected]]:
    """Return the examples of all records in their order, whatever their splits, and the invalid records."""
    return _undivided(((None, record) for record in records), find_image)


def _undivided(
    records: Iterable[tuple[str | None, Record | Rejected]], find_image: FindAnyImage
) -> tuple[list[Example], list[Rejected]]:
    rows, rejected = _read_rows(records, find_image, (None, *SPLITS, VALIDATION))
    ids = set[str]()
    named = [_with_unique_id(row, ids) for row in rows]
    spelling = _common_options(named)
    return [_with_options(row, spelling).example for row in named], rejected


def _data_set(
    records: Iterable[tuple[str | None, Record | Rejected]],
    find_image: FindAnyImage,
    settings: Data,
    seed: int,
) -> DataSet:
    """Return the data set of records, each with the part that its file gives, or None."""
    splits = (None, *SPLITS, *([VALIDATION] if settings.validation == "published" else []))
    rows, rejected = _read_rows(records, find_image, splits)
    ids = set[str]()
    divisible, validation_rows = (
        [_with_unique_id(row, ids) for row in part] for part in _without_validation(rows)
    )
    spelling = _common_options(divisible)
    divisible = [_with_options(row, spelling) for row in divisible]
    train, test, repeated = _divide(divisible, settings.test_share, seed)
    validation, unusable = _validation(validation_rows, spelling, {"training": train, "test": test})
    return DataSet("folder", train, test, (*rejected, *repeated, *unusable), validation=validation)


def _read_rows(
    records: Iterable[tuple[str | None, Record | Rejected]],
    find_image: FindAnyImage,
    splits: Sequence[str | None],
) -> tuple[list[_Row], list[Rejected]]:
    """Return the rows of records whose split is among `splits`, and the invalid records."""
    rows: list[_Row] = []
    rejected: list[Rejected] = []
    for split, record in records:
        result = _rows(record, split, find_image, splits) if isinstance(record, Record) else record
        if isinstance(result, Rejected):
            rejected.append(result)
        else:
            rows += result
    return rows, rejected


def folder_has_validation(root: Path) -> bool:
    """Return whether a folder holds a validation set: the file, a record with that split, or a folder of classes.

    Raises:
        UserError: The folder cannot be read, as in `load_folder`.
    """
    if _holds_classes(root):
        return any(split == VALIDATION for split, _ in class_parts(root, validation=True))
    files = record_files(root, validation=True)
    records = (record for split, path in files if split is None for record in read_records(path))
    return any(split == VALIDATION for split, _ in files) or any(
        isinstance(record, Record) and str(record.values.get("split")).strip() == VALIDATION
        for record in records
    )


def _holds_classes(root: Path) -> bool:
    if not root.is_dir():
        raise UserError(f"data.root: {root} is not a folder")
    return is_class_folder(root)


def _without_validation(rows: Sequence[_Row]) -> tuple[list[_Row], list[_Row]]:
    """Return the rows for training and test, and those of the validation set."""
    return [row for row in rows if row.split != VALIDATION], [row for row in rows if row.split == VALIDATION]


def _divide(
    rows: list[_Row], share: float, seed: int
) -> tuple[tuple[Example, ...], tuple[Example, ...], list[Rejected]]:
    """Divide rows into train and test, by their splits or by a draw, and return invalid records as the third value."""
    if any(row.split for row in rows):
        rows, rejected = _checked_splits(rows)
        train, test = (tuple(row.example for row in rows if row.split == split) for split in SPLITS)
        return train, test, rejected
    examples = [row.example for row in rows]
    # Answers of one conversation stay together, with or without an image.
    keys = [
        (*own, ("conversation", row.record.file, row.record.number))
        for own, row in zip(content_keys(examples), rows, strict=True)
    ]
    return *divide(examples, keys, share, seed), []


def _rows(
    record: Record, split: str | None, find_image: FindAnyImage, splits: Sequence[str | None]
) -> list[_Row] | Rejected:
    """Return the examples of a record, none if its split is not among `splits`."""
    try:
        own = split or text(record.values, "split")
        if own not in (None, *SPLITS, VALIDATION):
            raise InvalidRecord(f'split is {quoted(own)}, not "train", "{VALIDATION}" or "test"')
        if own not in splits:
            return []
        examples = examples_of_record(record, find_image)
    except InvalidRecord as reason:
        return record.rejected(str(reason))
    return [_Row(record, example, own) for example in examples]


def _with_unique_id(row: _Row, ids: set[str]) -> _Row:
    """Return a row whose id was not used before, and add that id to `ids`."""
    example = row.example
    name = example.id if example.id not in ids else f"{example.id}@{row.record.file}:{row.record.number}"
    while name in ids:
        name += "'"
    ids.add(name)
    return row if name == example.id else replace(row, example=replace(example, id=name))


def _common_options(rows: Sequence[_Row]) -> dict[str, str]:
    """Return normalized text → spelling of the options of all rows.

    They are the distinct answers, if these are few and no row has options of its own; else there are none.
    """
    spelling = _spellings([row.example.answer for row in rows])
    if not 2 <= len(spelling) <= MAX_CLOSED or any(row.example.options for row in rows):
        return {}
    return spelling


def _with_options(row: _Row, spelling: Mapping[str, str]) -> _Row:
    """Return a row with the options of all rows, if there are any."""
    if not spelling:
        return row
    options, answer = tuple(sorted(spelling.values())), spelling[normalized_text(row.example.answer)]
    group = row.example.group or answer
    label = options.index(answer)
    example = replace(row.example, answer=answer, options=options, label=label, group=group, task="choice")
    return replace(row, example=example)


def _spellings(answers: Sequence[str]) -> dict[str, str]:
    """Return normalized text → the most frequent spelling of each answer, of equally frequent ones the first in order."""
    counts: dict[str, Counter[str]] = {}
    for answer in answers:
        counts.setdefault(normalized_text(answer), Counter())[answer] += 1
    return {
        normalized: min(sorted(count), key=lambda spelling: -count[spelling])
        for normalized, count in counts.items()
    }


def _checked_splits(rows: list[_Row]) -> tuple[list[_Row], list[Rejected]]:
    """Split rows into valid and rejected.

    Rows without a split are rejected, and test rows whose image is also in the training set.
    """
    keys = [{pixel_key(image) for image in row.example.pictures} for row in rows]
    trained = set().union(*(own for own, row in zip(keys, rows, strict=True) if row.split == "train"))
    kept: list[_Row] = []
    rejected: list[Rejected] = []
    for own, row in zip(keys, rows, strict=True):
        if row.split is None:
            rejected.append(row.record.rejected("split is missing, though other records have one"))
        elif row.split == "test" and own & trained:
            rejected.append(row.record.rejected("its image is also in the training set"))
        else:
            kept.append(row)
    return kept, rejected


def _validation(
    rows: Sequence[_Row], spelling: Mapping[str, str], parts: Mapping[str, Sequence[Example]]
) -> tuple[tuple[Example, ...], list[Rejected]]:
    """Return the validation examples and the rejected rows.

    Rejected are rows whose image is in the training or test set, or whose answer is not one of the options.
    """
    keys = {
        part: {pixel_key(image) for example in examples for image in example.pictures}
        for part, examples in parts.items()
    }
    kept: list[Example] = []
    rejected: list[Rejected] = []
    for row in rows:
        own, answer = {pixel_key(image) for image in row.example.pictures}, row.example.answer
        shared = next((part for part in parts if own & keys[part]), None)
        if shared is not None:
            rejected.append(row.record.rejected(f"its image is also in the {shared} set"))
        elif row.example.options or not spelling:
            kept.append(row.example)
        elif normalized_text(answer) not in spelling:
            reason = f"its answer {quoted(answer)} does not occur in the training and test sets"
            rejected.append(row.record.rejected(reason))
        else:
            kept.append(_with_options(row, spelling).example)
    return tuple(kept), rejected
