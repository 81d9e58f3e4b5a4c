"""What counts as the same image, text, option or evidence: decided on what it says, not on its bytes."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Hashable, Sequence

from fedloom.data.images import FileImage
from fedloom.types import Example, LazyImage

Mark = tuple[Hashable, ...]
"""What two records must not have in common if they stand in different parts."""


def alike(text: str) -> str:
    r"""Return a form that is equal for texts that differ in case, white space or Unicode form only.

    Example:
        >>> alike(" Yes ") == alike("YES"), alike("Bru\u0308hl") == alike("BRÜHL"), alike("a  b") == alike("a\nb")
        (True, True, True)
    """
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())
    return " ".join(folded.split())


def look_of(picture: LazyImage) -> str:
    """Return a name that is equal for equal pixels; for an image in a file, however the file encodes them."""
    return picture.look if isinstance(picture, FileImage) else picture.key


def marks(examples: Sequence[Example]) -> list[tuple[Mark, ...]]:
    """Return for each example what it has in common with those whose evidence is the same.

    The evidence is the images where there are any, whatever texts stand beside them; else the text; else the
    question with what was said before it. A text that more than half of the examples without an image have (such as
    "none") is no evidence.
    """
    told = [_told(example) for example in examples]
    count = Counter(mark for mark in told if mark is not None)
    total = sum(mark is not None for mark in told)
    return [
        tuple(("image", look_of(picture)) for picture in example.pictures)
        if mark is None
        else (mark,)
        if count[mark] * 2 <= total
        else ()
        for example, mark in zip(examples, told, strict=True)
    ]


def _told(example: Example) -> Mark | None:
    """Return the mark of an example without an image, or None for one that has any."""
    if example.pictures:
        return None
    if example.text is not None:
        return "text", alike(example.text)
    return "question", *(alike(turn.user) for turn in example.turns[:-1]), alike(example.question)


def twins(examples: Sequence[Example]) -> list[tuple[Mark, ...]]:
    """Return for each example all that it must not be parted over: its `marks`, what it is a variant of, its record.

    Answers of one conversation, or sentences about one object, come from one record.
    """
    return [
        (
            *own,
            *([("base", one.base)] if one.base is not None else []),
            *([("record", one.place)] if one.place else []),
        )
        for own, one in zip(marks(examples), examples, strict=True)
    ]
