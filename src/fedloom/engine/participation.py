"""The sites that take part in a run, and how long the server waits for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class WaitingTerms:
    """How long a server waits for sites, and for how many clients.

    Attributes:
        join: Seconds within which sites must join before the first round.
        deadline: Seconds within which clients must answer in a round; None waits for all.
        quorum: Clients of a round that must have answered at the deadline.
        policy: What happens at the deadline if fewer have: the server waits for more, goes on without them, or stops.
    """

    join: float = 600.0
    deadline: float | None = 3600.0
    quorum: int = 1
    policy: Literal["wait", "go-on", "stop"] = "stop"


@dataclass
class JoinedSite:
    """A site that has joined.

    Attributes:
        name: Its name.
        node: The current number of its node, or None while it is disconnected.
        clients: The clients that it holds; a site with data of its own has none until the server numbers them.
        profiles: Method → the profile of each of them.
        counts: The number of its training examples of each kind, if it has data of its own.
        validation: That of its validation examples.
    """

    name: str
    node: int | None
    clients: tuple[int, ...]
    profiles: Mapping[str, Sequence[Sequence[Any]]]
    counts: Mapping[str, int]
    validation: Mapping[str, int]
