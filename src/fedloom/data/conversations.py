"""Read conversations in the formats of other trainers, as questions with the turns before them.

Turns are in `conversations`, `messages` or `conversation`, as objects with `from` and `value` (LLaVA, ShareGPT) or
`role` and `content` (OpenAI, Hugging Face, ms-swift), or as pairs `human` and `assistant`. A content is text or a list of
parts, {"type": "text", "text": …} and {"type": "image", "image": NAME} or {"type": "image_url", "image_url": {"url":
NAME}}. Records of single questions have `query` and `response` (ms-swift), or `instruction`, `input` and `output`
(Alpaca), with earlier pairs in `history`. `system`, or a turn of that role, comes before the first turn.

`image` and `images` name files: one, a list, or objects with a `path`. Each "<image>" in a question marks the place of one
image, in order; without any mark all images come before the first question. If there are several marks for a single
image, the first is its place, and the others refer to it. "<img>NAME</img>" is a mark that names its image.

Every answer is learned once: each answer of a conversation becomes an example with the turns before it. An answer before
the first question is ignored, as in LLaVA, and so is a question without an answer at the end. An answer with
"weight": 0 or "loss": false is part of the conversation but not learned.

Absent, null and empty values mean the same, since in some files all records have the same keys. The marks of a last
question without an answer count, since its images are named too. A record with an image outside of questions is invalid.

A record with tool calls, videos, audio or boxes that marks stand for is invalid, since a benchmark of images and texts
cannot use it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fedloom.data.record_fields import FindAnyImage, InvalidRecord, text
from fedloom.data.record_files import json_type, quoted
from fedloom.types import LazyImage, Turn

TURN_LIST_KEYS = ("conversations", "messages", "conversation")
QUESTION_ANSWER_KEYS = (("query", "response"), ("instruction", "output"))
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "ai": "assistant",
    "system": "system",
    "developer": "system",
}
UNSUPPORTED = {
    "tools": "tools",
    "videos": "videos",
    "video": "a video",
    "audios": "audio",
    "audio": "audio",
    "objects": "boxes that marks stand for",
}
"""Key → description of content that is not supported."""

MARK = re.compile(r"<image>|<img>(.*?)</img>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ParsedConversation:
    """A conversation of a record.

    Attributes:
        turns: The questions with their images and answers.
        learned: For each turn, whether its answer is trained on.
        system: The system text, or None.
    """

    turns: tuple[Turn, ...]
    learned: tuple[bool, ...]
    system: str | None


TurnContent = tuple[str, list["str | None"], bool]
"""A turn's text with a mark for every image, the name of each mark's image (None: the record names it), and whether it is learned."""


def is_conversation(record: dict[str, Any]) -> bool:
    """Return whether a record is a conversation rather than a question with its answer."""
    if any(_holds(record, key) for key in TURN_LIST_KEYS):
        return True
    if _holds(record, "question"):
        return False
    return any(key in record for key in TURN_LIST_KEYS) or any(
        first in record and last in record for first, last in QUESTION_ANSWER_KEYS
    )


def _holds(record: dict[str, Any], key: str) -> bool:
    """Return whether a record has a value; null and empty ones fill up files whose records all have the same keys."""
    return record.get(key) not in (None, "", [], {}, "[]")


def _empty(value: Any) -> bool:
    """Return whether a value is empty, or holds only empty values at any depth."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return value in (None, "", "[]") if inside is None else all(map(_empty, inside))


