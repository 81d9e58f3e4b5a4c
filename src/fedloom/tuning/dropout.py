"""Dropout in front of adapters, from named random streams.

Shape legend: K clients side by side, B conversations of each, L tokens, I a layer's inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fedloom.models.batches import Batch
from fedloom.system.errors import UserError
from fedloom.tuning.adapters import Tuned

Masks = Callable[[str, torch.device], torch.Generator]
"""(a layer's name, a device) → the random stream of the mask in front of that layer's adapter."""


@contextmanager
def adapter_dropout(tuned: Tuned, batch: Batch, masks: Sequence[Masks]) -> Iterator[None]:
    """Drop some inputs of the adapters inside this block, as PEFT's `lora_dropout` does.

    An adapter adds (alpha / rank) · B A (m ∘ x) / (1 − p), where each value of m is 0 with probability
    p = `LoRA.dropout` and 1 otherwise; every layer has its own mask, and the frozen layer sees the whole x.
    Unlike in PEFT, masks come from named streams. A client's stream gives a value for each input of each of its tokens,
    in order and without padding, so its mask does not depend on the clients that train along with it. A layer that is computed
    again in the backward pass, which belongs inside the block, gets the same mask.

    Args:
        tuned: The model; with p = 0, or without adapters, nothing changes.
        batch: The batch that the model processes next.
        masks: Each client's streams, K of them.

    Raises:
        UserError: When a layer is used that processes other rows than the batch's tokens.
    """
    share = tuned.stage.lora.dropout if tuned.stage.lora else 0.0
    layers = tuned.adapters if share else {}
    if layers:
        # Computed on the processor and copied once, so that no layer makes an accelerator wait.
        real = (
            batch.mask.bool() & (torch.tensor(batch.lengths) > 0)[:, None]
        )  # rows of padding have no prompt
        counts = real.view(len(masks), -1).sum(1).tolist()
        tokens = _Tokens(real.shape, tuned.vlm.send(real.flatten().nonzero()[:, 0]))
        for name, layer in layers.items():
            layer.drop = partial(_dropped, name, share, tokens, list(zip(masks, counts, strict=True)))
    try:
        yield
    finally:
        for layer in layers.values():
            layer.drop = None


@dataclass(frozen=True, eq=False)
class _Tokens:
    """The tokens of a batch: its shape [K·B, L], and the real tokens' places in it, counted through."""

    shape: torch.Size
    places: Tensor


def _dropped(
    name: str, share: float, tokens: _Tokens, draws: Sequence[tuple[Masks, int]], x: Tensor
) -> Tensor:  # [K·B, L, I], or [K·B·L, I] for shared experts → the same
    if x.shape[:-1] not in (tokens.shape, (tokens.shape.numel(),)):
        raise UserError(
            f"strategy.dropout is {share}, but the layer {name} processes rows other than the batch's tokens, such as "
            "one expert's share of them or the tokens of images, for which there is no mask. Set strategy.dropout "
            "to 0, or leave the layer out of strategy.targets"
        )
    width, device = x.shape[-1], x.device
    drawn = torch.cat(
        [
            torch.rand(count, width, generator=masks(name, device), device=device) < share
            for masks, count in draws
        ]
    )
    dropped = torch.zeros(tokens.shape.numel(), width, dtype=torch.bool, device=device)
    dropped.index_copy_(0, tokens.places, drawn)
    return x.masked_fill(dropped.view(x.shape), 0.0) / (1 - share)
