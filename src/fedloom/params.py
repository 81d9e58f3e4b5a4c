"""A flat float32 buffer that holds everything that is trained, with a name for each stretch of it.

Shape legend: P = number of trainable parameters, K = number of clients in a cohort.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod
from typing import cast

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the stretches of a flat buffer, in canonical (sorted) order.

    Args:
        names: Canonical names such as `llm/model.language_model.layers.0.self_attn.q_proj:lora_a`.
        shapes: One shape for each name.

    Raises:
        ValueError: Names repeat, are not sorted, or differ in number from shapes.

    Example:
        >>> layout = Layout.of({"b": (2,), "a": (2, 3)})
        >>> layout.names, layout.size, layout.slice("b")
        (('a', 'b'), 8, slice(6, 8, None))
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.shapes):
            raise ValueError(f"{len(self.names)} names but {len(self.shapes)} shapes")
        if list(self.names) != sorted(set(self.names)):
            raise ValueError("names must be sorted and must not repeat")

    @staticmethod
    def of(shapes: Mapping[str, tuple[int, ...]]) -> Layout:
        """Return a layout of name → shape, with sorted names."""
        names = tuple(sorted(shapes))
        return Layout(names, tuple(tuple(shapes[name]) for name in names))

    @cached_property
    def _slices(self) -> dict[str, slice]:
        slices: dict[str, slice] = {}
        start = 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            slices[name] = slice(start, start + prod(shape))
            start += prod(shape)
        return slices

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return dict(zip(self.names, self.shapes, strict=True))

    @cached_property
    def size(self) -> int:
        """The number P of values."""
        return sum(prod(shape) for shape in self.shapes)

    def slice(self, name: str) -> slice:
        """Return the slice of the buffer that `name` occupies."""
        return self._slices[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of `name`."""
        return self._shapes[name]

    def mask(self, keep: Callable[[str], bool]) -> Tensor:
        """Return 1.0 where `keep(name)` holds and 0.0 elsewhere, shape [P], float32."""
        mask = torch.zeros(self.size)
        for name in self.names:
            if keep(name):
                mask[self.slice(name)] = 1.0
        return mask

    @cached_property
    def digest(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of names and shapes."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """Write names and shapes as canonical JSON."""
        return json.dumps([[name, list(shape)] for name, shape in zip(self.names, self.shapes, strict=True)])

    @staticmethod
    def from_json(text: str) -> Layout:
        """Read what `to_json` wrote."""
        rows = json.loads(text)
        return Layout(tuple(name for name, _ in rows), tuple(tuple(shape) for _, shape in rows))


Stretch = tuple[int, int] | tuple[int, int, int, int]
"""An entry of a part: consecutive values, as (start, stop); or at least three stretches of equal length and equal distance,
as (start of the first, stop of the first, step, count)."""


@dataclass(frozen=True)
class Part:
    """A subset of the values of a flat buffer, such as those that a client receives or reports.

    The first columns of a matrix are one entry, although they are as many stretches as the matrix has rows. Equal parts
    have equal entries.

    Args:
        size: Number P of values of the whole buffer.
        stretches: The entries of the part: ascending, not empty, not touching. Each, from the first on, holds as many
            stretches as possible.

    Raises:
        ValueError: Stretches overlap, touch, are empty or out of order, exceed the buffer, or fit into fewer entries.

    Example:
        >>> part = Part(6, ((1, 3), (5, 6)))
        >>> part.take(torch.arange(6.0)), part.count
        (tensor([1., 2., 5.]), 3)
        >>> part.put(torch.tensor([7.0, 8.0, 9.0]), torch.zeros(6))
        tensor([0., 7., 8., 0., 0., 9.])
        >>> Part.of(torch.tensor([[1, 0], [1, 0], [1, 0]]).flatten())
        Part(size=6, stretches=((0, 1, 2, 3),))
    """

    size: int
    stretches: tuple[Stretch, ...]

    def __post_init__(self) -> None:
        end = -1
        for entry in self.stretches:
            start, stop, step, count = _unpacked(entry)
            regular = len(entry) == 2 or (count > 2 and step > stop - start)
            if not (regular and end < start < stop and (end := _end(entry)) <= self.size):
                raise ValueError(f"a part of {self.size} values has no stretch {_as_text(entry)} there")
        ends = [end for entry in self.stretches for end in _end_stretches(entry)]
        for (first, width, free), (second, width_2, _), (third, width_3, _) in zip(
            ends, ends[1:], ends[2:], strict=False
        ):
            if free and width == width_2 == width_3 and second - first == third - second:
                raise ValueError(f"the stretches of a part from {first} to {third} belong in one entry")

    @staticmethod
    def whole(size: int) -> Part:
        """Return the part that contains every value."""
        return Part(size, ((0, size),) if size else ())

    @staticmethod
    def of(mask: Tensor) -> Part:
        """Return the part of the values at which a mask, shape [P], is not zero."""
        starts, stops = _edges(mask.bool())
        widths, steps = stops - starts, starts.diff()
        alike = widths[1:] == widths[:-1]
        # True where a stretch and the two after it are alike and equally far apart.
        regular = alike[1:] & alike[:-1] & (steps[1:] == steps[:-1])

        def single(begin: int, end: int | None) -> list[tuple[int, int]]:
            return list(zip(_to_list(starts[begin:end]), _to_list(stops[begin:end]), strict=True))

        entries, free = list[Stretch](), 0
        for begin, end in zip(*map(_to_list, _edges(regular)), strict=True):
            first, after = max(begin, free), end + 2
            if after - first > 2:
                ((start, stop), (follows, _)) = single(first, first + 2)
                entries += [*single(free, first), (start, stop, follows - start, after - first)]
                free = after
        return Part(len(mask), (*entries, *single(free, None)))

    @cached_property
    def count(self) -> int:
        """The number of values that belong to the part."""
        return sum((stop - start) * count for start, stop, _, count in map(_unpacked, self.stretches))

    @property
    def is_whole(self) -> bool:
        """Whether every value belongs to the part."""
        return self.count == self.size

    @cached_property
    def mask(self) -> Tensor:
        """True for values of the part, shape [P]."""
        mask = torch.zeros(self.size, dtype=torch.bool)
        for view in self._views(mask):
            view.fill_(True)
        return mask

    @cached_property
    def complement(self) -> Part:
        """The part of all other values."""
        return Part.of(~self.mask)

    def __and__(self, other: Part) -> Part:
        self._expect((other.size,), self.size)
        if self == other or other.is_whole or not self.count:
            return self
        return other if self.is_whole or not other.count else Part.of(self.mask & other.mask)

    def __or__(self, other: Part) -> Part:
        self._expect((other.size,), self.size)
        if self == other or self.is_whole or not other.count:
            return self
        return other if other.is_whole or not self.count else Part.of(self.mask | other.mask)

    def _expect(self, shape: Sequence[int], expected: int) -> None:
        if tuple(shape) != (expected,):
            raise ValueError(f"{list(shape)} values where a part of {self.size} values has {expected}")

    def take(self, flat: Tensor) -> Tensor:
        """Return the part's values of a buffer, shape [P] → [count]; the buffer itself where the part is whole.

        Raises:
            ValueError: The buffer has another shape.
        """
        self._expect(flat.shape, self.size)
        if self.is_whole:
            return flat
        return torch.cat([view.reshape(-1) for view in self._views(flat)] or [flat[:0]])

    def put(self, values: Tensor, under: Tensor) -> Tensor:
        """Return `under`, shape [P], with the part's values replaced by others, shape [count].

        Where the part is whole, the result is `values` itself.

        Raises:
            ValueError: One of them has another shape.
        """
        self._expect(values.shape, self.count)
        self._expect(under.shape, self.size)
        if self.is_whole:
            return values
        result, at = under.clone(), 0
        for view in self._views(result):
            view.copy_(values[at : at + view.numel()].view(view.shape))
            at += view.numel()
        return result

    def zero_outside(self, flat: Tensor) -> Tensor:
        """Return a buffer with zeros outside the part; the buffer itself where the part is whole."""
        return flat if self.is_whole else torch.where(self.mask.to(flat.device), flat, 0.0)

    def is_zero_outside(self, flat: Tensor) -> bool:
        """Return whether all values of a buffer outside the part are zero."""
        return self.is_whole or not any(bool(view.any()) for view in self.complement._views(flat))

    def _views(self, flat: Tensor) -> Iterator[Tensor]:
        """Yield the values of each entry in a buffer, shape [length], or [count, length], without a copy."""
        for entry in self.stretches:
            start, stop, step, count = _unpacked(entry)
            yield flat[start:stop] if count == 1 else flat[start : _end(entry)].unfold(0, stop - start, step)


@lru_cache(maxsize=64)
def intersection(left: Part | None, right: Part | None) -> Part | None:
    """Return the values that two parts have in common; None is every value, in arguments and result.

    The last results are cached, because clients with equal parts need them in every round.

    Example:
        >>> intersection(Part(4, ((0, 3),)), Part(4, ((2, 4),))), intersection(None, None)
        (Part(size=4, stretches=((2, 3),)), None)
    """
    if left is None or right is None:
        return right if left is None else left
    return left & right


def _unpacked(entry: Stretch) -> tuple[int, int, int, int]:
    """Return start, stop, step and count of an entry."""
    return (*entry, 0, 1) if len(entry) == 2 else entry


def _end(entry: Stretch) -> int:
    """Return the stop of an entry's last stretch."""
    _, stop, step, count = _unpacked(entry)
    return stop + step * (count - 1)


def _end_stretches(entry: Stretch) -> list[tuple[int, int, bool]]:
    """Return start and length of an entry's first two and last two stretches, and whether another entry may begin there.

    Another entry may begin only at a single stretch, or at the last but one.
    """
    start, stop, step, count = _unpacked(entry)
    numbers = (0,) if count == 1 else sorted({0, 1, count - 2, count - 1})
    return [(start + step * k, stop - start, count == 1 or k == count - 2) for k in numbers]


def _as_text(entry: Stretch) -> str:
    start, stop, step, count = _unpacked(entry)
    return f"{start} to {stop}" + (f", {count} times every {step}" if len(entry) == 4 else "")


def _edges(inside: Tensor) -> tuple[Tensor, Tensor]:
    """Return the starts and the stops of all stretches of true values."""
    edges = torch.nn.functional.pad(inside.to(torch.int8), (1, 1)).diff()
    return torch.where(edges > 0)[0], torch.where(edges < 0)[0]


def _to_list(numbers: Tensor) -> list[int]:
    return cast("list[int]", numbers.tolist())  # pyright: ignore[reportUnknownMemberType]


@dataclass(frozen=True, eq=False)
class Params:
    """A flat buffer with its layout; `params["name"]` is a view, never a copy.

    Args:
        layout: Names and shapes.
        flat: float32 values, shape [P], or [K, P] for a cohort.

    Raises:
        ValueError: The buffer is not float32 or its last dimension is not the layout's size.
    """

    layout: Layout
    flat: Tensor

    def __post_init__(self) -> None:
        if self.flat.dtype != torch.float32:
            raise ValueError(f"a flat buffer holds float32 values, not {self.flat.dtype}")
        if self.flat.dim() not in (1, 2) or self.flat.shape[-1] != self.layout.size:
            raise ValueError(
                f"buffer of shape {tuple(self.flat.shape)} for a layout of {self.layout.size} values"
            )

    @staticmethod
    def zeros(layout: Layout) -> Params:
        """Return a buffer of zeros."""
        return Params(layout, torch.zeros(layout.size))

    @staticmethod
    def of(tensors: Mapping[str, Tensor]) -> Params:
        """Copy named tensors into a new flat buffer."""
        layout = Layout.of({name: tuple(value.shape) for name, value in tensors.items()})
        return Params(
            layout, torch.cat([tensors[name].detach().float().reshape(-1) for name in layout.names])
        )

    def __getitem__(self, name: str) -> Tensor:
        stretch = self.flat[..., self.layout.slice(name)]
        return stretch.view((*self.flat.shape[:-1], *self.layout.shape(name)))

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, view) in layout order."""
        for name, shape in zip(self.layout.names, self.layout.shapes, strict=True):
            yield name, self.flat[..., self.layout.slice(name)].view((*self.flat.shape[:-1], *shape))

    def with_flat(self, flat: Tensor) -> Params:
        """Return other values under the same layout."""
        return Params(self.layout, flat)

    @cached_property
    def whole(self) -> Part:
        """The part that contains every value."""
        return Part.whole(self.layout.size)

    def digest(self) -> str:
        """Return the SHA-256 of layout and values as hexadecimal text."""
        values = self.flat.detach().cpu().contiguous()
        return hashlib.sha256(self.layout.to_json().encode() + values.numpy().tobytes()).hexdigest()
