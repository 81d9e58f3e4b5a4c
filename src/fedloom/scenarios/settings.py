"""What a scenario needs to be told: the `scenario` section of an experiment, as far as it is read here."""

from __future__ import annotations

from typing import Protocol

FIELDS = (
    "mode", "clients", "partition", "alpha", "repair", "pattern", "rate", "lose_all", "image_clients", "p",
)  # fmt: skip


class ScenarioSettings(Protocol):
    """The `scenario` section of an experiment."""

    @property
    def mode(self) -> str:
        """corrected, or published: draw for draw what the published code does, see `published`."""
        ...

    @property
    def clients(self) -> int:
        """Number of clients K, at least 1."""
        ...

    @property
    def partition(self) -> str:
        """A key of `PARTITIONS`."""
        ...

    @property
    def alpha(self) -> float:
        """Concentration of the Dirichlet partition, > 0."""
        ...

    @property
    def repair(self) -> str | None:
        """In published mode, whose labels every client gets one example of: first is the first; else each."""
        ...

    @property
    def pattern(self) -> str:
        """A key of `PATTERNS`."""
        ...

    @property
    def rate(self) -> float:
        """For `missing`: probability that an example loses a modality, each by itself, 0 ≤ rate ≤ 1."""
        ...

    @property
    def lose_all(self) -> bool:
        """For `missing` in corrected mode: whether an example may lose both modalities."""
        ...

    @property
    def image_clients(self) -> int | None:
        """For `cross`: number of image-only clients; None for half of them, rounded down."""
        ...

    @property
    def p(self) -> float:
        """For `hybrid`: probability that a client holds a modality, 0 ≤ p ≤ 1."""
        ...
