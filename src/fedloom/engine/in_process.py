"""Clients one after the other in this process, sharing one frozen model: the reference backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fedloom.algorithms.base import LocalRule
from fedloom.client.train import Place, TrainSettings, train_client
from fedloom.engine.rounds import Memories
from fedloom.tuning.adapters import Tuned
from fedloom.types import Broadcast, ClientUpdate, Conversation, Tensors


@dataclass(frozen=True)
class InProcess:
    """A backend that swaps each client's parameters into one model.

    Attributes:
        tuned: The model.
        rule: The algorithm's client half.
        conversations: Each client's rendered examples.
        settings: How clients train.
        seed: Names clients' random streams.
        trained: Called with every update, for progress.
    """

    tuned: Tuned
    rule: LocalRule
    conversations: Mapping[int, Sequence[Conversation]]
    settings: TrainSettings
    seed: int
    trained: Callable[[ClientUpdate], None]

    def map(
        self, broadcast: Broadcast, cohort: Sequence[int], round: int, memories: Memories
    ) -> Iterator[tuple[ClientUpdate, Tensors]]:
        """Train the cohort in client-id order."""
        for client in sorted(cohort):
            update, memory = train_client(
                self.tuned,
                self.rule,
                broadcast,
                memories.get(client, {}),
                self.conversations[client],
                self.settings,
                Place(self.seed, round, client),
            )
            self.trained(update)
            yield update, memory
