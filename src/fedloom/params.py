"""One flat float32 buffer for everything that is trained, with a name for each stretch of it.

Shape legend: P = number of trained values, K = clients in a cohort.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

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
        """Make a layout from name → shape, sorting the names."""
        names = tuple(sorted(shapes))
        return Layout(names, tuple(tuple(shapes[name]) for name in names))

    @cached_property
    def _slices(self) -> dict[str, slice]:
        found: dict[str, slice] = {}
        start = 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            found[name] = slice(start, start + prod(shape))
            start += prod(shape)
        return found

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return dict(zip(self.names, self.shapes, strict=True))

    @cached_property
    def size(self) -> int:
        """The number P of values."""
        return sum(prod(shape) for shape in self.shapes)

    def slice(self, name: str) -> slice:
        """Return where `name` stands in the buffer."""
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

    def to_json(self) -> str:
        """Write names and shapes as canonical JSON."""
        return json.dumps([[name, list(shape)] for name, shape in zip(self.names, self.shapes, strict=True)])

    @staticmethod
    def from_json(text: str) -> Layout:
        """Read what `to_json` wrote."""
        rows = json.loads(text)
        return Layout(tuple(name for name, _ in rows), tuple(tuple(shape) for _, shape in rows))


@dataclass(frozen=True, eq=False)
class Params:
    """A flat buffer and its layout; `params["name"]` is a view, never a copy.

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

    def digest(self) -> str:
        """Return the SHA-256 of layout and values as hexadecimal text."""
        values = self.flat.detach().cpu().contiguous()
        return hashlib.sha256(self.layout.to_json().encode() + values.numpy().tobytes()).hexdigest()
