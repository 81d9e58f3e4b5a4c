"""Layer budgets: each client trains and reports only as many layers of the language model as it can afford.

    client i      trains the last n_i of the language model's layers that are trained, with what has no layer number
    Δ_l           = mean of the reported Δ_{i,l} over the clients of the round that train layer l

with n_i the client's entry of the argument `budgets`. A client is sent all parameters, since its other layers are used as
they are. A layer that no client of a round trains keeps its value. Every client trains the parameters outside numbered layers:
connector, embeddings, head. If every budget covers all layers, the result equals the algorithm without budgets.

References: P. Saha, F. Wagner, D. Mishra, C. Peng, A. Thakur, D. A. Clifton, K. Kamnitsas, J. A. Noble, "F³OCUS – Federated
Finetuning of Vision-Language Foundation Models with Optimal Client Layer Updating Strategy via Multi-objective
Meta-Heuristics", arXiv 2411.11912, where each client has such a budget. S. Su, B. Li, X. Xue, "FedRA: A Random Allocation
Strategy for Federated Tuning to Unleash the Power of Heterogeneous Clients", arXiv 2311.11227.

Differs from the papers: which layers a client trains is fixed by its budget, the last ones or the first. F³OCUS scores
layers at each client in each round and weighs the scores against an even use of all layers; FedRA draws layers at random,
and its clients run a smaller model of those layers alone, whereas clients here run the whole model.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedloom.algorithms.adaptive_regularizer import layer_of
from fedloom.algorithms.algorithm import Budget, one_each
from fedloom.algorithms.entry import Entry
from fedloom.params import Layout, Part


def layers(*, layout: Layout, clients: int, budgets: Sequence[int] = (), choose: str = "last") -> Budget:
    """Make the parts of clients with layer budgets.

    Args:
        layout: Names of what is trained; see `fedloom.algorithms.adaptive_regularizer.layer_of`.
        clients: Number of all clients.
        budgets: Number n_i of layers for each client, ≥ 1, by the client's number.
        choose: "last" or "first": which of the trained layers a client trains.

    Raises:
        ValueError: `budgets` has more or fewer numbers than there are clients, or one that no layers fit; or `choose` is
            neither word.

    Example:
        >>> layout = Layout.of({"connector/w": (2,), "llm/layers.0.q": (1,), "llm/layers.1.q": (1,)})
        >>> budget = layers(layout=layout, clients=2, budgets=(1, 2))
        >>> budget.up(0).stretches, budget.up(1), budget.down(0)
        (((0, 2), (3, 4)), None, None)
    """
    numbers = sorted({layer for name in layout.names if (layer := layer_of(name)) is not None})
    if not numbers:
        raise ValueError("no layer of the language model is trained, so there is none to choose")
    if choose not in ("last", "first"):
        raise ValueError(f"choose is {choose!r}; it must be last or first")
    one_each("budgets", budgets, clients, len(numbers), "the number of layers that are trained")

    def part(budget: int) -> Part | None:
        trained = {None, *(numbers[-budget:] if choose == "last" else numbers[:budget])}
        return Part.of(layout.mask(lambda name: layer_of(name) in trained)) if budget < len(numbers) else None

    parts = {budget: part(budget) for budget in set(budgets)}
    return Budget(up=lambda client: parts[budgets[client]])


ENTRIES = {
    "layers": Entry(
        layers,
        "part",
        "layer budgets",
        "Each client trains and reports only as many layers of the language model as its budget allows.",
    )
}
