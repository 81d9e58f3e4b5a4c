"""The task choice: multiple choice, answered with the text or the letter of an option.

The text form is short, for small models: options are not listed, since the model learns them. The letter form
has the parts of FedMLLM's prompt in the same order: instruction, text, question, options, form of the reply.

Reference: B. Xu et al., "FedMLLM: Federated Fine-tuning MLLM on Multimodal Heterogeneity Data", arXiv
2411.14717v2.

Differs from the paper: prompts have their own wording; a reply is parsed strictly, where the published code takes the
first capital letter from A to G, even inside a word. The published parsing is scored too, under its own names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from string import ascii_uppercase

from fedloom.system.errors import UserError
from fedloom.tasks.metrics import classification
from fedloom.tasks.prompts import modality_phrase
from fedloom.tasks.published_scoring import (
    SameAnswer,
    compared_answer,
    compared_reply,
    first_letter,
    published_classification,
    same_start,
    same_text,
)
from fedloom.tasks.task import (
    UNPARSED,
    AnswerForm,
    Published,
    Task,
    Unparsed,
    clean_text,
    conversation,
    without_punctuation,
)
from fedloom.types import Conversation, Example, Presence


def render(
    example: Example, present: Presence, *, clause: str | None = None, answer_form: AnswerForm = "text"
) -> Conversation:
    """Render a multiple-choice question; see `fedloom.tasks.task.Render`.

    Raises:
        UserError: The answer is not an option, or there are more options than letters.
    """
    options = option_answers(example, answer_form)
    frame = ("", "")
    if answer_form == "letter":
        phrase = modality_phrase(example, present, clause)
        pick = "pick the best of the options." if phrase else "Pick the best of the options."
        start = f"{phrase}, {pick}" if phrase else pick
        frame = f"{start}\n", "\n".join(["", "Options:", *options, "Reply with the letter of the option."])
    return conversation(
        example, present, clause, answer=options[label_of(example)], options=options, frame=frame
    )


def parse(reply: str, example: Example, *, answer_form: AnswerForm = "text") -> int | Unparsed:
    """Return the label of the option that a reply names, or `UNPARSED`.

    In both forms, an exact answer has priority. After that, in the text form, the label is that of the option that is
    equal up to case, punctuation and white space, else of the only option in the reply (the longest one if one contains
    another); in the letter form, of the only letter in brackets, else of the only capital that is a word.
    """
    reply = clean_text(reply)
    exact = _indices_of(reply, option_answers(example, answer_form))
    if exact:
        return _single(exact)
    return _letter(reply, len(example.options)) if answer_form == "letter" else _named(reply, example.options)


def option_answers(example: Example, answer_form: AnswerForm) -> tuple[str, ...]:
    """Return the right reply for each option, in label order."""
    options = tuple(clean_text(option) for option in example.options)
    if answer_form == "text":
        return options
    if len(options) > len(ascii_uppercase):
        raise UserError(
            f"example {example.id!r} has {len(options)} options, more than letters; use answer: text"
        )
    return tuple(f"({letter}) {option}" for letter, option in zip(ascii_uppercase, options, strict=False))


def label_of(example: Example) -> int:
    """Return the index of the right option.

    Raises:
        UserError: The example has no valid label, and its answer is not an option.
    """
    label = example.label
    if label is None and example.options.count(example.answer) == 1:
        label = example.options.index(example.answer)
    if label is None or not 0 <= label < len(example.options):
        raise UserError(
            f"example {example.id!r}: the answer {example.answer!r} is not one of its options: "
            f"{', '.join(example.options) or 'there are none'}"
        )
    return label


def _indices_of(word: str, words: Sequence[str]) -> list[int]:
    return [index for index, other in enumerate(words) if other == word]


def _single(labels: Sequence[int]) -> int | Unparsed:
    return labels[0] if len(labels) == 1 else UNPARSED


def _plain(text: str) -> str:
    return " ".join(without_punctuation(text.casefold()).split())


def _named(reply: str, options: Sequence[str]) -> int | Unparsed:
    remaining, plain = f" {_plain(reply)} ", [_plain(option) for option in options]
    if remaining.strip() in plain:
        return _single(_indices_of(remaining.strip(), plain)) if remaining.strip() else UNPARSED
    labels: list[int] = []
    for option in sorted(set(plain) - {""}, key=len, reverse=True):
        # The option is removed, so that a shorter one inside it does not match too.
        remaining, count = re.subn(rf"(?<= ){re.escape(option)}(?= )", "|", remaining)
        if count:
            labels += _indices_of(option, plain)
    return _single(labels)


_BRACKETED = re.compile(r"\(([A-Z])\)")
_ALONE = re.compile(r"(?<![\w'’])[A-Z](?![\w'’])")
# "A" and "I" before a word may be English words: they are not answers, but they make other letters ambiguous.
_SURE = re.compile(r"(?<![\w'’])(?:[B-HJ-Z]|[AI](?! \w))(?![\w'’])")


def _letter(reply: str, options: int) -> int | Unparsed:
    def labels_of(pattern: re.Pattern[str]) -> list[int]:
        letters = {ascii_uppercase.index(letter) for letter in pattern.findall(reply)}
        return sorted(letter for letter in letters if letter < options)

    alone = labels_of(_ALONE)
    return _single(labels_of(_BRACKETED) or (alone if alone == labels_of(_SURE) else []))


def published_parse(
    reply: str, example: Example, *, answer_form: AnswerForm = "text", same: SameAnswer = same_text
) -> int | Unparsed:
    """Return the label that published code reads from a reply, or `UNPARSED`.

    In the letter form this is the label that FedMLLM's code reads, class 2 for a failure. In the text form
    FedVLMBench's code compares a part of the reply with the right option; if they differ, the label is that of the
    first option that the code would accept.

    Args:
        reply: The reply of the model.
        example: The question.
        answer_form: Whether the answer is an option's text or its letter.
        same: Compares texts as the scripts of FGVC-Aircraft or as the multi-task scripts do.
    """
    if answer_form == "letter":
        return first_letter(reply, len(example.options))
    label, options = label_of(example), option_answers(example, "text")
    text = compared_reply(reply, options[label])
    if text is None:
        return UNPARSED
    accepted = [place for place, option in enumerate(options) if same(text, compared_answer(option))]
    return label if label in accepted else accepted[0] if accepted else UNPARSED


PUBLISHED = published_classification(label_of)

CHOICE = Task(
    render,
    parse,
    classification(label_of),
    Published(published_parse, PUBLISHED),
    Published(partial(published_parse, same=same_start), PUBLISHED),
)
