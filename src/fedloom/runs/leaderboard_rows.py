"""The leaderboard as a Python value: its rows as a table, and the runs that were left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedloom.report.leaderboard import Board, boards
from fedloom.runs.leaderboard_results import read_results
from fedloom.runs.typed_table import Table
from fedloom.system.errors import UserError
from fedloom.system.given_path import given_path


@dataclass(frozen=True, slots=True)
class Standing:
    """A method with its settings on the board of one question.

    Attributes:
        board: Number of the board, from 1; entries of different boards cannot be compared.
        question: The question of the board in words.
        metric: The name of the score.
        rank: The rank on the board, 1 for the highest mean score.
        entry: The id of the entry, which `fedloom reproduce` takes.
        method: The method.
        settings: Key → value of each setting of the method that differs from its default.
        score: The mean score over seeds on the test set, a fraction 0..1, but "cider" 0..10; None if it is undefined.
        low: Lower end of the 95 % interval: Student's over seeds, Wilson's over the questions for one seed; None if unknown.
        high: Upper end of it.
        seeds: The seeds.
        own_data: Mean score on data like each client's own; None if unknown.
        clients_better: Clients of all seeds that are better off than alone, on data like their own; None if unknown.
        clients_worse: Clients that are worse off; None if unknown.
        bytes: Bytes sent in both directions, mean over seeds; None if unknown.
        ahead: How far the score is ahead of the next rank's over common seeds; None for the last rank, and without such a seed.
        p: The p-value of that difference after Holm's correction over the board; None if it cannot be tested.
        significant: Whether it is significant at 5 %; None if it cannot be tested.
        runs: The run folders, in the order of `seeds`.
    """

    board: int
    question: str
    metric: str
    rank: int
    entry: str
    method: str
    settings: Mapping[str, Any]
    score: float | None
    low: float | None
    high: float | None
    seeds: tuple[int, ...]
    own_data: float | None
    clients_better: int | None
    clients_worse: int | None
    bytes: float | None
    ahead: float | None
    p: float | None
    significant: bool | None
    runs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SkippedRun:
    """A run that is on no board.

    Attributes:
        folder: The run folder.
        reason: Why it was left out.
    """

    folder: str
    reason: str


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """The boards of several runs.

    Attributes:
        rows: Every entry of every board.
        skipped: The runs that were left out.
    """

    rows: Table[Standing]
    skipped: Table[SkippedRun]


def leaderboard(folders: Sequence[Path | str] | Path | str) -> Leaderboard:
    """Rank the methods of finished runs; see `fedloom.leaderboard`."""
    given = [folders] if isinstance(folders, str | Path) else folders
    if not isinstance(given, Sequence) or not all(isinstance(folder, str | Path) for folder in given):
        raise UserError(f"folders: expected a folder or a list of folders, not {folders!r}")
    results, skipped = read_results([given_path(folder, "folders") for folder in given])
    left_out = (SkippedRun(str(folder), reason) for folder, reason in skipped)
    return Leaderboard(Table(Standing, _standings(boards(results))), Table(SkippedRun, left_out))


def _standings(found: Sequence[Board]) -> Iterator[Standing]:
    for number, board in enumerate(found, 1):
        for row in board.to_json()["entries"]:
            lead = row["ahead_of_next"] or {}
            yield Standing(
                board=number,
                question=board.about,
                metric=board.metric,
                rank=row["rank"],
                entry=row["entry"],
                method=row["method"],
                settings=row["settings"],
                score=row["score"],
                low=row["low"],
                high=row["high"],
                seeds=tuple(row["seeds"]),
                own_data=row["own_data"],
                clients_better=row["clients_better"],
                clients_worse=row["clients_worse"],
                bytes=row["bytes"],
                ahead=lead.get("difference"),
                p=lead.get("p"),
                significant=lead.get("significant"),
                runs=tuple(row["runs"]),
            )
