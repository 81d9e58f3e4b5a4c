"""The user's own data: a folder with records and images.

The folder (`data.root`) holds `train` and `test`, or `data`, or one file of any name, and beside them perhaps
`validation`; `.jsonl` is looked for before `.json`, though these files need not be of one kind. A `.jsonl` file has one
object a line:

    {"question": "Is there a fracture?", "answer": "no", "image": "scans/17.png", "text": "Fell from a bike."}

`question` and `answer` are needed, and at least one of `image` (a PNG, JPEG or WebP file, relative to the
folder) and `text`. Optional: `options` (list of possible answers), `group` (what partitions go by: a site,
a topic; text or whole number), `id` (likewise; unique), `split` ("train", "validation" or "test"). Absent, null
and empty mean the same; other keys are ignored.

A `.json` file is a list of such objects. Either file may also hold conversations as LLaVA, ShareGPT, LLaMA-Factory,
ms-swift or OpenAI-style trainers keep them; see `fedloom.data.conversations`:

    [{"id": "17", "image": "scans/17.png", "conversations": [
        {"from": "human", "value": "<image>\\nIs there a fracture?"}, {"from": "gpt", "value": "no"}]}]

Each answer of a conversation becomes one example with the turns before it, named "17", or "17#1", "17#2" … where there
are several. A conversation may have neither image nor text.

**Ids** need not be unique: those of LLaVA name images. An id that was used before gets its place added
("17@data.json:5").

**Answers.** A record with `options` is multiple choice, its label the position of the answer. If no record
of the data set has options and there are 2 to 50 distinct answers, those, sorted, are everybody's options.
Any other record has a free answer: task "vqa", label None. Answers and options that differ in case, white space or
Unicode form only are the same; an answer is spelled as its option is, or else as most records spell it.

**Division.** Files named train and test decide; else the records' `split`, which then every record needs;
else `data.test_share` of the records is drawn, alike in answers, records with the same evidence on one side: an image
they share (the same pixels, whatever file they are in), or, where there is none, the text, or else the question. A test
record whose image is also in the training part is skipped: scores on it would mean nothing. Texts and questions that a
division of your own repeats are kept; `fedloom data check` names them.

**Validation.** Records of the file `validation`, and those whose `split` is "validation", are read only where
`data.validation` is "published", and change nothing in the other two parts: their answers add no options, and one that
has an image of another part, or an answer that is not among everybody's options, is skipped.

**Invalid records** are skipped with file, line and reason, and the others are used. A record with a question, but neither
image nor text, is invalid too: a benchmark of modalities has no place for it; put what there is into `text`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedloom.data.conversations import LISTS, MARK, images_of, is_talk, talk
from fedloom.data.duplicates import alike, look_of, marks
from fedloom.data.loading import divide
from fedloom.data.record_fields import Bad, Locate, locator, needed, text, word
from fedloom.data.record_files import Raw, kind, read_records, shown
from fedloom.system.errors import UserError
from fedloom.types import DataSet, Example, Rejected, Turn

if TYPE_CHECKING:
    from fedloom.config.schema import Data

MAX_CLOSED = 50
"""Up to this many distinct answers are taken for the options of a closed question."""

SUFFIXES = (".jsonl", ".json")
SPLITS = ("train", "test")
VALIDATION = "validation"


@dataclass(frozen=True, slots=True)
class _Row:
    """An accepted record, where it stood, and which part it says it belongs to."""

    raw: Raw
    example: Example
    split: str | None


def load_folder(settings: Data, seed: int) -> DataSet:
    """Load the user's folder as this module's docstring describes.

    Args:
        settings: `root`, `test_share` and `validation` are read.
        seed: Decides the division where neither files nor records do.

    Raises:
        UserError: There is no folder, no file of records, more than one to choose from, a `.json` file that cannot be
            parsed, or no validation part where one is asked for.
    """
    if settings.root is None:
        raise UserError("data.root: the data set folder needs the path of a folder with your records")
    root, published = Path(settings.root), settings.validation == "published"
    if published and not validates_folder(root):
        raise UserError(
            f"data.validation is published, but {root} holds no validation.jsonl, and no record with the split "
            f"{VALIDATION}; add them, or give a share of the training examples, such as 0.1"
        )
    wanted = (None, *SPLITS, *([VALIDATION] if published else []))
    found: list[_Row] = []
    rejected: list[Rejected] = []
    locate = locator(root)
    for split, path in _files(root, validation=published):
        for record in read_records(path):
            some = _rows(record, split, locate, wanted) if isinstance(record, Raw) else record
            if isinstance(some, Rejected):
                rejected.append(some)
            else:
                found += some
    ids = set[str]()
    rows, kept = ([_named(row, ids) for row in part] for part in _parted(found))
    spelled = _closed(rows)
    rows = [_with_options(row, spelled) for row in rows]
    train, test, late = _divided(rows, settings.test_share, seed)
    validation, later = _validation(kept, spelled, {"training": train, "test": test})
    return DataSet("folder", train, test, (*rejected, *late, *later), validation=validation)


def validates_folder(root: Path) -> bool:
    """Return whether a folder holds a validation part: the file, or a record whose split it is.

    Raises:
        UserError: As `load_folder`, of the files.
    """
    files = _files(root, validation=True)
    records = (record for split, path in files if split is None for record in read_records(path))
    return any(split == VALIDATION for split, _ in files) or any(
        isinstance(record, Raw) and str(record.values.get("split")).strip() == VALIDATION
        for record in records
    )


def _parted(rows: Sequence[_Row]) -> tuple[list[_Row], list[_Row]]:
    """Return the rows to train and test on, and those of the validation part."""
    return [row for row in rows if row.split != VALIDATION], [row for row in rows if row.split == VALIDATION]


def _divided(
    rows: list[_Row], share: float, seed: int
) -> tuple[tuple[Example, ...], tuple[Example, ...], list[Rejected]]:
    """Divide rows into (train, test), as they say or by a draw; the rest is invalid."""
    if any(row.split for row in rows):
        rows, late = _checked_splits(rows)
        train, test = (tuple(row.example for row in rows if row.split == split) for split in SPLITS)
        return train, test, late
    examples = [row.example for row in rows]
    # Answers of one conversation share whatever was said, with or without an image.
    twins = [
        (*own, ("talk", row.raw.file, row.raw.number)) for own, row in zip(marks(examples), rows, strict=True)
    ]
    return *divide(examples, twins, share, seed), []


def _files(root: Path, *, validation: bool) -> list[tuple[str | None, Path]]:
    """Find the files of records, each with the split it stands for, and last that of the validation part if asked."""
    if not root.is_dir():
        raise UserError(f"data.root: {root} is not a folder")
    named = {
        split: [path for suffix in SUFFIXES if (path := root / f"{split}{suffix}").is_file()]
        for split in (*SPLITS, VALIDATION)
    }
    splits = SPLITS if all(named[split] for split in SPLITS) else ()
    files: list[tuple[str | None, Path]] = [(split, path) for split in splits for path in named[split]]
    files = files or [(None, _single(root))]
    if validation and all(path not in named[VALIDATION] for _, path in files):
        splits = (*splits, VALIDATION)
        files += [(VALIDATION, path) for path in named[VALIDATION]]
    if any(len(named[split]) > 1 for split in splits):
        names = ", ".join(path.name for split in splits for path in named[split])
        raise UserError(f"data.root: {root} holds {names}; keep one file of each name")
    return files


def _single(root: Path) -> Path:
    """Find the one file of records; a validation part is one only where there is nothing else."""
    for validates in (False, True):
        for suffix in SUFFIXES:
            paths = sorted(path for path in root.glob(f"*{suffix}") if path.is_file())
            found = [path for path in paths if (path.stem == VALIDATION) is validates]
            if len(found) > 1:
                names = ", ".join(path.name for path in found)
                found = [path for path in found if path.stem == "data"]
                if not found:
                    raise UserError(
                        f"data.root: {root} holds {names}; name one data{suffix}, or two train and test"
                    )
            if found:
                return found[0]
    raise UserError(f"data.root: {root} holds no file of records (data.jsonl, or train.jsonl and test.jsonl)")


def _rows(raw: Raw, split: str | None, locate: Locate, wanted: Sequence[str | None]) -> list[_Row] | Rejected:
    """Read one record as its examples; none of a split that is not wanted."""
    try:
        own = split or text(raw.values, "split")
        if own not in (None, *SPLITS, VALIDATION):
            raise Bad(f'split is {shown(own)}, not "train", "{VALIDATION}" or "test"')
        if own not in wanted:
            return []
        examples = _talked(raw, locate) if is_talk(raw.values) else [_example(raw, locate)]
    except Bad as bad:
        return raw.rejected(str(bad))
    return [_Row(raw, example, own) for example in examples]


def _named(row: _Row, ids: set[str]) -> _Row:
    """Give an example whose id was used before another one; `ids` remembers those that are used."""
    example = row.example
    name = example.id if example.id not in ids else f"{example.id}@{row.raw.file}:{row.raw.number}"
    while name in ids:
        name += "'"
    ids.add(name)
    return row if name == example.id else replace(row, example=replace(example, id=name))


def _talked(raw: Raw, locate: Locate) -> list[Example]:
    """Make an example of every answer of a conversation that is to be learned."""
    record = raw.values
    found, options, evidence = talk(record, locate), _options(record), text(record, "text")
    name = _id(raw)
    images = [picture for turn in found.turns for picture in turn.pictures]
    simple = _is_simple(found.turns)
    made: list[Example] = []
    for number, (turn, learned) in enumerate(zip(found.turns, found.learned, strict=True), 1):
        if learned:
            made.append(
                replace(
                    _made(raw, turn.user, turn.answer, options),
                    id=name if len(found.turns) == 1 else f"{name}#{number}",
                    image=images[0] if images else None,
                    text=evidence,
                    turns=() if simple else found.turns[:number],
                    system=found.system,
                )
            )
    return made


def _example(raw: Raw, locate: Locate) -> Example:
    record = raw.values
    question, answer = needed(record, "question"), needed(record, "answer")
    options, evidence, names = _options(record), text(record, "text"), images_of(record)
    if not names and evidence is None:
        raise Bad("neither image nor text")
    if len(names) > 1 or (names and MARK.search(question)):
        asked = {key: value for key, value in record.items() if key not in LISTS}
        turns = talk({**asked, "messages": [_say("user", question), _say("assistant", answer)]}, locate).turns
        image, question = turns[0].pictures[0], turns[0].user
        turns = () if _is_simple(turns) else turns
    else:
        turns, image = (), locate(names[0]) if names else None
    made = _made(raw, question, answer, options)
    return replace(made, id=_id(raw), image=image, text=evidence, turns=turns)


def _is_simple(turns: Sequence[Turn]) -> bool:
    """Return whether a conversation is one question with at most one image, which stands before it."""
    return len(turns) == 1 and len(turns[0].pictures) < 2 and not any(turns[0].places)


def _say(role: str, words: str) -> dict[str, str]:
    return {"role": role, "content": words}


def _id(raw: Raw) -> str:
    return word(raw.values, "id") or f"{raw.file}:{raw.number}"


def _made(raw: Raw, question: str, answer: str, options: tuple[str, ...]) -> Example:
    """Make an example without its evidence; an answer is spelled as its option."""
    label = next((at for at, one in enumerate(options) if alike(one) == alike(answer)), None)
    if options and label is None:
        raise Bad(f"answer {shown(answer)} is not among the options")
    answer = answer if label is None else options[label]
    return Example(
        id="",
        question=question,
        answer=answer,
        label=label,
        group=word(raw.values, "group") or (answer if options else None),
        options=options,
        task="choice" if options else "vqa",
        place=raw.place,
    )


def _options(record: dict[str, Any]) -> tuple[str, ...]:
    value = record.get("options") or []
    if not isinstance(value, list):
        raise Bad(f"options is {kind(value)}, not a list")
    options = tuple(needed({"an option": option}, "an option") for option in value)
    if len(options) == 1 or len(set(map(alike, options))) < len(options):
        raise Bad("options are not at least two different texts")
    return options


def _closed(rows: Sequence[_Row]) -> dict[str, str]:
    """Return how everybody's options are spelled, by what is equal for equal answers.

    They are the distinct answers, where no row has options of its own and there are few; else there are none.
    """
    spelled = _spellings([row.example.answer for row in rows])
    if not 2 <= len(spelled) <= MAX_CLOSED or any(row.example.options for row in rows):
        return {}
    return spelled


def _with_options(row: _Row, spelled: Mapping[str, str]) -> _Row:
    """Give a row everybody's options where there are any."""
    if not spelled:
        return row
    options, answer = tuple(sorted(spelled.values())), spelled[alike(row.example.answer)]
    group = row.example.group or answer
    label = options.index(answer)
    example = replace(row.example, answer=answer, options=options, label=label, group=group, task="choice")
    return replace(row, example=example)


