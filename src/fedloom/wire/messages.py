"""The messages between a server and a site, as values and as bytes: assignments, updates and missing clients.

Each message as bytes is a frame of `fedloom.wire.framing`. Of a vector as long as the layout, only the values of a *part*
are sent; the part is written as its stretches (`fedloom.params.Part`), and a whole part as null. Messages with equal
content have equal bytes. A run's log counts `len(message)` bytes as sent, which `length` computes without writing the
message.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fedloom.params import Layout, Params, Part
from fedloom.types import Tensors
from fedloom.wire import compression
from fedloom.wire.framing import (
    DTYPES,
    MOST,
    NAMES,
    Head,
    Piece,
    Received,
    Spec,
    frame,
    head_and_payload_sizes,
    kind_of,
    message_length,
    unframe,
)

ASSIGNMENT, UPDATE, MISSING = 1, 2, 3
"""The kinds of messages; they never change their meaning."""


@dataclass(frozen=True)
class Assignment:
    """The work of one client in one round, as data from which the client's site builds a `Job`.

    Attributes:
        method: The name of the method in the experiment; the site knows its rule, prompt and examples.
        stage: Number of the strategy's stage, from 0.
        round: Number of the round within its stage, from 0; with stage and client it names the random streams.
        client: The client's number.
        params: The global parameters, of which the client gets the values of `down`.
        extras: Tensors that the algorithm sends besides the parameters, by name.
        since: Round, counted over all stages, of the client's last memory that the server accepted; the client starts
            from that memory. -1 where it has none.
        keep: Other rounds whose memory the server may still need.
        down: The part that is sent; None is all. Other values are the method's start, or the client's personal ones.
        up: The part that the client trains and reports; None is all.
        coded: The bytes of the values of `down` in a codec other than "fp32"; `params` holds the values that are decoded from them.
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
    coded: bytes | None = None

    @property
    def length(self) -> int:
        """Bytes of the message."""
        return _length(self._fields(), self._pieces())

    def to_bytes(self) -> bytes:
        """Return the assignment as bytes.

        Raises:
            ValueError: An extra's dtype is not in `DTYPES`.
        """
        return frame(ASSIGNMENT, self._fields(), self._pieces())

    @staticmethod
    def from_bytes(message: bytes, layout: Layout) -> Assignment:
        """Read an assignment that `to_bytes` wrote; values outside `down`, which the site has itself, are zero.

        Raises:
            ValueError: The bytes are damaged, of another kind, or for another layout.
        """
        head, tensors = unframe(ASSIGNMENT, message)
        _check_layout(head, layout)
        down, up = (head.part(key, layout.size) for key in ("down", "up"))
        params, extras = _spread(tensors, 0, down, layout)
        return Assignment(
            head.text("method"),
            head.number("stage"),
            head.number("round"),
            head.number("client"),
            params,
            extras,
            head.number("since", -1),
            head.numbers("keep"),
            down,
            up,
            tensors[0].coded,
        )

    def _fields(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "stage": self.stage,
            "round": self.round,
            "client": self.client,
            "since": self.since,
            "keep": self.keep,
            **_parts(self.params.layout, down=self.down, up=self.up),
        }

    def _pieces(self) -> list[Piece]:
        return _pieces(self.params, self.extras, self.down, self.coded)


