"""The vocabulary: what an example is, what a client is told, what it sends back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from fedloom.system.errors import UserError
from fedloom.system.terminal import one_line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from fedloom.params import Params

__all__ = [
    "Broadcast",
    "Conversation",
    "DataSet",
    "Example",
    "LazyImage",
    "Presence",
    "Rejected",
    "Tensors",
    "Turn",
    "UserError",
]


class LazyImage(Protocol):
    """An image that stays where it is until a batch needs its pixels."""

    @property
    def key(self) -> str:
        """A name that is equal for equal pixels, used to cache what a frozen encoder makes of them."""
        ...

    def pixels(self) -> NDArray[np.uint8]:
        """Read or draw the image, shape [height, width, 3], values 0–255."""
        ...


@dataclass(frozen=True, slots=True)
class Turn:
    """A question of a conversation with its images where they stand, and the answer to it.

    Attributes:
        user: What is asked, without its images.
        answer: The answer.
        pictures: The images of this turn, in order.
        places: For each image, how many characters of `user` stand before it; ascending, 0..len(user).
    """

    user: str
    answer: str
    pictures: tuple[LazyImage, ...] = ()
    places: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Example:
    """One question with its answer and the evidence for it.

    Attributes:
        id: Unique within its data set.
        question: What is asked, without evidence and without options.
        answer: The right answer as text; for multiple choice, one of `options`.
        image: The picture, or None.
        text: The written evidence, or None.
        label: Index of the right option, or None where there are no options.
        group: What non-IID partitions go by (a topic, a site, a label name).
        options: The possible answers of a multiple-choice question, else empty.
        task: A key of `fedloom.tasks.TASKS`.
        kind: What kind of answer is asked for, e.g. "open" or "closed"; scores are also reported by it.
        turns: The conversation up to this question, whose turn is the last; `image` is then the first image of any
            of them. Empty for a question that stands alone, with at most one image, which comes before it.
        system: What the conversation says before its first turn, or None.
        place: Where the record stands, in words ("data.jsonl, line 3"); "" for examples that no file holds.
        spare: Images of the same thing, taken in order where `image` turns out to be damaged.
        base: What this is a variant of, such as an emoji in another skin tone; variants are never parted between
            training, validation and test. None where images, texts and records alone tell what belongs together.
    """

    id: str
    question: str
    answer: str
    image: LazyImage | None = None
    text: str | None = None
    label: int | None = None
    group: str | None = None
    options: tuple[str, ...] = ()
    task: str = "choice"
    kind: str | None = None
    turns: tuple[Turn, ...] = ()
    system: str | None = None
    place: str = field(default="", compare=False)
    spare: tuple[LazyImage, ...] = field(default=(), compare=False)
    base: str | None = field(default=None, compare=False)

    @property
    def pictures(self) -> tuple[LazyImage, ...]:
        """All images, those of earlier turns first."""
        if self.turns:
            return tuple(picture for turn in self.turns for picture in turn.pictures)
        return () if self.image is None else (self.image,)


@dataclass(frozen=True, slots=True)
class Presence:
    """Which modalities of an example its client may see."""

    image: bool
    text: bool


@dataclass(frozen=True, slots=True)
class Conversation:
    """One user turn and the answer to it, with what was said before, ready for a chat template.

    Attributes:
        user: The text of the user turn.
        answer: The text the model is trained to give.
        picture: The first image of the user turn, or None.
        options: The texts whose likelihoods are compared, in label order; empty for free answers.
        more: Further images of the user turn.
        places: Where in `user` each image of the turn stands, as `Turn.places`; empty puts all before the text.
        history: Earlier turns, which carry no loss here.
        system: What is said before the first turn, or None.
    """

    user: str
    answer: str
    picture: LazyImage | None = None
    options: tuple[str, ...] = ()
    more: tuple[LazyImage, ...] = ()
    places: tuple[int, ...] = ()
    history: tuple[Turn, ...] = ()
    system: str | None = None

    @property
    def pictures(self) -> tuple[LazyImage, ...]:
        """All images, in the order in which they are shown."""
        earlier = tuple(picture for turn in self.history for picture in turn.pictures)
        own = (*(() if self.picture is None else (self.picture,)), *self.more)
        return (*earlier, *own)

    @property
    def turn(self) -> Turn:
        """The last turn by itself."""
        own = (*(() if self.picture is None else (self.picture,)), *self.more)
        return Turn(self.user, self.answer, own, self.places or (0,) * len(own))


@dataclass(frozen=True, slots=True)
class Rejected:
    """An invalid record, which is skipped: where it stands and what is wrong with it.

    Attributes:
        file: The file, or where else the record stands.
        line: Its line, or None where there are no lines.
        reason: What is wrong.
        example: What is known of it, for draws of others that count it; None where too little is known.
    """

    file: str
    line: int | None
    reason: str
    example: Example | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}, line {self.line}"
        return one_line(f"{place}: {self.reason}")


@dataclass(frozen=True)
class DataSet:
    """Examples for training and testing, and the records that were skipped while reading them.

    Attributes:
        name: A key of `fedloom.data.DATASETS`.
        train: Examples that are divided among clients.
        test: Held-out examples. Where fedloom makes the division, no picture and no variant of one is also in
            `train`; a published division is kept as it is (`fedloom data check` tells what it repeats).
        rejected: Skipped records, with file, line and reason.
        drawn: The training part with the skipped records in their places, for draws that are replayed and count
            them; empty where none was skipped or too little is known.
        validation: The owners' own validation part, where `data.validation` asks for it; else empty.
    """

    name: str
    train: tuple[Example, ...]
    test: tuple[Example, ...]
    rejected: tuple[Rejected, ...] = ()
    drawn: tuple[Example, ...] = field(default=(), compare=False, repr=False)
    validation: tuple[Example, ...] = ()

    @property
    def examples(self) -> tuple[Example, ...]:
        """The examples of all parts."""
        return (*self.train, *self.test, *self.validation)


Tensors = Mapping[str, "Tensor"]


def _no_tensors() -> Tensors:
    return {}


@dataclass(frozen=True)
class Broadcast:
    """What the server sends to every client of a round."""

    params: Params
    extras: Tensors = field(default_factory=_no_tensors)
