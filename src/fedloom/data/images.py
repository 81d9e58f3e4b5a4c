"""Check images on disk and decode them to pixels. No other module reads image files.

An image whose pixels are complete is used, whatever is wrong with the rest of the file: EXIF, color profiles, comments,
text, further frames, bytes after the end. Every other image is refused with the reason.

Shape legend: H = height, W = width in pixels.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import warnings
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from fedloom.data.image_repair import (
    JPEG,
    PNG,
    WEBP,
    decodable_versions,
    has_all_rows,
    has_end,
    orientation,
    other_format,
    with_other_ending,
)
from fedloom.system.errors import UserError
from fedloom.system.file_hashes import file_digests
from fedloom.types import LazyImage

FORMATS = ("PNG", "JPEG", "WEBP")
_HEAD = 512
_EMPTY = "empty (0 bytes)"
_UNKNOWN = "not a PNG, JPEG or WebP image"


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the size of an image.

    Attributes:
        pixels: Maximum number of pixels, as the file's header declares them.
        bytes: Maximum number of bytes of the encoded file.
    """

    pixels: int = 50_000_000
    bytes: int = 50_000_000


LIMITS = Limits()

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation → the operation that turns the image upright."""


class _Refused(Exception):
    """The reason why an image cannot be used."""


def fully_checked_image(path: Path) -> FileImage | str:
    """Return the image in a file after decoding it to its last pixel, or the reason why it cannot be used."""
    try:
        image = _decode(_content(path, LIMITS), LIMITS)
    except _Refused as refused:
        return str(refused)
    return FileImage(path, (image.width, image.height), _digest_of(image))


def pixels_of_bytes(content: bytes) -> NDArray[np.uint8] | str:
    """Return the pixels of an encoded image, shape [height, width, 3], or the reason why it cannot be used."""
    if not content:
        return _EMPTY
    if len(content) > LIMITS.bytes:
        return f"too large (more than {LIMITS.bytes:,} bytes)"
    try:
        return np.array(_decode(content, LIMITS))
    except _Refused as refused:
        return str(refused)


def quickly_checked_image(path: Path) -> FileImage | str:
    """Return the image in a file after checking its first bytes, or the reason why it cannot be used."""
    reason = quick_check(path)
    return FileImage(path) if reason is None else reason


def quick_check(path: Path) -> str | None:
    """Return the reason why the first bytes of a file are not those of an image, or None; the rest may be damaged.

    Thousands of images can be checked this way in the time that it takes to decode a few.
    """
    try:
        head = _content(path, LIMITS, _HEAD)
    except _Refused as refused:
        return str(refused)
    return None if _is_known(head) else _unknown(head)


def holds_image(path: Path) -> bool:
    """Return whether the first bytes of a file are those of an image, also of a format that is not read."""
    reason = quick_check(path)
    return reason is None or reason.partition(",")[0].endswith(" image")  # "a GIF image, not a PNG, …"


@dataclass(frozen=True)
class FileImage:
    """An image in a file of its own; `key` is the SHA-256 of the file's bytes.

    Attributes:
        path: The file.
        known_size: Width and height, if they have been read before.
        known_pixel_digest: The `pixel_digest`, if it has been computed before.
    """

    path: Path
    known_size: tuple[int, int] | None = field(default=None, compare=False, repr=False)
    known_pixel_digest: str | None = field(default=None, compare=False, repr=False)

    @property
    def key(self) -> str:
        """A key that is equal for equal files; computed once."""
        return self._key

    @cached_property
    def _key(self) -> str:
        return hashlib.sha256(_readable(self.path)).hexdigest()

    @property
    def pixel_digest(self) -> str:
        """A key that is equal for equal pixels, whatever their encoding; the `key` if the file is damaged."""
        return self.known_pixel_digest or self._pixel_digest

    @cached_property
    def _pixel_digest(self) -> str:
        try:
            return _digest_of(_decode(_content(self.path, LIMITS), LIMITS))
        except _Refused:
            return self.key

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels after rotation, from the file's header if it is valid; read once."""
        return self.known_size or self._size

    @cached_property
    def _size(self) -> tuple[int, int]:
        content = _readable(self.path)
        try:
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                width, height = image.size
                return (height, width) if _orientation(image, content) >= 5 else (width, height)
        except Exception:  # the fault may be outside of the pixels
            height, width = self.pixels().shape[:2]
            return width, height

    def pixels(self) -> NDArray[np.uint8]:
        """Read the image, shape [H, W, 3]; `_rgb` handles transparency and rotation."""
        return _pixels(_readable(self.path), self.path)


def read_keys(images: Iterable[LazyImage], store: Path) -> None:
    """Compute the keys of images in files all at once, without reading files that have not changed since the last time.

    Args:
        images: Images of any kind. Files that cannot be read are ignored here; they fail when their key is needed.
        store: File that keeps the digests; see `fedloom.system.file_hashes.file_digests`.
    """
    files = [image for image in images if isinstance(image, FileImage) and quick_check(image.path) is None]
    with suppress(UserError):
        digests = file_digests([image.path for image in files], store)
        for image in files:
            image.__dict__["_key"] = digests[image.path]  # `cached_property` keeps its value there


