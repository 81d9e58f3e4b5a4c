"""Repeat the draws of FedMLLM's published code: same generators, same seeds, same order.

Such a split is the same for every seed of an experiment. It depends on the order of the
training examples, which is that of the owner's file. Nothing here touches a global generator:
`random.Random(42)` and `np.random.RandomState(42)` give the same numbers as the seeded global ones.

Three choices are ours. The published code reads the files of a folder in the order of the
file system; here the order is that of client numbers. The presence draw of the two-source hybrid scenario is not
seeded there; here its seed is 41, as for the other draws of that script. The published repair never ends if a label
has too few examples to give every client one; here it ends when no client has one to spare.

The published code draws with every record of the owner's file, including flashcards without question or answer, which it
removes from the clients afterward. The same happens here with every skipped record (`drawn` of `build_plan`).

Shape legend: N = number of examples, K = number of clients, L = number of labels; the last axis of [·, 2] is
(image, text).

Reference: B. Xu et al., "FedMLLM: Federated Fine-tuning MLLM on Multimodal Heterogeneity Data",
arXiv 2411.14717v2, and its code.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from fedloom.scenarios.modality_pattern import Flags, image_client_count
from fedloom.scenarios.partition import (
    Indices,
    Pool,
    check_size,
    class_names,
    require_parts,
    require_shares,
    require_takers,
)
from fedloom.system.errors import UserError

if TYPE_CHECKING:
    from fedloom.config.schema import Scenario

SEED, TWO_SOURCE_SEED = 42, 41

REPAIR = {"crisis-mmd": "first"}
"""Data set → the labels that the published code repairs: "first" is the first seen; each label for other data sets."""

TWO_SOURCES = ("medical",)
"""The data sets that the published code divides by source instead of label."""

Parts = list[list[int]]
"""The examples of each client in order; K lists."""

Outcome = tuple[Parts, Flags]
"""The examples of each client, and which modalities of each example are seen, shape [N, 2]."""


def published_draws(pool: Pool, held: Flags, settings: Scenario) -> Outcome:
    """Draw the examples of each client and the modalities that are seen, as the published code does.

    Args:
        pool: Examples and clients, in the order of the owner's file; its `holds` is not used.
        held: Which modalities each example has, shape [N, 2].
        settings: The scenario; `partition` is dirichlet or by_source.

    Raises:
        UserError: The partition or the pattern was not published, or there are more clients than examples.
    """
    if reason := why_unpublished(settings):
        raise UserError(reason)
    check_size(pool)
    if settings.partition == "dirichlet":
        parts = divide_by_label(pool, settings.alpha, settings.repair)
        return parts, _seen(parts, held, settings)
    return _two_sources(pool, held, settings)


def why_unpublished(settings: Scenario) -> str | None:
    """Return the reason why there is no published procedure for a scenario, or None if there is one."""
    if settings.partition == "dirichlet":
        return None
    if settings.partition == "by_source" and settings.pattern in ("cross", "hybrid"):
        return None
    return (
        f"scenario.mode is published, but there is no published procedure for scenario.partition "
        f"{settings.partition} with scenario.pattern {settings.pattern}; there is one for dirichlet with any "
        "pattern, and for by_source with cross or hybrid"
    )


def published_cohort(round: int, clients: int, size: int) -> tuple[int, ...]:
    """Return the places of a round's clients, ascending: python's sample of a generator seeded by the round.

    Every experiment of equal size has the same sequence of cohorts, whatever its seed and algorithm.

    Args:
        round: Round number from 0.
        clients: How many there are to draw from.
        size: How many are drawn, at most `clients`.

    Example:
        >>> [published_cohort(round, 10, 2) for round in range(3)]
        [(6, 9), (1, 2), (0, 1)]
    """
    return tuple(sorted(random.Random(round).sample(range(clients), size)))


def divide_by_label(pool: Pool, alpha: float, repair: str | None) -> Parts:
    """Divide the examples label by label, in the order in which labels first appear.

    One call draws L rows of Dir(α · 1_K); client k gets ⌊p_ck · n_c⌋ examples of label c, consecutive ones of
    the list; each client without any takes one from the first client that has more than one; the last
    client takes the remainder of rounding. At the end each client's examples are shuffled.

    Args:
        pool: Examples and clients.
        alpha: Concentration α, > 0.
        repair: "first" to let clients without examples of a label take one for the first label only, as
            for CrisisMMD; else for each label, as for Hateful-Memes.

    Raises:
        UserError: α is so small that the published generator's draw is not a number, or too large for it.
    """
    clients = len(pool.holds)
    members_of = _places_by_name(class_names(pool.labels, pool.groups))
    shares = np.random.RandomState(SEED).dirichlet([alpha] * clients, len(members_of))
    if not np.isfinite(shares).all():
        raise UserError(f"scenario.alpha is {alpha:g}, too small for the published draw; take 0.01 or more")
    require_shares(shares, alpha)
    parts: Parts = [[] for _ in range(clients)]
    for number, members in enumerate(members_of):
        counts = (shares[number] * len(members)).astype(np.int64)
        if number == 0 or repair != "first":
            _repair(counts)
        counts[-1] = len(members) - counts[:-1].sum()
        ends = np.cumsum(counts)
        for part, start, end in zip(parts, ends - counts, ends, strict=True):
            part += members[start:end]
    _fill(parts)
    draws = random.Random(SEED)
    for part in parts:
        draws.shuffle(part)
    return parts


def _places_by_name(names: Sequence[str]) -> list[list[int]]:
    """Return the places of every name, in the order in which names first appear."""
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(name, []).append(place)
    return list(places.values())


def _repair(counts: Indices) -> None:
    """Move, in place, an example from the first client that has more than one to each client without any; shape [K]."""
    takers = np.flatnonzero(counts < 1)
    givers = np.repeat(np.arange(len(counts)), np.maximum(counts - 1, 0))[: len(takers)]
    counts[takers[: len(givers)]] = 1
    counts -= np.bincount(givers, minlength=len(counts))


def _fill(parts: Parts) -> None:
    """Give each client without examples the last one of the client that has most, in place."""
    for part in parts:
        if not part:
            part.append(max(parts, key=len).pop())


def _seen(parts: Parts, held: Flags, settings: Scenario) -> Flags:
    """Draw which modalities are seen if every example may have both, shape [N, 2]."""
    seen, draws = np.zeros_like(held), random.Random(SEED)
    if settings.pattern == "missing":
        keep = 1 - settings.rate
        for place in chain.from_iterable(parts):
            text = draws.random() < keep  # the text's draw comes first
            seen[place] = draws.random() < keep, text
        return seen & held
    holds = _client_holds(settings, SEED, draws)
    for part, (image, text) in zip(parts, holds.tolist(), strict=True):
        for place in part:
            coin = not (image or text) and draws.random() < 0.5
            seen[place] = (image, text) if image or text else (coin, not coin)
    return seen & held


def _client_holds(settings: Scenario, seed: int, draws: random.Random) -> Flags:
    """Draw which modalities each client holds, shape [K, 2]; hybrid uses numpy's generator with `seed`."""
    holds = np.ones((settings.clients, 2), bool)
    if settings.pattern == "hybrid":
        return np.random.RandomState(seed).binomial(1, settings.p, holds.shape).astype(bool)
    if settings.pattern == "cross":
        images = _image_clients(settings, draws)
        holds[images, 1] = False
        holds[:, 0] = ~holds[:, 1]
    return holds


