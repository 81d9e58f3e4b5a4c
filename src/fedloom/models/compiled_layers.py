"""The decoder's layers as compiled code, where fewer and larger pieces of work are faster than many small ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fedloom.models.last_layer import layers_of
from fedloom.models.load_model import Vlm
from fedloom.models.replaced_forwards import forwards


@contextmanager
def compiling(vlm: Vlm, wanted: bool = True, backend: str = "inductor") -> Iterator[None]:
    """Let training inside this block go through compiled layers, all but the last; see torch.compile.

    What is fused is rounded elsewhere, so results agree with those of plain layers up to the last bits. A new kind of
    shape is compiled when it comes, which takes some ten seconds: once for full batches, once for rests, once for
    clients side by side. The last layer stays as it is, for where it is computed changes from step to step.

    Args:
        vlm: The model; its layers are put back afterward.
        wanted: False leaves everything as it is.
        backend: What compiles, a name that torch.compile knows.
    """
    with forwards(layers_of(vlm)[:-1] if wanted else [], lambda way: torch.compile(way, backend=backend)):
        yield
