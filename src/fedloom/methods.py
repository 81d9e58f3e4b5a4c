"""What is compared: references and federated algorithms, with what is added to them, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fedloom.mistakes import unknown
from fedloom.types import UserError

ABOUT = {
    "zero-shot": "The model as it is, without any training.",
    "linear": "A linear classifier on edges, colors and words, trained on the clients' data pooled.",
    "local": "Each client trains alone; its figures are means over clients.",
    "centralised": "One training run on all data pooled: what federated training is measured against.",
    "+prompt": "Added to a trained method: FedMLLM's modality-agnostic prompt, or a variant of it.",
    "+adaptive": "Added to a trained method: FedMLLM's adaptive regulariser of the middle layers.",
}
"""What references and modifiers are, in one sentence each."""

REFERENCES = tuple(name for name in ABOUT if not name.startswith("+"))
MODIFIERS = tuple(name[1:] for name in ABOUT if name.startswith("+"))
_UNTRAINED = ("zero-shot", "linear")
DEFAULT_METHODS = (
    "zero-shot",
    "linear",
    "local",
    "fedavg",
    "fedadam",
    "fedavg+prompt+adaptive",
    "centralised",
)


PUBLISHED: Mapping[str, Mapping[str, bool | int | float]] = {
    "fedavg": {"published": True},
    "fedprox": {"published": True, "mu": 0.01},
    "fedavgm": {"published": True, "momentum": 0.9, "lr": 1.0},
    "fedadagrad": {"published": True, "lr": 1e-3, "tau": 1e-3},
    "fedyogi": {"published": True, "lr": 1e-3, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3},
    "fedadam": {"published": True, "lr": 1e-3, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3},
    "yoco": {"published": True},
    "adaptive": {"published": True, "mu": 0.01, "weight": 0.1, "skip": 4},
}
"""What `mode: published` takes for arguments that an experiment does not give: FedMLLM's code and its figures.

FedVLMBench (arXiv 2506.09638) has the same server optimisers with the same figures. Algorithms that are not
named here are the same in either mode.
"""

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
"""What `mode: published` takes for settings that an experiment does not give, section by section."""


class Method(NamedTuple):
    """A name in `methods`, taken apart.

    Attributes:
        base: A reference (one of `REFERENCES`) or a key of `fedloom.algorithms.ALGORITHMS`.
        modifiers: What is added to it, in the order of `MODIFIERS`.
    """

    base: str
    modifiers: tuple[str, ...] = ()

    @property
    def federated(self) -> bool:
        """Whether a server combines what clients learnt."""
        return self.base not in REFERENCES


def parse_method(name: str) -> Method:
    """Take a method name apart.

    Args:
        name: A reference or an algorithm, and for trained ones any of `MODIFIERS`, joined by `+`.

    Raises:
        UserError: The name is unknown, or a modifier is unknown, repeated, or has nothing to modify.

    Example:
        >>> parse_method("fedavg+adaptive+prompt")
        Method(base='fedavg', modifiers=('prompt', 'adaptive'))
    """
    base, *modifiers = name.split("+")
    # Naming the defaults here spares those who use them the import of the algorithms, and of torch with it.
    if base not in REFERENCES and all(base != default.split("+")[0] for default in DEFAULT_METHODS):
        names = [*REFERENCES, *algorithm_names()]
        if base not in names:
            raise UserError(unknown("method", base, names))
    for modifier in modifiers:
        if modifier not in MODIFIERS:
            raise UserError(unknown("modifier", modifier, MODIFIERS))
    if len(set(modifiers)) < len(modifiers):
        raise UserError(f'"{name}" names a modifier twice')
    if modifiers and base in _UNTRAINED:
        raise UserError(f'"{name}": {base} trains no adapter, so it takes no modifier')
    return Method(base, tuple(modifier for modifier in MODIFIERS if modifier in modifiers))


def algorithm_names() -> Sequence[str]:
    """Return the names of the federated algorithms; the import of torch is paid here."""
    from fedloom.algorithms import ALGORITHMS

    return tuple(ALGORITHMS)
