"""FedMLLM's adaptive regularizer of the middle layers, a local rule for any algorithm.

    loss + (μ/2) · w · Σ_{s ≤ l ≤ L−1−s} ‖θ_l − θ_l^global‖²

with θ_l the trained parameters of the language model's layer l, L its number of layers, and μ, w, s the
arguments `mu`, `weight`, `skip`. It keeps the middle layers near the global model and lets the first and last s adapt.
w = 1, s = 0 is the paper's base variant. The paper chooses w and s by hand for each scenario, stronger where clients differ
more: weakest for aligned, then missing, then cross and hybrid. Tensors without a layer number (the connector, embeddings, the
head) are never regularized.

Reference: B. Xu, X. Shu, H. Mei, G. Xie, B. Fernando, J. Tang, "FedMLLM: Federated Fine-tuning MLLM on
Multimodal Heterogeneity Data", arXiv 2411.14717v2, and its public code.

Differs from the paper's code: L is the layout's, one more than the last layer that is trained;
`published=True` uses 28 for every model as the code does (`fedloom.algorithms.published_faults.LAYERS`): of 32 layers the last
four are then never regularized, and of 24 the last s are if s ≤ 4. The gradient is added in closed form after clipping; with
`published=True` before clipping, since in the code it is a part of the loss.
"""

from __future__ import annotations

import re

from fedloom.algorithms import published_faults as faults
from fedloom.algorithms.entry import Entry
from fedloom.algorithms.fedprox import proximal
from fedloom.algorithms.local_rule import LocalRule, clipped
from fedloom.params import Layout


def adaptive(
    layout: Layout, *, mu: float = 0.01, weight: float = 0.1, skip: int = 1, published: bool = False
) -> LocalRule:
    """Make the adaptive regularizer for the parameters of one layout.

    Args:
        layout: Names of what is trained; a layer is a name under `llm/` with `layers.<number>.` in it.
        mu: Strength μ, ≥ 0.
        weight: Factor w, ≥ 0: the larger, the more heterogeneous the scenario.
        skip: Number s of layers left free at either end, ≥ 0.
        published: Assume 28 layers, and clip the added term together with the gradient.

    Raises:
        ValueError: No layer is left, or an argument is negative.

    Example:
        >>> import torch
        >>> from fedloom.params import Params
        >>> from fedloom.types import Broadcast
        >>> layout = Layout.of({f"llm/layers.{l}.q_proj:lora_a": (1,) for l in range(3)})
        >>> rule = adaptive(layout, mu=0.5, weight=1.0, skip=1)
        >>> carry = rule.begin(Broadcast(Params.zeros(layout)), {})
        >>> rule.correct(torch.zeros(3), torch.ones(3), carry)[0]
        tensor([0.0000, 0.5000, 0.0000])
    """
    if skip < 0:
        raise ValueError(f"skip is {skip}; it must be zero or positive")
    layers = {name: layer for name in layout.names if (layer := layer_of(name)) is not None}
    count = max(layers.values(), default=-1) + 1
    last = (faults.LAYERS if published else count) - 1 - skip
    regularized = {name for name, layer in layers.items() if skip <= layer <= last}
    if not regularized:
        raise ValueError(
            f"skip is {skip}, which leaves none of the language model's {count} trained layers to regularize"
        )
    rule = proximal(mu * weight, layout.mask(lambda name: name in regularized))
    return clipped(rule) if published else rule


def layer_of(name: str) -> int | None:
    """Return the number of the language model's layer to which a tensor belongs, or None if it belongs to none."""
    match = re.search(r"layers\.(\d+)\.", name) if name.startswith("llm/") else None
    return int(match[1]) if match else None


ENTRIES = {
    "adaptive": Entry(
        adaptive,
        "rule",
        "adaptive regularizer",
        "While a client trains, layers of its language model, by default all but the first and the last, are held near the "
        "shared model (FedMLLM).",
        published={"published": True, "mu": 0.01, "weight": 0.1, "skip": 4},
    )
}