def read_conversation(record: dict[str, Any], find_image: FindAnyImage) -> ParsedConversation:
    """Read a conversation.

    Args:
        record: A record for which `is_conversation` is true.
        find_image: Finds an image by its name.

    Raises:
        InvalidRecord: The conversation cannot be used.
    """
    for key, what in UNSUPPORTED.items():
        if not _empty(record.get(key)):
            raise InvalidRecord(f"it has {what} ({key}), which cannot be used")
    own = text(record, "system")
    if own is not None and MARK.search(own):
        raise InvalidRecord(_not_a_question("system text"))
    system = [own] if own else []
    questions: list[list[TurnContent]] = []
    answers: list[list[TurnContent]] = []
    for role, content in _turns(record):
        if role != "user" and content[1]:
            raise InvalidRecord(_not_a_question(f"turn of the {role}"))
        if role == "system":
            system.append(content[0].strip())
        elif role == "user":
            if not questions or answers[-1]:
                questions.append([])
                answers.append([])
            questions[-1].append(content)
        elif questions:
            answers[-1].append(content)
    pairs = [(before, after) for before, after in zip(questions, answers, strict=True) if after]
    if not pairs:
        raise InvalidRecord("it has no question with an answer to it")
    turns = _turns_with_images(questions, image_names(record), find_image)[
        : len(pairs)
    ]  # only the last may lack an answer
    turns_with_answers = []
    for number, (turn, (_, after)) in enumerate(zip(turns, pairs, strict=True), 1):
        answer = "\n".join(content[0] for content in after).strip()
        at = f" of turn {number}" if len(pairs) > 1 else ""
        if not turn.user and not turn.pictures:
            raise InvalidRecord(f"the question{at} is empty")
        if not answer:
            raise InvalidRecord(f"the answer{at} is empty")
        turns_with_answers.append(Turn(turn.user, answer, turn.pictures, turn.places))
    learned = tuple(all(content[2] for content in after) for _, after in pairs)
    if not any(learned):
        raise InvalidRecord("none of its answers is to be learned")
    return ParsedConversation(tuple(turns_with_answers), learned, "\n".join(system) or None)


def _not_a_question(what: str) -> str:
    return f"a {what} shows an image or holds an <image> mark, which only questions can"


def image_names(record: dict[str, Any]) -> list[str]:
    """Return the names of a record's images, in `image` or `images`.

    Raises:
        InvalidRecord: A value is not a name.
    """
    single, several = (_names(record.get(key), key) for key in ("image", "images"))
    if single and several and single != several:
        raise InvalidRecord("it has both image and images")
    return single or several


def _names(value: Any, key: str) -> list[str]:
    listed = value if isinstance(value, list) else [value]
    return [_name(image, key) for image in listed if image not in (None, "")]


def _name(value: Any, key: str) -> str:
    """Return the file name of an image."""
    if isinstance(value, dict):
        if value.get("bytes") not in (None, "") or value.get("base64") not in (None, ""):
            raise InvalidRecord(f"{key} holds an image itself; put it into a file and name that")
        value = next((value[name] for name in ("path", "url", "image", "file_name") if value.get(name)), None)
        if value is None:
            raise InvalidRecord(f"{key} is an object without a path")
    if not isinstance(value, str):
        raise InvalidRecord(f"{key} is {json_type(value)}, not text")
    if value.lstrip().startswith("data:"):
        raise InvalidRecord(f"{key} holds an image itself (a data: URI); put it into a file and name that")
    return text({key: value}, key) or ""


def _turns(record: dict[str, Any]) -> Iterator[tuple[str, TurnContent]]:
    """Yield the role and the content of every turn."""
    listed = next((key for key in TURN_LIST_KEYS if _holds(record, key)), None)
    if listed is not None:
        turns = record[listed]
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            raise InvalidRecord(f"{listed} is not a list of objects")
        for turn in turns:
            yield from _turn(turn)
        return
    there = [pair for pair in QUESTION_ANSWER_KEYS if all(key in record for key in pair)]
    if not there:
        return
    first, last = next((pair for pair in there if all(_holds(record, key) for key in pair)), there[0])
    history = record.get("history") or []
    if not isinstance(history, list) or not all(
        isinstance(pair, list) and len(pair) == 2 for pair in history
    ):
        raise InvalidRecord("history is not a list of pairs")
    for question, answer in history:
        yield "user", _content({"history": question}, "history")
        yield "assistant", _content({"history": answer}, "history")
    question = _content(record, first)
    if first == "instruction" and (more := text(record, "input")):
        question = f"{question[0]}\n{more}".strip(), [*question[1], *_names_in(more)], True
    yield "user", question
    yield "assistant", _content(record, last)


