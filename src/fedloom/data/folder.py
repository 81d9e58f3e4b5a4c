"""The user's own data: a folder with records and pictures.

The folder (`data.root`) holds `train` and `test`, or `data`, or one file of any name; `.jsonl` is looked
for before `.json`. A `.jsonl` file has one object a line:

    {"question": "Is there a fracture?", "answer": "no", "image": "scans/17.png", "text": "Fell from a bike."}

`question` and `answer` are needed, and at least one of `image` (a PNG, JPEG or WebP file, relative to the
folder) and `text`. Optional: `options` (list of possible answers), `group` (what partitions go by: a site,
a topic; text or whole number), `id` (likewise; unique), `split` ("train" or "test"). Absent, null and
empty mean the same; other keys are ignored.

A `.json` file is a list of such objects, or of LLaVA-style ones, or both:

    [{"id": "17", "image": "scans/17.png", "conversations": [
        {"from": "human", "value": "<image>\\nIs there a fracture?"}, {"from": "gpt", "value": "no"}]}]

Each pair of turns becomes one example that stands alone, with id "17", or "17#1", "17#2" … where there are
several; "<image>" marks are taken out of the text.

**Answers.** A record with `options` is multiple choice, its label the position of the answer. If no record
of the data set has options and there are 2 to 50 distinct answers, those, sorted, are everybody's options.
Any other record has a free answer: task "vqa", label None.

**Division.** Files named train and test decide; else the records' `split`, which then every record needs;
else `data.test_share` of the records is drawn, alike in answers, records with the same picture on one side.
A test record whose picture (byte for byte) is also in the training part is set aside: scores on it would
tell nothing.

**Bad records** are set aside with file, line and reason, and the others are used. A question with neither
picture nor text is bad too: a benchmark of modalities has no place for it; put what there is into `text`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedloom.data.base import DataSettings, divide
from fedloom.data.fields import Bad, Locate, locator, needed, text, word
from fedloom.data.records import Raw, kind, read_records, shown
from fedloom.types import DataSet, Example, Rejected, UserError

MAX_CLOSED = 50
"""Up to this many distinct answers are taken for the options of a closed question."""

SUFFIXES = (".jsonl", ".json")
SPLITS = ("train", "test")


@dataclass(frozen=True, slots=True)
class _Row:
    """An accepted record, where it stood, and which part it says it belongs to."""

    raw: Raw
    example: Example
    split: str | None


def load_folder(settings: DataSettings, seed: int) -> DataSet:
    """Load the user's folder as this module's docstring describes.

    Args:
        settings: `root` and `test_share` are read.
        seed: Decides the division where neither files nor records do.

    Raises:
        UserError: There is no folder, no file of records, more than one to choose from, or a `.json` file
            that cannot be parsed.
    """
    if settings.root is None:
        raise UserError("data.root: the data set folder needs the path of a folder with your records")
    root = Path(settings.root)
    rows: list[_Row] = []
    rejected: list[Rejected] = []
    locate, ids = locator(root), dict[str, Raw]()
    for split, path in _files(root):
        for record in read_records(path):
            for raw in _pairs(record) if isinstance(record, Raw) else [record]:
                row = _row(raw, split, locate, ids) if isinstance(raw, Raw) else raw
                rows.append(row) if isinstance(row, _Row) else rejected.append(row)
    rows = _with_options(rows)
    if any(row.split for row in rows):
        rows, late = _checked_splits(rows)
        rejected += late
        train, test = (tuple(row.example for row in rows if row.split == split) for split in SPLITS)
    else:
        twins = [(row.example.image.key,) if row.example.image else () for row in rows]
        train, test = divide([row.example for row in rows], twins, settings.test_share, seed)
    return DataSet("folder", train, test, tuple(rejected))


def _files(root: Path) -> list[tuple[str | None, Path]]:
    """Find the files of records, each with the split it stands for."""
    if not root.is_dir():
        raise UserError(f"data.root: {root} is not a folder")
    for suffix in SUFFIXES:
        both = [(split, root / f"{split}{suffix}") for split in SPLITS]
        if all(path.is_file() for _, path in both):
            return [*both]
        found = sorted(path for path in root.glob(f"*{suffix}") if path.is_file())
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            found = [path for path in found if path.stem == "data"]
            if not found:
                raise UserError(
                    f"data.root: {root} holds {names}; name one data{suffix}, or two train and test"
                )
        if found:
            return [(None, found[0])]
    raise UserError(f"data.root: {root} holds no file of records (data.jsonl, or train.jsonl and test.jsonl)")


def _pairs(raw: Raw) -> Iterator[Raw | Rejected]:
    """Turn a LLaVA-style record into one record for each pair of turns; yield any other as it is."""
    if "conversations" not in raw.values:
        yield raw
        return
    turns = raw.values["conversations"]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        yield raw.rejected("conversations is not a list of objects")
        return
    if not turns or [turn.get("from") for turn in turns] != ["human", "gpt"] * (len(turns) // 2):
        yield raw.rejected('conversations does not alternate between "human" and "gpt"')
        return
    for number, (human, gpt) in enumerate(zip(turns[::2], turns[1::2], strict=True), 1):
        question = human.get("value")
        values = {key: value for key, value in raw.values.items() if key != "conversations"}
        values["question"] = question.replace("<image>", "") if isinstance(question, str) else question
        values["answer"] = gpt.get("value")
        if len(turns) > 2 and isinstance(name := values.get("id") or f"{raw.file}:{raw.number}", str | int):
            values["id"] = f"{name}#{number}"
        yield replace(raw, values=values)


def _row(raw: Raw, split: str | None, locate: Locate, ids: dict[str, Raw]) -> _Row | Rejected:
    """Check one record; `ids` remembers what was accepted."""
    try:
        example = _example(raw, locate)
        if example.id in ids:
            before = ids[example.id]
            raise Bad(
                f"id {shown(example.id)} was used before ({before.file}, {before.unit} {before.number})"
            )
        own = split or text(raw.values, "split")
        if own not in (None, *SPLITS):
            raise Bad(f'split is {shown(own)}, not "train" or "test"')
    except Bad as bad:
        return raw.rejected(str(bad))
    ids[example.id] = raw
    return _Row(raw, example, own)


def _example(raw: Raw, locate: Locate) -> Example:
    record = raw.values
    question, answer = needed(record, "question"), needed(record, "answer")
    options = _options(record)
    if options and answer not in options:
        raise Bad(f"answer {shown(answer)} is not among the options")
    image, evidence = text(record, "image"), text(record, "text")
    if image is None and evidence is None:
        raise Bad("neither image nor text")
    return Example(
        id=word(record, "id") or f"{raw.file}:{raw.number}",
        question=question,
        answer=answer,
        image=None if image is None else locate(image),
        text=evidence,
        label=options.index(answer) if options else None,
        group=word(record, "group") or (answer if options else None),
        options=options,
        task="choice" if options else "vqa",
    )


def _options(record: dict[str, Any]) -> tuple[str, ...]:
    value = record.get("options") or []
    if not isinstance(value, list):
        raise Bad(f"options is {kind(value)}, not a list")
    options = tuple(needed({"an option": option}, "an option") for option in value)
    if len(options) == 1 or len(set(options)) < len(options):
        raise Bad("options are not at least two different texts")
    return options


def _with_options(rows: list[_Row]) -> list[_Row]:
    """Give every row the distinct answers as options where none has its own and there are few."""
    answers = tuple(sorted({row.example.answer for row in rows}))
    if not 2 <= len(answers) <= MAX_CLOSED or any(row.example.options for row in rows):
        return rows
    label = {answer: index for index, answer in enumerate(answers)}
    closed = []
    for row in rows:
        answer, group = row.example.answer, row.example.group or row.example.answer
        example = replace(row.example, options=answers, label=label[answer], group=group, task="choice")
        closed.append(replace(row, example=example))
    return closed


def _checked_splits(rows: list[_Row]) -> tuple[list[_Row], list[Rejected]]:
    """Set aside rows without a split, and test rows with a picture of the training part."""
    trained = {row.example.image.key for row in rows if row.split == "train" and row.example.image}
    kept: list[_Row] = []
    rejected: list[Rejected] = []
    for row in rows:
        if row.split is None:
            rejected.append(row.raw.rejected("split is missing, though other records have one"))
        elif row.split == "test" and row.example.image and row.example.image.key in trained:
            rejected.append(row.raw.rejected("its picture is also in the training part"))
        else:
            kept.append(row)
    return kept, rejected
