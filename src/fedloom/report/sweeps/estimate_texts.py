"""How tables of a sweep write estimates, counts of clients, and what is significant."""

from __future__ import annotations

from collections.abc import Sequence

from fedloom.report.significance import ClientCounts, Estimate
from fedloom.report.sweeps.sweep_results import SweepRun
from fedloom.report.tables import MISSING, percent, signed

BEST, SIGNIFICANT = "°", "*"
"""The marks of the highest score of a row, and of a difference whose interval excludes zero."""

ALIKE = "†"
"""The mark of an estimate for which all of several seeds gave the same value."""

ALIKE_NOTE = f"{ALIKE} all seeds gave the same value, so the interval over seeds has zero width; that does not make the value exact."


def estimate_text(estimate: Estimate | None, sign: str = "") -> str:
    """Write an estimate in percent, without spaces, so that no table breaks it.

    An interval of zero width is written as a mark, because ±0.0 would look exact.

    Example:
        >>> estimate_text(Estimate(0.5, 0.012, 3)), estimate_text(Estimate(0.05, None, 1), "+"), estimate_text(None)
        ('50.0±1.2', '+5.0', '—')
        >>> estimate_text(Estimate(1.0, 0.0, 3)), estimate_text(Estimate(1.0, 0.0002, 3))
        ('100.0†', '100.0±<0.1')
    """
    if estimate is None:
        return MISSING
    mean = signed(estimate.mean) if sign else percent(estimate.mean)
    if estimate.half is None:
        return mean
    if estimate.all_equal:
        return mean + ALIKE
    return f"{mean}±{percent(estimate.half) if estimate.half >= 0.0005 else '<0.1'}"


def add_legend(note: str, rows: Sequence[Sequence[str]]) -> str:
    """Add the meaning of `ALIKE` to a table's note if a cell has it."""
    return f"{note} {ALIKE_NOTE}".strip() if any(ALIKE in cell for row in rows for cell in row) else note


def counts_text(counts: ClientCounts) -> str:
    """Write the numbers of clients that are better, equally well and worse off; an em dash if they are unknown."""
    return f"{counts.better} / {counts.same} / {counts.worse}" if counts else MISSING


def corner(sweep: SweepRun) -> str:
    """Return the heading of the column that names settings."""
    return ", ".join(axis.rpartition(".")[2] for axis in sweep.settings).capitalize() or "Sweep"
