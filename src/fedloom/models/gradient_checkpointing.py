"""Trade time for memory: store only the input of a layer, and compute the layer again in the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from fedloom.models.last_layer import layers_of
from fedloom.models.load_model import Vlm
from fedloom.models.replaced_forwards import Forward, replaced_forwards


@contextmanager
def gradient_checkpointing(vlm: Vlm, enabled: bool = True) -> Iterator[None]:
    """Checkpoint the decoder's layers inside this block, all but the last: the backward pass computes them again.

    A step takes about 1.5 times as long, and each layer stores one vector per token instead of a few dozen. Gradients are
    the same to the last bit, because the same operations run again; dropout draws its masks by name
    (`fedloom.tuning.dropout`) and so draws the same ones.

    Args:
        vlm: The model; its layers are restored afterward.
        enabled: False changes nothing.
    """
    # The last layer stores little: it is computed at few positions.
    with replaced_forwards(layers_of(vlm)[:-1] if enabled else [], _twice):
        yield


def _twice(forward: Forward) -> Forward:
    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return checkpointed
