"""Folders of clients as FedVLMBench ships them: `train/client_0.json` and so on, and `test`.

The folder is a data set's `clients` (or holds it); the pictures are in `images` or `image` beside it. Each
file is a list of

    {"id": 7, "image": "a/7.png", "conversations": [
        {"from": "human", "value": "<image>\\nWhich organ is shown?"},
        {"from": "gpt", "value": "The answer to the question is liver."}]}

where `conversations` may also be called conversations_caption or conversations_vqa. If `test` holds more
than `test.json`, that one is left out, for the others have its records.

Answers come in sentences such as "The … classification is X", "… caption is X", "The coordinates are
[x, y, width, height]". The frame tells the task and is taken off: X alone is the answer, and a box becomes
"[x0, y0, x1, y1]", in fractions of the picture where no number exceeds 1, else in whole pixels. A box may be
wrapped as {"name": box}. Other answers are taken as they are. Ids do not tell records apart, so an example
is named by file and place. The group is the client.

Reference: "FedVLMBench: Benchmarking Federated Fine-Tuning of Vision-Language Models", arXiv 2506.09638, and
its published code.

Differs from the paper: its models are trained to say the frame too.
"""

from __future__ import annotations

import json
import re
from pathlib import PurePath
from typing import Any

from fedloom.data.bounding_boxes import in_fractions, in_pixels
from fedloom.data.images import FileImage
from fedloom.data.published_data_set import Reading, Source, Table
from fedloom.data.record_fields import Bad, needed
from fedloom.data.record_files import Raw, shown
from fedloom.types import Example

KEYS = ("conversations", "conversations_caption", "conversations_vqa")
TASKS = {
    "caption": "caption",
    "report": "caption",
    "description": "caption",
    "classification": "vqa",
    "class": "vqa",
    "variant": "vqa",
    "family": "vqa",
    "manufacturer": "vqa",
    "answer": "vqa",
    "question": "vqa",
    "coordinates": "grounding",
    "box": "grounding",
}
_FRAME = re.compile(
    rf"(?i:[^.:\[]{{0,80}}?\b({'|'.join(TASKS)})\b[^.:\[]{{0,80}}?\b(?:is|are)\b)\s*:?\s*(.*)", re.DOTALL
)


def take_off_frame(answer: str) -> tuple[str, str]:
    """Return what an answer says without its frame, and the task the frame tells.

    Example:
        >>> take_off_frame("The answer to the question is liver."), take_off_frame("The heart is large.")
        (('liver', 'vqa'), ('The heart is large.', 'vqa'))
        >>> take_off_frame("The caption is: A cat is on a mat.")
        ('A cat is on a mat.', 'caption')
    """
    found = _FRAME.fullmatch(answer)
    if not found:
        return answer, "vqa"
    task, rest = TASKS[found[1].lower()], found[2].strip()
    return (rest if task == "caption" else rest.removesuffix(".")).strip(), task


def make(raw: Raw, reading: Reading) -> Example:
    """Make an example of a record; see `fedloom.data.published_data_set.Make`."""
    record = raw.values
    turns = next((record[key] for key in KEYS if key in record), None)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise Bad("conversations is not a list of objects")
    if [turn.get("from") for turn in turns] != ["human", "gpt"]:
        raise Bad('conversations is not one turn of "human" and one of "gpt"')
    question = needed(turns[0], "value").replace("<image>", "").strip()
    answer, task = take_off_frame(needed(turns[1], "value"))
    if not question or not answer:
        raise Bad(f"the {'answer' if question else 'question'} is empty")
    picture = reading.picture(needed(record, "image"))
    file = PurePath(raw.file)
    return Example(
        id=f"{file.parent.name}-{file.stem}-{raw.number}",
        question=question,
        answer=_box(answer, picture) if task == "grounding" else answer,
        image=picture,
        group=file.stem,
        task=task,
    )


def _box(answer: str, picture: FileImage) -> str:
    try:
        box: Any = json.loads(answer.replace("'", '"'))
    except ValueError:
        raise Bad(f"the answer {shown(answer)} is no box") from None
    if isinstance(box, list) and len(box) == 1:
        box = box[0]
    if isinstance(box, dict) and len(box) == 1:
        box = next(iter(box.values()))
    if isinstance(box, list) and box and all(type(one) in (int, float) and one <= 1 for one in box):
        return in_fractions(box)
    return in_pixels(box, picture)


_PICTURES = ("images", "image", "../images", "../image")

CLIENTS = Source(
    name="fedvlmbench-prepared",
    title="Folders of clients as FedVLMBench ships them: train/client_0.json and so on, and test.",
    home=(
        "Get one of the data sets of https://www.kaggle.com/datasets/robinlin2002/fedvlmbench, and the "
        "pictures from their owners, as https://github.com/Arise-zwy/FedVLMBench says. The root is its "
        "folder clients, with train/client_0.json and so on, beside the folder images."
    ),
    tables=(
        Table("train", ("train/client_*.json", "clients/train/client_*.json"), make, _PICTURES),
        Table("test", ("test/*.json", "clients/test/*.json"), make, _PICTURES, spare="test.json"),
    ),
)
