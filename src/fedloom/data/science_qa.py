"""ScienceQA: captions of the images of school questions, or the questions themselves.

The folder holds `problems.json`, an object from problem number to problem; `captions.json`, here or one
folder above; and the images, `images/train/17/image.png` or `train/17/image.png`. A problem has the keys
question, choices, answer (an index of choices), hint, image (a name or null), topic and split. With
`data.variant` "caption" the task is to describe the image, and problems without an image are not used; with "vqa" the
question is multiple choice, and the text is the hint. The part val is for validation only. The group is the topic.

Reference: P. Lu et al., "Learn to Explain: Multimodal Reasoning via Thought Chains for Science Question
Answering", arXiv 2209.09513v2; captions are used by FedVLMBench (arXiv 2506.09638), divided by topic.

Differs from the paper: FedVLMBench uses 5,157 captions and does not say which.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedloom.data.published_data_set import Count, RecordContext, Source, Table
from fedloom.data.record_fields import InvalidRecord, one_of, required, text
from fedloom.data.record_files import Record, json_type, read_json
from fedloom.system.errors import UserError
from fedloom.types import Example, Rejected

QUESTION = "Describe the picture."
PARTS = {"train": "train", "val": "dev", "test": "test"}


def part_of(problem: dict[str, Any]) -> str:
    """Return the part a problem belongs to; see `fedloom.data.published_data_set.PartOf`."""
    return PARTS[one_of(problem, "split", tuple(PARTS))]


def read(path: Path, name: str) -> Iterator[Record | Rejected]:
    """Yield problems, with their number as "pid" and their caption, if there is one, as "caption".

    Raises:
        UserError: A file cannot be read or does not hold an object.
    """
    problems = _object(path)
    folders = (path.parent, path.parent.parent)
    path_captions = next(
        (folder / "captions.json" for folder in folders if (folder / "captions.json").is_file()), None
    )
    captions = _object(path_captions).get("captions") if path_captions else None
    captions = captions if isinstance(captions, dict) else {}
    for number, (pid, problem) in enumerate(problems.items(), 1):
        if isinstance(problem, dict):
            yield Record(name, "entry", number, problem | {"pid": pid, "caption": captions.get(pid)})
        else:
            yield Rejected(name, None, f"entry {number}: {json_type(problem)} instead of an object")


def _object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds {json_type(value)} instead of an object")
    return value


def make(record: Record, context: RecordContext) -> Example | None:
    """Make an example of a problem; see `fedloom.data.published_data_set.Make`."""
    problem = record.values
    name, topic = text(problem, "image"), text(problem, "topic")
    split, pid = required(problem, "split"), required(problem, "pid")
    if context.variant == "caption":
        if name is None:
            return None
        answer = required(problem, "caption")
        image = context.find_image(f"{split}/{pid}/{name}")
        return Example(pid, QUESTION, answer, image, group=topic, task="caption")
    choices, label = problem.get("choices"), problem.get("answer")
    if not isinstance(choices, list) or not 2 <= len(set(map(str, choices))) == len(choices):
        raise InvalidRecord("choices is not a list of at least two different texts")
    options = tuple(required({"a choice": choice}, "a choice") for choice in choices)
    if type(label) is not int or not 0 <= label < len(options):
        raise InvalidRecord(f"answer is not an index of choices, 0 to {len(options) - 1}")
    return Example(
        id=pid,
        question=required(problem, "question"),
        answer=options[label],
        image=None if name is None else context.find_image(f"{split}/{pid}/{name}"),
        text=text(problem, "hint"),
        label=label,
        group=topic,
        options=options,
    )


_FILES = ("problems.json", "scienceqa/problems.json", "data/scienceqa/problems.json")
_FOLDERS = ("images", "scienceqa/images", "data/scienceqa/images", ".")

SCIENCE_QA = Source(
    name="science-qa",
    title="ScienceQA: captions of the images of school questions, or the questions themselves.",
    home=(
        "Get problems.json and captions.json from the folder data of https://github.com/lupantech/ScienceQA "
        "and the images with its tools/download.sh. The root is the folder with problems.json and images."
    ),
    tables=(Table(part_of, _FILES, make, _FOLDERS, read=read, dev=True),),
    counts=(
        Count("train", 12726, variant="vqa"),
        Count("dev", 4241, variant="vqa"),
        Count("test", 4241, variant="vqa"),
        Count("train", 6218, variant="caption"),
        Count("dev", 2097, variant="caption"),
        Count("test", 2017, variant="caption"),
    ),
    variants=("caption", "vqa"),
)