@dataclass(frozen=True)
class Update:
    """The result of one client's training in a round.

    Attributes:
        client: The client's number; sums run in the order of these numbers.
        delta: Local parameters minus broadcast parameters; zero outside `up`.
        weight: Number of training examples, positive.
        extras: Tensors that the algorithm sends besides the delta, by name.
        metrics: Figures for the run's log, by name: loss, steps, norm, seconds.
        up: The part that is reported; None is all.
        keeps: Whether the client keeps a memory of this round at its site.
        coded: The bytes of the values of `up` in a codec other than "fp32"; `delta` holds the values that are decoded from them.
    """

    client: int
    delta: Params
    weight: float
    extras: Tensors = field(default_factory=dict[str, Tensor])
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    up: Part | None = None
    keeps: bool = False
    coded: bytes | None = None

    @property
    def length(self) -> int:
        """Bytes of the message."""
        return _length(self._fields(), self._pieces(counted=True))

    def to_bytes(self) -> bytes:
        """Return the update as bytes.

        Raises:
            ValueError: An extra's dtype is not in `DTYPES`.
        """
        return frame(UPDATE, self._fields(), self._pieces())

    @staticmethod
    def from_bytes(message: bytes, layout: Layout) -> Update:
        """Read an update that `to_bytes` wrote.

        Raises:
            ValueError: The bytes are damaged, of another kind, or for another layout.
        """
        head, tensors = unframe(UPDATE, message)
        _check_layout(head, layout)
        up, names = head.part("up", layout.size), head.texts("metrics")
        delta, extras = _spread(tensors, 1, up, layout)
        figures = tensors[1].value
        if figures.dtype != torch.float64 or figures.shape != (1 + len(names),) or tensors[1].partial:
            raise ValueError("the message has no weight, or not as many figures as metrics")
        weight, *metrics = figures.tolist()
        return Update(
            head.number("client"),
            delta,
            weight,
            extras,
            dict(zip(names, metrics, strict=True)),
            up,
            head.flag("keeps"),
            tensors[0].coded,
        )

    def _fields(self) -> dict[str, Any]:
        return {
            "client": self.client,
            "metrics": tuple(self.metrics),
            "keeps": self.keeps,
            **_parts(self.delta.layout, up=self.up),
        }

    def _pieces(self, *, counted: bool = False) -> list[Piece]:
        # As float64, so that the number of bytes does not depend on the figures.
        figures = (
            _blank_figures(1 + len(self.metrics))
            if counted
            else torch.tensor([self.weight, *self.metrics.values()], dtype=torch.float64)
        )
        return _pieces(self.delta, self.extras, self.up, self.coded, Piece("figures", figures))


@dataclass(frozen=True, slots=True)
class Missing:
    """A client without an update: it did not answer, raised an error, or its process was killed.

    Attributes:
        client: The client's number.
        reason: The reason, in one sentence.
    """

    client: int
    reason: str

    def to_bytes(self) -> bytes:
        """Return the message as bytes."""
        return frame(MISSING, {"client": self.client, "reason": self.reason}, [])


Answer = Update | Missing
"""The answer to an assignment: an update, or the reason why there is none."""


def answer_from_bytes(message: bytes, layout: Layout) -> Answer:
    """Read an update, or the reason why it is missing.

    Raises:
        ValueError: The bytes are damaged, of another kind, or for another layout.
    """
    if kind_of(message) != MISSING:
        return Update.from_bytes(message, layout)
    head, _ = unframe(MISSING, message)
    return Missing(head.number("client"), head.text("reason"))


def in_codec(flat: Tensor, part: Part | None, codec: str) -> tuple[Tensor, bytes | None]:
    """Encode the values of a part in a codec.

    Args:
        flat: Finite float32 values, shape [P], at most 2¹²⁰ unless the codec is "fp32".
        part: The part that is sent; None is all.
        codec: A key of `fedloom.wire.compression.CODECS`.

    Returns:
        The values as the other end decodes them, shape [P], zero outside the part, and their bytes, which messages take as
        `coded`. With "fp32", or if no value is sent, the values are returned unchanged, without bytes.

    Raises:
        ValueError: The codec is unknown or does not accept these values.
    """
    if codec not in compression.CODECS:
        raise ValueError(f"there is no codec {codec!r}; the codecs are {', '.join(compression.CODECS)}")
    part = part or Part.whole(len(flat))
    if codec == "fp32" or not part.count:
        return flat, None
    coded = compression.encode(part.take(flat), codec)
    return part.put(compression.decode(bytearray(coded)), torch.zeros_like(flat)), coded


