"""Helpers of robust aggregates: bounds on the number of clients, medians by value, and distances between updates.

Robust aggregates hold all updates of a round, and give all clients the same weight, since a faulty client could claim any
number of examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import cast

import torch
from torch import Tensor

from fedloom.algorithms.algorithm import TooFew, not_negative
from fedloom.wire.messages import Update

ALIKE = {
    "weights matter": "It counts every client alike, since a faulty client could claim any number of examples."
}
SEVERAL = {**ALIKE, "agreement": "Whether a single client is faulty cannot be known."}
"""Laws of `fedloom.testing` that robust rules do not promise, and why."""

CHUNK = 2**16
"""Number of values of each client that are processed at once, in float64."""


def require_enough(rule: str, clients: int, f: int, more: int = 1) -> None:
    """Check that a rule has enough clients to withstand the faulty ones.

    Args:
        rule: Its name in the message.
        clients: Number of clients.
        f: Largest number of faulty clients, ≥ 0.
        more: The rule needs at least 2f + this many clients.

    Raises:
        TooFew: There are fewer.
        ValueError: f is below 0.

    Example:
        >>> require_enough("Krum", 4, f=1, more=3)
        Traceback (most recent call last):
            ...
        fedloom.algorithms.algorithm.TooFew: Krum with f = 1 needs at least 2f + 3 = 5 clients in a round, and there are 4
    """
    not_negative(f=f)
    if clients < 2 * f + more:
        raise TooFew(
            f"{rule} with f = {f} needs at least 2f + {more} = {2 * f + more} clients in a round, and there are {clients}"
        )


def gather(rule: str, updates: Iterable[Update], f: int, more: int = 1) -> list[Update]:
    """Return all updates of a round as a list, for a rule on whole vectors.

    Args:
        rule: Its name in messages.
        updates: In client-id order.
        f: Largest number of faulty clients.
        more: See `require_enough`.

    Raises:
        TooFew: Fewer updates than the rule needs.
        ValueError: Clients report different parts, whose vectors cannot be compared.
    """
    held = list(updates)
    require_enough(rule, len(held), f, more)
    for update in held:
        same_part(rule, held[0], update)
    return held


def same_part(rule: str, first: Update, other: Update) -> None:
    """Check that two clients report the same part.

    Raises:
        ValueError: The clients report different parts.
    """
    if (first.up or first.delta.whole) != (other.up or other.delta.whole):
        raise ValueError(
            f"client {other.client} reports other values than client {first.client}, but {rule} is stated for whole vectors"
        )


def by_value(rule: str, updates: Iterable[Update], f: int, take: Callable[[Tensor], Tensor]) -> Tensor:
    """Aggregate each value on its own over the clients whose part has it (`Update.up`).

    Args:
        rule: Its name in messages.
        updates: In client-id order; all are held.
        f: Largest number of faulty clients; each value needs at least 2f + 1.
        take: Values of shape [K, N], float64 → one value for each column, shape [N].

    Returns:
        A new float32 tensor of shape [P]; a value that no part has is 0.

    Raises:
        TooFew: Fewer updates, or fewer clients that report some value, than the rule needs.
    """
    held = list(updates)
    require_enough(rule, len(held), f)
    result = torch.zeros_like(held[0].delta.flat)
    for start, stop in _stretches(held):
        rows = [one.delta.flat[start:stop] for one in held if one.up is None or one.up.mask[start]]
        if rows:
            require_enough(f"{rule} of a value that not all clients report,", len(rows), f)
            result[start:stop] = take(torch.stack(rows).double()).float()
    return result


def squared_distances(held: Sequence[Update]) -> Tensor:
    """Return ‖Δ_i − Δ_j‖² for all pairs of updates, shape [K, K], float64."""
    total = torch.zeros(len(held), len(held), dtype=torch.float64)
    for start in range(0, held[0].delta.flat.shape[0], CHUNK):
        rows = torch.stack([one.delta.flat[start : start + CHUNK] for one in held]).double()
        # Differences are formed before squares: ‖a‖² + ‖b‖² − 2ab loses small distances between long vectors.
        total += torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square()
    return total


def distance(one: Tensor, other: Tensor) -> float:
    """Return the Euclidean distance of two flat vectors."""
    return float64_norm(one - other)


def float64_norm(vector: Tensor) -> float:
    """Return the Euclidean norm of a flat vector; its sums are in float64, so that no float32 value overflows."""
    vector_norm = cast("Callable[..., Tensor]", torch.linalg.vector_norm)  # pyright: ignore
    return float(vector_norm(vector, dtype=torch.float64))


def smallest(values: Tensor, count: int) -> list[int]:
    """Return the indices of the smallest values of a row, ascending; of equal values the first ones.

    Example:
        >>> smallest(torch.tensor([3.0, 1.0, 2.0, 1.0]), 3)
        [1, 2, 3]
    """
    return sorted(int(index) for index in values.argsort(stable=True)[:count])


def _stretches(held: Sequence[Update]) -> list[tuple[int, int]]:
    """Return pieces of the layout of at most `CHUNK` values, in which no client's part begins or ends."""
    size = held[0].delta.flat.shape[0]
    parts = {one.up for one in held if one.up is not None}
    edges = {edge for part in parts for stretch in part.stretches for edge in stretch}
    cuts = sorted({*edges, *range(0, size, CHUNK), size})
    return list(zip(cuts[:-1], cuts[1:], strict=True))
