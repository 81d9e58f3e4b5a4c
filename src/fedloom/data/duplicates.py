"""Keys that are equal for near-duplicates: the same pixels, text or option, whatever the bytes are."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Sequence

from fedloom.data.images import FileImage
from fedloom.types import Example, LazyImage

ContentKey = tuple[Hashable, ...]
"""Content that records in different parts of a data set must not share, such as ("text", "a red car")."""


_WITHOUT_WIDTH = dict.fromkeys(map(ord, "\u200b\u2060\ufeff"))
"""White space that nobody sees: the zero-width space, the word joiner, and the byte-order mark, which spreadsheets leave in cells."""

_SPACE_OF_PROMPTS = re.compile(r"(?<=[<\[]) ")


def normalized_text(text: str) -> str:
    r"""Return a text without the differences of case, white space and Unicode form.

    White space without width counts as none, and so does that after "<" and "[", since prompts have it there in any case.

    Example:
        >>> normalized_text(" Yes "), normalized_text("YES"), normalized_text("a\nb")
        ('yes', 'yes', 'a b')
        >>> normalized_text("Bru\u0308hl") == normalized_text("BRÜHL")
        True
        >>> normalized_text("\ufeffyes"), normalized_text("< 5 mm")
        ('yes', '<5 mm')
    """
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())
    return _SPACE_OF_PROMPTS.sub("", " ".join(folded.translate(_WITHOUT_WIDTH).split()))


def pixel_key(image: LazyImage) -> str:
    """Return a key that is equal for equal pixels, whatever encoding an image file uses."""
    return image.pixel_digest if isinstance(image, FileImage) else image.key


def content_keys(examples: Sequence[Example]) -> list[tuple[ContentKey, ...]]:
    """Return for each example the keys that it shares with examples of the same content.

    The content is the images if there are any, whatever texts accompany them; else the text; else the question with
    the turns before it. A text that more than half of the examples without an image have (such as "none") gives no
    key.
    """
    keys = [_text_key(example) for example in examples]
    count = Counter(key for key in keys if key is not None)
    total = sum(key is not None for key in keys)
    return [
        tuple(("image", pixel_key(image)) for image in example.pictures)
        if key is None
        else (key,)
        if count[key] * 2 <= total
        else ()
        for example, key in zip(examples, keys, strict=True)
    ]


def _text_key(example: Example) -> ContentKey | None:
    """Return the key of an example without an image, None if it has one."""
    if example.pictures:
        return None
    if example.text is not None:
        return "text", normalized_text(example.text)
    return (
        "question",
        *(normalized_text(turn.user) for turn in example.turns[:-1]),
        normalized_text(example.question),
    )


def near_duplicate_keys(examples: Sequence[Example]) -> list[tuple[ContentKey, ...]]:
    """Return for each example the keys that it shares with its near-duplicates, which belong in the same part.

    They are its `content_keys`, its base if it is a variant of something, and its record: answers of one conversation,
    or sentences about one object, come from one record.
    """
    return [
        (
            *keys,
            *([("base", example.base)] if example.base is not None else []),
            *([("record", example.place)] if example.place else []),
        )
        for keys, example in zip(content_keys(examples), examples, strict=True)
    ]
