"""Folders of clients as FedMLLM's scripts prepare them: `client_0.json`, `client_1.json` and so on.

Each file is a list of

    {"id": 42953, "image": "…/raw_data/img/42953.png", "conversations": [
        {"role": "user", "content": "<image>\\nSelect …\\nTEXT\\nQUESTION\\nOptions:\\n(A) …\\n(B) …\\n…"},
        {"role": "assistant", "content": "(A) not-hateful"}]}

A question with options is taken apart again: lines between the instruction and the question are the text,
and what the question says about modalities is left out, for fedloom says that itself. Anything else is a
question with a free answer. `image` is null where the client lacks it. Pictures are looked for in the
`raw_data` beside or above the folder, by what follows "/raw_data/" in their path, else in the folder itself.

The group is the client, "client_0" and so on: the partition by_group with as many clients as files gives
each client one file. A file `test.json` of the same form is tested on; without one, `data.test_share` of
the examples is held out.

Reference: B. Xu et al., "FedMLLM: Federated Fine-tuning MLLM on Multimodal Heterogeneity Data", arXiv
2411.14717v2, and its published scripts.
"""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Any, NamedTuple

from fedloom.data.published_data_set import Reading, Source, Table
from fedloom.data.record_fields import Bad, needed, text, word
from fedloom.data.record_files import Raw, kind, shown
from fedloom.types import Example

_CHOICE = re.compile(
    r"[^\n]+\n(?:(?P<text>.*)\n)?(?P<question>[^\n]+)\n"
    r"Options:\n(?P<options>(?:\([A-Z]\) [^\n]+\n){2,})[^\n]*",
    re.DOTALL,
)
_MODALITIES = re.compile(r"(?:,| based on)[^?]*(?=\?$)")
_LETTER = re.compile(r"^\([A-Z]\) ", re.MULTILINE)


class UserTurn(NamedTuple):
    """A user turn, taken apart: the question, the written evidence if any, and the options if any."""

    question: str
    text: str | None = None
    options: tuple[str, ...] = ()


def take_apart(content: str) -> UserTurn:
    """Take a prepared user turn apart.

    Example:
        >>> take_apart("Pick.\\nlook!\\nIs it, based on the text?\\nOptions:\\n(A) no\\n(B) yes\\nAnswer.")
        UserTurn(question='Is it?', text='look!', options=('no', 'yes'))
        >>> take_apart("<image>\\nIs there a fracture?").question
        'Is there a fracture?'
    """
    content = content.replace("<image>", "").strip()
    found = _CHOICE.fullmatch(content)
    if not found:
        return UserTurn(content)
    options = tuple(_LETTER.sub("", found["options"]).splitlines())
    return UserTurn(_MODALITIES.sub("", found["question"]), (found["text"] or "").strip() or None, options)


def make(raw: Raw, reading: Reading) -> Example:
    """Make an example of a prepared record; see `fedloom.data.published_data_set.Make`."""
    record = raw.values
    turns = record.get("conversations")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise Bad("conversations is not a list of objects")
    if [turn.get("role") for turn in turns] != ["user", "assistant"]:
        raise Bad('conversations is not one turn of "user" and one of "assistant"')
    asked = take_apart(needed(turns[0], "content"))
    answer = needed(turns[1], "content")
    if asked.options:
        answer = _LETTER.sub("", answer)
        if answer not in asked.options:
            raise Bad(f"the answer {shown(answer)} is not among the options")
    if not asked.question:
        raise Bad("the question is empty")
    image = _image(record)
    return Example(
        id=needed(record, "id", word),
        question=asked.question,
        answer=answer,
        image=None if image is None else reading.picture(image),
        text=asked.text,
        label=asked.options.index(answer) if asked.options else None,
        group=PurePath(raw.file).stem,
        options=asked.options,
        task="choice" if asked.options else "vqa",
    )


def _image(record: dict[str, Any]) -> str | None:
    if isinstance(record.get("image"), dict | list):
        raise Bad(f"image is {kind(record['image'])}; only records with one picture can be used")
    image = text(record, "image")
    return image and image.rpartition("/raw_data/")[2]


_PICTURES = (*("../" * up + "raw_data" for up in range(5)), ".")

PREPARED = Source(
    name="fedmllm-prepared",
    title="Folders of clients as FedMLLM's scripts prepare them: client_0.json, client_1.json and so on.",
    home=(
        "Prepare it with the scripts of https://github.com/1xbq1/FedMLLM, which write a folder below "
        "minicpmv_data. The root is the folder with client_0.json and so on."
    ),
    tables=(
        Table("train", ("client_[0-9]*.json",), make, _PICTURES),
        Table("test", ("test.json",), make, _PICTURES, optional=True),
    ),
)
