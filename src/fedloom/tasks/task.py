"""The interface of a task (render an example, parse a reply, score answers), and the prompts of all tasks."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from itertools import takewhile
from typing import Any, Final, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fedloom.tasks.prompts import modality_phrase, shows_image, shows_text
from fedloom.types import Conversation, Example, Presence, Turn

AnswerForm = Literal["text", "letter"]
Box = tuple[float, float, float, float]
Answer = int | str | Box
"""An option's label (choice), a normalized text (vqa, caption), or a box (grounding)."""


class Unparsed(Enum):
    """The type of `UNPARSED`."""

    UNPARSED = "unparsed"

    def __repr__(self) -> str:
        return self.name


UNPARSED: Final = Unparsed.UNPARSED
"""The answer of a reply without one; it is never right, and always counted."""


class Rows:
    """An immutable list of rows, one for each answer: the state of a metric.

    Adding rows to the latest `Rows` takes constant time: several `Rows` share one list, of which each is a
    beginning. Only adding to the same `Rows` twice copies them.

    Example:
        >>> first = Rows([1])
        >>> list(first.plus([2])), list(first.plus([3])), list(first)
        ([1, 2], [1, 3], [1])
    """

    __slots__ = ("_count", "_shared")

    def __init__(self, rows: Iterable[Any] = ()) -> None:
        self._shared = list(rows)
        self._count = len(self._shared)

    def plus(self, rows: Iterable[Any]) -> Rows:
        """Return these rows followed by others."""
        more = list(rows)
        grown = Rows()
        # Empty rows never share, so that a constant zero keeps no rows alive.
        copied = self._count == 0 or self._count < len(self._shared)
        grown._shared = self._shared[: self._count] if copied else self._shared
        grown._shared.extend(more)
        grown._count = self._count + len(more)
        return grown

    def __iter__(self) -> Iterator[Any]:
        return iter(self._shared[: self._count])

    def __len__(self) -> int:
        return self._count

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rows) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Rows({list(self)!r})"


State = Rows
Scores = dict[str, float | None]


class Metric(NamedTuple):
    """A monoid of answers: add one at a time, merge states, compute the result at the end.

    Attributes:
        zero: The state before the first answer.
        add: (state, example, answer, probabilities or None) → state. Probabilities are those of the
            example's options, shape [options]; the state in the argument is not changed.
        merge: (state, state) → state; associative, with `zero` neutral.
        result: State → score names to numbers, None if a score is undefined. All are fractions 0..1 except
            "cider", which is 0..10. Every metric of a task has "accuracy" and "unparsed", the share of
            replies without an answer.
        each: State → score names to the scores of the single answers, in order; their mean is the
            score of that name. Includes "accuracy" and the headline score.
        headline: The name of the headline score of the task.
    """

    zero: State
    add: Callable[[State, Example, Answer | Unparsed, NDArray[np.floating] | None], State]
    merge: Callable[[State, State], State]
    result: Callable[[State], Scores]
    each: Callable[[State], dict[str, list[float]]]
    headline: str = "accuracy"


class Render(Protocol):
    """Renders an example as a user turn and the right answer to it."""

    def __call__(
        self, example: Example, present: Presence, *, clause: str | None = None, answer_form: AnswerForm
    ) -> Conversation:
        """Render an example.

        Args:
            example: The example.
            present: Which modalities may be seen; a modality that the example lacks stays absent.
            clause: What the prompt says about modalities, a value of `PROMPTS`; None names those that are present.
            answer_form: For multiple choice, whether the answer is the option's text or "(A) text".
        """
        ...


class Parse(Protocol):
    """Finds the answer in a reply."""

    def __call__(self, reply: str, example: Example, *, answer_form: AnswerForm) -> Answer | Unparsed:
        """Return the answer in a reply, or `UNPARSED` if there is none or more than one."""
        ...


class Published(NamedTuple):
    """Parsing and scoring of a paper's published code, for comparison with its tables.

    Attributes:
        parse: The parsing of the code; it may be milder or stricter than the task's own.
        metrics: The scores of the code; every name ends in "_published". The laws of scores do not hold: an
            unparsed answer may raise a score.
    """

    parse: Parse
    metrics: Metric


class Task(NamedTuple):
    """A kind of question as a value. The right answer, rendered, parses to itself and scores best.

    Attributes:
        render: Makes the user turn and the right answer.
        parse: Finds the answer in a reply.
        metrics: Scores answers.
        published: Reads and scores replies as published code does where all examples have this task.
        multitask: Likewise where examples have several tasks; None is `published`.
    """

    render: Render
    parse: Parse
    metrics: Metric
    published: Published
    multitask: Published | None = None


