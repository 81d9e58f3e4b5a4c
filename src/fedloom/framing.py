"""The frame of every message between a server and a site: a head in JSON, tensors, and a checksum.

    frame = magic "FLM1" · kind (1 byte) · zero (3) · bytes of the head (4) · bytes of the payload (8) · checksum (8)
            · head, JSON, padded with blanks to a multiple of 8 · tensors, each padded with zeros to one

All numbers are little-endian. The head lists the tensors in order, each with name, dtype, shape, codec of `fedloom.wire`,
and whether only the values of a part are there. The checksum is that of `fedloom.wire`, over all that is before and after
it: it detects accidental damage and is no defense against forgery. Forged bytes with a right checksum are read only
if they are well formed, and take no memory beyond that of their own values.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from math import prod
from reprlib import repr as short
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedloom import wire
from fedloom.params import Part

MAGIC = b"FLM1"
FIXED = struct.Struct("<4sB3xIQ")
CHECK = struct.Struct("<Q")
LENGTH = struct.Struct("<Q")
HEADER = FIXED.size + CHECK.size
DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
LIMIT = 2**40
"""Bytes that no message reaches: one that announces as many is damaged."""
MOST = 64
"""Most tensors in a message; there is a limit since each that holds a part grows to the layout's size when it is read."""


class Spec(NamedTuple):
    """The entry of a tensor in a head: its name, dtype and shape, its codec, and whether only values of a part are there."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    codec: str = "fp32"
    partial: bool = False

    @property
    def size(self) -> int:
        """Bytes of the tensor without padding."""
        return _size(prod(self.shape), self.dtype, self.codec)


class Piece(NamedTuple):
    """A tensor to be written.

    Attributes:
        name: Its name.
        value: The tensor.
        part: Which of its values travel, where it is a vector as long as the layout; None is all.
        coded: Those that travel as `fedloom.wire.encode` wrote them, where they are in fewer bits.
    """

    name: str
    value: Tensor
    part: Part | None = None
    coded: bytes | None = None

    @property
    def spec(self) -> Spec:
        """The tensor's entry in the head."""
        shape = tuple(self.value.shape) if self.part is None else (self.part.count,)
        codec = "fp32" if self.coded is None else wire.codec_of(self.coded)
        return Spec(self.name, self.value.dtype, shape, codec, self.part is not None)

    def to_bytes(self) -> bytes | memoryview:
        """Write the values that travel."""
        if self.coded is not None:
            return self.coded
        value = self.value if self.part is None else self.part.take(self.value)
        held = value.detach().cpu().contiguous()
        if not held.numel():
            return b""
        row = held.as_strided((held.numel(),), (1,))  # a single value is contiguous whatever its stride is
        return row.view(torch.uint8).numpy().data


class Found(NamedTuple):
    """A tensor that was read: its name, its values, whether they are those of a part only, and their bytes in a codec."""

    name: str
    value: Tensor
    partial: bool
    coded: bytes | None = None


def sizes(fields: Mapping[str, Any], specs: Sequence[Spec]) -> tuple[int, int]:
    """Return the number of characters of a head without padding, and the bytes of the tensors after it."""
    return len(_text(fields, specs)), sum(one.size + -one.size % 8 for one in specs)


def length(text: int, payload: int) -> int:
    """Return the bytes of a message whose head has `text` characters and whose tensors take `payload` bytes."""
    return HEADER + text + -text % 8 + payload


def frame(kind: int, fields: Mapping[str, Any], pieces: Sequence[Piece]) -> bytes:
    """Write a message.

    Raises:
        ValueError: There are more than `MOST` tensors, or one of a dtype that is not in `DTYPES`.
    """
    text = _text(fields, [one.spec for one in pieces])
    body = bytearray(text + b" " * (-len(text) % 8))
    start = len(body)
    for piece in pieces:
        written = piece.to_bytes()
        body += written
        body += bytes(-len(written) % 8)
    fixed = FIXED.pack(MAGIC, kind, start, len(body) - start)
    return b"".join(
        (fixed, CHECK.pack(wire.checksum(torch.frombuffer(body, dtype=torch.uint8), fixed)), body)
    )


def _text(fields: Mapping[str, Any], specs: Sequence[Spec]) -> bytes:
    if len(specs) > MOST:
        raise ValueError(f"{len(specs)} tensors; a message holds at most {MOST}")
    for one in specs:
        if one.dtype not in NAMES:
            raise ValueError(f"{one.name} holds {one.dtype}; a message holds {', '.join(DTYPES)}")
    listed = [[one.name, NAMES[one.dtype], one.shape, one.codec, one.partial] for one in specs]
    return json.dumps({**fields, "tensors": listed}, separators=(",", ":")).encode()


def prefixed(field: bytes, rest: bytes) -> bytes:
    """Put a field before other bytes, such that `split` takes it off again."""
    return LENGTH.pack(len(field)) + field + rest


def split(content: bytes) -> tuple[bytes, bytes]:
    """Take off what `prefixed` put before other bytes, and return both."""
    start = LENGTH.size + LENGTH.unpack_from(content)[0]
    return content[LENGTH.size : start], content[start:]


