"""Dropout in front of adapters, from named random streams.

Shape legend: K clients side by side, B conversations of each, L tokens, I a layer's inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from fedloom.models.batches import Batch
from fedloom.models.family_interface import send
from fedloom.system.errors import UserError
from fedloom.tuning.adapters import Tuned


@dataclass(frozen=True)
class Masks:
    """The masks of one client's step.

    Attributes:
        stream: A layer's name → the random stream of the mask in front of that layer's adapter.
        skipped: Tokens of the step that earlier batches held; see `after`.
    """

    stream: Callable[[str], torch.Generator]
    skipped: int = 0

    def draw(self, layer: str, tokens: int, width: int) -> Tensor:
        """Draw uniform values in [0, 1) for a layer, shape [tokens, width], on the processor."""
        return torch.rand(self.skipped + tokens, width, generator=self.stream(layer))[self.skipped :]

    def after(self, tokens: int) -> Masks:
        """Return the masks of the same step behind so many more tokens."""
        return replace(self, skipped=self.skipped + tokens)


def real_tokens(batch: Batch) -> Tensor:
    """Return which tokens of a batch are those of conversations and not padding, shape [K·B, L], on the processor."""
    # Rows of padding have no prompt.
    return batch.mask.bool() & (torch.tensor(batch.lengths) > 0)[:, None]


def tokens_of(batch: Batch, clients: int) -> list[int]:
    """Return the number of real tokens of each of a batch's clients."""
    return real_tokens(batch).view(clients, -1).sum(1).tolist()


@contextmanager
def adapter_dropout(tuned: Tuned, batch: Batch, masks: Sequence[Masks]) -> Iterator[None]:
    """Drop some inputs of the adapters inside this block, as PEFT's `lora_dropout` does.

    An adapter adds (alpha / rank) · B A (m ∘ x) / (1 − p), where each value of m is 0 with probability
    p = `LoRA.dropout` and 1 otherwise; every layer has its own mask, and the frozen layer sees the whole x.
    Unlike in PEFT, masks come from named streams. A client's stream gives a value for each input of each of its tokens,
    in order and without padding, so its mask does not depend on the clients that train along with it. It is drawn on the
    CPU and copied, so it is the same on every device. A layer that is computed again in the backward pass, which
    belongs inside the block, gets the same mask.

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
        real, counts = real_tokens(batch), tokens_of(batch, len(masks))
        tokens = _Tokens(real.shape, real.flatten().nonzero()[:, 0])
        for name, layer in layers.items():
            layer.drop = partial(_dropped, name, share, tokens, list(zip(masks, counts, strict=True)))
    try:
        yield
    finally:
        for layer in layers.values():
            layer.drop = None


@dataclass(frozen=True, eq=False)
class _Tokens:
    """The tokens of a batch: its shape [K·B, L], and the real tokens' places in it, counted through, on the processor."""

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
    width = x.shape[-1]
    drawn = torch.cat([masks.draw(name, count, width) < share for masks, count in draws])
    dropped = torch.zeros(tokens.shape.numel(), width, dtype=torch.bool)
    dropped.index_copy_(0, tokens.places, drawn)
    return x.masked_fill(send(dropped.view(x.shape), x.device), 0.0) / (1 - share)
