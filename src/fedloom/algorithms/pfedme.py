"""pFedMe: each client solves a proximal problem around the shared model and keeps the solution for itself.

    θ ← θ − η_p (∇F(θ) + λ (θ − w)),   K times from θ = w
    w ← w − η λ (w − θ)

with F the mean loss of a batch, w the client's copy of the shared model, which it sends, and θ its own model, which it keeps
and is evaluated with; λ, K and η_p are the arguments `lam`, `inner` and `rate`, η the clients' learning rate.

Reference: C. T. Dinh, N. H. Tran, T. D. Nguyen, "Personalized Federated Learning with Moreau Envelopes",
arXiv 2006.08848v3, Algorithm 1.

Differs from the paper: λ (w − θ) is clipped by `train.clip` and passes through the local optimizer as a gradient does; with
SGD and without clipping it is the paper's step. θ is found by K steps of gradient descent, whatever their accuracy. Only
clients of the cohort train; in the paper all do, and a sample of them is averaged. The server is that of the algorithm that
the rule is added to: FedMean with `lr` = β gives the paper's mix (1 − β) w + β · mean, and FedAvg weighs clients by number
of examples.
"""

from __future__ import annotations

from torch import Tensor

from fedloom.algorithms.algorithm import not_negative, positive
from fedloom.algorithms.entry import Entry
from fedloom.algorithms.local_rule import LocalRule, Probe
from fedloom.types import Tensors


def pfedme(*, lam: float = 15.0, inner: int = 5, rate: float = 0.01) -> LocalRule:
    """Make pFedMe's rule.

    Args:
        lam: Strength λ ≥ 0 of the pull between a client's own model and the shared one.
        inner: Number K ≥ 1 of steps toward the own model for each step of the shared one.
        rate: Their learning rate η_p > 0.
    """
    not_negative(lam=lam)
    positive(inner=inner, rate=rate)

    def gradient(probe: Probe, params: Tensor, carry: Tensors) -> tuple[Tensor, Tensor, Tensors]:
        own, losses = params, list[Tensor]()
        for _ in range(inner):
            loss, grads = probe.gradient(own)
            own = own - rate * (grads + lam * (own - params)) * probe.trained
            losses.append(loss)
        return losses[0], lam * (params - own), {"own": own}

    def own_model(end: Tensor, carry: Tensors) -> Tensor:
        return carry["own"]

    return LocalRule(gradient=gradient, own=own_model)


ENTRIES = {
    "pfedme": Entry(
        pfedme,
        "rule",
        "pFedMe",
        "Each client keeps a model of its own near the shared one, and moves the shared one toward it.",
        traits=frozenset({"gradient", "own model"}),
    )
}
