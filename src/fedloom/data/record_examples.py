"""Turn a record of the user's own data into examples: one, or one for each answer of a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from fedloom.config.validation_errors import VERY_NEAR, nearest
from fedloom.data.conversations import MARK, TURN_LIST_KEYS, image_names, is_conversation, read_conversation
from fedloom.data.duplicates import normalized_text
from fedloom.data.record_fields import FindAnyImage, InvalidRecord, required, text, text_or_integer
from fedloom.data.record_files import Record, json_type, quoted
from fedloom.types import Example, Turn

FIELDS = ("question", "answer", "image", "images", "text", "options", "group", "id", "split")
"""The fields of a record that is a single question."""

SHORTEST_NAME = 4
"""Least characters of an unknown field that counts as misspelled; shorter words are near to too many others."""


def examples_of_record(record: Record, find_image: FindAnyImage) -> list[Example]:
    """Return the examples of a record, in order; see `fedloom.data.own_folder` for its fields.

    Raises:
        InvalidRecord: The record is invalid.
    """
    if is_conversation(record.values):
        return _conversation_examples(record, find_image)
    return [_single_example(record, find_image)]


def _conversation_examples(record: Record, find_image: FindAnyImage) -> list[Example]:
    """Return an example for every answer of a conversation that is to be learned."""
    values = record.values
    conversation = read_conversation(values, find_image)
    options, own_text = _options(values), text(values, "text")
    name = _id(record)
    images = [image for turn in conversation.turns for image in turn.pictures]
    simple = _is_simple(conversation.turns)
    examples: list[Example] = []
    for number, (turn, learned) in enumerate(zip(conversation.turns, conversation.learned, strict=True), 1):
        if learned:
            examples.append(
                replace(
                    _bare_example(record, turn.user, turn.answer, options),
                    id=name if len(conversation.turns) == 1 else f"{name}#{number}",
                    image=images[0] if images else None,
                    text=own_text,
                    turns=() if simple else conversation.turns[:number],
                    system=conversation.system,
                )
            )
    return examples


def _single_example(record: Record, find_image: FindAnyImage) -> Example:
    values = record.values
    if values and not any(field in values for field in FIELDS):
        named = ", ".join(quoted(name) for name in values)
        raise InvalidRecord(f"it has no question, answer, image or text, but {named}; rename its fields")
    question, answer = _given(values, "question"), _answer(values)
    if MARK.search(answer):
        raise InvalidRecord("answer holds an <image> mark, which only the question can")
    _require_no_misspelling(values)
    options, own_text, names = _options(values), text(values, "text"), image_names(values)
    if not names and own_text is None:
        raise InvalidRecord("neither image nor text")
    if len(names) > 1 or (names and MARK.search(question)):
        others = {key: value for key, value in values.items() if key not in TURN_LIST_KEYS}
        turns = read_conversation(
            {**others, "messages": [_message("user", question), _message("assistant", answer)]}, find_image
        ).turns
        image, question = turns[0].pictures[0], turns[0].user
        turns = () if _is_simple(turns) else turns
    else:
        turns, image = (), find_image(names[0]) if names else None
    example = _bare_example(record, question, answer, options)
    return replace(example, id=_id(record), image=image, text=own_text, turns=turns)


def _answer(values: dict[str, Any]) -> str:
    value = values.get("answer")
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise InvalidRecord(
            f'answer is the number {value}, not text; give the name of the class, or "{value}" if that is the answer'
        )
    return _given(values, "answer")


def _given(values: dict[str, Any], key: str) -> str:
    """Return a field that every record must have; if it is missing, the reason names a field that may be meant."""
    if values.get(key) is None and (near := nearest(key, _other_fields(values), 0.7)) is not None:
        raise InvalidRecord(f"{key} is missing, and {quoted(near)} is not a known field. Did you mean {key}?")
    return required(values, key)


def _require_no_misspelling(values: dict[str, Any]) -> None:
    """Refuse a field that is not known, but is very near to one that the record lacks: it would be ignored."""
    lacking = tuple(field for field in FIELDS if field not in values)
    for name in _other_fields(values):
        if (meant := _misspelled(name, lacking)) is not None:
            raise InvalidRecord(
                f"{quoted(name)} is not a known field. Did you mean {meant}? If not, rename or remove it"
            )


@lru_cache(maxsize=1024)  # the records of a file have the same fields, and comparing words is slow
def _misspelled(name: str, lacking: tuple[str, ...]) -> str | None:
    return nearest(name, lacking, VERY_NEAR) if len(name) >= SHORTEST_NAME else None


def _other_fields(values: dict[str, Any]) -> list[str]:
    return [name for name in values if name not in FIELDS]


def _is_simple(turns: Sequence[Turn]) -> bool:
    """Return whether a conversation is a single question with at most one image, which comes first."""
    return len(turns) == 1 and len(turns[0].pictures) < 2 and not any(turns[0].places)


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _id(record: Record) -> str:
    return text_or_integer(record.values, "id") or f"{record.file}:{record.number}"


def _bare_example(record: Record, question: str, answer: str, options: tuple[str, ...]) -> Example:
    """Return an example without id, image and text; its answer has the spelling of its option."""
    label = next(
        (index for index, option in enumerate(options) if normalized_text(option) == normalized_text(answer)),
        None,
    )
    if options and label is None:
        raise InvalidRecord(f"answer {quoted(answer)} is not among the options")
    answer = answer if label is None else options[label]
    return Example(
        id="",
        question=question,
        answer=answer,
        label=label,
        group=text_or_integer(record.values, "group") or (answer if options else None),
        options=options,
        task="choice" if options else "vqa",
        place=record.place,
    )


def _options(values: dict[str, Any]) -> tuple[str, ...]:
    value = values.get("options") or []
    if isinstance(value, str):  # as a cell of a table holds them
        value = [option for option in value.split("|") if option.strip()]
    if not isinstance(value, list):
        raise InvalidRecord(f"options is {json_type(value)}, not a list")
    options = tuple(required({"an option": option}, "an option") for option in value)
    if len(options) == 1 or len(set(map(normalized_text, options))) < len(options):
        raise InvalidRecord("options must be at least two strings that differ in more than case and space")
    return options
