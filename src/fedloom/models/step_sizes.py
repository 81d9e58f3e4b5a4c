"""Estimate the memory and the arithmetic of a training step from the shapes of a model's layers.

Per token, a decoder layer keeps for its backward pass: the outputs of its linear layers (queries, keys, values, the states
that are added to the residual stream, gate and up), the inputs of layers with adapters, and the activation between gate and
down. Weights are frozen, so they need no gradients of their own. The loss keeps the logits of answer tokens about three
times: as logits, as log-probabilities and as their gradient.

Shape legend: L tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fedloom.models.last_layer import layers_of
from fedloom.models.load_model import Vlm

LOGITS = 3
"""Copies of the logits that a step keeps."""

LAST = 4
"""The last layer keeps about a quarter: keys and values of all tokens, and everything else only of answers."""

SLOWER = 0.6
"""Share of the speed of bare matrix products that training reaches on a processor."""


@dataclass(frozen=True)
class StepSizes:
    """The shapes that memory and time of a step follow from.

    Attributes:
        saved: Values that all layers keep for each token.
        largest: Values that the largest layer keeps for each token.
        residual: Width of the residual stream.
        weights: Weights of all layers.
        adapters: Values of all adapters.
        vocabulary: V.
        layers: Number of layers.
        heads: Attention heads of a layer.
    """

    saved: int
    largest: int
    residual: int
    weights: int
    adapters: int
    vocabulary: int
    layers: int
    heads: int

    def activation_bytes(
        self, rows: int, tokens: int, answer: int, width: int, *, recompute: bool = False, plain: bool = False
    ) -> int:
        """Return the bytes that a step's forward pass keeps for its backward pass.

        Args:
            rows: Examples of the batch.
            tokens: Tokens of each, padding included.
            answer: Tokens of each answer.
            width: Bytes of a value in the language model.
            recompute: Whether layers are computed again in the backward pass, so that only their inputs are kept.
            plain: Whether attention runs without a fused kernel, and so keeps the weights of all pairs of tokens.
        """
        kept = self.layers * self.residual + self.largest if recompute else self.saved
        pairs = (1 if recompute else self.layers) * self.heads * tokens**2 if plain else 0
        return rows * ((tokens * kept + pairs) * width + LOGITS * answer * self.vocabulary * 4)

    def multiplications(self, tokens: int, answer: int) -> int:
        """Return the multiplications of a step: twice the forward pass for gradients of states, three times for adapters."""
        head = 2 * answer * self.residual * self.vocabulary
        return 2 * tokens * self.weights + 3 * tokens * self.adapters + head


def step_sizes(vlm: Vlm, adapters: int) -> StepSizes:
    """Return the sizes of a model.

    Args:
        vlm: The model, which may have no values.
        adapters: Number of the values of its adapters.
    """
    layers = layers_of(vlm) or [vlm.decoder]
    kept = [_kept(layer) for layer in layers]
    kept[-1] //= LAST  # see `fedloom.models.last_layer`
    embedding = vlm.model.get_input_embeddings()
    vocabulary, width = embedding.weight.shape
    return StepSizes(
        sum(kept),
        max(kept),
        width,
        sum(value.numel() for layer in layers for value in layer.parameters()),
        adapters,
        vocabulary,
        len(layers),
        vlm.model.config.get_text_config().num_attention_heads,
    )


def _kept(layer: nn.Module) -> int:
    """Return the values that a layer keeps for each token."""
    linears = [
        (name.rpartition(".")[0], module)
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear)
    ]
    outputs = sum(module.out_features for _, module in linears)
    inputs = sum({(above, module.in_features): module.in_features for above, module in linears}.values())
    return outputs + inputs + max((module.out_features for _, module in linears), default=0)
