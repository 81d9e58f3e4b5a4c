"""Examples that are at sites, as a server knows them: so many, with or without an image and a text, and nothing else.

A server divides these blanks among its clients as it would divide examples, so that plans, cohorts, weights and reports
count what sites hold, although nothing of it is here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedloom.scenarios.plan import Plan
from fedloom.types import Example

KINDS = {"both": (True, True), "image": (True, False), "text": (False, True)}
"""What of its evidence an example has: name → whether an image, whether a text."""


@dataclass(frozen=True)
class Blank:
    """An image that is somewhere else: a grey square stands for it."""

    key: str = "blank"

    def pixels(self) -> NDArray[np.uint8]:
        """See `fedloom.types.Picture`."""
        return np.full((16, 16, 3), 128, np.uint8)


def counts_of(examples: Sequence[Example]) -> dict[str, int]:
    """Count examples by `KINDS`; one that has neither image nor text counts as text, as it does in a plan.

    Example:
        >>> counts_of([Example("1", "?", "!", text="so"), Example("2", "?", "!")])
        {'both': 0, 'image': 0, 'text': 2}
    """
    found = dict.fromkeys(KINDS, 0)
    for one in examples:
        kind = "text" if not one.pictures else "both" if one.text is not None else "image"
        found[kind] += 1
    return found


def blanks(site: str, counts: Mapping[str, int]) -> list[Example]:
    """Return blanks for what a site holds; they are of the group that is called as the site is.

    Args:
        site: The site's name.
        counts: How many there are of each of `KINDS`.
    """
    held = [KINDS[kind] for kind in KINDS for _ in range(counts.get(kind, 0))]
    return [
        Example(
            id=f"{site}/{place:07d}",
            question="?",
            answer="!",
            image=Blank() if image else None,
            text="…" if text else None,
            group=site,
            task="vqa",
        )
        for place, (image, text) in enumerate(held)
    ]


def everyone(examples: Sequence[Example], clients: int) -> Plan:
    """Return a plan in which each client holds all examples: a site holds one client, and any number may be its.

    Args:
        examples: What the site holds.
        clients: Number of clients of the run.
    """
    order = np.array(sorted(range(len(examples)), key=lambda place: examples[place].id), np.int64)
    image = np.array([bool(examples[place].pictures) for place in order.tolist()], bool)
    text = np.array([examples[place].text is not None for place in order.tolist()], bool) | ~image
    offsets = np.arange(clients + 1, dtype=np.int64) * len(order)
    return Plan(
        *(np.tile(order, clients), offsets, np.tile(image, clients), np.tile(text, clients)), digest=""
    )


def site_of(plan: Plan, examples: Sequence[Example]) -> dict[str, int]:
    """Return site → its client's number, from a plan that divides blanks by site."""
    return {str(examples[int(share.indices[0])].group): number for number, share in enumerate(plan.clients)}
