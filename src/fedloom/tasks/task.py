"""What a task is: render an example as a conversation, parse a reply, score it; and what all tasks share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import Any, Final, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

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
"""Stands for a reply in which no answer could be found; never right, and always counted."""


class Rows:
    """Rows in order, one for each answer: what a metric's state holds.

    Nobody who holds rows sees them change, yet adding to the latest takes constant time: several `Rows` may
    share one list, of which each sees a beginning. Only growing the same rows twice copies them.

    Example:
        >>> one = Rows([1])
        >>> list(one.plus([2])), list(one.plus([3])), list(one)
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
        # Empty rows never share, so that a zero which lives as long as the program keeps nothing alive.
        alone = self._count == 0 or self._count < len(self._shared)
        grown._shared = self._shared[: self._count] if alone else self._shared
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
    """A monoid of judged answers: add one at a time, merge parts, take the result at the end.

    Attributes:
        zero: The state before the first answer.
        add: (state, example, answer, probabilities or None) → state. Probabilities are those of the
            example's options, shape [options]; the given state is not changed.
        merge: (state, state) → state; associative, with `zero` neutral.
        result: State → score names to numbers, None where a score is undefined. All are fractions 0..1 but
            "cider", which is 0..10. Every metric of a task has "accuracy" and "unparsed", the share of
            replies without an answer.
        each: State → score names to the scores of the answers one by one, in order; the mean is the
            score of that name. Has "accuracy" and the headline.
        headline: The name of the one score that stands for the task.
    """

    zero: State
    add: Callable[[State, Example, Answer | Unparsed, NDArray[np.floating] | None], State]
    merge: Callable[[State, State], State]
    result: Callable[[State], Scores]
    each: Callable[[State], dict[str, list[float]]]
    headline: str = "accuracy"


class Render(Protocol):
    """Make the user turn and the right answer to it."""

    def __call__(
        self, example: Example, present: Presence, *, clause: str | None = None, answer_form: AnswerForm
    ) -> Conversation:
        """Render an example.

        Args:
            example: What is asked.
            present: Which modalities may be seen; one that the example lacks stays absent.
            clause: What the prompt says of the evidence, a value of `PROMPTS`; None names what is present.
            answer_form: For multiple choice, whether the answer is the option's text or "(A) text".
        """
        ...


class Parse(Protocol):
    """Find the answer in a reply."""

    def __call__(self, reply: str, example: Example, *, answer_form: AnswerForm) -> Answer | Unparsed:
        """Return the one answer the reply gives, or `UNPARSED` where there is none or more than one."""
        ...


class Published(NamedTuple):
    """How a paper's published code reads and scores replies, for comparison with its tables.

    Attributes:
        parse: As the code finds an answer; it may be milder or harsher than the task's own.
        metrics: As the code scores; every name ends in "_published". The laws of scores do not hold: an
            unparsed answer may pay.
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


AGNOSTIC: Final = "Whatever kinds of evidence there are"
"""The constant clause of the modality-agnostic prompt, the same whichever modality is present."""

PROMPTS: Final[dict[str, str | None]] = {
    "present": None,
    "original": "Given the picture and the text",
    "relaxed": "Given what there is of picture and text",
    "agnostic": AGNOSTIC,
    "strict": "Given all the evidence, whatever kind it is of",
    "none": "",
}
"""What a prompt says of the evidence, by name: both in its instruction, if it has one, and before its question.

`present` names what an example shows (picture and text, one of them, or nothing), as FedMLLM's prompts do.
The other five are its ablation of the prompt strategy: each says the same whatever is shown, `agnostic`
being the strategy itself. With `none` a free question is asked as it stands, as FedMLLM asks medical ones.

Reference: B. Xu et al., "FedMLLM: Federated Fine-tuning MLLM on Multimodal Heterogeneity Data", arXiv
2411.14717v2, prompt strategy, and the files for its prompt ablation in its public code.

Differs from the paper: our own words, which say the same; the evidence is named before the question
instead of after it.
"""

_EVIDENCE = {
    (True, True): "Given the picture and the text",
    (True, False): "Given the picture",
    (False, True): "Given the text",
    (False, False): "",
}


def evidence(example: Example, present: Presence, clause: str | None = None) -> str:
    """Return what the prompt names as the basis of the answer: the clause, or what is shown; "" where that is nothing."""
    if clause is not None:
        return clause
    return _EVIDENCE[shows_image(example, present), shows_text(example, present)]


def shows_image(example: Example, present: Presence) -> bool:
    """Return whether the image exists and may be seen."""
    return present.image and example.image is not None


def shows_text(example: Example, present: Presence) -> bool:
    """Return whether the text exists and may be seen."""
    return present.text and example.text is not None


def ask(example: Example, present: Presence, clause: str | None = None) -> str:
    """Write the short user turn that all tasks share: the text, if seen, then evidence phrase and question.

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
    """Render a question with the turns before it, images where they stand; the text comes before the first turn.

    Args:
        example: What is asked.
        present: Which modalities may be seen.
        clause: As for `Render`.
        answer: What the model is trained to say.
        options: What it may say, in label order; empty for free answers.
        frame: What stands before and after the question in its user turn.
    """
    phrase = evidence(example, present, clause)
    start = f"Text: {clean_text(example.text or '')}\n" if shows_text(example, present) else ""
    own = () if example.image is None else (example.image,)
    turns = example.turns or (Turn(example.question, "", own, (0,) * len(own)),)
    shown = [
        _turn(one, shows_image(example, present), "" if number else start, phrase)
        for number, one in enumerate(turns)
    ]
    *history, last = shown
    user = f"{frame[0]}{last.user}{frame[1]}"
    places = tuple(place and place + len(frame[0]) for place in last.places)
    image, *more = last.pictures or (None,)
    system = None if example.system is None else clean_text(example.system)
    return Conversation(
        user, answer, image, options, tuple(more), places if any(places) else (), tuple(history), system
    )


def _turn(turn: Turn, image: bool, start: str, phrase: str) -> Turn:
    """Write a turn as the model sees it: what comes before it, the evidence phrase, and the question.

    Images at the beginning of the question stay at the beginning of the turn.
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
    """Write user text on one line in which no tokenizer finds a special token.

    A space after every "<", and inside brackets around a single word, breaks the tokens of all model
    families, such as `<image>`, `</s>`, `<|im_start|>` and `[INST]`; runs of white space become one space.

    Example:
        >>> clean_text("a <image> of 1 < 2  [INST] [1, 2]")
        'a < image> of 1 < 2 [ INST] [1, 2]'
    """
    return " ".join(_SPECIAL.sub(lambda match: match.group() + " ", text).split())
