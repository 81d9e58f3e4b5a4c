"""Partitions: functions that divide examples among clients.

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
    """The examples to divide and the clients to divide them among.

    Attributes:
        labels: Label numbers, shape [N]; −1 for examples without a label.
        groups: The groups of the examples, N of them; they replace missing labels.
        has_image: Whether an example has an image, shape [N].
        holds: Whether a client holds images and texts, shape [K, 2]; only `by_source` uses the values,
            others use K.
    """

    labels: NDArray[np.int64]
    groups: Sequence[str | None]
    has_image: NDArray[np.bool_]
    holds: NDArray[np.bool_]


Partition = Callable[[Pool, np.random.Generator, float], Indices]
"""(pool, generator, alpha) → client of each example, shape [N].

Every client of 0 … K − 1 gets an example; N < K is a UserError.
"""


def iid(pool: Pool, rng: np.random.Generator, alpha: float) -> Indices:
    """Shuffle the examples and divide them evenly; client sizes differ by at most one. See `Partition`."""
    del alpha
    return _consecutive(rng.permutation(check_size(pool)), _even(len(pool.labels), len(pool.holds)))


def dirichlet(pool: Pool, rng: np.random.Generator, alpha: float) -> Indices:
    """Divide the examples of every label by proportions drawn from a symmetric Dirichlet distribution.

    For each label c: p_c ~ Dir(α · 1_K); client k gets the share p_ck of the label's examples, chosen at
    random, with cuts rounded down. Small α makes clients differ; α → ∞ gives each client an equal share of
    every label. The group replaces a missing label; examples without either form one class.

    Args:
        pool: Examples and clients; 1 ≤ K ≤ N.
        rng: Generator of the draw.
        alpha: Concentration α, > 0.

    Returns:
        The client of each example, shape [N].

    Raises:
        UserError: There are more clients than examples, or α is too large for the generator.

    Example:
        >>> pool = Pool(np.array([0, 0, 1, 1]), [None] * 4, np.ones(4, bool), np.ones((2, 2), bool))
        >>> sorted(set(dirichlet(pool, np.random.default_rng(0), 0.5).tolist()))
        [0, 1]

    Reference: T.-M. H. Hsu, H. Qi, M. Brown, "Measuring the Effects of Non-Identical Data Distribution for
    Federated Visual Classification", arXiv 1909.06335v1; in the label-wise form of Q. Li, Y. Diao,
    Q. Chen, B. He, "Federated Learning on Non-IID Data Silos: An Experimental Study", arXiv 2102.02079v4
    ("distribution-based label imbalance"), which FedMLLM (arXiv 2411.14717v2) uses.

    Differs from the paper: Hsu et al. draw label proportions for each client, Li et al. and this function
    client proportions for each label. A client without examples gets one at random from the
    client that has most at that time, until no client is empty; the public code of Li et
    al. repeats all draws until every client has ten.
    """
    check_size(pool)
    clients = len(pool.holds)
    drawn: list[tuple[Indices, Indices]] = []
    for places in _members(alphabetical_numbers(class_names(pool.labels, pool.groups))):
        members = rng.permutation(places)
        shares = rng.dirichlet(np.full(clients, alpha))
        require_shares(shares, alpha)
        cuts = (np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
        counts = np.diff(cuts, prepend=0, append=len(members))
        drawn.append((members, np.repeat(np.arange(clients), counts)))
    order, owners = (np.concatenate(arrays) for arrays in zip(*drawn, strict=True))
    return _fill_empty_clients(order, owners, clients, rng)


def by_group(pool: Pool, rng: np.random.Generator, alpha: float) -> Indices:
    """Give whole groups to clients: in random order, each to the client that has fewest examples so far.

    Examples without a group form a group. If there are fewer groups than clients, the largest
    piece is halved at random until there are enough pieces. See `Partition`.

    Raises:
        UserError: No example has a group, or there are more clients than examples.
    """
    del alpha
    check_size(pool)
    clients = len(pool.holds)
    if all(group is None for group in pool.groups):
        raise UserError(
            "scenario.partition is by_group, but no example of this data set has a group; "
            "use iid or dirichlet"
        )
    numbers = alphabetical_numbers([f"={group}" if group is not None else "" for group in pool.groups])
    pieces = _split_largest([rng.permutation(places) for places in _members(numbers)], clients)
    client_of = np.empty(len(numbers), np.int64)
    smallest = [(0, client) for client in range(clients)]
    for number in rng.permutation(len(pieces)):
        size, client = smallest[0]
        client_of[pieces[number]] = client
        heapreplace(smallest, (size + len(pieces[number]), client))
    return client_of


def by_source(pool: Pool, rng: np.random.Generator, alpha: float) -> Indices:
    """Divide examples with an image among the clients that hold images, and the others among those that hold texts.

    This is for data from two sources, such as questions about images and questions without images. Each
    source is shuffled and divided evenly; a client that holds both modalities gets a part of each source,
    unpaired; a client that holds neither gets one modality by a fair coin. See `Partition`.

    Raises:
        UserError: A source has no client, or a client would get no example.

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
    for takers, members in zip(holds.T, (pool.has_image, ~pool.has_image), strict=True):
        places, clients = np.flatnonzero(members), np.flatnonzero(takers)
        if len(places):
            require_takers(pool, clients)
            parts = _even(len(places), len(clients))
            client_of[rng.permutation(places)] = np.repeat(clients, parts)
    require_parts(pool, np.bincount(client_of, minlength=len(holds)))
    return client_of


