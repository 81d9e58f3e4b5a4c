"""DP-SGD at the client: every example's gradient is clipped, and noise is added to their mean.

    ḡ = 1/B · (Σ_b g_b · min(1, C / ‖g_b‖) + σ C z),   z ~ N(0, I)

with g_b the gradient of example b of a batch of B, C the bound (`bound`) and σ the noise multiplier (`noise`); the local
optimizer gets ḡ.

The privacy ledger of a run (`fedloom.runs.privacy_ledger`) states the ε that a client's rounds spent of each of its examples at δ,
the argument `delta`: the unit is an example, whose gradient is replaced by zero, and each epoch is a Gaussian mechanism with
noise multiplier σ. It holds for all updates that the client sends, also toward the server. It does not cover the mean loss and
the number of examples that a client reports, which carry no noise, nor models that stay with the client. The noise is not from
a cryptographic generator, and whoever knows the seed can subtract it.

Reference: M. Abadi, A. Chu, I. Goodfellow, H. B. McMahan, I. Mironov, K. Talwar, L. Zhang, "Deep Learning with
Differential Privacy", arXiv 1607.00133v2, Algorithm 1.

Differs from the paper: batches are those of plain training, each example once in an epoch, and not drawn with a
probability for each example (Poisson sampling), so nothing is gained by sampling; the sum is divided by the number of
examples in the batch, of which the last one of an epoch may have fewer. It is used without `train.clip`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedloom.algorithms.algorithm import fraction, not_negative, positive
from fedloom.algorithms.entry import Entry
from fedloom.algorithms.local_rule import LocalRule, Probe
from fedloom.types import Tensors


def dp_sgd(*, noise: float = 1.0, bound: float = 1.0, delta: float = 1e-5) -> LocalRule:
    """Make DP-SGD's rule.

    Args:
        noise: Noise multiplier σ ≥ 0: the standard deviation of the noise on a sum of gradients, in units of `bound`.
        bound: Largest norm C > 0 of an example's gradient.
        delta: δ in (0, 1) for which the privacy ledger states ε; it changes nothing of the mechanism.
    """
    not_negative(noise=noise)
    positive(bound=bound)
    positive(delta=delta)
    fraction(delta=delta)

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
        "Each example's gradient is clipped and noise is added to their mean. The privacy ledger states what each client's "
        "epochs spent.",
        traits=frozenset({"gradient", "noise"}),
        protects="example",
    )
}
