"""Folders of clients as FedMLLM's scripts prepare them: `client_0.json`, `client_1.json` and so on.

Each file is a list of

    {"id": 42953, "image": "…/raw_data/img/42953.png", "conversations": [
        {"role": "user", "content": "<image>\\nSelect …\\nTEXT\\nQUESTION\\nOptions:\\n(A) …\\n(B) …\\n…"},
        {"role": "assistant", "content": "(A) not-hateful"}]}

A question with options is split again: lines between the instruction and the question are the text,
and what the question says about modalities is left out, since fedloom adds that itself. Any other record is a
question with a free answer. `image` is null if the client lacks it. Images are searched in the
`raw_data` next to or above the folder, by the part of their path after "/raw_data/", else in the folder itself.

The group is the client, "client_0" and so on: the partition by_group with as many clients as files gives
each client one file. A file `test.json` of the same form is the test set; without one, `data.test_share` of
the examples is held out.

Reference: B. Xu et al., "FedMLLM: Federated Fine-tuning MLLM on Multimodal Heterogeneity Data", arXiv
2411.14717v2, and its published scripts.
"""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Any, NamedTuple

from fedloom.data.published_data_set import RecordContext, Source, Table
from fedloom.data.record_fields import InvalidRecord, required, text, text_or_integer
from fedloom.data.record_files import Record, json_type, quoted
from fedloom.types import Example

_CHOICE = re.compile(
    r"[^\n]+\n(?:(?P<text>.*)\n)?(?P<question>[^\n]+)\n"
    r"Options:\n(?P<options>(?:\([A-Z]\) [^\n]+\n){2,})[^\n]*",
    re.DOTALL,
)
_MODALITIES = re.compile(r"(?:,| based on)[^?]*(?=\?$)")
_LETTER = re.compile(r"^\([A-Z]\) ", re.MULTILINE)


class UserTurn(NamedTuple):
    """A user turn split into the question, the text if any, and the options if any."""

    question: str
    text: str | None = None
    options: tuple[str, ...] = ()


def parse_user_turn(content: str) -> UserTurn:
    """Split a prepared user turn into its parts.

    Example:
        >>> parse_user_turn("Pick.\\nlook!\\nIs it, based on the text?\\nOptions:\\n(A) no\\n(B) yes\\nAnswer.")
        UserTurn(question='Is it?', text='look!', options=('no', 'yes'))
        >>> parse_user_turn("<image>\\nIs there a fracture?").question
        'Is there a fracture?'
    """
    content = content.replace("<image>", "").strip()
    match = _CHOICE.fullmatch(content)
    if not match:
        return UserTurn(content)
    options = tuple(_LETTER.sub("", match["options"]).splitlines())
    return UserTurn(_MODALITIES.sub("", match["question"]), (match["text"] or "").strip() or None, options)


def make(record: Record, context: RecordContext) -> Example:
    """Make an example of a prepared record; see `fedloom.data.published_data_set.Make`."""
    values = record.values
    turns = values.get("conversations")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise InvalidRecord("conversations is not a list of objects")
    if [turn.get("role") for turn in turns] != ["user", "assistant"]:
        raise InvalidRecord('conversations is not one turn of "user" and one of "assistant"')
    user_turn = parse_user_turn(required(turns[0], "content"))
    answer = required(turns[1], "content")
    if user_turn.options:
        answer = _LETTER.sub("", answer)
        if answer not in user_turn.options:
            raise InvalidRecord(f"the answer {quoted(answer)} is not among the options")
    if not user_turn.question:
        raise InvalidRecord("the question is empty")
    image = _image(values)
    return Example(
        id=required(values, "id", text_or_integer),
        question=user_turn.question,
        answer=answer,
        image=None if image is None else context.find_image(image),
        text=user_turn.text,
        label=user_turn.options.index(answer) if user_turn.options else None,
        group=PurePath(record.file).stem,
        options=user_turn.options,
        task="choice" if user_turn.options else "vqa",
    )


def _image(record: dict[str, Any]) -> str | None:
    if isinstance(record.get("image"), dict | list):
        raise InvalidRecord(f"image is {json_type(record['image'])}; only records with one image can be used")
    image = text(record, "image")
    return image and image.rpartition("/raw_data/")[2]


_FOLDERS = (*("../" * up + "raw_data" for up in range(5)), ".")

PREPARED = Source(
    name="fedmllm-prepared",
    title="Folders of clients as FedMLLM's scripts prepare them: client_0.json, client_1.json and so on.",
    home=(
        "Prepare it with the scripts of https://github.com/1xbq1/FedMLLM, which write a folder below "
        "minicpmv_data. The root is the folder with client_0.json and so on."
    ),
    tables=(
        Table("train", ("client_[0-9]*.json",), make, _FOLDERS),
        Table("test", ("test.json",), make, _FOLDERS, optional=True),
    ),
)