def ask(example: Example, present: Presence, clause: str | None = None) -> str:
    """Return the short user turn of all tasks: the text, if it may be seen, the phrase about modalities, the question.

    Example:
        >>> cat = Example("1", "Which group does it belong to?", "animals", text="cat, pet")
        >>> print(ask(cat, Presence(image=False, text=True)))
        Text: cat, pet
        Given the text: Which group does it belong to?
    """
    return conversation(example, present, clause).user


def conversation(
    example: Example,
    present: Presence,
    clause: str | None = None,
    *,
    answer: str = "",
    options: tuple[str, ...] = (),
    frame: tuple[str, str] = ("", ""),
) -> Conversation:
    """Render a question with the turns before it and images at their places; the text comes before the first turn.

    Args:
        example: The question.
        present: Which modalities may be seen.
        clause: As for `Render`.
        answer: The text that the model is trained to give.
        options: The texts of the options, in label order; empty for free answers.
        frame: Texts before and after the question in its user turn.
    """
    phrase = modality_phrase(example, present, clause)
    start = f"Text: {clean_text(example.text or '')}\n" if shows_text(example, present) else ""
    own = () if example.image is None else (example.image,)
    turns = example.turns or (Turn(example.question, "", own, (0,) * len(own)),)
    rendered = [
        _turn(turn, shows_image(example, present), "" if number else start, phrase)
        for number, turn in enumerate(turns)
    ]
    *history, last = rendered
    user = f"{frame[0]}{last.user}{frame[1]}"
    places = tuple(place and place + len(frame[0]) for place in last.places)
    image, *more = last.pictures or (None,)
    system = None if example.system is None else clean_text(example.system)
    return Conversation(
        user, answer, image, options, tuple(more), places if any(places) else (), tuple(history), system
    )


def _turn(turn: Turn, image: bool, start: str, phrase: str) -> Turn:
    """Return a turn with its start, the phrase about modalities, and the question.

    Images at the beginning of the question are at the beginning of the turn.
    """
    begins = start + (f"{phrase}: " if phrase else "")
    places = turn.places if image else ()
    ends = (*places, len(turn.user))
    cuts = zip((0, *places), ends, strict=True)
    pieces = [clean_text(turn.user[before:after]) for before, after in cuts]
    user, stands = begins, list[int]()
    for number, piece in enumerate(pieces):
        if number:
            stands.append(len(user) if any(pieces[:number]) else 0)
        user += (" " if piece and number and any(pieces[:number]) else "") + piece
    return Turn(user, clean_text(turn.answer), turn.pictures if image else (), tuple(stands))


def free_answer(
    example: Example, present: Presence, *, clause: str | None = None, answer_form: AnswerForm = "text"
) -> Conversation:
    """Render a question whose answer is free text; the answer form makes no difference. See `Render`."""
    del answer_form
    return conversation(example, present, clause, answer=clean_text(example.answer))


_SPECIAL = re.compile(r"<(?=\S)|(?<=\[)(?=/?[A-Za-z]\w*\])")


def clean_text(text: str) -> str:
    """Return user text on one line without special tokens of any tokenizer.

    A space after every "<", and inside brackets around a single word, breaks the special tokens of all model
    families, such as `<image>`, `</s>`, `<|im_start|>` and `[INST]`; runs of white space become one space.

    Example:
        >>> clean_text("a <image> of 1 < 2  [INST] [1, 2]")
        'a < image> of 1 < 2 [ INST] [1, 2]'
    """
    return " ".join(_SPECIAL.sub(lambda match: match.group() + " ", text).split())


PUNCTUATION = r"[\W_]+"
"""Matches a run of characters that Python does not count as parts of words; among these are the marks of letters."""


def without_punctuation(text: str, pattern: str = PUNCTUATION) -> str:
    r"""Return a text in Unicode's composed form (NFC), with a space in place of punctuation and symbols.

    Vowel signs and accents that follow a letter are a part of it, as in Hindi, Thai and Arabic with vowels: without them, words
    would fall apart and different words would be equal.

    Args:
        text: The text.
        pattern: Matches what is replaced, a run of characters at a time.

    Example:
        >>> without_punctuation("cafe\u0301-bar!"), without_punctuation("\u0939\u093f\u0928\u094d\u0926\u0940?")
        ('café bar ', 'हिन्दी ')
    """
    return re.sub(pattern, _gap, unicodedata.normalize("NFC", text))


def _gap(match: re.Match[str]) -> str:
    run = match[0]
    marks = "".join(takewhile(_is_mark, run)) if match.start() else ""
    return marks if marks == run else f"{marks} "


def _is_mark(character: str) -> bool:
    """Return whether a character is a sign of the letter before it; variation selectors only choose a style, as of emoji."""
    selector = "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef"
    return unicodedata.category(character) in ("Mn", "Mc") and not selector
