"""The frame of every message between a server and a site: a head in JSON, tensors, and a checksum.

    frame = magic "FLM1" · kind (1 byte) · zero (3) · bytes of the head (4) · bytes of the payload (8) · checksum (8)
            · head, JSON, padded with blanks to a multiple of 8 bytes
            · tensors, each padded with zeros to a multiple of 8 bytes

All numbers are little-endian. The head lists the tensors in order, each with its name, dtype, shape, codec of
`fedloom.wire.compression`, and whether it has only the values of a part. The checksum is that of
`fedloom.wire.compression` over all other bytes. It detects accidental damage and is no defense against forgery. Forged
bytes with a right checksum are accepted only if they are well formed, and take no more memory than their own values.
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

from fedloom.params import Part
from fedloom.wire import compression

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
"""Bytes that no message reaches; a message that announces more is damaged."""
MOST = 64
"""Most tensors in a message; the number is limited because a tensor of a part grows to the layout's size when it is read."""


class Spec(NamedTuple):
    """The entry of a tensor in a head: its name, dtype, shape and codec, and whether it has only the values of a part."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    codec: str = "fp32"
    partial: bool = False

    @property
    def size(self) -> int:
        """The bytes of the tensor without padding."""
        return _size(prod(self.shape), self.dtype, self.codec)


class Piece(NamedTuple):
    """A tensor to be written.

    Attributes:
        name: Its name.
        value: The tensor.
        part: The part of its values that is sent, if it is a vector as long as the layout; None is all.
        coded: The bytes of the values that are sent, as `fedloom.wire.compression.encode` returns them; None for "fp32".
    """

    name: str
    value: Tensor
    part: Part | None = None
    coded: bytes | None = None

    @property
    def spec(self) -> Spec:
        """The tensor's entry in the head."""
        shape = tuple(self.value.shape) if self.part is None else (self.part.count,)
        codec = "fp32" if self.coded is None else compression.codec_of(self.coded)
        return Spec(self.name, self.value.dtype, shape, codec, self.part is not None)

    def to_bytes(self) -> bytes | memoryview:
        """Return the values that are sent, as bytes."""
        if self.coded is not None:
            return self.coded
        value = self.value if self.part is None else self.part.take(self.value)
        dense = value.detach().cpu().contiguous()
        if not dense.numel():
            return b""
        row = dense.as_strided((dense.numel(),), (1,))  # a single value is contiguous whatever its stride is
        return row.view(torch.uint8).numpy().data


class Received(NamedTuple):
    """A tensor that was read: its name, its values, whether they are only those of a part, and their bytes in a codec."""

    name: str
    value: Tensor
    partial: bool
    coded: bytes | None = None


def head_and_payload_sizes(fields: Mapping[str, Any], specs: Sequence[Spec]) -> tuple[int, int]:
    """Return the length of a head without padding, and the bytes of the tensors after it."""
    return len(_text(fields, specs)), sum(spec.size + -spec.size % 8 for spec in specs)


def message_length(text: int, payload: int) -> int:
    """Return the length of a message whose head has `text` bytes without padding and whose tensors have `payload` bytes."""
    return HEADER + text + -text % 8 + payload


def frame(kind: int, fields: Mapping[str, Any], pieces: Sequence[Piece]) -> bytes:
    """Return a message as bytes.

    Raises:
        ValueError: There are more than `MOST` tensors, or a tensor's dtype is not in `DTYPES`.
    """
    text = _text(fields, [piece.spec for piece in pieces])
    body = bytearray(text + b" " * (-len(text) % 8))
    start = len(body)
    for piece in pieces:
        content = piece.to_bytes()
        body += content
        body += bytes(-len(content) % 8)
    fixed = FIXED.pack(MAGIC, kind, start, len(body) - start)
    return b"".join(
        (fixed, CHECK.pack(compression.checksum(torch.frombuffer(body, dtype=torch.uint8), fixed)), body)
    )


def _text(fields: Mapping[str, Any], specs: Sequence[Spec]) -> bytes:
    if len(specs) > MOST:
        raise ValueError(f"{len(specs)} tensors; a message holds at most {MOST}")
    for spec in specs:
        if spec.dtype not in NAMES:
            raise ValueError(f"{spec.name} holds {spec.dtype}; a message holds {', '.join(DTYPES)}")
    listed = [[spec.name, NAMES[spec.dtype], spec.shape, spec.codec, spec.partial] for spec in specs]
    return json.dumps({**fields, "tensors": listed}, separators=(",", ":")).encode()


