"""Trade time for memory: keep only what enters a layer, and compute the layer again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fedloom.models.load import Vlm
from fedloom.models.reading import last_layer


@contextmanager
def recomputing(vlm: Vlm, wanted: bool = True) -> Iterator[None]:
    """Let the decoder's layers, but the last, be computed twice inside this block, forward and again for backward.

    Costs about half as much time again (three forward passes' worth instead of two) and keeps one vector a
    token and layer instead of a few dozen. Gradients are the same bits, for the same operations run again;
    dropout draws its masks by name (`fedloom.tuning.dropout`), hence again alike.

    Args:
        vlm: The model; its layers are put back afterwards.
        wanted: False leaves everything as it is.
    """
    layers = [layer for part in vlm.decoder.modules() if isinstance(part, nn.ModuleList) for layer in part]
    last = last_layer(vlm)  # it keeps little, for it is computed at few positions (`fedloom.models.reading`)
    changed = [layer for layer in layers if layer is not last] if wanted else []
    for layer in changed:
        layer.forward = _twice(layer.forward)
    try:
        yield
    finally:
        for layer in changed:
            del layer.forward  # the class's own shows again


def _twice(forward: Callable[..., Any]) -> Callable[..., Any]:
    def again(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return again