def unsendable_reason(extras: Tensors) -> str | None:
    """Return why no message can hold an algorithm's extras, or None if one can."""
    if len(extras) > MOST - 2:  # besides the parameters and the figures
        return f"{len(extras)} tensors; a message holds at most {MOST - 2} besides the parameters"
    for name, value in extras.items():
        if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]: plug-ins need not obey types
            return f"the name {name!r} is not a text"
        if value.layout != torch.strided or value.dtype not in NAMES:
            return f"{name} holds {value.dtype} in the layout {value.layout}; a message holds {', '.join(DTYPES)}, all dense"
    return None


def _parts(layout: Layout, **parts: Part | None) -> dict[str, Any]:
    stretches = {
        name: None if part is None or part.is_whole else part.stretches for name, part in parts.items()
    }
    return {"layout": layout.digest, **stretches}


def _length(fields: Mapping[str, Any], pieces: Sequence[Piece]) -> int:
    """Return the length of a message without writing it: heads that differ only in numbers differ only in digits."""
    digits, key = 0, list[tuple[str, Any]]()
    for name, value in fields.items():
        if type(value) is int:
            digits += len(str(value)) - 1
        key.append((name, 0 if type(value) is int else value))
    text, payload = _sizes(tuple(key), tuple([piece.spec for piece in pieces]))
    return message_length(text + digits, payload)


@lru_cache(maxsize=1024)
def _sizes(fields: tuple[tuple[str, Any], ...], specs: tuple[Spec, ...]) -> tuple[int, int]:
    return head_and_payload_sizes(dict(fields), specs)


@lru_cache(maxsize=64)
def _blank_figures(count: int) -> Tensor:
    return torch.empty(count, dtype=torch.float64)


def _check_layout(head: Head, layout: Layout) -> None:
    if head.text("layout") != layout.digest:
        raise ValueError("the message is for another model or strategy: its names or shapes differ")


def _pieces(
    flat: Params, extras: Tensors, part: Part | None, coded: bytes | None, *more: Piece
) -> list[Piece]:
    """List the tensors of a message: the flat buffer first, then `more`, then the extras."""
    part = None if part is None or part.is_whole else part
    others = [
        Piece(name, value, part if part and _blank(value, part) else None) for name, value in extras.items()
    ]
    return [Piece("", flat.flat, part, coded), *more, *others]


def _blank(value: Tensor, part: Part) -> bool:
    """Return whether a tensor is a vector as long as the layout in which no bit outside a part is set."""
    if value.dtype != torch.float32 or value.shape != (part.size,):
        return False
    return part.is_zero_outside(
        value.contiguous().view(torch.int32)
    )  # −0 is not blank: it would come back as 0


def _spread(
    tensors: Sequence[Received], more: int, part: Part | None, layout: Layout
) -> tuple[Params, dict[str, Tensor]]:
    """Return the tensors that `_pieces` listed, except `more`: the flat buffer, and the extras by name."""
    if len(tensors) <= more:
        raise ValueError("the message has no parameters, or no weight")
    first, extras = tensors[0], tensors[1 + more :]
    if first.partial == (part is None or part.is_whole):
        raise ValueError("the message has other parameters than those of its part")
    named = {one.name: _whole(one.value, part, layout) if one.partial else one.value for one in extras}
    if len(named) < len(extras):
        raise ValueError("the message has two extras of one name")
    flat = _whole(first.value, part, layout) if first.partial else first.value
    if flat.dtype != torch.float32 or flat.shape != (layout.size,):
        raise ValueError(f"{flat.dtype} of shape {list(flat.shape)} for {layout.size} float32 values")
    return Params(layout, flat), named


def _whole(values: Tensor, part: Part | None, layout: Layout) -> Tensor:
    """Return a buffer, shape [P], with the values of a part and zeros elsewhere."""
    if part is None or values.dtype != torch.float32 or values.shape != (part.count,):
        raise ValueError(f"{values.dtype} of shape {list(values.shape)} are not the values of a part")
    return part.put(values, torch.zeros(layout.size))
