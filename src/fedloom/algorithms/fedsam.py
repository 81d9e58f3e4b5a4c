"""FedSAM: each step follows the gradient at the worst point nearby, so that clients look for flat minima.

    g̃ = ∇F(w + ρ g / ‖g‖),   g = ∇F(w)

with w the client's parameters, F the mean loss of its batch and ρ the radius (`rho`); the local optimizer gets g̃.

Reference: Z. Qu, X. Li, R. Duan, Y. Liu, B. Tang, Z. Lu, "Generalized Federated Learning via Sharpness Aware
Minimization", arXiv 2206.02618v1, Algorithm 1; D. Caldarola, B. Caputo, M. Ciccone, "Improving Generalization in
Federated Learning by Seeking Flat Minima", arXiv 2203.11834v3.

Differs from the papers: g̃ is clipped by `train.clip` and passes through the local optimizer, which may be AdamW; 1e-12 is
added to ‖g‖, so that a gradient of zero stays zero. Both gradients are of one batch, under the same dropout. A step takes
twice the time.
"""

from __future__ import annotations

from torch import Tensor

from fedloom.algorithms.algorithm import norm, not_negative
from fedloom.algorithms.entry import Entry
from fedloom.algorithms.local_rule import LocalRule, Probe
from fedloom.types import Tensors


def sam(*, rho: float = 0.05) -> LocalRule:
    """Make FedSAM's rule.

    Args:
        rho: Radius ρ ≥ 0 in which the worst point is looked for; 0 leaves training alone.
    """
    not_negative(rho=rho)

    def gradient(probe: Probe, params: Tensor, carry: Tensors) -> tuple[Tensor, Tensor, Tensors]:
        loss, grads = probe.gradient(params)
        _, sharp = probe.gradient(params + rho * grads / (norm(grads) + 1e-12))
        return loss, sharp, carry

    return LocalRule(gradient=gradient)


ENTRIES = {
    "sam": Entry(
        sam,
        "rule",
        "SAM",
        "Clients follow the gradient at the worst point nearby, which leads to flat minima (FedSAM).",
        traits=frozenset({"gradient"}),
    )
}
