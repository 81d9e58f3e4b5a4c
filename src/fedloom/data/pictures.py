"""Pictures on disk: when one is acceptable, and how it becomes pixels. The only place that reads images.

Shape legend: H = height, W = width in pixels.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import warnings
import zipfile
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from fedloom.types import UserError

FORMATS = ("PNG", "JPEG", "WEBP")
_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF")
_HEAD = max(map(len, _SIGNATURES))
_UNKNOWN = "not a PNG, JPEG or WebP picture"


@dataclass(frozen=True, slots=True)
class Limits:
    """How large a picture may be.

    Attributes:
        pixels: Most pixels, as the file's header declares them.
        bytes: Most bytes of the encoded file.
    """

    pixels: int = 50_000_000
    bytes: int = 50_000_000


LIMITS = Limits()


class _Refused(Exception):
    """The reason a picture is unacceptable."""


def check_picture(source: Path | bytes, limits: Limits = LIMITS) -> str | None:
    """Return the reason a picture is unacceptable, or None for one that can be read to its last pixel.

    Args:
        source: A file, or an encoded picture itself.
        limits: How large it may be; checked before anything is decoded.
    """
    try:
        _decode(_content(source, limits), limits)
    except _Refused as refused:
        return str(refused)
    return None


def glance_at_picture(path: Path) -> str | None:
    """Return a reason a file cannot be a picture, found from its first bytes; None says nothing of the rest.

    Thousands of pictures can be glanced at in the time it takes to decode a few.
    """
    try:
        known = _content(path, LIMITS, _HEAD).startswith(_SIGNATURES)
    except _Refused as refused:
        return str(refused)
    return None if known else _UNKNOWN


@dataclass(frozen=True)
class FilePicture:
    """A picture in a file of its own; `key` is the SHA-256 of the file's bytes."""

    path: Path

    @property
    def key(self) -> str:
        """A name that is equal for equal files; worked out once."""
        return self._key

    @cached_property
    def _key(self) -> str:
        return hashlib.sha256(_readable(self.path)).hexdigest()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, as `pixels` has them but from the file's header alone; read once."""
        return self._size

    @cached_property
    def _size(self) -> tuple[int, int]:
        try:
            with Image.open(self.path, formats=FORMATS) as image:
                width, height = image.size
                lying = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        except Exception:  # whatever a decoder makes of hostile bytes, as in `_decode`
            raise UserError(f"{self.path}: the picture is damaged or cut short") from None
        return (height, width) if lying else (width, height)

    def pixels(self) -> NDArray[np.uint8]:
        """Read the picture, shape [H, W, 3]; see `_rgb` for how transparency and rotation are settled."""
        return _pixels(_readable(self.path), self.path)


@dataclass(frozen=True)
class ZipPicture:
    """A picture in a zip archive; `key` is the SHA-256 of the member's bytes."""

    archive: Path
    member: str

    @property
    def key(self) -> str:
        """A name that is equal for equal files; worked out once."""
        return self._key

    @cached_property
    def _key(self) -> str:
        return hashlib.sha256(self._bytes()).hexdigest()

    def pixels(self) -> NDArray[np.uint8]:
        """Read the picture, shape [H, W, 3]."""
        return _pixels(self._bytes(), self.archive / self.member)

    def _bytes(self) -> bytes:
        return _opened(self.archive, os.getpid()).read(self.member)


@lru_cache(maxsize=16)
def _opened(archive: Path, process: int) -> zipfile.ZipFile:
    # The process id is part of the cache's key: a forked worker that went on with its parent's open file
    # would share the file position with it and read garbage.
    return zipfile.ZipFile(archive)


def _readable(path: Path) -> bytes:
    try:
        return _content(path, LIMITS)
    except _Refused as refused:
        raise UserError(f"{path}: the picture is {refused}") from None


def _pixels(content: bytes, place: Path) -> NDArray[np.uint8]:
    try:
        return np.array(_decode(content, LIMITS))  # [H, W, 3]; a copy, for torch wants it writable
    except _Refused as refused:
        raise UserError(f"{place}: the picture is {refused}") from None


def _content(source: Path | bytes, limits: Limits, most: int | None = None) -> bytes:
    """Read an encoded picture, or its first `most` bytes; refuse what is no plain file or too large."""
    if isinstance(source, bytes):
        content = source
    else:
        try:
            if not stat.S_ISREG(os.stat(source).st_mode):  # opening a pipe would wait for ever
                raise _Refused("not a file")
            with open(source, "rb") as file:
                content = file.read(limits.bytes + 1 if most is None else most)
        except (FileNotFoundError, ValueError):  # ValueError: no file can have such a name
            raise _Refused("missing") from None
        except OSError as error:
            raise _Refused(f"unreadable ({error.strerror})") from None
    if not content:
        raise _Refused("empty (0 bytes)")
    if len(content) > limits.bytes:
        raise _Refused(f"too large (more than {limits.bytes:,} bytes)")
    return content


def _decode(content: bytes, limits: Limits) -> Image.Image:
    """Decode to RGB, first frame, or raise `_Refused`."""
    # Pillow has a bound of its own, which a larger limit does not lift.
    most = min(limits.pixels, Image.MAX_IMAGE_PIXELS or limits.pixels)
    too_many = f"too large (more than {most:,} pixels)"
    known = content.startswith(_SIGNATURES)
    damaged = "damaged or cut short" if known else _UNKNOWN
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                if image.width * image.height > most:
                    raise _Refused(too_many)
                image.verify()  # checksums and the end of a PNG, which load() passes over; uses the image up
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                image.load()
                return _rgb(image)
    except _Refused:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _Refused(too_many) from None
    except UnidentifiedImageError:
        raise _Refused(damaged) from None
    except Exception:
        # Decoders meet hostile bytes with any kind of exception; whichever it is, the picture is no good.
        raise _Refused("damaged or cut short") from None


def _rgb(image: Image.Image) -> Image.Image:
    """Turn upright as EXIF says, put transparency on white, and reduce every mode to 8-bit RGB."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip at 255 instead of scaling
        image = Image.fromarray((np.asarray(image, np.uint32) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
