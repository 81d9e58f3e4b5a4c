"""Conversations as other trainers keep them, read as questions with the turns before them.

Turns stand in `conversations`, `messages` or `conversation`, as objects with `from` and `value` (LLaVA, ShareGPT) or
`role` and `content` (OpenAI, Hugging Face, ms-swift), or as pairs `human` and `assistant`. A content is text or a list of
parts, {"type": "text", "text": …} and {"type": "image", "image": NAME} or {"type": "image_url", "image_url": {"url":
NAME}}. Records of single questions have `query` and `response` (ms-swift), or `instruction`, `input` and `output`
(Alpaca), with earlier pairs in `history`. `system`, or a turn of that role, stands before the first turn.

`image` and `images` name files: one, a list, or objects with a `path`. Each "<image>" in a question is the place of one
image, in order; without any mark all images stand before the first question. A single image stands at the first mark,
and further marks of it mean the same image. "<img>NAME</img>" names an image where it stands.

Every answer is learned once: a conversation of several answers becomes as many examples, each with the turns before it
as what was said before. An answer that stands before any question has nothing to answer and is passed over, as LLaVA
does; so is a question without an answer at the end. An answer with "weight": 0 or "loss": false is said, not learned.

Absent, null and empty values mean the same, as in files whose records all have the same keys. The marks of a last question
without an answer count, for its images are named too. An image in a turn that is no question makes a record invalid.

Tool calls, videos, audio and boxes named by marks have no place in a benchmark of images and texts: such a record is
invalid, and the reason says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fedloom.data.record_fields import Bad, Locate, text
from fedloom.data.record_files import kind, shown
from fedloom.types import LazyImage, Turn

LISTS = ("conversations", "messages", "conversation")
PAIRS = (("query", "response"), ("instruction", "output"))
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
ELSEWHERE = {
    "tools": "tools",
    "videos": "videos",
    "video": "a video",
    "audios": "audio",
    "audio": "audio",
    "objects": "boxes that marks stand for",
}
"""What a record may hold that has no place here: key → what it is."""

MARK = re.compile(r"<image>|<img>(.*?)</img>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Talk:
    """A conversation of a record.

    Attributes:
        turns: Its questions with their images and answers.
        learned: For each turn whether its answer is trained on.
        system: What stands before the first turn, or None.
    """

    turns: tuple[Turn, ...]
    learned: tuple[bool, ...]
    system: str | None


Said = tuple[str, list["str | None"], bool]
"""A turn's text with an "<image>" for every image, the names that stand in the turn itself, and whether it is learned."""


def is_talk(record: dict[str, Any]) -> bool:
    """Return whether a record is a conversation and not a question with its answer."""
    if any(_holds(record, key) for key in LISTS):
        return True
    if _holds(record, "question"):
        return False
    return any(key in record for key in LISTS) or any(
        first in record and last in record for first, last in PAIRS
    )


def _holds(record: dict[str, Any], key: str) -> bool:
    """Return whether a value is there; files whose records all have the same keys fill up with null and empty ones."""
    return record.get(key) not in (None, "", [], {}, "[]")


