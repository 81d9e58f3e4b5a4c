"""Predict each token of the right answer from the right tokens before it, as FedVLMBench's code does.

Shape legend: K clients side by side, B conversations, L tokens in the longest, D model width, N answer tokens in the batch.

Reference: "FedVLMBench", arXiv 2506.09638; its public code takes the most likely token at every position of
the right answer and never generates.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedloom.models.batches import answer_states, collate
from fedloom.models.decoder_inputs import Connect
from fedloom.models.load_model import Vlm
from fedloom.models.logits import likeliest_tokens
from fedloom.types import Conversation


@torch.no_grad()
def teacher_forced(
    vlm: Vlm, conversations: Sequence[Conversation], connects: Sequence[Connect] | None = None
) -> list[str]:
    """Return the text of the most likely token at each position of the right answer, K·B texts.

    With K clients' connectors, each client's adapters do so for every conversation; see `option_scores`.

    The model sees the right tokens before the one that it predicts, so scores are higher than
    those of free generation and cannot be compared with them.
    """
    connects = connects or [vlm.connect]
    batch = collate(vlm, [conversations] * len(connects))
    best = likeliest_tokens(vlm, answer_states(vlm, batch, connects)).cpu()  # [N]
    rows = batch.row.cpu()
    answers = [best[rows == row] for row in range(len(batch.ids))]
    return [text.strip() for text in vlm.tokenizer.batch_decode(answers, skip_special_tokens=True)]
