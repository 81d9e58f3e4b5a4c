"""What travels between a server and a site: assignments, updates, and clients that are missing, as values and as bytes.

    message = magic "FLM1" · kind (1 byte) · zero (3) · bytes of the head (4) · bytes of the payload (8) · checksum (8)
              · head, JSON, filled up with blanks to a multiple of 8 · tensors, each filled up with zeros to one

All figures are little-endian. The head lists the tensors with dtype, shape and codec (`fedloom.wire`). Of vectors as long as
the layout only the values of a *part* travel; the part is written as its stretches. The checksum is that of
`fedloom.wire`, over all that is before and after it: it finds accidents, and is no defence against forgery.

Messages of equal content have equal bytes, so what a record counts as sent is `len(message)`. `length` tells that without
writing the message.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor

from fedloom import wire
from fedloom.params import Layout, Params, Part
from fedloom.types import Tensors

MAGIC = b"FLM1"
FIXED = struct.Struct("<4sB3xIQ")
CHECK = struct.Struct("<Q")
HEADER = FIXED.size + CHECK.size
KINDS = {"assignment": 1, "update": 2, "missing": 3}
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
"""Bytes that no message has: a head that announces more is damaged."""


@dataclass(frozen=True)
class Assignment:
    """What a server asks of one client in one round: data, from which the client's site builds the work.

    Attributes:
        method: The method by its name in the experiment; the site knows its rule, prompt and examples.
        stage: Number of the strategy's stage, from 0.
        round: Number of the round within its stage, from 0; with stage and client it names the random streams.
        client: The client's number.
        params: The global parameters; of these the client gets the values of `down`.
        extras: What the algorithm sends besides.
        since: Last round, counted over all stages, in which an update of this client was accepted that left something at
            the site: the client starts with what it kept then. -1 where there is none.
        keep: Other rounds whose memory the server may still go back to.
        down: The part that is sent; None is all. Elsewhere the client has the method's start, or values of its own.
        up: The part that the client trains and reports; None is all.
    """

    method: str
    stage: int
    round: int
    client: int
    params: Params
    extras: Tensors = field(default_factory=dict[str, Tensor])
    since: int = -1
    keep: tuple[int, ...] = ()
    down: Part | None = None
    up: Part | None = None

    @property
    def length(self) -> int:
        """Bytes of the message in float32."""
        return _length(self._head(), self._tensors(), "fp32")

    def to_bytes(self, codec: str = "fp32") -> bytes:
        """Write the assignment as bytes, with the parameters in a codec of `fedloom.wire.CODECS`."""
        return _written("assignment", self._head(), self._tensors(), codec)

    @staticmethod
    def from_bytes(message: bytes, layout: Layout) -> Assignment:
        """Read what `to_bytes` wrote. Values outside `down` are zero; the site has its own there.

        Raises:
            ValueError: The bytes are damaged, of another kind, or for another layout.
        """
        head, tensors = _read("assignment", message)
        with _Fields(head, layout) as fields:
            down, up = (fields.part(key) for key in ("down", "up"))
            flat = _spread(tensors.pop(""), down, layout)
            return Assignment(
                fields.text("method"),
                fields.number("stage"),
                fields.number("round"),
                fields.number("client"),
                Params(layout, flat),
                _all_spread(tensors, head["spread"], down, layout),
                fields.number("since", -1),
                tuple(int(one) for one in head["keep"]),
                down,
                up,
            )

    def _head(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "stage": self.stage,
            "round": self.round,
            "client": self.client,
            "since": self.since,
            "keep": list(self.keep),
            **_parts(self.params.layout, down=self.down, up=self.up),
        }

    def _tensors(self) -> _Packed:
        return _Packed({"": self.params.flat, **self.extras}, self.down, self.params.layout.size)


@dataclass(frozen=True)
class Update:
    """What one client sends back.

    Attributes:
        client: The client's number; sums run in this order.
        delta: Local parameters minus broadcast parameters; zero outside `up`.
        weight: Number of training examples, positive.
        extras: What an algorithm sends besides the delta.
        metrics: Plain numbers for the record: loss, steps, seconds.
        up: The part that is reported; None is all.
        keeps: Whether the client keeps something of this round at its site.
    """

    client: int
    delta: Params
    weight: float
    extras: Tensors = field(default_factory=dict[str, Tensor])
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    up: Part | None = None
    keeps: bool = False

    @property
    def length(self) -> int:
        """Bytes of the message in float32."""
        return _length(self._head(), self._tensors(), "fp32")

    def to_bytes(self, codec: str = "fp32") -> bytes:
        """Write the update as bytes, with the delta in a codec of `fedloom.wire.CODECS`."""
        return _written("update", self._head(), self._tensors(), codec)

    @staticmethod
    def from_bytes(message: bytes, layout: Layout) -> Update:
        """Read what `to_bytes` wrote.

        Raises:
            ValueError: The bytes are damaged, of another kind, or for another layout.
        """
        head, tensors = _read("update", message)
        with _Fields(head, layout) as fields:
            up, figures = fields.part("up"), tensors.pop(" ").tolist()
            delta = Params(layout, _spread(tensors.pop(""), up, layout))
            return Update(
                fields.number("client"),
                delta,
                figures[0],
                _all_spread(tensors, head["spread"], up, layout),
                dict(zip(head["metrics"], figures[1:], strict=True)),
                up,
                bool(head["keeps"]),
            )

    def _head(self) -> dict[str, Any]:
        return {
            "client": self.client,
            "metrics": list(self.metrics),
            "keeps": self.keeps,
            **_parts(self.delta.layout, up=self.up),
        }

    def _tensors(self) -> _Packed:
        # As float64, so that figures such as seconds take as many bytes whatever they are.
        figures = torch.tensor([self.weight, *self.metrics.values()], dtype=torch.float64)
        return _Packed({"": self.delta.flat, " ": figures, **self.extras}, self.up, self.delta.layout.size)


@dataclass(frozen=True, slots=True)
class Missing:
    """A client that was asked and gave no update: it did not answer, raised an error, or its process was killed.

    Attributes:
        client: The client's number.
        reason: Why, in one sentence.
    """

    client: int
    reason: str

    def to_bytes(self) -> bytes:
        """Write it as bytes."""
        return _written(
            "missing", {"client": self.client, "reason": self.reason}, _Packed({}, None, 0), "fp32"
        )


Answer = Update | Missing
"""What a client that was asked comes to."""


def answer_from_bytes(message: bytes, layout: Layout) -> Answer:
    """Read an update, or why there is none.

    Raises:
        ValueError: The bytes are damaged, of another kind, or for another layout.
    """
    if message[4:5] != bytes([KINDS["missing"]]):
        return Update.from_bytes(message, layout)
    head, _ = _read("missing", message)
    with _Fields(head, layout) as fields:
        return Missing(fields.number("client"), fields.text("reason"))


class _Packed:
    """The tensors of a message as they travel: of vectors as long as the layout only the values of a part."""

    def __init__(self, tensors: Tensors, part: Part | None, size: int) -> None:
        part = None if part is None or part.is_whole else part
        self.values = {
            name: (
                value,
                part if part and value.shape == (size,) and (name == "" or part.silent(value)) else None,
            )
            for name, value in tensors.items()
        }

    def entries(self, codec: str) -> Iterator[tuple[str, Tensor, Part | None, str, int]]:
        """Yield name, value, its part, codec and bytes of each tensor."""
        for name, (value, part) in self.values.items():
            count = value.numel() if part is None else part.count
            coded = codec if name == "" and count else "fp32"
            size = count * value.element_size()
            if coded != "fp32":
                size = wire.HEADER + wire.CODECS[coded].size(count)
            yield name, value, part, coded, size

    def head(self, fields: Mapping[str, Any], codec: str) -> bytes:
        """Write the head: what a message says, and which tensors follow."""
        listed = [
            [name, NAMES[value.dtype], list(value.shape) if part is None else [part.count], coded]
            for name, value, part, coded, _ in self.entries(codec)
        ]
        spread = [name for name, (_, part) in self.values.items() if name and part is not None]
        text = json.dumps({**fields, "spread": spread, "tensors": listed}, separators=(",", ":")).encode()
        return text + b" " * (-len(text) % 8)


def _parts(layout: Layout, **parts: Part | None) -> dict[str, Any]:
    there = {name: None if part is None or part.is_whole else part.stretches for name, part in parts.items()}
    return {"layout": layout.digest, **there}


def _length(fields: Mapping[str, Any], packed: _Packed, codec: str) -> int:
    payload = sum(size + -size % 8 for *_, size in packed.entries(codec))
    return HEADER + len(packed.head(fields, codec)) + payload


def _written(
    kind: Literal["assignment", "update", "missing"], fields: Mapping[str, Any], packed: _Packed, codec: str
) -> bytes:
    head = packed.head(fields, codec)
    body = bytearray(head)
    for _, value, part, coded, _ in packed.entries(codec):
        piece = _bytes_of(value if part is None else part.take(value), coded)
        body += piece
        body += bytes(-len(piece) % 8)
    fixed = FIXED.pack(MAGIC, KINDS[kind], len(head), len(body) - len(head))
    check = wire.checksum(torch.frombuffer(body, dtype=torch.uint8), fixed)
    return b"".join((fixed, CHECK.pack(check), body))


def _bytes_of(value: Tensor, codec: str) -> bytes | memoryview:
    if codec != "fp32":
        return wire.encode(value, codec)
    held = value.detach().cpu().contiguous().reshape(-1)
    return held.view(torch.uint8).numpy().data if held.numel() else b""


def _read(kind: str, message: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Check a message and return its head and tensors.

    Raises:
        ValueError: It is not as it was written, or of another kind.
    """
    if len(message) < HEADER or message[:4] != MAGIC or any(message[5:8]):
        raise ValueError("these bytes do not begin as a message of this version does")
    magic, number, length, payload = FIXED.unpack_from(message)
    if number != KINDS[kind]:
        raise ValueError(f"this message is no {kind}")
    if not 0 < length + payload < LIMIT or len(message) != HEADER + length + payload:
        raise ValueError(
            f"the message has {len(message)} bytes, not the {HEADER + length + payload} it announces"
        )
    body = torch.frombuffer(bytearray(message[HEADER:]), dtype=torch.uint8)
    if (
        wire.checksum(body, FIXED.pack(magic, number, length, payload))
        != CHECK.unpack_from(message, FIXED.size)[0]
    ):
        raise ValueError("the checksum does not fit: the message was damaged on the way")
    try:
        head = json.loads(body[:length].numpy().tobytes())
        at, tensors = length, dict[str, Tensor]()
        for name, dtype, shape, codec in head.pop("tensors"):
            tensors[name], at = _tensor(body, at, DTYPES[dtype], tuple(map(int, shape)), codec)
        if at != len(body):
            raise ValueError("its tensors do not fill it")
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, RecursionError) as error:
        raise ValueError(f"the message is nothing that this version writes: {error}") from None
    return head, tensors


