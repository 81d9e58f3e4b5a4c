"""Read the fields of a record: texts, numbers and images, or the reason why the record is invalid."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from fedloom.data.images import FileImage, fully_checked_image
from fedloom.data.record_files import json_type, quoted
from fedloom.types import LazyImage

_ESCAPES = (
    (re.compile(r"\0"), "holds a NUL character"),
    (re.compile(r"\\"), "holds a backslash"),
    (re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*:"), "is a URL or names a drive"),
    (re.compile(r"^/"), "is an absolute path"),
    (re.compile(r"(^|/)\.\.(/|$)"), "leaves the folder"),
)

FindImage = Callable[[str], FileImage]
"""Name of an image file in a record → the image; raises `InvalidRecord`."""

FindAnyImage = Callable[[str], LazyImage]
"""Name of an image in a record, whether it is in a file or in memory → the image; raises `InvalidRecord`."""


class InvalidRecord(Exception):
    """The reason why a record is invalid."""


def text(record: dict[str, Any], key: str) -> str | None:
    """Return a text without surrounding space; absent, null and empty are None.

    Raises:
        InvalidRecord: The value is not text, or cannot be encoded.
    """
    value = record.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidRecord(f"{key} is {json_type(value)}, not text")
    if not is_utf8(value):
        raise InvalidRecord(f"{key} holds half of a surrogate pair")
    return value.strip() or None


def is_utf8(value: str) -> bool:
    """Return whether a text can be written as UTF-8, as files and tokenizers require.

    It cannot if it holds half of a surrogate pair: JSON may escape one, and Python has one for each byte of a command line or
    file name that is not UTF-8.
    """
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def text_or_integer(record: dict[str, Any], key: str) -> str | None:
    """Return a text, or a whole number as text (1.0 is 1, as tables with gaps write it); see `text`."""
    value = record.get(key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if type(value) is int else text(record, key)


def required(
    record: dict[str, Any], key: str, get: Callable[[dict[str, Any], str], str | None] = text
) -> str:
    """Return a value that every record must have.

    Args:
        record: The record.
        key: The value's name.
        get: Reads the value: `text` or `text_or_integer`.

    Raises:
        InvalidRecord: The value is missing or empty, or `get` refuses it.
    """
    value = get(record, key)
    if value is None:
        raise InvalidRecord(f"{key} is empty" if record.get(key) is not None else f"{key} is missing")
    return value


def one_of(record: dict[str, Any], key: str, allowed: tuple[str, ...]) -> str:
    """Return a value that must be one of the allowed ones.

    Raises:
        InvalidRecord: The value is missing or not allowed.
    """
    value = required(record, key)
    if value not in allowed:
        raise InvalidRecord(f"{key} is {quoted(value)}, not one of {', '.join(allowed)}")
    return value


_LINK = "leaves the folder through a link; only a link to a whole folder that is directly in it is followed"


def _linked_folder(root: str, path: str) -> str:
    """Return the target of the link directly in `root` with which a path below `root` begins; `root` if there is none.

    The owner of the folder made that link; a record can only name it.
    """
    first = os.path.join(root, *Path(path).relative_to(root).parts[:1])
    return os.path.realpath(first) if os.path.islink(first) and os.path.isdir(first) else root


ListNames = Callable[[str], dict[str, list[str]] | InvalidRecord]
"""Folder → the names in it, by their composed Unicode form; or why an image in it cannot be used."""


def _names_in(folder: str) -> dict[str, list[str]] | InvalidRecord:
    try:
        stored = os.listdir(folder)
    except OSError as error:  # costs the records with images there, and no others
        return InvalidRecord(f"is unreadable ({error.strerror})")
    names: dict[str, list[str]] = {}
    for name in stored:
        names.setdefault(unicodedata.normalize("NFC", name), []).append(name)
    return names


def _spelled_as_stored(root: str, name: str, list_names: ListNames) -> str | InvalidRecord:
    """Return a name in the Unicode form that the file system uses for it, or unchanged if there is none, or why it is of no use.

    Some systems store é as one character and others as two, and archives carry names between them.
    """
    path = root
    for part in name.split("/"):
        if not os.path.lexists(os.path.join(path, part)) and os.path.isdir(path):
            names = list_names(path)
            if isinstance(names, InvalidRecord):
                return names
            same = names.get(unicodedata.normalize("NFC", part), [])
            if len(same) > 1:
                return InvalidRecord(f"is there {len(same)} times, in several Unicode forms of its name")
            part = same[0] if same else part
        path = os.path.join(path, part)
    return os.path.relpath(path, root)


def image_finder(root: Path, check: Callable[[Path], FileImage | str] = fully_checked_image) -> FindImage:
    """Return a function that finds and checks the image that a record names; it reads each file once.

    Args:
        root: The folder that names of images are relative to. An image may be outside of it only through a link to a
            folder directly in it.
        check: Returns the image in a file, or the reason why it cannot be used.
    """
    real_root = os.path.realpath(root)
    list_names = cache(_names_in)  # thousands of images may be missing from a folder of thousands

    @cache
    def image_or_reason(name: str) -> FileImage | str:
        for pattern, reason in _ESCAPES:
            if pattern.search(name):
                return reason
        named = os.path.join(real_root, name)
        if not os.path.lexists(named):
            stored = _spelled_as_stored(real_root, name, list_names)
            if isinstance(stored, InvalidRecord):
                return str(stored)
            named = os.path.join(real_root, stored)
        path = Path(os.path.realpath(named))
        if not any(path.is_relative_to(base) for base in (real_root, _linked_folder(real_root, named))):
            return _LINK
        image = check(path)
        return f"is {image}" if isinstance(image, str) else image

    def locate(name: str) -> FileImage:
        image = image_or_reason(name)
        if isinstance(image, str):
            raise InvalidRecord(f"image {quoted(name)} {image}")
        return image

    return locate
