"""Compute sentence embeddings: the mean of BERT's last states over the tokens of a text, scaled to length 1.

Shape legend: N texts, L tokens in the longest, E width of the embeddings (384 for MiniLM).

Reference: N. Reimers, I. Gurevych, "Sentence-BERT", arXiv 1908.10084, section 3 (pooling MEAN), with the normalization
that the card of all-MiniLM-L6-v2 adds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fedloom.models.hub import Source

MODEL = "minilm"
LONGEST = 256
"""The most tokens that are read of a text, as in the model's training."""
BATCH = 64


def sentence_source(key: str) -> Source:
    """Return the location of the sentence model; the key of the experiment that needs it is for messages."""
    return Source(key, MODEL, network=False)


@torch.no_grad()
def embed_sentences(texts: Sequence[str], key: str = "evaluate.linear_text") -> NDArray[np.float64]:
    """Embed texts: shape [N, E], each row of length 1.

    Args:
        texts: At least one text.
        key: The key of the experiment that needs the embeddings, for messages.

    Raises:
        UserError: The model was not added, or its folder is damaged.
    """
    from transformers import AutoTokenizer, BertModel

    source = sentence_source(key)
    tokenizer, model = source.read(AutoTokenizer), source.model(BertModel).eval()
    order = sorted(
        range(len(texts)), key=lambda index: len(texts[index])
    )  # similar lengths need less padding
    embeddings = torch.empty(len(texts), model.config.hidden_size)
    for start in range(0, len(order), BATCH):
        part = order[start : start + BATCH]
        inputs = tokenizer(
            [texts[index] for index in part],
            padding=True,
            truncation=True,
            max_length=LONGEST,
            return_tensors="pt",
        )
        embeddings[part] = mean_pooled(model(**inputs).last_hidden_state, inputs["attention_mask"])
    return embeddings.double().numpy()


def mean_pooled(states: Tensor, mask: Tensor) -> Tensor:
    """Average states [N, L, E] over the tokens with 1 in a mask [N, L], and scale to length 1: [N, E].

    Example:
        >>> pooled(torch.tensor([[[3.0, 0.0], [3.0, 8.0], [9.0, 9.0]]]), torch.tensor([[1, 1, 0]])).tolist()
        [[0.6000000238418579, 0.800000011920929]]
    """
    kept = mask[..., None].to(states)
    return F.normalize((states * kept).sum(1) / kept.sum(1).clamp(min=1e-9), dim=-1)
