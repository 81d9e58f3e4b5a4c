"""The methods that are compared: baselines and federated algorithms, with the parts that are added to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import NamedTuple

from fedloom.algorithms import COMPARED, ENTRIES, PLACES
from fedloom.algorithms.baselines import BASELINES
from fedloom.algorithms.entry import Entry
from fedloom.config.validation_errors import unknown_name
from fedloom.config.yaml_document import read_document
from fedloom.system.errors import UserError

UNTRAINED = ("zero-shot", "linear")
_ADDABLE: Mapping[str, tuple[str, ...]] = {
    "local": ("prompt", "rule", "stage", "answers"),
    "centralized": ("prompt", "rule", "answers"),
}
"""Baseline → the kinds of parts that can be added to it. Its trainings have one client each."""

AFTER_TRAINING = ("mix", "answers")
"""The kinds of parts that change how clients are evaluated, and nothing of the training."""

ORDER = (
    "prompt",
    "server",
    "aggregate",
    "wrapper",
    "rule",
    "pass",
    "stage",
    "part",
    "personal",
    "mix",
    "answers",
)
"""The kinds of parts in the order of `Method.parts`."""


@cache
def default_methods() -> tuple[str, ...]:
    """Return the methods that are compared by default: those of the recipe `default`."""
    text = resources.files("fedloom").joinpath("recipes/default.yaml").read_text(encoding="utf-8")
    return tuple(read_document(text, "default.yaml").value["methods"])


PUBLISHED_SETTINGS: Mapping[str, Mapping[str, str | float]] = {
    "scenario": {"mode": "published"},
    "strategy": {"dropout": 0.05},
    "train": {
        "sampler": "published",
        "schedule": "published",
        "local_schedule": "published",
        "beta2": 0.95,
    },
}
"""Section → values of `mode: published` for settings that an experiment does not give."""


class Method(NamedTuple):
    """A parsed name of `methods`.

    Attributes:
        base: A baseline (one of `BASELINES`) or the name of an algorithm.
        parts: The parts that are added to it, in the order of their kinds; parts of one kind in the order of the name.
    """

    base: str
    parts: tuple[str, ...] = ()

    @property
    def federated(self) -> bool:
        """Whether a server combines what clients learned."""
        return self.base not in BASELINES

    @property
    def composed(self) -> tuple[str, ...]:
        """The names of its algorithm and parts; a baseline trains by FedAvg over its only client."""
        return (self.base if self.federated else COMPARED, *self.parts)


ALONE = Method("local")
"""Training without anything that a server or a part adds to it."""


def parse_method(name: str, entries: Mapping[str, Entry] = ENTRIES) -> Method:
    """Parse the name of a method.

    Args:
        name: A baseline or an algorithm, and names of parts, joined by `+`.
        entries: Name → entry, of algorithms and parts.

    Raises:
        UserError: A name is unknown, a part is repeated or cannot be added, or two parts are incompatible.

    Example:
        >>> parse_method("fedavg+adaptive+prompt")
        Method(base='fedavg', parts=('prompt', 'adaptive'))
    """
    base, *parts = name.split("+")
    if base not in BASELINES and base not in entries:
        raise UserError(unknown_name("method", base, [*BASELINES, *_likely(entries, server=True)]))
    if base not in BASELINES and kind_of(base, entries) != "server":
        raise UserError(f'"{name}": {base} is added to an algorithm, for example {COMPARED}+{base}')
    for part in parts:
        if part not in entries:
            raise UserError(unknown_name("part", part, _likely(entries, server=False)))
        if kind_of(part, entries) == "server":
            raise UserError(f'"{name}": {part} is an algorithm of its own, and {base} is there already')
    if len(set(parts)) < len(parts):
        raise UserError(f'"{name}" names a part twice')
    _require_fitting(name, base, parts, entries)
    kinds = {part: kind_of(part, entries) for part in parts}
    method = Method(base, tuple(sorted(parts, key=lambda part: ORDER.index(kinds[part]))))
    # The default names are known to be right; skipping the check avoids the import of algorithms, and of torch.
    if name not in default_methods() and parts:
        from fedloom.algorithms.compose import conflicts

        for reason in conflicts(method.composed, entries):
            raise UserError(f'"{name}": {reason}')
    return method


def _require_fitting(name: str, base: str, parts: Sequence[str], entries: Mapping[str, Entry]) -> None:
    """Raise UserError if a part cannot be added to a baseline."""
    if parts and base in UNTRAINED:
        raise UserError(f'"{name}": {base} trains no adapter, so nothing can be added to it')
    if base not in BASELINES:
        return
    for part in parts:
        kind, traits = kind_of(part, entries), entries[part].traits
        if kind not in _ADDABLE[base]:
            reason = "it has no updates to combine" if base == "centralized" else "each client trains alone"
            raise UserError(f'"{name}": {part} cannot be added to {base}, for {reason}')
        if ("own model" in traits and kind != "stage") or ("local model" in traits and base == "local"):
            raise UserError(f'"{name}": {part} cannot be added to {base}, whose model is the client\'s own')


def _likely(entries: Mapping[str, Entry], *, server: bool) -> list[str]:
    """Return all algorithms, or all parts, and all entries of plug-ins, which are not imported to find out their kind."""
    return [name for name in entries if name not in PLACES or (PLACES[name].kind == "server") is server]


def training_of(method: Method, entries: Mapping[str, Entry] = ENTRIES) -> Method:
    """Return a method without the parts that change nothing of its training.

    Example:
        >>> training_of(parse_method("fedavg+finetune+prior"))
        Method(base='fedavg', parts=('finetune',))
    """
    return method._replace(
        parts=tuple(part for part in method.parts if kind_of(part, entries) not in AFTER_TRAINING)
    )


def kind_of(name: str, entries: Mapping[str, Entry] = ENTRIES) -> str:
    """Return the kind of an entry, without importing it if it is fedloom's own."""
    return PLACES[name].kind if name in PLACES else entries[name].kind