def _turn(turn: dict[str, Any]) -> Iterator[tuple[str, TurnContent]]:
    name = next((key for key in ("from", "role") if turn.get(key) is not None), None)
    if name is None:
        pair = next((key for key in ("human", "user") if key in turn), None)
        if pair is None or "assistant" not in turn:
            raise InvalidRecord("a turn has neither from nor role")
        yield "user", _content(turn, pair)
        yield "assistant", _content(turn, "assistant")
        return
    role = turn[name]
    if not isinstance(role, str) or role.strip().lower() not in ROLES:
        what = quoted(role) if isinstance(role, str) else json_type(role)
        raise InvalidRecord(f"a turn is of {what}, not one of {', '.join(ROLES)}")
    if turn.get("tool_calls"):
        raise InvalidRecord("a turn calls tools, which cannot be used")
    usual = "value" if name == "from" else "content"
    content = next((key for key in (usual, "value", "content") if turn.get(key) is not None), usual)
    learned = turn.get("weight") != 0 and turn.get("loss") is not False and turn.get("train") is not False
    words, names, _ = _content(turn, content)
    yield ROLES[role.strip().lower()], (words, names, learned)


def _content(turn: dict[str, Any], key: str) -> TurnContent:
    """Return the content of a turn, which is text or a list of parts."""
    value = turn.get(key)
    if not isinstance(value, list):
        only = text(turn, key) or ""
        return only, _names_in(only), True
    words: list[str] = []
    names: list[str | None] = []
    for part in value:
        if isinstance(part, str):
            words.append(part)
            names += _names_in(part)
            continue
        if not isinstance(part, dict):
            raise InvalidRecord(f"a part of {key} is {json_type(part)}, not text or image")
        what = part.get("type")
        own = next((name for name in ("image", "image_url", "path", "url") if part.get(name)), None)
        if what is None:  # the keys of the part decide its type
            if (own is None) == (part.get("text") is None):
                raise InvalidRecord(
                    f"a part of {key} is {'neither text nor' if own is None else 'both text and'} image"
                )
            what = "text" if own is None else "image"
        if what in ("text", "input_text", "output_text"):
            words.append(text(part, "text") or "")
            names += _names_in(words[-1])
        elif what in ("image", "image_url", "input_image"):
            words.append("<image>")
            names.append(None if own is None else _name(part[own], own))
        else:
            raise InvalidRecord(f"a part of {key} is {quoted(str(what))}, not text or image")
    joined = "\n".join(word for word in words if word)
    text({key: joined}, key)
    return joined, names, True


def _names_in(words: str) -> list[str | None]:
    """Return the name that each mark of a text gives to its image, None for "<image>"."""
    return [None if mark[1] is None else mark[1].strip() for mark in MARK.finditer(words)]


def _agree(in_text: Sequence[str | None], names: Sequence[str | None]) -> bool:
    """Return whether the marks of a joined text are those of its parts."""
    return len(in_text) == len(names) and all(
        own in (None, name) for own, name in zip(in_text, names, strict=True)
    )


def _turns_with_images(
    questions: Sequence[Sequence[TurnContent]], names: Sequence[str], find_image: FindAnyImage
) -> list[Turn]:
    """Return the questions without marks, with each image at the place of its mark.

    Marks that name no image stand for those of the record, in order.
    """
    texts = ["\n".join(content[0] for content in question) for question in questions]
    names_of = [[name for content in question for name in content[1]] for question in questions]
    if not all(map(_agree, map(_names_in, texts), names_of)):
        raise InvalidRecord("a mark <img>…</img> begins in one part of a question and ends in another")
    open_marks = sum(name is None for row in names_of for name in row)
    if names and not any(names_of):
        texts[0] = "<image>" * len(names) + texts[0]
        names_of[0] = [None] * len(names)
    elif open_marks != len(names) and not (len(names) == 1 and open_marks > 1):
        raise InvalidRecord(f"its questions have {open_marks} <image> marks for {len(names)} images")
    left = iter(names)  # beyond its first mark, a single image is only referred to
    shown = [[next(left, None) if name is None else name for name in row] for row in names_of]
    return [
        _turn_with_images(words, [None if name is None else find_image(name) for name in row])
        for words, row in zip(texts, shown, strict=True)
    ]


def _turn_with_images(words: str, images: Sequence[LazyImage | None]) -> Turn:
    """Return a question without marks, with each image at the place of its mark, and none where there is None."""
    first, *others = MARK.sub("<image>", words).split("<image>")
    user, places = first.lstrip(), list[int]()
    for piece, image in zip(others, images, strict=True):
        if image is not None:
            places.append(len(user))
        user += piece if user else piece.lstrip()
    user = user.rstrip()
    shown = tuple(image for image in images if image is not None)
    return Turn(user, "", shown, tuple(min(place, len(user)) for place in places))
