"""DP-SGD at the client: every example's gradient is clipped, and noise is added to their mean.

    ḡ = 1/B · (Σ_b g_b · min(1, C / ‖g_b‖) + σ C z),   z ~ N(0, I)

with g_b the gradient of example b of a batch of B, C the bound (`bound`) and σ the noise multiplier (`noise`); the local
optimizer gets ḡ.

This is the mechanism only. It gives no guarantee of privacy without an account of how often each example was used with
which noise, and nothing here keeps one. The mean loss and the number of examples that a client reports carry no noise.

Reference: M. Abadi, A. Chu, I. Goodfellow, H. B. McMahan, I. Mironov, K. Talwar, L. Zhang, "Deep Learning with
Differential Privacy", arXiv 1607.00133v2, Algorithm 1.

Differs from the paper: batches are those of plain training, each example once in an epoch, and not drawn with a
probability for each example (Poisson sampling), which the usual accounts take for granted; the sum is divided by the number
of examples in the batch, of which the last one of an epoch may have fewer. It is used without `train.clip`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedloom.algorithms.algorithm import not_negative, positive
from fedloom.algorithms.entry import Entry
from fedloom.algorithms.local_rule import LocalRule, Probe
from fedloom.types import Tensors


def dp_sgd(*, noise: float = 1.0, bound: float = 1.0) -> LocalRule:
    """Make DP-SGD's rule, a mechanism that gives no guarantee without an account of its use.

    Args:
        noise: Noise multiplier σ ≥ 0: the standard deviation of the noise on a sum of gradients, in units of `bound`.
        bound: Largest norm C > 0 of an example's gradient.
    """
    not_negative(noise=noise)
    positive(bound=bound)

    def gradient(probe: Probe, params: Tensor, carry: Tensors) -> tuple[Tensor, Tensor, Tensors]:
        losses, rows = probe.per_example(params)
        sizes = rows.square().sum(1, keepdim=True).sqrt()
        mean = (rows * (bound / sizes).clamp(max=1.0)).mean(0)
        drawn = torch.randn(params.shape, generator=probe.stream("noise")).to(params.device)
        return losses.mean(), mean + noise * bound / probe.examples * drawn, carry

    return LocalRule(gradient=gradient)


ENTRIES = {
    "dp-sgd": Entry(
        dp_sgd,
        "rule",
        "DP-SGD",
        "Each example's gradient is clipped and noise is added to their mean; without accounting this gives no guarantee of "
        "privacy.",
        traits=frozenset({"gradient", "noise"}),
    )
}
