"""The round loop: broadcast, train a cohort, refuse what is broken, apply the rest, commit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from fedloom.algorithms.base import FederatedAlgorithm, ServerState
from fedloom.engine.gate import GateSettings, refuse
from fedloom.seeds import stream
from fedloom.types import Broadcast, ClientUpdate, Tensors, UserError

Memories = Mapping[int, Tensors]


class Backend(Protocol):
    """Where clients run. In-process, side by side, or at other sites: all give the same updates."""

    def map(
        self, broadcast: Broadcast, cohort: Sequence[int], round: int, memories: Memories
    ) -> Iterator[tuple[ClientUpdate, Tensors]]:
        """Train the cohort and yield (update, what the client keeps) in client-id order."""
        ...


@dataclass(frozen=True)
class Standing:
    """Where a run stands between two rounds: all that a resumed run needs.

    Attributes:
        state: The server's state; `state.round` rounds are done.
        memories: What clients keep, by client.
        norms: Norms of all updates accepted so far.
        up: Bytes sent by clients so far.
        down: Bytes sent to clients so far.
        seconds: Time spent in rounds so far.
    """

    state: ServerState
    memories: Memories = field(default_factory=dict)
    norms: tuple[float, ...] = ()
    up: int = 0
    down: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Schedule:
    """How often and with whom.

    Attributes:
        rounds: Number of rounds.
        clients: Client numbers to draw from, ascending.
        cohort: How many of them train in a round; None means all.
        seed: Names the draws.
    """

    rounds: int
    clients: tuple[int, ...]
    cohort: int | None
    seed: int


def draw_cohort(schedule: Schedule, round: int) -> tuple[int, ...]:
    """Draw the clients of a round, without replacement, in ascending order."""
    if schedule.cohort is None or schedule.cohort >= len(schedule.clients):
        return schedule.clients
    drawn = stream(schedule.seed, "cohort", round=round).choice(
        len(schedule.clients), schedule.cohort, replace=False
    )
    return tuple(schedule.clients[place] for place in sorted(drawn))


def payload(tensors: Tensors) -> int:
    """Count the bytes of named tensors on the wire."""
    return sum(value.numel() * value.element_size() for value in tensors.values())


def run_rounds(
    algorithm: FederatedAlgorithm,
    backend: Backend,
    standing: Standing,
    schedule: Schedule,
    gate: GateSettings,
    committed: Callable[[Standing, dict[str, Any]], None],
) -> Standing:
    """Run the rounds that are left.

    Args:
        algorithm: Server and client half.
        backend: Where clients run.
        standing: Where to start.
        schedule: Rounds and cohorts.
        gate: Which updates are refused.
        committed: Called after each round with where the run now stands and what to write down.

    Raises:
        UserError: Every update of a round was refused; nothing of that round is kept.
    """
    for round in range(standing.state.round, schedule.rounds):
        standing, log = one_round(algorithm, backend, standing, draw_cohort(schedule, round), gate)
        committed(standing, log)
    return standing


def one_round(
    algorithm: FederatedAlgorithm,
    backend: Backend,
    standing: Standing,
    cohort: Sequence[int],
    gate: GateSettings,
) -> tuple[Standing, dict[str, Any]]:
    """Run one round and return where the run stands then, with the round's figures."""
    begun = time.perf_counter()
    state = standing.state
    broadcast = algorithm.broadcast(state)
    results = list(backend.map(broadcast, cohort, state.round, standing.memories))
    updates = [update for update, _ in results]
    reasons = refuse(updates, state.params.layout, standing.norms, gate)
    kept = [update for update in updates if update.client not in reasons]
    if not kept:
        said = "; ".join(f"client {client}: {reason}" for client, reason in sorted(reasons.items()))
        raise UserError(
            f"round {state.round}: every client's update was refused, so the run stops here ({said})"
        )
    after, diagnostics = algorithm.apply(state, kept)
    memories = dict(standing.memories)
    memories.update(
        {update.client: memory for update, memory in results if memory and update.client not in reasons}
    )
    down = len(cohort) * (payload({"params": broadcast.params.flat}) + payload(broadcast.extras))
    up = sum(payload({"delta": update.delta.flat}) + payload(update.extras) for update in updates)
    seconds = time.perf_counter() - begun
    norms = tuple(float(torch.linalg.vector_norm(update.delta.flat.double())) for update in kept)
    log = {
        "round": state.round,
        "loss": _mean_loss(kept),
        "bytes_up": up,
        "bytes_down": down,
        "seconds": seconds,
        "diagnostics": dict(diagnostics),
        "clients": [
            {"client": update.client, "weight": update.weight, **update.metrics} for update in updates
        ],
        "refused": [{"client": client, "reason": reason} for client, reason in sorted(reasons.items())],
    }
    moved = replace(
        standing,
        state=after,
        memories=memories,
        norms=(*standing.norms, *norms),
        up=standing.up + up,
        down=standing.down + down,
        seconds=standing.seconds + seconds,
    )
    return moved, log


def _mean_loss(updates: Sequence[ClientUpdate]) -> float:
    total = sum(update.weight for update in updates)
    return sum(update.weight * update.metrics.get("loss", 0.0) for update in updates) / total
