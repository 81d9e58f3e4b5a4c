"""Who holds which example: functions from what there is to divide to the client of each example.

Shape legend: N = number of examples, K = number of clients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush, heapreplace

import numpy as np
from numpy.typing import NDArray

from fedloom.system.errors import UserError

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Pool:
    """What there is to divide, and among whom.

    Attributes:
        labels: Label numbers, shape [N]; −1 where an example has none.
        groups: What unlabeled examples go by, N of them.
        pictured: Whether an example has an image, shape [N].
        holds: Whether a client holds images and texts at all, shape [K, 2]; only `by_source` reads more
            of it than K.
    """

    labels: NDArray[np.int64]
    groups: Sequence[str | None]
    pictured: NDArray[np.bool_]
    holds: NDArray[np.bool_]


Partition = Callable[[Pool, np.random.Generator, float], Indices]
"""(pool, generator, alpha) → client of each example, shape [N].

No client of 0 … K − 1 is left out; a UserError says so where N < K.
"""


def iid(pool: Pool, rng: np.random.Generator, alpha: float) -> Indices:
    """Shuffle the examples and deal them out; client sizes differ by at most one. See `Partition`."""
    del alpha
    return _dealt(rng.permutation(check_size(pool)), _even(len(pool.labels), len(pool.holds)))


def dirichlet(pool: Pool, rng: np.random.Generator, alpha: float) -> Indices:
    """Divide the examples of every label by proportions drawn from a symmetric Dirichlet distribution.

    For each label c: p_c ~ Dir(α · 1_K); client k gets the share p_ck of the label's examples, chosen at
    random, with cuts rounded down. Small α makes clients differ; α → ∞ gives each client an equal share of
    every label. An example without a label goes by its group, one without either by nothing (one class).

    Args:
        pool: What is divided; 1 ≤ K ≤ N.
        rng: Generator of the draw.
        alpha: Concentration α, > 0.

    Returns:
        The client of each example, shape [N].

    Raises:
        UserError: More clients than examples.

    Example:
        >>> pool = Pool(np.array([0, 0, 1, 1]), [None] * 4, np.ones(4, bool), np.ones((2, 2), bool))
        >>> sorted(set(dirichlet(pool, np.random.default_rng(0), 0.5).tolist()))
        [0, 1]

    Reference: T.-M. H. Hsu, H. Qi, M. Brown, "Measuring the Effects of Non-Identical Data Distribution for
    Federated Visual Classification", arXiv 1909.06335v1; in the label-wise form of Q. Li, Y. Diao,
    Q. Chen, B. He, "Federated Learning on Non-IID Data Silos: An Experimental Study", arXiv 2102.02079v4
    ("distribution-based label imbalance"), which FedMLLM (arXiv 2411.14717v2) uses.

    Differs from the paper: Hsu et al. draw label proportions for each client, Li et al. and this function
    client proportions for each label. A client left without examples gets one, taken at random from the
    client that then has most, again and again until none is empty; the public code of Li et
    al. redraws everything until every client has ten.
    """
    check_size(pool)
    clients = len(pool.holds)
    drawn: list[tuple[Indices, Indices]] = []
    for found in _members(numbered(kinds(pool.labels, pool.groups))):
        members = rng.permutation(found)
        shares = rng.dirichlet(np.full(clients, alpha))
        cuts = (np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
        counts = np.diff(cuts, prepend=0, append=len(members))
        drawn.append((members, np.repeat(np.arange(clients), counts)))
    order, owners = (np.concatenate(arrays) for arrays in zip(*drawn, strict=True))
    return _repaired(order, owners, clients, rng)


def by_group(pool: Pool, rng: np.random.Generator, alpha: float) -> Indices:
    """Give whole groups to clients: in random order, each to the client that has fewest examples so far.

    Examples without a group form one of their own. Where there are fewer groups than clients, the largest
    piece is halved at random until there are enough pieces. See `Partition`.

    Raises:
        UserError: No example has a group, or more clients than examples.
    """
    del alpha
    check_size(pool)
    clients = len(pool.holds)
    if all(group is None for group in pool.groups):
        raise UserError(
            "scenario.partition is by_group, but no example of this data set has a group; "
            "use iid or dirichlet"
        )
    numbers = numbered([f"={group}" if group is not None else "" for group in pool.groups])
    pieces = _enough([rng.permutation(found) for found in _members(numbers)], clients)
    client_of = np.empty(len(numbers), np.int64)
    smallest = [(0, client) for client in range(clients)]
    for number in rng.permutation(len(pieces)):
        size, client = smallest[0]
        client_of[pieces[number]] = client
        heapreplace(smallest, (size + len(pieces[number]), client))
    return client_of


def by_source(pool: Pool, rng: np.random.Generator, alpha: float) -> Indices:
    """Deal examples with an image to the clients that hold images, and the others to those that hold texts.

    It is for data from two sources, such as questions about pictures and questions in words alone. Each
    source is shuffled and dealt out evenly; a client that holds both modalities gets a part of each source,
    unpaired; one that holds neither is given one modality by a fair coin. See `Partition`.

    Raises:
        UserError: A source has no client, or a client would get nothing.

    Reference: B. Xu et al., "FedMLLM: Federated Fine-tuning MLLM on Multimodal Heterogeneity Data",
    arXiv 2411.14717v2, medical scenarios.

    Differs from the paper: parts of a source differ by at most one example; the published code adds the
    remainder to the last part.
    """
    del alpha
    client_of = np.empty(check_size(pool), np.int64)
    holds, neither = pool.holds.copy(), ~pool.holds.any(axis=1)
    coin = rng.random(len(holds)) < 0.5
    holds[neither] = np.stack([coin, ~coin], axis=1)[neither]
    for takers, members in zip(holds.T, (pool.pictured, ~pool.pictured), strict=True):
        found, chosen = np.flatnonzero(members), np.flatnonzero(takers)
        if len(found):
            require_takers(pool, chosen)
            parts = _even(len(found), len(chosen))
            client_of[rng.permutation(found)] = np.repeat(chosen, parts)
    require_parts(pool, np.bincount(client_of, minlength=len(holds)))
    return client_of


PARTITIONS: dict[str, Partition] = {
    "iid": iid,
    "dirichlet": dirichlet,
    "by_group": by_group,
    "by_source": by_source,
}


def require_takers(pool: Pool, takers: Sequence[int] | Indices) -> None:
    """Refuse two sources of which one would have no client."""
    if not len(takers):
        raise _sources_error(pool, "one of the two would have no client")


def require_parts(pool: Pool, sizes: Sequence[int] | Indices) -> None:
    """Refuse a division of two sources, given the clients' sizes, that leaves a client without examples."""
    empty = np.flatnonzero(np.asarray(sizes) == 0)
    if len(empty):
        raise _sources_error(pool, f"client {empty[0]} would get no example")


