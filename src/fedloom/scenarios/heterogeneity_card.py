"""The heterogeneity card: how many examples, labels and modalities clients hold, and how much they differ.

Shape legend: N = number of examples, K = number of clients, L = number of labels, M = number of pairs of a
client and one of its labels. Only these M pairs are stored, so that many clients with many labels need little memory.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedloom.types import Example

if TYPE_CHECKING:
    from fedloom.scenarios.plan import Plan

Counts = NDArray[np.int64]
Reals = NDArray[np.float64]

KINDS = ("both", "image_only", "text_only", "none")
"""Which modalities of an example are seen."""


@dataclass(frozen=True, eq=False)
class Survey:
    """Numbers of examples, labels and words for each client of a plan.

    Attributes:
        sizes: Number of examples of each client, shape [K].
        kinds: Number of examples of each client by `KINDS`, shape [K, 4].
        labels: The names of the labels in alphabetical order; L names.
        owners: The client of each pair, ascending, shape [M].
        numbers: The label of each pair, shape [M].
        counts: Number of examples of each pair, shape [M].
        words: Mean number of words of the texts that a client sees, NaN if it sees none, shape [K].
        texts: Number of texts that each client sees, shape [K].
    """

    sizes: Counts
    kinds: Counts
    labels: tuple[str, ...]
    owners: Counts
    numbers: Counts
    counts: Counts
    words: Reals
    texts: Counts


def survey(plan: Plan, examples: Sequence[Example]) -> Survey:
    """Count what each client of a plan holds.

    Args:
        plan: The plan.
        examples: The list that the plan was built for.
    """
    sizes = np.diff(plan.offsets)
    clients, places = len(sizes), plan.indices.tolist()
    owners = np.repeat(np.arange(clients), sizes)
    kind = np.where(plan.image, np.where(plan.text, 0, 1), np.where(plan.text, 2, 3))
    names = [_label(examples[place]) for place in places]
    labels = tuple(sorted(set(names)))
    number_of = {name: number for number, name in enumerate(labels)}
    numbers = np.array([number_of[name] for name in names], np.int64)
    pairs, counts = np.unique(owners * len(labels) + numbers, return_counts=True)
    texts = [
        examples[place].text if seen else None for place, seen in zip(places, plan.text.tolist(), strict=True)
    ]
    shown = np.array([text is not None for text in texts], bool)
    words = np.array([len((text or "").split()) for text in texts], np.float64)
    seen = np.bincount(owners[shown], minlength=clients)
    total = np.bincount(owners[shown], weights=words[shown], minlength=clients)
    return Survey(
        sizes=sizes,
        kinds=np.bincount(owners * len(KINDS) + kind, minlength=clients * len(KINDS)).reshape(clients, -1),
        labels=labels,
        owners=pairs // max(len(labels), 1),
        numbers=pairs % max(len(labels), 1),
        counts=counts,
        words=np.divide(total, seen, out=np.full(clients, np.nan), where=seen > 0),
        texts=seen,
    )


def client_rows(counted: Survey, first: int | None = None) -> list[dict[str, Any]]:
    """Return what each client holds, as plain values; only for the first clients if `first` is given.

    `modalities` contains "I" if the client sees any image and "T" if it sees any text; `total_variation` and
    `jensen_shannon` are the client's distances, whose means are in `card`.
    """
    clients = len(counted.sizes) if first is None else min(first, len(counted.sizes))
    variation, divergence, _ = distances(counted)
    ends = np.searchsorted(counted.owners, np.arange(clients), side="right").tolist()
    rows, start = [], 0
    for client, end in enumerate(ends):
        kinds = dict(zip(KINDS, counted.kinds[client].tolist(), strict=True))
        labels = zip(counted.numbers[start:end].tolist(), counted.counts[start:end].tolist(), strict=True)
        rows.append(
            {
                "id": client,
                "size": int(counted.sizes[client]),
                "modalities": _letters(
                    kinds["both"] + kinds["image_only"], kinds["both"] + kinds["text_only"]
                ),
                **kinds,
                "words": None if np.isnan(counted.words[client]) else float(counted.words[client]),
                "total_variation": float(variation[client]),
                "jensen_shannon": float(divergence[client]),
                "labels": {counted.labels[number]: count for number, count in labels},
            }
        )
        start = end
    return rows


def card(counted: Survey) -> dict[str, Any]:
    """Measure how much the clients of a plan differ; the values are plain.

    * `labels`: their number `count`; `effective`, 2 to the entropy in bits of the pooled examples' labels, and
      `effective_per_client`, its mean over clients; the means over clients of two distances
      between a client's label distribution p and the pooled one q, both from 0 (equal) to 1 (disjoint):
      `total_variation`, ½ Σ_c |p_c − q_c|, and `jensen_shannon`, the square root of the Jensen-Shannon
      divergence in bits. Every client has the same weight, whatever its size.
    * `modalities`: clients by the modalities that they see in any example, and examples by their seen modalities.
    * `sizes`: the smallest, median and largest client, the share of all examples that the largest holds, and
      `effective_clients`, (Σ_k n_k)² / Σ_k n_k², which is K if all clients have one size.
    * `words`: number of words of the texts that are seen; the mean over texts, and the smallest and largest mean of a
      client.
    """
    sizes, clients = counted.sizes, len(counted.sizes)
    total = int(sizes.sum())
    total_variation, jensen_shannon, effective = distances(counted)
    pool = np.bincount(counted.numbers, weights=counted.counts, minlength=1) / max(total, 1)
    images, texts = counted.kinds[:, :2].any(axis=1), counted.kinds[:, [0, 2]].any(axis=1)
    means = counted.words[counted.texts > 0]
    return {
        "clients": clients,
        "examples": total,
        "labels": {
            "count": len(counted.labels),
            "effective": float(2 ** -_plogp(pool).sum()),
            "effective_per_client": float(effective.mean()),
            "total_variation": float(total_variation.mean()),
            "jensen_shannon": float(jensen_shannon.mean()),
        },
        "modalities": {
            "clients": {
                _letters(image, text): int(((images == image) & (texts == text)).sum())
                for image, text in ((True, True), (True, False), (False, True), (False, False))
            },
            "examples": dict(zip(KINDS, counted.kinds.sum(axis=0).tolist(), strict=True)),
        },
        "sizes": {
            "smallest": int(sizes.min()),
            "median": float(np.median(sizes)),
            "largest": int(sizes.max()),
            "largest_share": float(sizes.max() / max(total, 1)),
            "effective_clients": float(total**2 / max(float((sizes.astype(np.float64) ** 2).sum()), 1.0)),
        },
        "words": {
            "mean": float((means * counted.texts[counted.texts > 0]).sum() / counted.texts.sum()),
            "least": float(means.min()),
            "most": float(means.max()),
        }
        if len(means)
        else None,
    }


def shared_with_others(plan: Plan, keys: Sequence[Sequence[Hashable]]) -> int:
    """Return how many of the clients' examples share a key with an example of another client.

    Args:
        plan: The plan.
        keys: The keys of each example of the list that the plan was built for, such as `near_duplicate_keys`.
    """
    owners = np.repeat(np.arange(len(plan.offsets) - 1), np.diff(plan.offsets)).tolist()
    held = list(zip(owners, plan.indices.tolist(), strict=True))
    holders: dict[Hashable, set[int]] = {}
    for client, place in held:
        for key in keys[place]:
            holders.setdefault(key, set()).add(client)
    return sum(any(len(holders[key]) > 1 for key in keys[place]) for _, place in held)


def distances(counted: Survey) -> tuple[Reals, Reals, Reals]:
    """Compute the distances of every client's label distribution from the pooled one.

    Returns:
        Total variation, Jensen-Shannon distance, and effective number of labels of each client, shape [K].
    """
    owners, clients = counted.owners, len(counted.sizes)
    pool = np.bincount(counted.numbers, weights=counted.counts, minlength=1)
    p = counted.counts / counted.sizes[owners]  # of the labels that the client has, [M]
    q = (pool / max(pool.sum(), 1.0))[counted.numbers]  # of the same labels, [M]

    def by_client(values: Reals) -> Reals:
        return np.bincount(owners, weights=values, minlength=clients).astype(np.float64)

    middle = (p + q) / 2
    # A label the client lacks has p = 0: it adds nothing to Σ max(p − q, 0), and q · log₂(q / ½q) = q.
    absent = 1 - by_client(q)
    divergence = (by_client(p * np.log2(p / middle) + q * np.log2(q / middle)) + absent) / 2
    variation = by_client(np.maximum(p - q, 0))
    return variation, np.sqrt(np.maximum(divergence, 0)), 2 ** -by_client(_plogp(p))


def _plogp(shares: Reals) -> Reals:
    """Return p · log₂ p, and 0 for p = 0."""
    return shares * np.log2(shares, out=np.zeros_like(shares), where=shares > 0)


def _letters(image: Any, text: Any) -> str:
    return ("I" if image else "") + ("T" if text else "")


def _label(example: Example) -> str:
    # Free answers are nearly all different; counting them would not say anything.
    return example.answer if example.options else example.group or example.task
