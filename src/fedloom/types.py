"""The shared types: images, examples, conversations, data sets, and what a server sends to its clients."""

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
    """An image that is read only when a batch needs its pixels."""

    @property
    def key(self) -> str:
        """A name that is equal for equal pixels, used to cache the features that a frozen encoder computes of them."""
        ...

    def pixels(self) -> NDArray[np.uint8]:
        """Read or draw the image, shape [height, width, 3], values 0–255."""
        ...


@dataclass(frozen=True, slots=True)
class Turn:
    """A question of a conversation with its images, and the answer to it.

    Attributes:
        user: The text of the question, without its images.
        answer: The answer.
        pictures: The images of this turn, in order.
        places: For each image, the number of characters of `user` before it; ascending, 0..len(user).
    """

    user: str
    answer: str
    pictures: tuple[LazyImage, ...] = ()
    places: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Example:
    """A question with its answer, its image and its text.

    Attributes:
        id: A name that is unique within the data set.
        question: The question, without its modalities and options.
        answer: The right answer as text; for multiple choice, one of `options`.
        image: The image, or None.
        text: The text that belongs to the question, or None.
        label: Index of the right option, or None where there are no options.
        group: The group by which non-IID partitions divide (a topic, a site, a label name).
        options: The possible answers of a multiple-choice question, else empty.
        task: A key of `fedloom.tasks.TASKS`.
        kind: The kind of answer, e.g. "open" or "closed"; scores are also reported for each kind.
        turns: The conversation up to this question, which is its last turn; `image` is then the first image of any
            turn. Empty for a single question, with at most one image, which comes before it.
        system: The system prompt of the conversation, or None.
        place: The place of the record in words ("data.jsonl, line 3"); "" for examples that come from no file.
        spare: Other images of the same thing, which replace `image` in order where it is damaged.
        base: The name of what this is a variant of, such as an emoji in another skin tone; all variants are in the same
            part of training, validation and test. None where only equal images, texts and records belong together.
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
            return tuple(image for turn in self.turns for image in turn.pictures)
        return () if self.image is None else (self.image,)


@dataclass(frozen=True, slots=True)
class Presence:
    """The modalities of an example that its client may see."""

    image: bool
    text: bool


@dataclass(frozen=True, slots=True)
class Conversation:
    """A user turn and the answer to it, with the earlier turns, ready for a chat template.

    Attributes:
        user: The text of the user turn.
        answer: The text that the model is trained to give.
        picture: The first image of the user turn, or None.
        options: The texts whose likelihoods are compared, in label order; empty for free answers.
        more: Further images of the user turn.
        places: The place of each image in `user`, as in `Turn.places`; empty puts all before the text.
        history: Earlier turns, which have no loss here.
        system: The system prompt before the first turn, or None.
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
        earlier = tuple(image for turn in self.history for image in turn.pictures)
        own = (*(() if self.picture is None else (self.picture,)), *self.more)
        return (*earlier, *own)

    @property
    def turn(self) -> Turn:
        """The last turn by itself."""
        own = (*(() if self.picture is None else (self.picture,)), *self.more)
        return Turn(self.user, self.answer, own, self.places or (0,) * len(own))


@dataclass(frozen=True, slots=True)
class Rejected:
    """An invalid record, which is skipped: its place and what is wrong with it.

    Attributes:
        file: The file, or another place of the record.
        line: Its line, or None where there are no lines.
        reason: What is wrong.
        example: The known part of the record, for published draws that count it; None where too little is known.
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
        test: Held-out examples. Where fedloom divides the data, no image of them and no variant of one is also in
            `train`; a published division is kept as it is (`fedloom data check` lists what it repeats).
        rejected: Skipped records, with file, line and reason.
        drawn: The training set with the skipped records in their places, for replayed draws that count them; empty
            where none was skipped or too little is known.
        validation: The owners' own validation set if `data.validation` is published, else empty.
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
    """The parameters and extras that the server sends to every client of a round."""

    params: Params
    extras: Tensors = field(default_factory=_no_tensors)
