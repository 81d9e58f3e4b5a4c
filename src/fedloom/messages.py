"""What travels between a server and a site: assignments, updates, and clients that are missing, as values and as bytes.

As bytes each message is a frame of `fedloom.framing`. Of a vector as long as the layout only the values of a *part* travel;
the part is written as its stretches (`fedloom.params.Part`), and a part that has every value as null. Messages of equal
content have equal bytes. The bytes that a record counts as sent are `len(message)`, which `length` computes without writing
the message.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fedloom import wire
from fedloom.framing import (
    DTYPES,
    MOST,
    NAMES,
    Found,
    Head,
    Piece,
    Spec,
    frame,
    kind_of,
    length,
    sizes,
    unframe,
)
from fedloom.params import Layout, Params, Part
from fedloom.types import Tensors

ASSIGNMENT, UPDATE, MISSING = 1, 2, 3
"""The kinds of messages; they never change their meaning."""


@dataclass(frozen=True)
class Assignment:
    """What a server asks of one client in one round, as data from which the client's site builds a `Job`.

    Attributes:
        method: The method by its name in the experiment; the site knows its rule, prompt and examples.
        stage: Number of the strategy's stage, from 0.
        round: Number of the round within its stage, from 0; with stage and client it names the random streams.
        client: The client's number.
        params: The global parameters; of these the client gets the values of `down`.
        extras: What the algorithm sends besides the parameters, by name.
        since: Round, counted over all stages, of the client's memory that the server accepted last: the client starts
            with what it kept then. -1 where it has none.
        keep: Other rounds whose memory the server may still go back to.
        down: The part that is sent; None is all. Elsewhere the client has the method's start, or its personal values.
        up: The part that the client trains and reports; None is all.
        coded: The values of `down` as they travel, where they are in fewer bits; `params` holds what is read of them.
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
        """Write the assignment as bytes.

        Raises:
            ValueError: An extra is of a dtype that none travels in.
        """
        return frame(ASSIGNMENT, self._fields(), self._pieces())

    @staticmethod
    def from_bytes(message: bytes, layout: Layout) -> Assignment:
        """Read what `to_bytes` wrote. Values outside `down` are zero; the site has its own there.

        Raises:
            ValueError: The bytes are damaged, of another kind, or for another layout.
        """
        head, found = unframe(ASSIGNMENT, message)
        _check_layout(head, layout)
        down, up = (head.part(key, layout.size) for key in ("down", "up"))
        params, extras = _spread(found, 0, down, layout)
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
            found[0].coded,
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
    """What one client sends back.

    Attributes:
        client: The client's number; sums run in this order.
        delta: Local parameters minus broadcast parameters; zero outside `up`.
        weight: Number of training examples, positive.
        extras: What the algorithm sends besides the delta, by name.
        metrics: Figures for the record, by name: loss, steps, norm, seconds.
        up: The part that is reported; None is all.
        keeps: Whether the client keeps memory of this round at its site.
        coded: The values of `up` as they travel, where they are in fewer bits; `delta` holds what is read of them.
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
        """Write the update as bytes.

        Raises:
            ValueError: An extra is of a dtype that none travels in.
        """
        return frame(UPDATE, self._fields(), self._pieces())

    @staticmethod
    def from_bytes(message: bytes, layout: Layout) -> Update:
        """Read what `to_bytes` wrote.

        Raises:
            ValueError: The bytes are damaged, of another kind, or for another layout.
        """
        head, found = unframe(UPDATE, message)
        _check_layout(head, layout)
        up, names = head.part("up", layout.size), head.texts("metrics")
        delta, extras = _spread(found, 1, up, layout)
        figures = found[1].value
        if figures.dtype != torch.float64 or figures.shape != (1 + len(names),) or found[1].partial:
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
            found[0].coded,
        )

    def _fields(self) -> dict[str, Any]:
        return {
            "client": self.client,
            "metrics": tuple(self.metrics),
            "keeps": self.keeps,
            **_parts(self.delta.layout, up=self.up),
        }

    def _pieces(self, *, counted: bool = False) -> list[Piece]:
        # As float64, so that figures such as seconds take as many bytes whatever they are.
        figures = (
            _blank_figures(1 + len(self.metrics))
            if counted
            else torch.tensor([self.weight, *self.metrics.values()], dtype=torch.float64)
        )
        return _pieces(self.delta, self.extras, self.up, self.coded, Piece("figures", figures))


@dataclass(frozen=True, slots=True)
class Missing:
    """A client that gave no update: it did not answer, raised an error, or its process was killed.

    Attributes:
        client: The client's number.
        reason: Why, in one sentence.
    """

    client: int
    reason: str

    def to_bytes(self) -> bytes:
        """Write the message as bytes."""
        return frame(MISSING, {"client": self.client, "reason": self.reason}, [])


Answer = Update | Missing
"""The answer to an assignment: an update, or the reason why there is none."""


def answer_from_bytes(message: bytes, layout: Layout) -> Answer:
    """Read an update, or the reason why there is none.

    Raises:
        ValueError: The bytes are damaged, of another kind, or for another layout.
    """
    if kind_of(message) != MISSING:
        return Update.from_bytes(message, layout)
    head, _ = unframe(MISSING, message)
    return Missing(head.number("client"), head.text("reason"))


def in_codec(flat: Tensor, part: Part | None, codec: str) -> tuple[Tensor, bytes | None]:
    """Write the values of a part in a codec.

    Args:
        flat: Finite float32 values, shape [P], at most 2¹²⁰ unless the codec is "fp32".
        part: Those that travel; None is all.
        codec: A key of `fedloom.wire.CODECS`.

    Returns:
        The values as they are read at the other end, shape [P], zero outside the part, and their bytes: what messages take as
        `coded`. In "fp32", and where no value travels, the values are as they were, and there are no bytes.

    Raises:
        ValueError: There is no such codec, or it does not take these values.
    """
    if codec not in wire.CODECS:
        raise ValueError(f"no codec is called {codec!r}; there are {', '.join(wire.CODECS)}")
    part = part or Part.whole(len(flat))
    if codec == "fp32" or not part.count:
        return flat, None
    coded = wire.encode(part.take(flat), codec)
    return part.put(wire.decode(bytearray(coded)), torch.zeros_like(flat)), coded


def unsendable(extras: Tensors) -> str | None:
    """Return why no message can hold what an algorithm sends besides parameters, or None."""
    if len(extras) > MOST - 2:  # beside the parameters and the figures
        return f"{len(extras)} tensors; a message holds at most {MOST - 2} besides the parameters"
    for name, value in extras.items():
        if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]: rules come from outside
            return f"the name {name!r} is not a text"
        if value.layout != torch.strided or value.dtype not in NAMES:
            return f"{name} holds {value.dtype} in the layout {value.layout}; a message holds {', '.join(DTYPES)}, all dense"
    return None


def _parts(layout: Layout, **parts: Part | None) -> dict[str, Any]:
    there = {name: None if part is None or part.is_whole else part.stretches for name, part in parts.items()}
    return {"layout": layout.digest, **there}


def _length(fields: Mapping[str, Any], pieces: Sequence[Piece]) -> int:
    """Return the bytes of a message without writing it: heads that differ only in numbers differ only in digits."""
    digits, key = 0, list[tuple[str, Any]]()
    for name, value in fields.items():
        if type(value) is int:
            digits += len(str(value)) - 1
        key.append((name, 0 if type(value) is int else value))
    text, payload = _sizes(tuple(key), tuple([one.spec for one in pieces]))
    return length(text + digits, payload)


@lru_cache(maxsize=1024)
def _sizes(fields: tuple[tuple[str, Any], ...], specs: tuple[Spec, ...]) -> tuple[int, int]:
    return sizes(dict(fields), specs)


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
    """Return whether a tensor is a vector as long as the layout without a bit set outside a part."""
    if value.dtype != torch.float32 or value.shape != (part.size,):
        return False
    return part.silent(value.contiguous().view(torch.int32))  # −0 is not blank: it would come back as 0


def _spread(
    found: Sequence[Found], more: int, part: Part | None, layout: Layout
) -> tuple[Params, dict[str, Tensor]]:
    """Return what `_pieces` listed, except `more`: the flat buffer, and the extras by name."""
    if len(found) <= more:
        raise ValueError("the message has no parameters, or no weight")
    first, extras = found[0], found[1 + more :]
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
    """Put the values of a part into a buffer of zeros, shape [P]."""
    if part is None or values.dtype != torch.float32 or values.shape != (part.count,):
        raise ValueError(f"{values.dtype} of shape {list(values.shape)} are not the values of a part")
    return part.put(values, torch.zeros(layout.size))
