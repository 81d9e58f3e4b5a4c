"""ScienceQA: captions of the pictures of school questions, or the questions themselves.

The folder holds `problems.json`, an object from problem number to problem; `captions.json`, here or one
folder above; and the pictures, `images/train/17/image.png` or `train/17/image.png`. Of a problem are read
question, choices, answer (a place in choices), hint, image (a name or null), topic and split. With
`data.variant` "caption" a picture is to be described, and problems without one are not used; with "vqa" the
question is multiple choice, with the hint for text. The part val is for validation only. The group is the topic.

Reference: P. Lu et al., "Learn to Explain: Multimodal Reasoning via Thought Chains for Science Question
Answering", arXiv 2209.09513v2; captions are used by FedVLMBench (arXiv 2506.09638), divided by topic.

Differs from the paper: FedVLMBench uses 5,157 captions, and does not say which.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedloom.data.published_data_set import Count, Reading, Source, Table
from fedloom.data.record_fields import Bad, needed, one_of, text
from fedloom.data.record_files import Raw, kind, read_json
from fedloom.system.errors import UserError
from fedloom.types import Example, Rejected

QUESTION = "Describe the picture."
PARTS = {"train": "train", "val": "dev", "test": "test"}


def part_of(problem: dict[str, Any]) -> str:
    """Return the part a problem belongs to; see `fedloom.data.published_data_set.PartOf`."""
    return PARTS[one_of(problem, "split", tuple(PARTS))]


def read(path: Path, name: str) -> Iterator[Raw | Rejected]:
    """Yield problems, each with its number as pid and its caption, if there is one, as caption.

    Raises:
        UserError: A file cannot be read or is not an object.
    """
    problems = _object(path)
    folders = (path.parent, path.parent.parent)
    found = next(
        (folder / "captions.json" for folder in folders if (folder / "captions.json").is_file()), None
    )
    captions = _object(found).get("captions") if found else None
    captions = captions if isinstance(captions, dict) else {}
    for number, (pid, problem) in enumerate(problems.items(), 1):
        if isinstance(problem, dict):
            yield Raw(name, "entry", number, problem | {"pid": pid, "caption": captions.get(pid)})
        else:
            yield Rejected(name, None, f"entry {number}: {kind(problem)} instead of an object")


def _object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds {kind(value)} instead of an object")
    return value


def make(raw: Raw, reading: Reading) -> Example | None:
    """Make an example of a problem; see `fedloom.data.published_data_set.Make`."""
    problem = raw.values
    name, topic = text(problem, "image"), text(problem, "topic")
    split, pid = needed(problem, "split"), needed(problem, "pid")
    if reading.variant == "caption":
        if name is None:
            return None
        answer = needed(problem, "caption")
        picture = reading.picture(f"{split}/{pid}/{name}")
        return Example(pid, QUESTION, answer, picture, group=topic, task="caption")
    choices, label = problem.get("choices"), problem.get("answer")
    if not isinstance(choices, list) or not 2 <= len(set(map(str, choices))) == len(choices):
        raise Bad("choices is not a list of at least two different texts")
    options = tuple(needed({"a choice": choice}, "a choice") for choice in choices)
    if type(label) is not int or not 0 <= label < len(options):
        raise Bad(f"answer is not a place in choices, 0 to {len(options) - 1}")
    return Example(
        id=pid,
        question=needed(problem, "question"),
        answer=options[label],
        image=None if name is None else reading.picture(f"{split}/{pid}/{name}"),
        text=text(problem, "hint"),
        label=label,
        group=topic,
        options=options,
    )


_FILES = ("problems.json", "scienceqa/problems.json", "data/scienceqa/problems.json")
_FOLDERS = ("images", "scienceqa/images", "data/scienceqa/images", ".")

SCIENCE_QA = Source(
    name="science-qa",
    title="ScienceQA: captions of the pictures of school questions, or the questions themselves.",
    home=(
        "Get problems.json and captions.json from the folder data of https://github.com/lupantech/ScienceQA "
        "and the pictures with its tools/download.sh. The root is the folder with problems.json and images."
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