def _spellings(answers: Sequence[str]) -> dict[str, str]:
    """Return how most records spell each answer, the first in order of those that are as frequent."""
    found: dict[str, Counter[str]] = {}
    for answer in answers:
        found.setdefault(alike(answer), Counter())[answer] += 1
    return {same: min(sorted(count), key=lambda one: -count[one]) for same, count in found.items()}


def _checked_splits(rows: list[_Row]) -> tuple[list[_Row], list[Rejected]]:
    """Skip rows without a split, and test rows with an image of the training part."""
    looks = [{look_of(picture) for picture in row.example.pictures} for row in rows]
    trained = set().union(*(own for own, row in zip(looks, rows, strict=True) if row.split == "train"))
    kept: list[_Row] = []
    rejected: list[Rejected] = []
    for own, row in zip(looks, rows, strict=True):
        if row.split is None:
            rejected.append(row.raw.rejected("split is missing, though other records have one"))
        elif row.split == "test" and own & trained:
            rejected.append(row.raw.rejected("its picture is also in the training part"))
        else:
            kept.append(row)
    return kept, rejected


def _validation(
    rows: Sequence[_Row], spelled: Mapping[str, str], parts: Mapping[str, Sequence[Example]]
) -> tuple[tuple[Example, ...], list[Rejected]]:
    """Return the validation part, and its rows that share an image with another part or have an answer of their own."""
    looks = {
        part: {look_of(picture) for example in examples for picture in example.pictures}
        for part, examples in parts.items()
    }
    kept: list[Example] = []
    rejected: list[Rejected] = []
    for row in rows:
        own, answer = {look_of(picture) for picture in row.example.pictures}, row.example.answer
        shared = next((part for part in parts if own & looks[part]), None)
        if shared is not None:
            rejected.append(row.raw.rejected(f"its image is also in the {shared} part"))
        elif row.example.options or not spelled:
            kept.append(row.example)
        elif alike(answer) not in spelled:
            reason = f"its answer {shown(answer)} is none of the answers of the training and test parts"
            rejected.append(row.raw.rejected(reason))
        else:
            kept.append(_with_options(row, spelled).example)
    return tuple(kept), rejected
