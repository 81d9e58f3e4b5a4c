"""Who takes part in a run over sites, and how long the server waits for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Terms:
    """How long a server waits, and for whom.

    Attributes:
        join: Seconds that sites have to join before the first round.
        deadline: Seconds that clients have to answer in a round; None waits for all.
        quorum: Clients of a round that must have answered at the deadline.
        policy: What is done at the deadline where fewer have: wait for more, go on without them, or stop.
    """

    join: float = 600.0
    deadline: float | None = 3600.0
    quorum: int = 1
    policy: Literal["wait", "go-on", "stop"] = "stop"


@dataclass
class Member:
    """A site that has joined.

    Attributes:
        name: Its name.
        node: Its node's present number, or None while it is away.
        clients: The clients that it holds; empty until they are numbered where sites have data of their own.
        profiles: Method → the profile of each of them.
        counts: How many examples it holds of each kind, where it has data of its own.
    """

    name: str
    node: int | None
    clients: tuple[int, ...]
    profiles: Mapping[str, Sequence[Sequence[Any]]]
    counts: Mapping[str, int]
