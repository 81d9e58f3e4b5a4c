"""Trade time for memory: keep only what enters a layer, and compute the layer again in the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from fedloom.models.last_layer import layers_of
from fedloom.models.load_model import Vlm
from fedloom.models.replaced_forwards import Forward, forwards


@contextmanager
def recomputing(vlm: Vlm, wanted: bool = True) -> Iterator[None]:
    """Let the decoder's layers, but the last, be computed twice inside this block, forward and again for backward.

    Costs about half as much time again (three forward passes' worth instead of two) and keeps one vector a
    token and layer instead of a few dozen. Gradients are the same bits, for the same operations run again;
    dropout draws its masks by name (`fedloom.tuning.dropout`), hence again alike.

    Args:
        vlm: The model; its layers are put back afterward.
        wanted: False leaves everything as it is.
    """
    # The last layer keeps little: it is computed at few positions.
    with forwards(layers_of(vlm)[:-1] if wanted else [], _twice):
        yield


def _twice(forward: Forward) -> Forward:
    def again(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return again
