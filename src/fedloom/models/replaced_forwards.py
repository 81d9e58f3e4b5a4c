"""Replace the forward methods of modules for a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

Forward = Callable[..., Any]


@contextmanager
def replaced_forwards(modules: Sequence[nn.Module], change: Callable[[Forward], Forward]) -> Iterator[None]:
    """Replace the forward methods of modules inside this block; blocks can be nested.

    Args:
        modules: The modules.
        change: A module's forward → its forward inside the block.
    """
    before = [vars(module).get("forward") for module in modules]
    for module in modules:
        module.forward = change(module.forward)
    try:
        yield
    finally:
        for module, own in zip(modules, before, strict=True):
            if own is None:
                del module.forward  # restores the method of the class
            else:
                module.forward = own
