"""Which modalities of its examples a client sees: aligned, missing, cross, hybrid.

A pattern says what each example would keep; one repair, the same for all patterns, then makes sure that no
example loses everything: one that would lose both modalities keeps one chosen by a fair coin, and one that
has a single modality keeps it.

Draws for an example come from its id and the seed, draws for a client from a named stream, so neither the
listing order nor other examples matter.

Shape legend: N = number of examples, K = number of clients; the last axis of [·, 2] is (image, text).

Reference: B. Xu et al., "FedMLLM: Federated Fine-tuning MLLM on Multimodal Heterogeneity Data",
arXiv 2411.14717v2, scenarios of multimodal heterogeneity.

Differs from the paper: the published code lets an example of `missing` lose both modalities, draws from one
generator in directory order, and draws the same clients for every seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedloom.types import UserError

Flags = NDArray[np.bool_]


class PatternSettings(Protocol):
    """What patterns read of the `scenario` section."""

    @property
    def clients(self) -> int:
        """Number of clients K."""
        ...

    @property
    def rate(self) -> float:
        """For `missing`: probability that an example loses a modality, each by itself, 0 ≤ rate < 1."""
        ...

    @property
    def image_clients(self) -> int | None:
        """For `cross`: number of image-only clients; None for half of them, rounded down."""
        ...

    @property
    def p(self) -> float:
        """For `hybrid`: probability that a client holds a modality, 0 < p ≤ 1."""
        ...


Pattern = Callable[
    [NDArray[np.int64], Flags, NDArray[np.float64], np.random.Generator, PatternSettings], Flags
]
"""(client of each example [N], held [N, 2], coins [N, 3], generator, settings) → present [N, 2].

`held` says which modalities an example has at all; `coins` are its own uniform draws, see `coins`.
"""


def coins(ids: Sequence[str], seed: int) -> NDArray[np.float64]:
    """Draw three uniform numbers in [0, 1) for each example from its id and the seed, shape [N, 3]."""
    digests = b"".join(hashlib.sha256(f"{seed}/presence/{id}".encode()).digest()[:24] for id in ids)
    # The upper 53 bits: as many as a float64 holds, so that no draw rounds up to 1.
    return (np.frombuffer(digests, dtype=">u8") >> 11).astype(np.float64).reshape(-1, 3) * 2.0**-53


def aligned(
    client_of: NDArray[np.int64],
    held: Flags,
    coins: NDArray[np.float64],
    rng: np.random.Generator,
    settings: PatternSettings,
) -> Flags:
    """Let every client see all its examples have. See `Pattern`."""
    del client_of, coins, rng, settings
    return held.copy()


def missing(
    client_of: NDArray[np.int64],
    held: Flags,
    coins: NDArray[np.float64],
    rng: np.random.Generator,
    settings: PatternSettings,
) -> Flags:
    """Drop image and text of each example independently with probability `rate`. See `Pattern`.

    Because no example loses both, an example that has both loses a given one with probability
    rate − rate² / 2, and any at all with probability 2 · rate − rate².
    """
    del client_of, rng
    return _repaired(coins[:, :2] >= settings.rate, held, coins)


def cross(
    client_of: NDArray[np.int64],
    held: Flags,
    coins: NDArray[np.float64],
    rng: np.random.Generator,
    settings: PatternSettings,
) -> Flags:
    """Let `image_clients` random clients see only images and the others only text. See `Pattern`.

    With the same seed a larger `image_clients` adds image clients and changes no other.

    Raises:
        UserError: `image_clients` is negative or larger than the number of clients.
    """
    clients, wanted = settings.clients, settings.image_clients
    wanted = clients // 2 if wanted is None else wanted
    if not 0 <= wanted <= clients:
        raise UserError(
            f"scenario.image_clients is {wanted}, but must be between 0 and the {clients} clients"
        )
    image_only = np.isin(np.arange(clients), rng.permutation(clients)[:wanted])
    return _repaired(np.stack([image_only, ~image_only], axis=1)[client_of], held, coins)


def hybrid(
    client_of: NDArray[np.int64],
    held: Flags,
    coins: NDArray[np.float64],
    rng: np.random.Generator,
    settings: PatternSettings,
) -> Flags:
    """Let each client hold images with probability `p`, and texts likewise. See `Pattern`.

    At a client that holds neither, a coin for each example decides which one is seen.
    """
    holds = rng.random((settings.clients, 2)) < settings.p
    return _repaired(holds[client_of], held, coins)


PATTERNS: dict[str, Pattern] = {"aligned": aligned, "missing": missing, "cross": cross, "hybrid": hybrid}


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
