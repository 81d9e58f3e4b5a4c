"""Who holds which example: functions from labels and groups to one index array for each client.

Shape legend: N = number of examples, K = number of clients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from fedloom.types import UserError

Indices = NDArray[np.int64]
Partition = Callable[
    [NDArray[np.int64], Sequence[str | None], int, np.random.Generator, float], tuple[Indices, ...]
]
"""(labels [N], groups [N], clients K, generator, alpha) → K index arrays.

A label of −1 means that an example has none. The arrays are sorted, disjoint, cover 0 … N − 1, and none is
empty; a UserError says so where N < K.
"""


def iid(
    labels: NDArray[np.int64],
    groups: Sequence[str | None],
    clients: int,
    rng: np.random.Generator,
    alpha: float,
) -> tuple[Indices, ...]:
    """Shuffle the examples and deal them out; client sizes differ by at most one. See `Partition`."""
    del groups, alpha
    _check(len(labels), clients)
    return _sorted(np.array_split(rng.permutation(len(labels)), clients))


def dirichlet(
    labels: NDArray[np.int64],
    groups: Sequence[str | None],
    clients: int,
    rng: np.random.Generator,
    alpha: float,
) -> tuple[Indices, ...]:
    """Divide the examples of every label by proportions drawn from a symmetric Dirichlet distribution.

    For each label c: p_c ~ Dir(α · 1_K); client k gets the share p_ck of the label's examples, chosen at
    random, with cuts rounded down. Small α makes clients differ; α → ∞ gives each client an equal share of
    every label. An example without a label goes by its group, one without either by nothing (one class).

    Args:
        labels: Label numbers, shape [N]; −1 where there is none.
        groups: What unlabelled examples go by.
        clients: K, at least 1 and at most N.
        rng: Generator of the draw.
        alpha: Concentration α, > 0.

    Returns:
        One sorted index array for each client.

    Raises:
        UserError: More clients than examples.

    Example:
        >>> parts = dirichlet(np.array([0, 0, 1, 1]), [None] * 4, 2, np.random.default_rng(0), 0.5)
        >>> sorted(np.concatenate(parts).tolist())
        [0, 1, 2, 3]

    Reference: T.-M. H. Hsu, H. Qi, M. Brown, "Measuring the Effects of Non-Identical Data Distribution for
    Federated Visual Classification", arXiv 1909.06335v1; in the label-wise form of Q. Li, Y. Diao,
    Q. Chen, B. He, "Federated Learning on Non-IID Data Silos: An Experimental Study", arXiv 2102.02079v4
    ("distribution-based label imbalance"), which FedMLLM (arXiv 2411.14717v2) uses.

    Differs from the paper: Hsu et al. draw label proportions for each client, Li et al. and this function
    client proportions for each label. A client left without examples gets one, taken at random from the
    client that then has most, again and again until none is empty; the public code of Li et
    al. redraws everything until every client has ten.
    """
    _check(len(labels), clients)
    kinds = _kinds(labels, groups)
    parts: list[list[Indices]] = [[] for _ in range(clients)]
    for kind in range(int(kinds.max()) + 1):
        members = rng.permutation(np.flatnonzero(kinds == kind))
        shares = rng.dirichlet(np.full(clients, alpha))
        cuts = (np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
        for part, piece in zip(parts, np.split(members, cuts), strict=True):
            part.append(piece)
    return _sorted(_repaired([np.concatenate(part) for part in parts], rng))


def by_group(
    labels: NDArray[np.int64],
    groups: Sequence[str | None],
    clients: int,
    rng: np.random.Generator,
    alpha: float,
) -> tuple[Indices, ...]:
    """Give whole groups to clients: in random order, each to the client that has fewest examples so far.

    Examples without a group form one of their own. Where there are fewer groups than clients, the largest
    piece is halved at random until there are enough pieces. See `Partition`.

    Raises:
        UserError: No example has a group, or more clients than examples.
    """
    del alpha
    _check(len(labels), clients)
    if all(group is None for group in groups):
        raise UserError(
            "scenario.partition is by_group, but no example of this data set has a group; "
            "use iid or dirichlet"
        )
    numbers = _numbered([f"={group}" if group is not None else "" for group in groups])
    pieces = [rng.permutation(np.flatnonzero(numbers == number)) for number in range(int(numbers.max()) + 1)]
    while len(pieces) < clients:
        largest = pieces.pop(int(np.argmax([len(piece) for piece in pieces])))
        pieces += np.array_split(largest, 2)
    parts: list[Indices] = [np.empty(0, np.int64) for _ in range(clients)]
    for number in rng.permutation(len(pieces)):
        smallest = int(np.argmin([len(part) for part in parts]))
        parts[smallest] = np.concatenate([parts[smallest], pieces[number]])
    return _sorted(parts)


PARTITIONS: dict[str, Partition] = {"iid": iid, "dirichlet": dirichlet, "by_group": by_group}


def _check(examples: int, clients: int) -> None:
    if not 1 <= clients <= examples:
        raise UserError(
            f"scenario.clients is {clients}, but there are {examples} training examples; "
            "every client needs at least one example, and there is at least one client"
        )


def _kinds(labels: NDArray[np.int64], groups: Sequence[str | None]) -> NDArray[np.int64]:
    """Number what examples go by: the label, else the group, else nothing; shape [N]."""
    names = [
        f"label {label:09d}" if label >= 0 else f"group {group}" if group is not None else ""
        for label, group in zip(labels.tolist(), groups, strict=True)
    ]
    return _numbered(names)


def _numbered(names: Sequence[str]) -> NDArray[np.int64]:
    """Number names by their order in the alphabet, shape [N]."""
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    return np.array([numbers[name] for name in names], dtype=np.int64)


def _repaired(parts: list[Indices], rng: np.random.Generator) -> list[Indices]:
    """Give every empty client one random example of the client that has most."""
    for client, part in enumerate(parts):
        if not len(part):
            largest = int(np.argmax([len(other) for other in parts]))
            taken = int(rng.integers(len(parts[largest])))
            parts[client] = parts[largest][[taken]]
            parts[largest] = np.delete(parts[largest], taken)
    return parts


def _sorted(parts: Sequence[Indices]) -> tuple[Indices, ...]:
    return tuple(np.sort(part).astype(np.int64) for part in parts)
