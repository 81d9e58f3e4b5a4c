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
    policy: Literal["wait", "proceed", "stop"] = "stop"


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


def clients_at(sites: Mapping[str, JoinedSite]) -> dict[int, str]:
    """Return the site that holds each client."""
    return {client: one.name for one in sites.values() for client in one.clients}


def unfit(
    site: JoinedSite, sites: Mapping[str, JoinedSite], key: str, clients: int, *, own_data: bool
) -> str | None:
    """Return the reason why a site cannot take part, or None.

    Args:
        site: The site.
        sites: Name → site that has joined.
        key: The name of the site to which its key belongs; empty without keys.
        clients: Number of clients of the run.
        own_data: Whether each site brings data of its own, and is one client.
    """
    if key and key != site.name:
        return f"its key is that of site {key}"
    before = sites.get(site.name)
    if own_data:
        if before is None and len(sites) >= clients:
            return f"{clients} other sites take part already"
        if before is not None and (before.counts, before.validation) != (site.counts, site.validation):
            return "it came back with other data"
        return None
    others = {client: name for client, name in clients_at(sites).items() if name != site.name}
    taken = sorted(set(others) & set(site.clients))
    return f"client {taken[0]} is at site {others[taken[0]]}" if taken else None
