"""The entry of an algorithm, or of a part of one: its name, how it is made, and with which others it can be combined."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

KINDS = {
    "server": "an algorithm: how a round's updates change the global parameters",
    "aggregate": "how updates become one delta, in place of their mean",
    "wrapper": "a change of every update, or of their aggregate, before the server's step",
    "rule": "a change of how clients train",
    "pass": "a further pass over each client's data, for a model of its own",
    "stage": "a stage after the last round, in which each client trains a model of its own",
    "part": "which values each client holds, trains and reports",
    "personal": "which trainable parameters each client keeps to itself",
    "mix": "a model between each client's own and the shared one, with which the client is evaluated",
    "answers": "a change of how each client chooses between options; the shared model answers as without it",
    "prompt": "a change of what prompts say",
}
"""Kind → what an entry of this kind is."""

TRAITS = {
    "own aggregate": "its aggregate belongs to it",
    "whole vectors": "it is stated for whole vectors, which all clients report",
    "mixes": "it puts updates of several clients in place of each client's own",
    "a mean": "it is stated for a mean in which each client has its own share",
    "extras": "clients send more than their delta",
    "gradient": "it makes the gradient in its own way",
    "own model": "each client ends with a model of its own",
    "local model": "it also uses the model that each client trains alone",
    "no values": "neither parameters nor deltas travel",
    "noise": "it adds noise that hides a single client, or a single example, within a bound on its delta",
}
"""Trait → its meaning; traits decide which parts can be combined, see `fedloom.algorithms.compose.CONFLICTS`."""

GIVEN = ("clients", "cohort", "seed", "stage", "layout")
"""Names of keyword arguments without a default that a factory may have; fedloom gives their values."""


@dataclass(frozen=True)
class Entry:
    """A named algorithm, or a named part of one.

    Attributes:
        make: The factory. An experiment may set its keyword arguments that have defaults. Arguments without a default may be
            `clients` (number of all clients), `cohort` (clients in a round), `seed` (of the experiment), `stage` (number of
            the strategy's stage) and `layout` (names and shapes of what is trained); fedloom passes them. It returns a
            `FederatedAlgorithm` (server), an `Aggregate`, a `Change` (wrapper), a `LocalRule` (rule), a `Second` (pass), a
            `Final` (stage), a `Budget` (part), a `PersonalValues` (personal), an `Interpolation` (mix), or an `OwnAnswers` (answers).
        kind: A key of `KINDS`.
        label: The name of a bundled entry in tables and figures; others are shown with their name in the recipe.
        about: What the entry does, in one sentence for readers of a report.
        published: The arguments that `mode: published` uses where an experiment sets none.
        start: The start of the first round: "loaded", or "svd" for adapters computed from the weights that they adapt.
        traits: Keys of `TRAITS`.
        protects: The unit that its noise protects, "client" or "example", if the privacy ledger accounts for it; the factory
            then has arguments `noise` (multiplier) and `delta`.
        opts_out: Laws of `fedloom.testing` that do not hold for the entry, by name, each with the reason.

    Raises:
        ValueError: The kind or a trait is unknown.
    """

    make: Callable[..., Any]
    kind: str
    label: str = ""
    about: str = ""
    published: Mapping[str, Any] = field(default_factory=dict[str, Any])
    start: str = "loaded"
    traits: frozenset[str] = frozenset()
    protects: str = ""
    opts_out: Mapping[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"there is no kind {self.kind!r}; there are {', '.join(KINDS)}")
        if unknown := sorted(self.traits - TRAITS.keys()):
            raise ValueError(f"there is no trait {unknown[0]!r}; there are {', '.join(TRAITS)}")
