"""Compute logits at answer positions in pieces, because with a large vocabulary they take more memory than all else.

Shape legend: N answer tokens, D model width, V vocabulary.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fedloom.models.load_model import Vlm

MAX_LOGITS = 2**26
"""The most logits that are computed at once; more answer tokens are split into pieces."""


def token_losses(vlm: Vlm, states: Tensor, targets: Tensor) -> Tensor:
    """Return the negative log-likelihood of each target, shape [N], from states [N, D] and targets [N].

    The backward pass computes each piece's logits again, so only one piece's are in memory at a time.
    """
    size = _most_states(vlm)
    if len(targets) <= size:
        return _losses(vlm, states, targets)
    return torch.cat(
        [
            checkpoint(partial(_losses, vlm), *piece, use_reentrant=False, preserve_rng_state=False)
            for piece in zip(states.split(size), targets.split(size), strict=True)
        ]
    )


def likeliest_tokens(vlm: Vlm, states: Tensor) -> Tensor:
    """Return the token with the largest logit for each state, shape [N], from states [N, D].

    Where logits are not finite it is the token that ends an answer, which has no text.
    """
    pieces = (vlm.family.head(vlm.model, piece) for piece in states.split(_most_states(vlm)))
    tokens, certain = (torch.cat(parts) for parts in zip(*map(likeliest_of, pieces), strict=True))
    return torch.where(certain, tokens, vlm.tokenizer.eos_token_id)


def likeliest_of(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the token with the largest of its logits, [N], from logits [N, V], and whether that logit is finite.

    It is not where any logit is NaN, for instance because float16 overflowed: argmax then names the first of these.
    """
    tokens = logits.argmax(-1)
    return tokens, logits.gather(-1, tokens[:, None])[:, 0].isfinite()


def _most_states(vlm: Vlm) -> int:
    return max(1, MAX_LOGITS // vlm.model.get_input_embeddings().num_embeddings)


def _losses(vlm: Vlm, states: Tensor, targets: Tensor) -> Tensor:  # [N, D], [N] → [N]
    logits = vlm.family.head(vlm.model, states)  # [N, V]
    return F.cross_entropy(logits.float(), targets, reduction="none")