def _tensor(
    body: Tensor, at: int, dtype: torch.dtype, shape: tuple[int, ...], codec: str
) -> tuple[Tensor, int]:
    """Read the tensor that begins at a byte of the body; return it and the byte after it."""
    if any(one < 0 for one in shape):
        raise ValueError(f"a tensor of shape {shape}")
    count = prod(shape)
    size = count * dtype.itemsize if codec == "fp32" else wire.HEADER + wire.CODECS[codec].size(count)
    if at + size > len(body):
        raise ValueError("its tensors end before they are whole")
    piece, after = body[at : at + size], at + size + -size % 8
    if body[at + size : after].any():
        raise ValueError("there is something between its tensors")
    if codec != "fp32":
        return wire.decode(bytearray(piece.numpy().data)).view(shape), after
    return (piece.view(dtype) if count else torch.empty(0, dtype=dtype)).view(shape), after


class _Fields:
    """The head of a message, read with checks; whatever is wrong with it becomes a ValueError."""

    def __init__(self, head: dict[str, Any], layout: Layout) -> None:
        self._head, self._layout = head, layout

    def __enter__(self) -> _Fields:
        if self._head.get("layout", self._layout.digest) != self._layout.digest:
            raise ValueError("the message is for another model or strategy: its names or shapes differ")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> Literal[False]:
        if isinstance(error, KeyError | TypeError | AttributeError | IndexError | RuntimeError):
            raise ValueError(f"the message is nothing that this version writes: {error}") from None
        return False

    def number(self, key: str, least: int = 0) -> int:
        value = self._head[key]
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"the message says {value!r} for {key}")
        return value

    def text(self, key: str) -> str:
        value = self._head[key]
        if not isinstance(value, str):
            raise ValueError(f"the message says {value!r} for {key}")
        return value

    def part(self, key: str) -> Part | None:
        stretches = self._head[key]
        if stretches is None:
            return None
        return Part(self._layout.size, tuple((int(start), int(stop)) for start, stop in stretches))


def _spread(values: Tensor, part: Part | None, layout: Layout) -> Tensor:
    """Put the values of a part into a buffer of zeros, shape [P]."""
    wanted = layout.size if part is None else part.count
    if values.dtype != torch.float32 or values.shape != (wanted,):
        raise ValueError(
            f"{values.dtype} values of shape {list(values.shape)} for a part of {wanted} float32 values"
        )
    return values if part is None else part.put(values, torch.zeros(layout.size))


def _all_spread(tensors: Tensors, names: list[str], part: Part | None, layout: Layout) -> Tensors:
    return {name: _spread(value, part, layout) if name in names else value for name, value in tensors.items()}
