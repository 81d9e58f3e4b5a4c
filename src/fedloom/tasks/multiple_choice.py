"""Multiple choice, answered by an option's text or by its letter.

The text form is short, for small models: options are not listed, the model learns them. The letter form
has the parts of FedMLLM's prompt in its order: instruction, text, question, options, how to reply.

Reference: B. Xu et al., "FedMLLM: Federated Fine-tuning MLLM on Multimodal Heterogeneity Data", arXiv
2411.14717v2.

Differs from the paper: our own words; a reply is parsed strictly, where the published code takes the first
capital letter from A to G, also one inside a word. What that code makes of a reply is scored beside it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from string import ascii_uppercase

from fedloom.system.errors import UserError
from fedloom.tasks.metrics import classification
from fedloom.tasks.published_scoring import (
    Same,
    first_letter,
    heard,
    published_classification,
    same_start,
    same_text,
    stated,
)
from fedloom.tasks.task import (
    UNPARSED,
    AnswerForm,
    Published,
    Task,
    Unparsed,
    clean_text,
    conversation,
    evidence,
)
from fedloom.types import Conversation, Example, Presence


def render(
    example: Example, present: Presence, *, clause: str | None = None, answer_form: AnswerForm = "text"
) -> Conversation:
    """Render a multiple-choice question; see `fedloom.tasks.task.Render`.

    Raises:
        UserError: The answer is no option, or there are more options than letters.
    """
    options = answers(example, answer_form)
    frame = ("", "")
    if answer_form == "letter":
        phrase = evidence(example, present, clause)
        pick = "pick the best of the options." if phrase else "Pick the best of the options."
        start = f"{phrase}, {pick}" if phrase else pick
        frame = f"{start}\n", "\n".join(["", "Options:", *options, "Reply with the letter of the option."])
    return conversation(
        example, present, clause, answer=options[label_of(example)], options=options, frame=frame
    )


def parse(reply: str, example: Example, *, answer_form: AnswerForm = "text") -> int | Unparsed:
    """Return the label of the option that a reply names, or `UNPARSED`.

    In either form, first an answer word for word. Then, in the text form, the option equal up to case,
    punctuation and white space, else the only option named in the reply (the longest where one contains
    another); in the letter form, the only letter in brackets, else the only capital that stands alone.
    """
    reply = clean_text(reply)
    exact = _where(reply, answers(example, answer_form))
    if exact:
        return _single(exact)
    return _letter(reply, len(example.options)) if answer_form == "letter" else _named(reply, example.options)


def answers(example: Example, answer_form: AnswerForm) -> tuple[str, ...]:
    """Return what a model has to say for each option, in label order."""
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
        UserError: The example has no valid label and its answer is no option.
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


def _where(word: str, words: Sequence[str]) -> list[int]:
    return [place for place, other in enumerate(words) if other == word]


def _single(found: Sequence[int]) -> int | Unparsed:
    return found[0] if len(found) == 1 else UNPARSED


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[\W_]+", " ", text.casefold()).split())


def _named(reply: str, options: Sequence[str]) -> int | Unparsed:
    rest, plain = f" {_plain(reply)} ", [_plain(option) for option in options]
    if rest.strip() in plain:
        return _single(_where(rest.strip(), plain)) if rest.strip() else UNPARSED
    found: list[int] = []
    for option in sorted(set(plain) - {""}, key=len, reverse=True):
        # Taken out where found, so that a shorter option inside this one is not found as well.
        rest, times = re.subn(rf"(?<= ){re.escape(option)}(?= )", "|", rest)
        if times:
            found += _where(option, plain)
    return _single(found)


_BRACKETED = re.compile(r"\(([A-Z])\)")
_ALONE = re.compile(r"(?<![\w'’])[A-Z](?![\w'’])")
# "A" and "I" before a word may be English: no answer themselves, but they put other letters in doubt.
_SURE = re.compile(r"(?<![\w'’])(?:[B-HJ-Z]|[AI](?! \w))(?![\w'’])")


def _letter(reply: str, options: int) -> int | Unparsed:
    def found(pattern: re.Pattern[str]) -> list[int]:
        letters = {ascii_uppercase.index(letter) for letter in pattern.findall(reply)}
        return sorted(letter for letter in letters if letter < options)

    alone = found(_ALONE)
    return _single(found(_BRACKETED) or (alone if alone == found(_SURE) else []))


def published_parse(
    reply: str, example: Example, *, answer_form: AnswerForm = "text", same: Same = same_text
) -> int | Unparsed:
    """Return the label that published code reads from a reply, or `UNPARSED`.

    In the letter form that is what FedMLLM's code makes of it, a failure being class 2. In the text form
    FedVLMBench's code compares what it hears of the reply with the right option; if they differ, it is the
    first option with which they agree.

    Args:
        reply: What the model said.
        example: What was asked.
        answer_form: Whether the answer is an option's text or its letter.
        same: Compares texts, as the scripts of FGVC-Aircraft or as the multi-task scripts do.
    """
    if answer_form == "letter":
        return first_letter(reply, len(example.options))
    label, options = label_of(example), answers(example, "text")
    found = heard(reply, options[label])
    alike = [] if found is None else [place for place, one in enumerate(options) if same(found, stated(one))]
    return label if label in alike else alike[0] if alike else UNPARSED


PUBLISHED = published_classification(label_of)

CHOICE = Task(
    render,
    parse,
    classification(label_of),
    Published(published_parse, PUBLISHED),
    Published(partial(published_parse, same=same_start), PUBLISHED),
)
