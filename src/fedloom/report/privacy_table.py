"""The tables of what each client's rounds spent of its privacy, for methods that add noise."""

from __future__ import annotations

from collections.abc import Sequence
from math import isinf
from typing import Any

from fedloom.report.run_results import Json, at, number
from fedloom.report.tables import MISSING, Table, label, part_label

MAX_ROWS = 40
"""Clients that get a row; result.json has all."""

COVERED = {
    "client": "Unit: a client, whose change is replaced by zero. Covered: the shared model after every round, if the server is trusted. "
    "Not covered: the mean losses and numbers of examples in the record, which updates are refused, and clients' own models.",
    "example": "Unit: a training example, whose gradient is replaced by zero. Covered: all updates of the client, toward the server "
    "too. Not covered: the mean losses and numbers of examples that clients report, and models that stay with clients.",
}
ALWAYS = (
    "Cohorts of a fixed size amplify nothing. The noise is pseudo-random: whoever knows the experiment's seed can subtract it. A "
    "round that was chosen by a validation score depends on the validation examples too."
)


def privacy_tables(result: Json, named: Sequence[str]) -> list[tuple[str, Table]]:
    """Return the title and the table of each ledger of a run; none for runs without noise.

    Args:
        result: The content of `result.json`.
        named: The clients' names; later clients are named by their numbers.
    """
    ledgers = at(result, "privacy") or {}
    return [
        (
            label(method) if len(parts) == 1 else f"{label(method)}: {part_label(one['part'])}",
            _table(one, named),
        )
        for method, parts in ledgers.items()
        for one in parts
    ]


def _table(ledger: Json, named: Sequence[str]) -> Table:
    rows = tuple(
        (
            _name(row["client"], named),
            f"{len(row['rounds']):,}",
            f"{row['releases'][-1]:,}" if row["releases"] else "0",
            _epsilon(row["epsilon"]),
        )
        for row in ledger["clients"][:MAX_ROWS]
    )
    hidden = len(ledger["clients"]) - len(rows)
    notes = [
        f"Noise multiplier {ledger['noise']:g}, δ = {ledger['delta']:g}. T releases are one Gaussian mechanism with μ = √T / noise "
        "multiplier.",
        COVERED[ledger["unit"]],
        ALWAYS,
        f"{hidden:,} more clients are in result.json." if hidden else "",
    ]
    return Table(("Client", "Rounds", "Releases", "ε"), rows, " ".join(filter(None, notes)))


def _name(client: Any, named: Sequence[str]) -> str:
    if client is None:
        return "any client"
    return str(named[client] if client < len(named) else client)


def _epsilon(values: Sequence[float | None]) -> str:
    """Write the last ε, rounded up; without noise it is infinite, which JSON has as null.

    Example:
        >>> _epsilon([1.0, 4.3772]), _epsilon([None]), _epsilon([])
        ('4.378', '∞', '—')
    """
    return epsilon_text(number(values, len(values) - 1)) if values else MISSING


def epsilon_text(value: float | None) -> str:
    """Write an ε, rounded up; None, which JSON has for an infinite one, is infinite too."""
    return "∞" if value is None or isinf(value) else f"{-(-value * 1000 // 1) / 1000:,.3f}"
