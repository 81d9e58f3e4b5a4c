"""Blank examples in place of those at sites, of which a server knows only how many have an image, a text, or both.

A server divides blank examples among its clients as it would divide real ones, so that plans, cohorts, weights and reports
count what sites hold, although none of their data is here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedloom.scenarios.plan import Plan
from fedloom.types import Example

KINDS = {"both": (True, True), "image": (True, False), "text": (False, True)}
"""Name of a kind of examples → whether they have an image, and whether they have a text."""


@dataclass(frozen=True)
class BlankImage:
    """A gray square in place of an image at a site."""

    key: str = "blank"

    def pixels(self) -> NDArray[np.uint8]:
        """See `fedloom.types.LazyImage`."""
        return np.full((16, 16, 3), 128, np.uint8)


def counts_of(examples: Sequence[Example]) -> dict[str, int]:
    """Count examples by `KINDS`; an example with neither image nor text counts as text, as in a plan.

    Example:
        >>> counts_of([Example("1", "?", "!", text="so"), Example("2", "?", "!")])
        {'both': 0, 'image': 0, 'text': 2}
    """
    counts = dict.fromkeys(KINDS, 0)
    for example in examples:
        kind = "text" if not example.pictures else "both" if example.text is not None else "image"
        counts[kind] += 1
    return counts


def blank_examples(site: str, counts: Mapping[str, int], first: int = 0) -> list[Example]:
    """Return blank examples for a site; their group is the site's name.

    Args:
        site: The site's name.
        counts: The number of examples of each of `KINDS`.
        first: Number of the first one, which is part of its id.
    """
    held = [KINDS[kind] for kind in KINDS for _ in range(counts.get(kind, 0))]
    return [
        Example(
            id=f"{site}/{place:07d}",
            question="?",
            answer="!",
            image=BlankImage() if image else None,
            text="…" if text else None,
            group=site,
            task="vqa",
        )
        for place, (image, text) in enumerate(held, first)
    ]


def plan_with_all_examples(examples: Sequence[Example], clients: int) -> Plan:
    """Return a plan in which each client holds all examples, since any client's number may be that of a site.

    Args:
        examples: The examples of the site.
        clients: Number of clients of the run.
    """
    order = np.array(sorted(range(len(examples)), key=lambda place: examples[place].id), np.int64)
    image = np.array([bool(examples[place].pictures) for place in order.tolist()], bool)
    text = np.array([examples[place].text is not None for place in order.tolist()], bool) | ~image
    offsets = np.arange(clients + 1, dtype=np.int64) * len(order)
    return Plan(
        *(np.tile(order, clients), offsets, np.tile(image, clients), np.tile(text, clients)), digest=""
    )


def clients_by_site(plan: Plan, examples: Sequence[Example]) -> dict[str, int]:
    """Return site → number of its client, from a plan that divides blank examples by site."""
    return {str(examples[int(share.indices[0])].group): number for number, share in enumerate(plan.clients)}
