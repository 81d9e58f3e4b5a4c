"""Decide which modalities of its examples a client sees: aligned, missing, cross, hybrid.

A pattern decides which modalities each client holds, and at which rate examples lose a modality. After that, the same
rule for all patterns ensures that no example loses everything: an example that would lose both
modalities keeps one of them, chosen by a fair coin, and one that has a single modality keeps it.

Draws for an example depend on its id and the seed, draws for a client on a named stream, so that neither the
order of the examples nor other examples matter.

Shape legend: N = number of examples, K = number of clients; the last axis of [·, 2] is (image, text).

Reference: B. Xu et al., "FedMLLM: Federated Fine-tuning MLLM on Multimodal Heterogeneity Data",
arXiv 2411.14717v2, scenarios of multimodal heterogeneity.

Differs from the paper: the published code lets an example of `missing` lose both modalities, draws from one
generator in directory order, and draws the same clients for every seed, as does the mode `published`.
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


def uniform_draws(ids: Sequence[str], seed: int) -> NDArray[np.float64]:
    """Draw three uniform numbers in [0, 1) for each example from its id and the seed, shape [N, 3]."""
    digests = b"".join(hashlib.sha256(f"{seed}/presence/{id}".encode()).digest()[:24] for id in ids)
    # The upper 53 bits, as many as a float64 holds, so that no draw rounds up to 1.
    return (np.frombuffer(digests, dtype=">u8") >> 11).astype(np.float64).reshape(-1, 3) * 2.0**-53


def aligned(settings: Scenario, rng: np.random.Generator) -> Flags:
    """Let every client see all modalities of its examples. See `Pattern`."""
    del rng
    return np.ones((settings.clients, 2), bool)


def missing(settings: Scenario, rng: np.random.Generator) -> Flags:
    """Drop image and text of each example independently with probability `rate`. See `Pattern`.

    Because no example loses both, an example that has both loses a given one with probability
    rate − rate² / 2, and either one with probability 2 · rate − rate². With `lose_all` these probabilities are
    rate and 2 · rate − rate², and an example loses everything with probability rate² or, if it has
    one modality, rate.
    """
    del rng
    return np.ones((settings.clients, 2), bool)


def cross(settings: Scenario, rng: np.random.Generator) -> Flags:
    """Let `image_clients` random clients see only images and the others only text. See `Pattern`.

    With the same seed, a larger `image_clients` adds image clients and does not change others.

    Raises:
        UserError: `image_clients` is negative or larger than the number of clients.
    """
    image_only = np.isin(
        np.arange(settings.clients), rng.permutation(settings.clients)[: image_client_count(settings)]
    )
    return np.stack([image_only, ~image_only], axis=1)


def hybrid(settings: Scenario, rng: np.random.Generator) -> Flags:
    """Let each client hold images with probability `p`, and texts likewise. See `Pattern`.

    At a client that holds neither, a coin for each example decides which modality is seen.
    """
    return rng.random((settings.clients, 2)) < settings.p


PATTERNS: dict[str, Pattern] = {"aligned": aligned, "missing": missing, "cross": cross, "hybrid": hybrid}


def image_client_count(settings: Scenario) -> int:
    """Return the number of image-only clients of `cross`.

    Raises:
        UserError: The number is negative or larger than the number of clients.
    """
    clients, count = settings.clients, settings.image_clients
    count = clients // 2 if count is None else count
    if not 0 <= count <= clients:
        raise UserError(
            f"scenario.image_clients is {count}, but must be between 0 and {clients}, the number of clients"
        )
    return count


def seen_modalities(held: Flags, holds: Flags, draws: NDArray[np.float64], settings: Scenario) -> Flags:
    """Return which modalities of each example are seen, shape [N, 2].

    Args:
        held: Which modalities each example has, shape [N, 2].
        holds: Which modalities its client holds, shape [N, 2].
        draws: The result of `uniform_draws`, shape [N, 3].
        settings: `pattern` is used, and `rate` and `lose_all` for `missing`.
    """
    if settings.pattern != "missing":
        return _keep_one(holds, held, draws)
    kept = draws[:, :2] >= settings.rate
    return kept & held if settings.lose_all else _keep_one(kept, held, draws)


def _keep_one(kept: Flags, held: Flags, draws: NDArray[np.float64]) -> Flags:
    """Return kept ∧ held, but keep one modality of each example that has any."""
    seen = kept & held
    image_first = draws[:, 2] < 0.5
    rescued = np.stack([image_first, ~image_first], axis=1) & held  # if both are held, the coin decides
    single = held.sum(axis=1) == 1
    rescued[single] = held[single]
    lost = ~seen.any(axis=1)
    seen[lost] = rescued[lost]
    return seen
