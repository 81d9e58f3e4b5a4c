"""What loaders ask of a record: its texts, numbers and picture, or the reason it cannot be used."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from fedloom.data.images import FileImage, whole_image
from fedloom.data.record_files import kind, shown

_ESCAPES = (
    (re.compile(r"\0"), "holds a NUL character"),
    (re.compile(r"\\"), "holds a backslash"),
    (re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*:"), "is a URL or names a drive"),
    (re.compile(r"^/"), "is an absolute path"),
    (re.compile(r"(^|/)\.\.(/|$)"), "leaves the folder"),
)

Locate = Callable[[str], FileImage]
"""Name of an image in a record → the image; raises `Bad`."""


class Bad(Exception):
    """The reason a record is invalid."""


def text(record: dict[str, Any], key: str) -> str | None:
    """Return a value without surrounding space; absent, null and empty are None.

    Raises:
        Bad: The value is no text, or one that cannot be encoded.
    """
    value = record.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise Bad(f"{key} is {kind(value)}, not text")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON may escape half of a character, which no file and no tokenizer takes
        raise Bad(f"{key} holds half of a surrogate pair") from None
    return value.strip() or None


def word(record: dict[str, Any], key: str) -> str | None:
    """Return a value that is a text or a whole number (1.0 is 1, as tables with gaps write it), as text; see `text`."""
    value = record.get(key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if type(value) is int else text(record, key)


def needed(record: dict[str, Any], key: str, get: Callable[[dict[str, Any], str], str | None] = text) -> str:
    """Return a value that a record must have.

    Args:
        record: The record.
        key: The value's name.
        get: How to read it: `text` or `word`.

    Raises:
        Bad: It is missing or empty, or `get` refuses it.
    """
    value = get(record, key)
    if value is None:
        raise Bad(f"{key} is empty" if record.get(key) is not None else f"{key} is missing")
    return value


def one_of(record: dict[str, Any], key: str, allowed: tuple[str, ...]) -> str:
    """Return a value that must be one of a few.

    Raises:
        Bad: It is missing or none of them.
    """
    value = needed(record, key)
    if value not in allowed:
        raise Bad(f"{key} is {shown(value)}, not one of {', '.join(allowed)}")
    return value


_LINK = (
    "leaves the folder through a link; only a link to a whole folder that stands directly in it is followed"
)


def _linked(root: str, place: str) -> str:
    """Return the folder that a path below `root` goes to first, where that is a link directly in `root`; else `root`.

    The owner of the folder made that link; what a record says can only name it.
    """
    first = os.path.join(root, *Path(place).relative_to(root).parts[:1])
    return os.path.realpath(first) if os.path.islink(first) and os.path.isdir(first) else root


Listed = Callable[[str], dict[str, list[str]]]
"""Folder → the names in it, by their composed Unicode form."""


def _listed(folder: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in os.listdir(folder):
        found.setdefault(unicodedata.normalize("NFC", name), []).append(name)
    return found


def _spelled(root: str, name: str, listed: Listed) -> str | Bad:
    """Return a name as the file system spells it, where that differs in Unicode form only; else the name itself.

    Some systems store é as one character and others as two, and archives carry either from one to the other.
    """
    place = root
    for part in name.split("/"):
        if not os.path.lexists(os.path.join(place, part)) and os.path.isdir(place):
            same = listed(place).get(unicodedata.normalize("NFC", part), [])
            if len(same) > 1:
                return Bad(f"is there {len(same)} times, in several Unicode forms of its name")
            part = same[0] if same else part
        place = os.path.join(place, part)
    return os.path.relpath(place, root)


def locator(root: Path, look: Callable[[Path], FileImage | str] = whole_image) -> Locate:
    """Return a function from a record's image to a checked one; each file is read and checked once.

    Args:
        root: The folder that images are named relative to, and that none may leave but through a link to a folder
            directly in it.
        look: Returns the image in a file, or the reason it is no good.
    """
    real_root = os.path.realpath(root)
    listed = cache(_listed)  # thousands of images may be missing from a folder of thousands

    @cache
    def found(name: str) -> FileImage | str:
        for pattern, reason in _ESCAPES:
            if pattern.search(name):
                return reason
        place = os.path.join(real_root, name)
        if not os.path.lexists(place):
            spelled = _spelled(real_root, name, listed)
            if isinstance(spelled, Bad):
                return str(spelled)
            place = os.path.join(real_root, spelled)
        path = Path(os.path.realpath(place))
        if not any(path.is_relative_to(base) for base in (real_root, _linked(real_root, place))):
            return _LINK
        image = look(path)
        return f"is {image}" if isinstance(image, str) else image

    def locate(name: str) -> FileImage:
        picture = found(name)
        if isinstance(picture, str):
            raise Bad(f"image {shown(name)} {picture}")
        return picture

    return locate