def prepend_field(field: bytes, content: bytes) -> bytes:
    """Put a field before other bytes, from which `split_field` separates it."""
    return LENGTH.pack(len(field)) + field + content


def split_field(content: bytes) -> tuple[bytes, bytes]:
    """Separate a field that `prepend_field` put before other bytes, and return both."""
    start = LENGTH.size + LENGTH.unpack_from(content)[0]
    return content[LENGTH.size : start], content[start:]


def kind_of(message: bytes) -> int:
    """Return the kind of a message without checking it; -1 if it is too short to have one."""
    return message[4] if len(message) > 4 else -1


def unframe(kind: int, message: bytes) -> tuple[Head, list[Received]]:
    """Check a message and return its head and tensors.

    Raises:
        ValueError: The message is damaged, or of another kind.
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
    if compression.checksum(body, message[: FIXED.size]) != CHECK.unpack_from(message, FIXED.size)[0]:
        raise ValueError("the checksum does not match: the message was damaged in transit")
    try:
        fields = json.loads(body[:start].numpy().tobytes().decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its head is not JSON: {error}") from None
    if not isinstance(fields, dict) or start % 8:
        raise ValueError("its head is not one that this version writes")
    head = Head(fields)
    listed = head.of("tensors", lambda value: isinstance(value, list) and len(value) <= MOST)
    at, received = start, list[Received]()
    for entry in listed:
        tensor, at = _tensor(body, at, entry)
        received.append(tensor)
    if at != len(body):
        raise ValueError("its tensors do not fill it")
    return head, received


def _tensor(body: Tensor, at: int, entry: Any) -> tuple[Received, int]:
    """Read the tensor that begins at a byte of the body, and return it with the position after it."""
    match entry:
        case [str(name), str(kind), list(shape), str(codec), bool(partial)] if (
            kind in DTYPES
            and codec in compression.CODECS
            and all(map(_whole, shape))
            and prod(length or 1 for length in shape) < LIMIT
            and (codec == "fp32" or kind == "float32")
        ):
            dtype, count = DTYPES[kind], prod(shape)
        case _:
            raise ValueError(f"its head has {short(entry)} for a tensor")
    size = _size(count, dtype, codec)
    if at + size > len(body):
        raise ValueError("its tensors end before they are whole")
    piece, after = body[at : at + size], at + size + -size % 8
    if body[at + size : after].any():
        raise ValueError("the padding between its tensors is not zero")
    coded = None if codec == "fp32" else piece.numpy().tobytes()
    if coded is not None:
        value = compression.decode(bytearray(coded))
        if compression.codec_of(coded) != codec:
            raise ValueError(f"{short(name)} is in another codec than {codec}")
    else:
        if dtype == torch.bool and (piece > 1).any():
            raise ValueError(f"{short(name)} holds values that are neither true nor false")
        value = piece.view(dtype) if count else torch.empty(0, dtype=dtype)
    try:
        return Received(name, value.view(shape), partial, coded), after
    # The number of values differs, or there are more dimensions than torch has.
    except (RuntimeError, TypeError, OverflowError):
        raise ValueError(f"{short(name)} does not have shape {short(shape)}") from None


def _size(count: int, dtype: torch.dtype, codec: str) -> int:
    return (
        count * dtype.itemsize
        if codec == "fp32"
        else compression.HEADER + compression.CODECS[codec].size(count)
    )


def _whole(value: object, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**63


class Head:
    """The head of a message; reading a key that is missing or has another type raises ValueError."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self._fields = fields

    def of(self, key: str, holds: Callable[[Any], bool]) -> Any:
        """Return the value of a key, which must satisfy `holds`."""
        value = self._fields.get(key)
        if key not in self._fields or not holds(value):
            raise ValueError(f"the message has {short(value)} for {key}")
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
        """Return true or false."""
        return self.of(key, lambda value: isinstance(value, bool))

    def part(self, key: str, size: int) -> Part | None:
        """Return a part of a buffer of `size` values; None is the whole buffer."""
        stretches = self.of(key, lambda value: value is None or _stretches(value))
        return None if stretches is None else Part(size, tuple(map(tuple, stretches)))


def _different_texts(value: object) -> bool:
    return (
        isinstance(value, list)
        and all(isinstance(item, str) for item in value)
        and len(set(value)) == len(value)
    )


def _stretches(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(stretch, list) and len(stretch) in (2, 4) and all(map(_whole, stretch))
        for stretch in value
    )
