"""Folders of clients as FedVLMBench ships them: `train/client_0.json` and so on, and `test`.

The folder is a data set's `clients` (or holds it); the images are in `images` or `image` next to it. Each
file is a list of

    {"id": 7, "image": "a/7.png", "conversations": [
        {"from": "human", "value": "<image>\\nWhich organ is shown?"},
        {"from": "gpt", "value": "The answer to the question is liver."}]}

where `conversations` may also be called conversations_caption or conversations_vqa. If `test` holds more
than `test.json`, that file is ignored, since the others have its records.

Answers come in sentences such as "The … classification is X", "… caption is X", "The coordinates are
[x, y, width, height]". The phrase around X names the task and is removed: X alone is the answer, and a box becomes
"[x0, y0, x1, y1]", in fractions of the image if no number exceeds 1, else in whole pixels. A box may be
wrapped as {"name": box}. Other answers are used unchanged. Ids are not unique, so the id of an example consists of
file and place. The group is the client.

Reference: "FedVLMBench: Benchmarking Federated Fine-Tuning of Vision-Language Models", arXiv 2506.09638, and
its published code.

Differs from the paper: its models are also trained to give the phrase.
"""

from __future__ import annotations

import json
import re
from pathlib import PurePath
from typing import Any

from fedloom.data.bounding_boxes import in_fractions, in_pixels
from fedloom.data.images import FileImage
from fedloom.data.published_data_set import RecordContext, Source, Table
from fedloom.data.record_fields import InvalidRecord, required
from fedloom.data.record_files import Record, quoted
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


def strip_frame(answer: str) -> tuple[str, str]:
    """Return an answer without the phrase around it, and the task that the phrase names.

    Example:
        >>> strip_frame("The answer to the question is liver."), strip_frame("The heart is large.")
        (('liver', 'vqa'), ('The heart is large.', 'vqa'))
        >>> strip_frame("The caption is: A cat is on a mat.")
        ('A cat is on a mat.', 'caption')
    """
    match = _FRAME.fullmatch(answer)
    if not match:
        return answer, "vqa"
    task, content = TASKS[match[1].lower()], match[2].strip()
    return (content if task == "caption" else content.removesuffix(".")).strip(), task


def make(record: Record, context: RecordContext) -> Example:
    """Make an example of a record; see `fedloom.data.published_data_set.Make`."""
    values = record.values
    turns = next((values[key] for key in KEYS if key in values), None)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise InvalidRecord("conversations is not a list of objects")
    if [turn.get("from") for turn in turns] != ["human", "gpt"]:
        raise InvalidRecord('conversations is not one turn of "human" and one of "gpt"')
    question = required(turns[0], "value").replace("<image>", "").strip()
    answer, task = strip_frame(required(turns[1], "value"))
    if not question or not answer:
        raise InvalidRecord(f"the {'answer' if question else 'question'} is empty")
    image = context.find_image(required(values, "image"))
    file = PurePath(record.file)
    return Example(
        id=f"{file.parent.name}-{file.stem}-{record.number}",
        question=question,
        answer=_box(answer, image) if task == "grounding" else answer,
        image=image,
        group=file.stem,
        task=task,
    )


def _box(answer: str, image: FileImage) -> str:
    try:
        box: Any = json.loads(answer.replace("'", '"'))
    except ValueError:
        raise InvalidRecord(f"the answer {quoted(answer)} is not a box") from None
    if isinstance(box, list) and len(box) == 1:
        box = box[0]
    if isinstance(box, dict) and len(box) == 1:
        box = next(iter(box.values()))
    if isinstance(box, list) and box and all(type(value) in (int, float) and value <= 1 for value in box):
        return in_fractions(box)
    return in_pixels(box, image)


_FOLDERS = ("images", "image", "../images", "../image")

CLIENTS = Source(
    name="fedvlmbench-prepared",
    title="Folders of clients as FedVLMBench ships them: train/client_0.json and so on, and test.",
    home=(
        "Get one of the data sets of https://www.kaggle.com/datasets/robinlin2002/fedvlmbench, and the "
        "images from their owners, as https://github.com/Arise-zwy/FedVLMBench says. The root is its "
        "folder clients, with train/client_0.json and so on, next to the folder images."
    ),
    tables=(
        Table("train", ("train/client_*.json", "clients/train/client_*.json"), make, _FOLDERS),
        Table("test", ("test/*.json", "clients/test/*.json"), make, _FOLDERS, ignored="test.json"),
    ),
)
