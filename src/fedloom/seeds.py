"""Random numbers by name: every draw has its own generator, derived from its purpose.

Nothing in fedloom uses a global generator, so the order in which clients run, a resume after a crash, or an additional
draw elsewhere changes no other draw.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def _key(seed: int, purpose: str, round: int, client: int, step: int) -> int:
    name = f"{seed}/{purpose}/{round}/{client}/{step}"
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "big")


def stream(
    seed: int, purpose: str, *, round: int = -1, client: int = -1, step: int = -1
) -> np.random.Generator:
    """Return the numpy generator of one purpose; equal arguments give equal draws.

    Args:
        seed: The experiment's seed.
        purpose: The name of the draw, e.g. "partition", "cohort", "batches".
        round: Round number, or -1 where none applies.
        client: Client number, or -1.
        step: Step number, or -1.

    Example:
        >>> int(stream(0, "cohort", round=3).integers(100)) == int(stream(0, "cohort", round=3).integers(100))
        True
    """
    return np.random.Generator(np.random.PCG64(_key(seed, purpose, round, client, step)))


def torch_stream(
    seed: int,
    purpose: str,
    *,
    round: int = -1,
    client: int = -1,
    step: int = -1,
) -> torch.Generator:
    """Return the torch generator of one purpose; see `stream`.

    It is the CPU's, because draws differ between kinds of devices.
    """
    import torch

    generator = torch.Generator()
    generator.manual_seed(_key(seed, purpose, round, client, step) % 2**63)
    return generator


def seed_of_repeat(seed: int, number: int) -> int:
    """Return the seed of a repeated training, from 0 to 2⁶³ − 1.

    Args:
        seed: The experiment's seed.
        number: Number of the training, ≥ 1.
    """
    return _key(seed, "repeat", number, -1, -1) % 2**63
