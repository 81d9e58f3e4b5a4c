"""Check the laws that every federated algorithm must keep, whatever its paper says.

    from fedloom.testing import check_algorithm
    check_algorithm(fedmedian)

No test framework is needed. fedloom's own algorithms are checked by the same functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fedloom.algorithms.algorithm import FederatedAlgorithm
from fedloom.algorithms.entry import Entry
from fedloom.algorithms.plugin_algorithms import as_entry
from fedloom.system.errors import UserError, client_failure
from fedloom.testing.laws import LAWS
from fedloom.testing.toy_clients import NAME, Bench

__all__ = ["KINDS", "LAWS", "Laws", "LawsBroken", "bench_of", "check_algorithm"]

KINDS = ("server", "aggregate", "wrapper", "rule")
"""Kinds of entries that have laws; all but algorithms are checked as they are added to FedAvg."""


class LawsBroken(AssertionError):
    """The error of an algorithm that breaks laws; the message names each and how it is broken."""


@dataclass(frozen=True)
class Laws:
    """The result of a check.

    Attributes:
        held: Names of the laws that hold.
        broken: Name of a law → how it is broken.
        opted_out: Name of a law → why the algorithm does not promise it.
    """

    held: tuple[str, ...]
    broken: Mapping[str, str]
    opted_out: Mapping[str, str]

    def __str__(self) -> str:
        rows = [f"{len(self.held)} laws hold"]
        rows += [f"broken: {name}: {LAWS[name].about} {reason}" for name, reason in self.broken.items()]
        rows += [f"not promised: {name}: {reason}" for name, reason in self.opted_out.items()]
        return "\n".join(rows)


def check_algorithm(
    algorithm: Entry | Callable[..., Any] | FederatedAlgorithm, clients: int = 3, **arguments: Any
) -> Laws:
    """Check an algorithm, or a part of one, against the laws in `LAWS`.

    Args:
        algorithm: An entry, a function that makes an algorithm, or an algorithm. The laws in `Entry.opts_out` are not checked.
        clients: Number of clients, ≥ 3, and as many as the algorithm needs.
        **arguments: The algorithm's arguments, as in an experiment.

    Returns:
        The laws that hold, and those that are not promised.

    Raises:
        LawsBroken: Some laws do not hold; the message names each and how it is broken.
        UserError: The algorithm cannot be made, is of a kind without laws, or opts out of a law that does not exist.

    Example:
        >>> from fedloom.algorithms.fedavg import fedavg
        >>> print(check_algorithm(fedavg, lr=0.5))
        15 laws hold
    """
    bench = bench_of(algorithm, clients, arguments)
    held, broken = list[str](), dict[str, str]()
    for name, law in LAWS.items():
        if name in bench.entry.opts_out or not law.applies(bench):
            continue
        try:
            law.check(bench)
        except AssertionError as error:
            broken[name] = str(error)
        except Exception as error:
            broken[name] = f"It raised {client_failure(error)}"
        else:
            held.append(name)
    laws = Laws(tuple(held), broken, bench.entry.opts_out)
    if broken:
        raise LawsBroken(str(laws))
    return laws


def bench_of(
    algorithm: Entry | Callable[..., Any] | FederatedAlgorithm, clients: int, arguments: Mapping[str, Any]
) -> Bench:
    """Return the bench on which laws are checked; see `check_algorithm`."""
    try:
        entry = as_entry(NAME, algorithm)
    except ValueError as error:
        raise UserError(f"check_algorithm: the algorithm {error}") from error
    if entry.kind not in KINDS:
        raise UserError(f"check_algorithm: there are no laws for a {entry.kind}, only for {', '.join(KINDS)}")
    if "no values" in entry.traits:
        raise UserError(
            "check_algorithm: it sends no values, and the laws are about the values that are sent"
        )
    if clients < 3:
        raise UserError(f"check_algorithm: clients is {clients}; it must be at least 3")
    if unknown := sorted(entry.opts_out.keys() - LAWS.keys()):
        raise UserError(f"opts_out: there is no law {unknown[0]!r}; there are {', '.join(LAWS)}")
    return Bench(entry, clients, arguments)