def kind_of(message: bytes) -> int:
    """Return the kind of a message, unchecked; -1 where there is none."""
    return message[4] if len(message) > 4 else -1


def unframe(kind: int, message: bytes) -> tuple[Head, list[Found]]:
    """Check a message and return its head and tensors.

    Raises:
        ValueError: It is not as it was written, or of another kind.
    """
    if len(message) < HEADER or message[:4] != MAGIC or any(message[5:8]):
        raise ValueError("these bytes do not begin as a message of this version does")
    _, number, start, payload = FIXED.unpack_from(message)
    if number != kind:
        raise ValueError(f"this message is of kind {number}, not {kind}")
    if not 0 < start + payload < LIMIT or len(message) != HEADER + start + payload:
        raise ValueError(
            f"the message has {len(message)} bytes, not the {HEADER + start + payload} it announces"
        )
    body = torch.frombuffer(bytearray(memoryview(message)[HEADER:]), dtype=torch.uint8)
    if wire.checksum(body, message[: FIXED.size]) != CHECK.unpack_from(message, FIXED.size)[0]:
        raise ValueError("the checksum does not fit: the message was damaged on the way")
    try:
        fields = json.loads(body[:start].numpy().tobytes().decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its head is not JSON: {error}") from None
    if not isinstance(fields, dict) or start % 8:
        raise ValueError("its head is not one that this version writes")
    head = Head(fields)
    listed = head.of("tensors", lambda value: isinstance(value, list) and len(value) <= MOST)
    at, found = start, list[Found]()
    for entry in listed:
        one, at = _tensor(body, at, entry)
        found.append(one)
    if at != len(body):
        raise ValueError("its tensors do not fill it")
    return head, found


def _tensor(body: Tensor, at: int, entry: Any) -> tuple[Found, int]:
    """Read the tensor that begins at a byte of the body; return it and the byte after it."""
    match entry:
        case [str(name), str(kind), list(shape), str(codec), bool(partial)] if (
            kind in DTYPES
            and codec in wire.CODECS
            and all(map(_whole, shape))
            and prod(one or 1 for one in shape) < LIMIT
            and (codec == "fp32" or kind == "float32")
        ):
            dtype, count = DTYPES[kind], prod(shape)
        case _:
            raise ValueError(f"it lists {short(entry)} as a tensor")
    size = _size(count, dtype, codec)
    if at + size > len(body):
        raise ValueError("its tensors end before they are whole")
    piece, after = body[at : at + size], at + size + -size % 8
    if body[at + size : after].any():
        raise ValueError("the padding between its tensors is not zero")
    coded = None if codec == "fp32" else piece.numpy().tobytes()
    if coded is not None:
        value = wire.decode(bytearray(coded))
        if wire.codec_of(coded) != codec:
            raise ValueError(f"{short(name)} is in another codec than {codec}")
    else:
        if dtype == torch.bool and (piece > 1).any():
            raise ValueError(f"{short(name)} holds values that are neither true nor false")
        value = piece.view(dtype) if count else torch.empty(0, dtype=dtype)
    try:
        return Found(name, value.view(shape), partial, coded), after
    # The number of values differs, or there are more dimensions than torch has.
    except (RuntimeError, TypeError, OverflowError):
        raise ValueError(f"{short(name)} does not have shape {short(shape)}") from None


def _size(count: int, dtype: torch.dtype, codec: str) -> int:
    return count * dtype.itemsize if codec == "fp32" else wire.HEADER + wire.CODECS[codec].size(count)


def _whole(value: object, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**63


class Head:
    """The head of a message; reading a key that is missing or has another type raises ValueError."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self._fields = fields

    def of(self, key: str, holds: Callable[[Any], bool]) -> Any:
        """Return the value of a key for which `holds` is true."""
        value = self._fields.get(key)
        if key not in self._fields or not holds(value):
            raise ValueError(f"the message says {short(value)} for {key}")
        return value

    def number(self, key: str, least: int = 0) -> int:
        """Return a whole number."""
        return self.of(key, lambda value: _whole(value, least))

    def numbers(self, key: str) -> tuple[int, ...]:
        """Return several whole numbers, none negative."""
        return tuple(self.of(key, lambda value: isinstance(value, list) and all(map(_whole, value))))

    def text(self, key: str) -> str:
        """Return a text."""
        return self.of(key, lambda value: isinstance(value, str))

    def texts(self, key: str) -> tuple[str, ...]:
        """Return several texts, all different."""
        return tuple(self.of(key, _different_texts))

    def flag(self, key: str) -> bool:
        """Return whether something holds."""
        return self.of(key, lambda value: isinstance(value, bool))

    def part(self, key: str, size: int) -> Part | None:
        """Return a part of a buffer of `size` values; None is all."""
        stretches = self.of(key, lambda value: value is None or _stretches(value))
        return None if stretches is None else Part(size, tuple(map(tuple, stretches)))


def _different_texts(value: object) -> bool:
    return (
        isinstance(value, list)
        and all(isinstance(one, str) for one in value)
        and len(set(value)) == len(value)
    )


def _stretches(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(one, list) and len(one) in (2, 4) and all(map(_whole, one)) for one in value
    )