PARTITIONS: dict[str, Partition] = {
    "iid": iid,
    "dirichlet": dirichlet,
    "by_group": by_group,
    "by_source": by_source,
}


def require_takers(pool: Pool, takers: Sequence[int] | Indices) -> None:
    """Raise a UserError if a source has no client."""
    if not len(takers):
        raise _sources_error(pool, "one of the two would have no client")


def require_parts(pool: Pool, sizes: Sequence[int] | Indices) -> None:
    """Raise a UserError if a division of two sources, given by the clients' sizes, leaves a client without examples."""
    empty = np.flatnonzero(np.asarray(sizes) == 0)
    if len(empty):
        raise _sources_error(pool, f"client {empty[0]} would get no example")


def _sources_error(pool: Pool, what: str) -> UserError:
    images = int(pool.has_image.sum())
    return UserError(
        f"scenario.partition is by_source, and {images} training examples have an image while "
        f"{len(pool.has_image) - images} have none, but {what}; change scenario.pattern, "
        "scenario.image_clients or scenario.clients"
    )


def require_shares(shares: NDArray[np.float64], alpha: float) -> None:
    """Raise a UserError if draws of a Dirichlet distribution, shape [..., K], are all 0, since their sums left float64's range."""
    if not shares.any(axis=-1).all():
        raise UserError(
            f"scenario.alpha is {alpha:g}, too large for a draw; take 1e6, which gives every client an equal share of every label"
        )


def class_names(labels: NDArray[np.int64], groups: Sequence[str | None]) -> list[str]:
    """Return a name for the label of each example, or else for its group, or else ""; N names."""
    return [
        f"label {label:09d}" if label >= 0 else f"group {group}" if group is not None else ""
        for label, group in zip(labels.tolist(), groups, strict=True)
    ]


def alphabetical_numbers(names: Sequence[str]) -> NDArray[np.int64]:
    """Return the position of each name in alphabetical order, shape [N]."""
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    return np.array([numbers[name] for name in names], dtype=np.int64)


def check_size(pool: Pool) -> int:
    """Return N, or raise a UserError if there are more clients than examples."""
    check_clients(len(pool.labels), len(pool.holds))
    return len(pool.labels)


def check_clients(examples: int, clients: int) -> None:
    """Raise a UserError if there are more clients than examples."""
    if not 1 <= clients <= examples:
        raise UserError(
            f"scenario.clients is {clients}, but there are {examples} training examples; "
            "every client needs at least one example, and there is at least one client"
        )


def _even(examples: int, parts: int) -> Indices:
    """Return the sizes of parts that differ by at most one, larger ones first."""
    return np.full(parts, examples // parts) + (np.arange(parts) < examples % parts)


def _consecutive(order: Indices, sizes: Indices) -> Indices:
    """Return the client of each example if clients get consecutive parts of `order`."""
    client_of = np.empty(len(order), np.int64)
    client_of[order] = np.repeat(np.arange(len(sizes)), sizes)
    return client_of


def _members(numbers: NDArray[np.int64]) -> list[Indices]:
    """Return the places of every number, in ascending order."""
    return np.split(np.argsort(numbers, kind="stable"), np.cumsum(np.bincount(numbers))[:-1])


def _split_largest(pieces: list[Indices], count: int) -> list[Indices]:
    """Halve the largest piece until there are `count` pieces; halves go to the end of the list."""
    largest = [(-len(piece), place) for place, piece in enumerate(pieces)]
    heapify(largest)
    kept = dict(enumerate(pieces))
    for place in range(len(pieces), 2 * count - len(pieces), 2):
        whole = kept.pop(heappop(largest)[1])
        middle = (len(whole) + 1) // 2
        for new, half in enumerate((whole[:middle], whole[middle:]), start=place):
            kept[new] = half
            heappush(largest, (-len(half), new))
    return list(kept.values())


def _fill_empty_clients(order: Indices, owners: Indices, clients: int, rng: np.random.Generator) -> Indices:
    """Return the client of each example after every empty client got a random example of the largest; shape [N].

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
