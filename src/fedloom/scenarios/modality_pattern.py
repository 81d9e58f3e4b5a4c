"""Which modalities of its examples a client sees: aligned, missing, cross, hybrid.

A pattern says which modalities each client holds, and at which rate examples lose one besides. One repair,
the same for all patterns, then makes sure that no example loses everything: one that would lose both
modalities keeps one chosen by a fair coin, and one that has a single modality keeps it.

Draws for an example come from its id and the seed, draws for a client from a named stream, so neither the
listing order nor other examples matter.

Shape legend: N = number of examples, K = number of clients; the last axis of [·, 2] is (image, text).

Reference: B. Xu et al., "FedMLLM: Federated Fine-tuning MLLM on Multimodal Heterogeneity Data",
arXiv 2411.14717v2, scenarios of multimodal heterogeneity.

Differs from the paper: the published code lets an example of `missing` lose both modalities, draws from one
generator in directory order, and draws the same clients for every seed; `published` does as it did.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedloom.system.errors import UserError

if TYPE_CHECKING:
    from fedloom.config.schema import Scenario

Flags = NDArray[np.bool_]


Pattern = Callable[["Scenario", np.random.Generator], Flags]
"""(settings, generator) → whether each client holds images and texts, [K, 2]."""


def coins(ids: Sequence[str], seed: int) -> NDArray[np.float64]:
    """Draw three uniform numbers in [0, 1) for each example from its id and the seed, shape [N, 3]."""
    digests = b"".join(hashlib.sha256(f"{seed}/presence/{id}".encode()).digest()[:24] for id in ids)
    # The upper 53 bits: as many as a float64 holds, so that no draw rounds up to 1.
    return (np.frombuffer(digests, dtype=">u8") >> 11).astype(np.float64).reshape(-1, 3) * 2.0**-53


def aligned(settings: Scenario, rng: np.random.Generator) -> Flags:
    """Let every client see all its examples have. See `Pattern`."""
    del rng
    return np.ones((settings.clients, 2), bool)


def missing(settings: Scenario, rng: np.random.Generator) -> Flags:
    """Drop image and text of each example independently with probability `rate`. See `Pattern`.

    Because no example loses both, an example that has both loses a given one with probability
    rate − rate² / 2, and any at all with probability 2 · rate − rate². Where `lose_all` is set these are
    rate and, again, 2 · rate − rate², and an example loses all it has with probability rate² or, if it has
    one modality, rate.
    """
    del rng
    return np.ones((settings.clients, 2), bool)


def cross(settings: Scenario, rng: np.random.Generator) -> Flags:
    """Let `image_clients` random clients see only images and the others only text. See `Pattern`.

    With the same seed a larger `image_clients` adds image clients and changes no other.

    Raises:
        UserError: `image_clients` is negative or larger than the number of clients.
    """
    image_only = np.isin(
        np.arange(settings.clients), rng.permutation(settings.clients)[: image_count(settings)]
    )
    return np.stack([image_only, ~image_only], axis=1)


def hybrid(settings: Scenario, rng: np.random.Generator) -> Flags:
    """Let each client hold images with probability `p`, and texts likewise. See `Pattern`.

    At a client that holds neither, a coin for each example decides which one is seen.
    """
    return rng.random((settings.clients, 2)) < settings.p


PATTERNS: dict[str, Pattern] = {"aligned": aligned, "missing": missing, "cross": cross, "hybrid": hybrid}


def image_count(settings: Scenario) -> int:
    """Return the number of image-only clients of `cross`.

    Raises:
        UserError: It is negative or larger than the number of clients.
    """
    clients, found = settings.clients, settings.image_clients
    found = clients // 2 if found is None else found
    if not 0 <= found <= clients:
        raise UserError(f"scenario.image_clients is {found}, but must be between 0 and the {clients} clients")
    return found


def present(held: Flags, holds: Flags, draws: NDArray[np.float64], settings: Scenario) -> Flags:
    """Return which modalities of each example are seen, shape [N, 2].

    Args:
        held: Which modalities each example has at all, shape [N, 2].
        holds: Which of them its client holds, shape [N, 2].
        draws: The example's own uniform draws, see `coins`, shape [N, 3].
        settings: `pattern` is read, and `rate` and `lose_all` under `missing`.
    """
    if settings.pattern != "missing":
        return _repaired(holds, held, draws)
    kept = draws[:, :2] >= settings.rate
    return kept & held if settings.lose_all else _repaired(kept, held, draws)


def _repaired(kept: Flags, held: Flags, coins: NDArray[np.float64]) -> Flags:
    """Return kept ∧ held, but never nothing where something is held."""
    present = kept & held
    image_first = coins[:, 2] < 0.5
    rescued = np.stack([image_first, ~image_first], axis=1) & held  # where both are held, the coin's choice
    single = held.sum(axis=1) == 1
    rescued[single] = held[single]
    lost = ~present.any(axis=1)
    present[lost] = rescued[lost]
    return present
