"""Compile the decoder's layers, so that a few large kernels replace many small ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fedloom.models.last_layer import layers_of
from fedloom.models.load_model import Vlm
from fedloom.models.replaced_forwards import replaced_forwards


@contextmanager
def compiling(vlm: Vlm, enabled: bool = True, backend: str = "inductor") -> Iterator[None]:
    """Use compiled layers inside this block, for all layers but the last; see torch.compile.

    Fused operations round differently, so results agree with those of plain layers except for the last bits. Each new
    shape is compiled when it first occurs, which takes about ten seconds: once for full batches, once for smaller last
    batches, once for clients side by side. The last layer is not compiled, because the positions at which it is computed
    change from step to step.

    Args:
        vlm: The model; its layers are restored afterward.
        enabled: False changes nothing.
        backend: The compiler, a backend of torch.compile.
    """
    with replaced_forwards(
        layers_of(vlm)[:-1] if enabled else [], lambda forward: torch.compile(forward, backend=backend)
    ):
        yield