def _empty(value: Any) -> bool:
    """Return whether a value holds nothing, at any depth."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return value in (None, "", "[]") if inside is None else all(map(_empty, inside))


def talk(record: dict[str, Any], locate: Locate) -> Talk:
    """Read a conversation.

    Args:
        record: The record; `is_talk` holds.
        locate: Finds an image by its name.

    Raises:
        Bad: It cannot be used.
    """
    for key, what in ELSEWHERE.items():
        if not _empty(record.get(key)):
            raise Bad(f"it has {what} ({key}), which cannot be used")
    system = [one] if (one := text(record, "system")) else []
    asked: list[list[Said]] = []
    answers: list[list[Said]] = []
    for role, said in _turns(record):
        if role != "user" and said[1]:
            raise Bad(f"a turn of the {role} shows an image, which only questions can")
        if role == "system":
            system.append(said[0].strip())
        elif role == "user":
            if not asked or answers[-1]:
                asked.append([])
                answers.append([])
            asked[-1].append(said)
        elif asked:
            answers[-1].append(said)
    pairs = [(before, after) for before, after in zip(asked, answers, strict=True) if after]
    if not pairs:
        raise Bad("it has no question with an answer to it")
    turns = _placed(asked, images_of(record), locate)[: len(pairs)]  # only the last may lack an answer
    found = []
    for number, (turn, (_, after)) in enumerate(zip(turns, pairs, strict=True), 1):
        answer = "\n".join(said[0] for said in after).strip()
        at = f" of turn {number}" if len(pairs) > 1 else ""
        if not turn.user and not turn.pictures:
            raise Bad(f"the question{at} is empty")
        if not answer:
            raise Bad(f"the answer{at} is empty")
        found.append(Turn(turn.user, answer, turn.pictures, turn.places))
    learned = tuple(all(said[2] for said in after) for _, after in pairs)
    if not any(learned):
        raise Bad("none of its answers is to be learned")
    return Talk(tuple(found), learned, "\n".join(system) or None)


def images_of(record: dict[str, Any]) -> list[str]:
    """Return the names of a record's images, in `image` or `images`.

    Raises:
        Bad: One of them is no name.
    """
    single, several = (_names(record.get(key), key) for key in ("image", "images"))
    if single and several and single != several:
        raise Bad("it has both image and images")
    return single or several


def _names(value: Any, key: str) -> list[str]:
    listed = value if isinstance(value, list) else [value]
    return [_name(one, key) for one in listed if one not in (None, "")]


def _name(value: Any, key: str) -> str:
    """Return the file that an image stands for."""
    if isinstance(value, dict):
        if value.get("bytes") not in (None, "") or value.get("base64") not in (None, ""):
            raise Bad(f"{key} holds an image itself; put it into a file and name that")
        value = next((value[name] for name in ("path", "url", "image", "file_name") if value.get(name)), None)
        if value is None:
            raise Bad(f"{key} is an object without a path")
    if not isinstance(value, str):
        raise Bad(f"{key} is {kind(value)}, not text")
    if value.lstrip().startswith("data:"):
        raise Bad(f"{key} holds an image itself (a data: URI); put it into a file and name that")
    return text({key: value}, key) or ""


def _turns(record: dict[str, Any]) -> Iterator[tuple[str, Said]]:
    """Yield the role of every turn and what it says."""
    listed = next((key for key in LISTS if _holds(record, key)), None)
    if listed is not None:
        turns = record[listed]
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            raise Bad(f"{listed} is not a list of objects")
        for turn in turns:
            yield from _turn(turn)
        return
    there = [pair for pair in PAIRS if all(key in record for key in pair)]
    if not there:
        return
    first, last = next((pair for pair in there if all(_holds(record, key) for key in pair)), there[0])
    history = record.get("history") or []
    if not isinstance(history, list) or not all(isinstance(one, list) and len(one) == 2 for one in history):
        raise Bad("history is not a list of pairs")
    for question, answer in history:
        yield "user", _said({"history": question}, "history")
        yield "assistant", _said({"history": answer}, "history")
    asked = _said(record, first)
    if first == "instruction" and (more := text(record, "input")):
        asked = f"{asked[0]}\n{more}".strip(), asked[1], True
    yield "user", asked
    yield "assistant", _said(record, last)


def _turn(turn: dict[str, Any]) -> Iterator[tuple[str, Said]]:
    name = next((key for key in ("from", "role") if turn.get(key) is not None), None)
    if name is None:
        pair = next((key for key in ("human", "user") if key in turn), None)
        if pair is None or "assistant" not in turn:
            raise Bad("a turn has neither from nor role")
        yield "user", _said(turn, pair)
        yield "assistant", _said(turn, "assistant")
        return
    role = turn[name]
    if not isinstance(role, str) or role.strip().lower() not in ROLES:
        what = shown(role) if isinstance(role, str) else kind(role)
        raise Bad(f"a turn is of {what}, not one of {', '.join(ROLES)}")
    if turn.get("tool_calls"):
        raise Bad("a turn calls tools, which cannot be used")
    usual = "value" if name == "from" else "content"
    content = next((key for key in (usual, "value", "content") if turn.get(key) is not None), usual)
    learned = turn.get("weight") != 0 and turn.get("loss") is not False and turn.get("train") is not False
    words, names, _ = _said(turn, content)
    yield ROLES[role.strip().lower()], (words, names, learned)


def _said(turn: dict[str, Any], key: str) -> Said:
    """Return the text of a turn, given as text or in parts, with the images that are named in it."""
    value = turn.get(key)
    if not isinstance(value, list):
        return text(turn, key) or "", [], True
    words: list[str] = []
    names: list[str | None] = []
    for part in value:
        if isinstance(part, str):
            words.append(part)
            continue
        if not isinstance(part, dict):
            raise Bad(f"a part of {key} is {kind(part)}, not text or image")
        what = part.get("type")
        own = next((name for name in ("image", "image_url", "path", "url") if part.get(name)), None)
        if what is None:  # the part's own keys tell what it is
            if (own is None) == (part.get("text") is None):
                raise Bad(
                    f"a part of {key} is {'neither text nor' if own is None else 'both text and'} image"
                )
            what = "text" if own is None else "image"
        if what in ("text", "input_text", "output_text"):
            words.append(text(part, "text") or "")
        elif what in ("image", "image_url", "input_image"):
            words.append("<image>")
            names.append(None if own is None else _name(part[own], own))
        else:
            raise Bad(f"a part of {key} is {shown(str(what))}, not text or image")
    joined = "\n".join(word for word in words if word)
    text({key: joined}, key)
    return joined, names, True


def _placed(asked: Sequence[Sequence[Said]], names: Sequence[str], locate: Locate) -> list[Turn]:
    """Put images where their marks stand in the questions, and take the marks out."""
    left = list(names)
    wanted: list[list[str | None]] = []
    texts: list[str] = []
    for turn in asked:
        words = "\n".join(said[0] for said in turn)
        own = iter([name for said in turn for name in said[1]])
        found: list[str | None] = []
        for mark in MARK.finditer(words):
            found.append(mark[1].strip() if mark[1] is not None else next(own, None))
        wanted.append(found)
        texts.append(words)
    open_marks = sum(name is None for row in wanted for name in row)
    if open_marks == 0 and left and not any(map(len, wanted)):
        texts[0] = "<image>" * len(left) + texts[0]
        wanted[0] = [None] * len(left)
    elif len(left) == 1 and open_marks > 1:
        return _once(texts, left[0], locate)
    elif open_marks != len(left):
        raise Bad(f"its questions have {open_marks} <image> marks for {len(left)} images")
    return [
        _marked(words, [locate(left.pop(0) if name is None else name) for name in row])
        for words, row in zip(texts, wanted, strict=True)
    ]


def _once(texts: Sequence[str], name: str, locate: Locate) -> list[Turn]:
    """Show a single image where it is first marked; further marks mean the same image."""
    turns: list[Turn] = []
    images = [locate(name)]
    for words in texts:
        count = len(MARK.findall(words))
        shown_here = images[: bool(count)]
        images = images[len(shown_here) :]
        turns.append(_marked(words, shown_here))
    return turns


def _marked(words: str, images: Sequence[LazyImage]) -> Turn:
    """Take the marks out of a question; each image stands where its mark stood."""
    pieces = MARK.sub("<image>", words).split("<image>")
    user, places = "", list[int]()
    for number, piece in enumerate(pieces):
        if number and number <= len(images):
            places.append(len(user))
        piece = piece if user else piece.lstrip()
        user += piece
    rest = user.rstrip()
    return Turn(rest, "", tuple(images), tuple(min(place, len(rest)) for place in places))
