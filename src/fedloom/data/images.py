"""Images on disk: when one is acceptable, and how it becomes pixels. The only place that reads images.

An image whose pixels are whole is used, whatever is wrong beside them: EXIF, color profiles, comments, text, further
frames, bytes behind the end. Everything else is refused with the reason.

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
    ends,
    has_all_rows,
    kind_of,
    orientation,
    other_ending,
    salvaged,
)
from fedloom.system.errors import UserError
from fedloom.system.file_hashes import file_digests
from fedloom.types import LazyImage

FORMATS = ("PNG", "JPEG", "WEBP")
_SIGNATURES = (PNG, JPEG, WEBP)
_HEAD = 512
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

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation → what turns an image upright."""


class _Refused(Exception):
    """The reason a picture is unacceptable."""


def check_image(source: Path | bytes, limits: Limits = LIMITS) -> str | None:
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


def whole_image(path: Path) -> FileImage | str:
    """Return the image in a file after reading it to its last pixel, or the reason it is unacceptable."""
    try:
        image = _decode(_content(path, LIMITS), LIMITS)
    except _Refused as refused:
        return str(refused)
    return FileImage(path, (image.width, image.height), _look(image))


def glanced_image(path: Path) -> FileImage | str:
    """Return the image in a file after a glance at its first bytes, or the reason it cannot be one."""
    reason = glance_at_image(path)
    return FileImage(path) if reason is None else reason


def glance_at_image(path: Path) -> str | None:
    """Return a reason a file cannot be a picture, found from its first bytes; None says nothing of the rest.

    Thousands of pictures can be glanced at in the time it takes to decode a few.
    """
    try:
        head = _content(path, LIMITS, _HEAD)
    except _Refused as refused:
        return str(refused)
    return None if _is_known(head) else _unknown(head)


@dataclass(frozen=True)
class FileImage:
    """An image in a file of its own; `key` is the SHA-256 of the file's bytes.

    Attributes:
        path: The file.
        known_size: Width and height, where somebody has read it before.
        known_look: What `look` is, where somebody has read it before.
    """

    path: Path
    known_size: tuple[int, int] | None = field(default=None, compare=False, repr=False)
    known_look: str | None = field(default=None, compare=False, repr=False)

    @property
    def key(self) -> str:
        """A name that is equal for equal files; worked out once."""
        return self._key

    @cached_property
    def _key(self) -> str:
        return hashlib.sha256(_readable(self.path)).hexdigest()

    @property
    def look(self) -> str:
        """A name that is equal for equal pixels, however they are encoded; that of the file where it is damaged."""
        return self.known_look or self._looked

    @cached_property
    def _looked(self) -> str:
        try:
            return _look(_decode(_content(self.path, LIMITS), LIMITS))
        except _Refused:
            return self.key

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, as `pixels` has them but from the file's header where it is sound; read once."""
        return self.known_size or self._size

    @cached_property
    def _size(self) -> tuple[int, int]:
        content = _readable(self.path)
        try:
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                width, height = image.size
                return (height, width) if _orientation(image, content) >= 5 else (width, height)
        except Exception:  # what the decoder stumbles over may stand beside the pixels
            height, width = self.pixels().shape[:2]
            return width, height

    def pixels(self) -> NDArray[np.uint8]:
        """Read the picture, shape [H, W, 3]; see `_rgb` for how transparency and rotation are settled."""
        return _pixels(_readable(self.path), self.path)


def know_keys(pictures: Iterable[LazyImage], known: Path) -> None:
    """Work out the keys of images in files all at once; of files that have not changed since the last time, read none.

    Args:
        pictures: Images of any kind. A file that cannot be read is left alone: it tells when its key is asked for.
        known: Where digests are remembered; see `fedloom.system.file_hashes.file_digests`.
    """
    files = [one for one in pictures if isinstance(one, FileImage) and glance_at_image(one.path) is None]
    with suppress(UserError):
        digests = file_digests([one.path for one in files], known)
        for one in files:
            one.__dict__["_key"] = digests[one.path]  # where `cached_property` keeps it


@dataclass(frozen=True)
class ZipImage:
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


def _is_known(head: bytes) -> bool:
    return head.startswith((PNG, JPEG)) or (head.startswith(WEBP) and head[8:12] == b"WEBP")


def _unknown(content: bytes) -> str:
    found = kind_of(content)
    return _UNKNOWN if found is None else f"{found}, {_UNKNOWN}"


def _decode(content: bytes, limits: Limits) -> Image.Image:
    """Decode to upright RGB, first frame, or raise `_Refused`."""
    if not _is_known(content):
        raise _Refused(_unknown(content))
    image = _opened_image(content, limits)
    if image is None:
        image = _salvaged_image(content, limits)
    if image is None:
        unusual = kind_of(content)
        raise _Refused("damaged or cut short" if unusual is None else f"{unusual}, which cannot be decoded")
    try:
        return _rgb(image, content)
    except Exception:
        raise _Refused("damaged or cut short") from None


def _opened_image(content: bytes, limits: Limits) -> Image.Image | None:
    """Decode an image to its last pixel, or return None where the decoder fails.

    Raises:
        _Refused: It has too many pixels.
    """
    # Pillow has a bound of its own, which a larger limit does not lift.
    most = min(limits.pixels, Image.MAX_IMAGE_PIXELS or limits.pixels)
    too_many = f"too large (more than {most:,} pixels)"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                if image.width * image.height > most:
                    raise _Refused(too_many)
                image.verify()  # checksums and the end of a PNG, which load() passes over; uses the image up
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            image.load()
            return image if has_all_rows(content) else None
    except _Refused:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _Refused(too_many) from None
    except Exception:
        # Decoders meet hostile bytes with any kind of exception; whichever it is, this decoder cannot read it.
        return None


def _salvaged_image(content: bytes, limits: Limits) -> Image.Image | None:
    """Decode the pixels alone, if they are whole, or return None."""
    for version in salvaged(content):
        image = _opened_image(version, limits)
        if image is not None and not ends(content):
            other = _opened_image(other_ending(version), limits)
            image = image if other is not None and other.tobytes() == image.tobytes() else None
        if image is not None:
            return image
    return None


def _look(image: Image.Image) -> str:
    return hashlib.sha256(b"%d %d " % image.size + image.tobytes()).hexdigest()


def _orientation(image: Image.Image, content: bytes) -> int:
    """Return the orientation that an image's metadata give, 1..8; 1 where they give none that makes sense."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # EXIF is written in many wrong ways, and read with many kinds of exception
        found = None
    if not (isinstance(found, int) and 1 <= found <= 8):
        found = orientation(content)
    return found or 1


def _rgb(image: Image.Image, content: bytes) -> Image.Image:
    """Turn upright as EXIF says, put transparency on white, and reduce every mode to 8-bit RGB."""
    turn = _TURNS.get(_orientation(image, content))
    image = image if turn is None else image.transpose(turn)
    if image.mode.startswith("I"):  # 16-bit gray, which convert() would clip at 255 instead of scaling
        image = Image.fromarray((np.asarray(image, np.uint32) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