def _sources_error(pool: Pool, what: str) -> UserError:
    images = int(pool.pictured.sum())
    return UserError(
        f"scenario.partition is by_source, and {images} training examples have an image while "
        f"{len(pool.pictured) - images} have none, but {what}; change scenario.pattern, "
        "scenario.image_clients or scenario.clients"
    )


def kinds(labels: NDArray[np.int64], groups: Sequence[str | None]) -> list[str]:
    """Name what examples go by: the label, else the group, else nothing; N names."""
    return [
        f"label {label:09d}" if label >= 0 else f"group {group}" if group is not None else ""
        for label, group in zip(labels.tolist(), groups, strict=True)
    ]


def numbered(names: Sequence[str]) -> NDArray[np.int64]:
    """Number names by their order in the alphabet, shape [N]."""
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    return np.array([numbers[name] for name in names], dtype=np.int64)


def check_size(pool: Pool) -> int:
    """Return N; refuse more clients than examples."""
    examples, clients = len(pool.labels), len(pool.holds)
    if not 1 <= clients <= examples:
        raise UserError(
            f"scenario.clients is {clients}, but there are {examples} training examples; "
            "every client needs at least one example, and there is at least one client"
        )
    return examples


def _even(examples: int, parts: int) -> Indices:
    """Return the sizes of parts that differ by at most one, larger ones first."""
    return np.full(parts, examples // parts) + (np.arange(parts) < examples % parts)


def _dealt(order: Indices, sizes: Indices) -> Indices:
    """Return the client of each example where clients get consecutive parts of `order`."""
    client_of = np.empty(len(order), np.int64)
    client_of[order] = np.repeat(np.arange(len(sizes)), sizes)
    return client_of


def _members(numbers: NDArray[np.int64]) -> list[Indices]:
    """List the places of every number, ascending."""
    return np.split(np.argsort(numbers, kind="stable"), np.cumsum(np.bincount(numbers))[:-1])


def _enough(pieces: list[Indices], wanted: int) -> list[Indices]:
    """Halve the largest piece until there are enough; halves go to the end of the list."""
    largest = [(-len(piece), place) for place, piece in enumerate(pieces)]
    heapify(largest)
    kept = dict(enumerate(pieces))
    for place in range(len(pieces), 2 * wanted - len(pieces), 2):
        whole = kept.pop(heappop(largest)[1])
        middle = (len(whole) + 1) // 2
        for new, half in enumerate((whole[:middle], whole[middle:]), start=place):
            kept[new] = half
            heappush(largest, (-len(half), new))
    return list(kept.values())


def _repaired(order: Indices, owners: Indices, clients: int, rng: np.random.Generator) -> Indices:
    """Give every client without examples a random one of the client that has most; shape [N].

    Args:
        order: Examples, shape [N].
        owners: The client of each of them, shape [N].
        clients: K ≤ N.
        rng: Generator of the draw.
    """
    client_of = np.empty(len(order), np.int64)
    client_of[order] = owners
    sizes = np.bincount(owners, minlength=clients)
    starts = np.cumsum(sizes) - sizes
    by_client = order[np.argsort(owners, kind="stable")]
    largest = [(-int(sizes[client]), int(client)) for client in np.flatnonzero(sizes > 1)]
    heapify(largest)
    givers: dict[int, list[int]] = {}
    for client in np.flatnonzero(sizes == 0):
        giver = largest[0][1]
        if giver not in givers:
            givers[giver] = by_client[starts[giver] : starts[giver] + sizes[giver]].tolist()
        client_of[givers[giver].pop(int(rng.integers(len(givers[giver]))))] = client
        heapreplace(largest, (-len(givers[giver]), giver))
    return client_of