@dataclass(frozen=True)
class ZipImage:
    """An image in a zip archive; `key` is the SHA-256 of the member's bytes."""

    archive: Path
    member: str

    @property
    def key(self) -> str:
        """A key that is equal for equal files; computed once."""
        return self._key

    @cached_property
    def _key(self) -> str:
        return hashlib.sha256(self._bytes()).hexdigest()

    def pixels(self) -> NDArray[np.uint8]:
        """Read the image, shape [H, W, 3]."""
        return _pixels(self._bytes(), self.archive / self.member)

    def _bytes(self) -> bytes:
        return _opened(self.archive, os.getpid()).read(self.member)


@lru_cache(maxsize=16)
def _opened(archive: Path, process: int) -> zipfile.ZipFile:
    # The process id is part of the cache's key: a forked worker that kept its parent's open file would share the
    # file position with it and read garbage.
    return zipfile.ZipFile(archive)


def _readable(path: Path) -> bytes:
    try:
        return _content(path, LIMITS)
    except _Refused as refused:
        raise UserError(f"{path}: the image is {refused}") from None


def _pixels(content: bytes, place: Path) -> NDArray[np.uint8]:
    try:
        return np.array(_decode(content, LIMITS))  # [H, W, 3]; a copy, since torch needs it writable
    except _Refused as refused:
        raise UserError(f"{place}: the image is {refused}") from None


def _content(path: Path, limits: Limits, most: int | None = None) -> bytes:
    """Read an encoded image, or its first `most` bytes; refuse a path that is not a file, and a file that is too large."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait forever
            raise _Refused("not a file")
        with open(path, "rb") as file:
            content = file.read(limits.bytes + 1 if most is None else most)
    except (FileNotFoundError, ValueError):  # ValueError: no file can have such a name
        raise _Refused("missing") from None
    except OSError as error:
        raise _Refused(f"unreadable ({error.strerror})") from None
    if not content:
        raise _Refused(_EMPTY)
    if len(content) > limits.bytes:
        raise _Refused(f"too large (more than {limits.bytes:,} bytes)")
    return content


def _is_known(head: bytes) -> bool:
    return head.startswith((PNG, JPEG)) or (head.startswith(WEBP) and head[8:12] == b"WEBP")


def _unknown(content: bytes) -> str:
    name = other_format(content)
    return _UNKNOWN if name is None else f"{name}, {_UNKNOWN}"


def _decode(content: bytes, limits: Limits) -> Image.Image:
    """Decode the first frame to upright RGB, or raise `_Refused`."""
    if not _is_known(content):
        raise _Refused(_unknown(content))
    image = _opened_image(content, limits)
    if image is None:
        image = _repaired_image(content, limits)
    if image is None:
        unusual = other_format(content)
        raise _Refused("damaged or cut short" if unusual is None else f"{unusual}, which cannot be decoded")
    try:
        return _rgb(image, content)
    except Exception:
        raise _Refused("damaged or cut short") from None


def _opened_image(content: bytes, limits: Limits) -> Image.Image | None:
    """Decode an image to its last pixel, or return None if the decoder fails.

    Raises:
        _Refused: The image has too many pixels.
    """
    # Pillow has a limit of its own, which a larger limit here does not lift.
    most = min(limits.pixels, Image.MAX_IMAGE_PIXELS or limits.pixels)
    too_many = f"too large (more than {most:,} pixels)"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                if image.width * image.height > most:
                    raise _Refused(too_many)
                image.verify()  # checks what load() ignores: checksums and the end of a PNG; uses the image up
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            image.load()
            return image if has_all_rows(content) else None
    except _Refused:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _Refused(too_many) from None
    except Exception:
        # Decoders raise exceptions of any kind for hostile bytes; whichever it is, the image cannot be decoded.
        return None


def _repaired_image(content: bytes, limits: Limits) -> Image.Image | None:
    """Decode the pixels alone if they are complete, or return None."""
    for version in decodable_versions(content):
        image = _opened_image(version, limits)
        if image is not None and not has_end(content):
            other = _opened_image(with_other_ending(version), limits)
            image = image if other is not None and other.tobytes() == image.tobytes() else None
        if image is not None:
            return image
    return None


def _digest_of(image: Image.Image) -> str:
    return hashlib.sha256(b"%d %d " % image.size + image.tobytes()).hexdigest()


def _orientation(image: Image.Image, content: bytes) -> int:
    """Return the orientation from an image's metadata, 1..8; 1 if there is no valid one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # invalid EXIF leads to many kinds of exceptions
        value = None
    if not (isinstance(value, int) and 1 <= value <= 8):
        value = orientation(content)
    return value or 1


def upright_rgb(image: Image.Image) -> Image.Image:
    """Return a decoded image as upright RGB, as images in files are used: with transparency on white."""
    return _rgb(image, b"")


def _eight_bit(image: Image.Image) -> Image.Image:
    """Return 16-bit gray as 8-bit gray, with the transparency of the one value that a PNG may declare transparent."""
    values = np.asarray(image, np.uint32)
    gray = Image.fromarray((values // 257).astype(np.uint8))
    clear = image.info.get("transparency")
    if isinstance(clear, int):  # compared before scaling, which makes 257 values equal
        gray.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return gray


def _rgb(image: Image.Image, content: bytes) -> Image.Image:
    """Turn an image upright as EXIF says, put transparency on white, and convert every mode to 8-bit RGB."""
    turn = _TURNS.get(_orientation(image, content))
    image = image if turn is None else image.transpose(turn)
    if image.mode.startswith("I"):  # 16-bit gray, which convert() would clip at 255 instead of scaling
        image = _eight_bit(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