def _image_clients(settings: Scenario, draws: random.Random) -> list[int]:
    """Draw the image clients of cross, in the order of the draw."""
    return draws.sample(range(settings.clients), image_client_count(settings))


def _two_sources(pool: Pool, held: Flags, settings: Scenario) -> Outcome:
    """Divide examples with an image among image clients and the others among text clients.

    Each source is shuffled and cut into equal parts, the last of which takes the remainder. With cross, the
    image parts go to the image clients in the order in which these were drawn. With hybrid, a client with
    neither modality gets one by a coin, and a client with both gets a part of each source, shuffled together.
    """
    draws = random.Random(TWO_SOURCE_SEED)
    if settings.pattern == "cross":
        images = _image_clients(settings, draws)
        takers = images, sorted(set(range(settings.clients)) - set(images))
    else:
        holds = _client_holds(settings, TWO_SOURCE_SEED, draws)
        for row in holds:
            if not row.any():
                row[0 if draws.random() < 0.5 else 1] = True
        takers = np.flatnonzero(holds[:, 0]).tolist(), np.flatnonzero(holds[:, 1]).tolist()
    parts: Parts = [[] for _ in range(settings.clients)]
    for clients, members in zip(takers, (pool.has_image, ~pool.has_image), strict=True):
        require_takers(pool, clients)
        chunks = _chunks(np.flatnonzero(members).tolist(), len(clients), draws)
        for client, chunk in zip(clients, chunks, strict=True):
            parts[client] += chunk
    require_parts(pool, [len(part) for part in parts])
    seen = np.zeros_like(held)
    for client, part in enumerate(parts):
        sides = [client in clients for clients in takers]
        if all(sides):
            draws.shuffle(part)
        seen[part] = sides
    return parts, seen & held


def _chunks(members: list[int], count: int, draws: random.Random) -> list[list[int]]:
    """Shuffle and cut into `count` equal chunks; the last takes the remainder."""
    draws.shuffle(members)
    size = len(members) // count
    cuts = [size * number for number in range(count)]
    return [members[start:end] for start, end in zip(cuts, [*cuts[1:], len(members)], strict=True)]
