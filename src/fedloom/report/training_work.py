"""The work of each method, counted in the record of a run, and a sentence on whether methods did equal work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import ceil
from pathlib import Path
from typing import NamedTuple

from fedloom.report.run_results import Json, at, number
from fedloom.report.tables import (
    MISSING,
    Table,
    base,
    bytes_sent,
    counted,
    is_federated,
    label,
    seconds,
    size,
)
from fedloom.run_log import read_lines
from fedloom.system.json_files import read_json
from fedloom.system.manifest import MANIFEST

EQUAL = 0.01
"""Methods whose numbers of examples differ by at most this share did equal work."""


class Work(NamedTuple):
    """What a method trained.

    Attributes:
        client_rounds: Rounds that clients trained, added over clients; for pooled data, the rounds.
        steps: Optimizer steps; None if they were not recorded for every client.
        examples: Examples that were trained on, each as often as it was seen; None in the same case.
    """

    client_rounds: int = 0
    steps: int | None = 0
    examples: int | None = 0

    def plus(self, other: Work) -> Work:
        """Add the work of another round or run."""
        return Work(
            self.client_rounds + other.client_rounds,
            None if self.steps is None or other.steps is None else self.steps + other.steps,
            None if self.examples is None or other.examples is None else self.examples + other.examples,
        )


NO_WORK: Mapping[str, Work] = {}
"""The work of a run without a record."""


def work_by_method(rounds: Iterable[Json], batch_size: float | None) -> dict[str, Work]:
    """Add up the work of each method.

    Args:
        rounds: The round lines of a record, each round once.
        batch_size: Examples in a batch, from which the passes over a client's examples are inferred.
    """
    total: dict[str, Work] = {}
    for entry in rounds:
        method = str(entry["method"])
        total[method] = total.get(method, Work()).plus(_work_of_round(entry, batch_size))
    return total


def _work_of_round(entry: Json, batch_size: float | None) -> Work:
    reports = at(entry, "clients")
    listed = reports if isinstance(reports, list) else []
    cohort = int(number(entry, "cohort") or len(listed))
    missing = at(entry, "missing")
    trained = max(cohort - len(missing if isinstance(missing, list) else []), len(listed))
    pairs = [(number(report, "steps"), number(report, "weight")) for report in listed]
    if trained > len(listed) or not listed or any(None in pair for pair in pairs) or not batch_size:
        return Work(trained, None, None)
    known = [(steps, size) for steps, size in pairs if steps is not None and size]
    examples = sum(size * steps / ceil(size / batch_size) for steps, size in known)
    return Work(trained, int(sum(steps for steps, _ in known)), round(examples))


def read_work(folder: Path) -> dict[str, Work]:
    """Count the work of each method in a run folder; an empty dict if its record or experiment is missing.

    A round that was repeated after a crash counts once.

    Raises:
        UserError: The record or the experiment is damaged.
    """
    record, file = folder / "record.jsonl", folder / "experiment.json"
    if not (record.is_file() and file.is_file()):  # results that were copied alone still make a page
        return {}
    experiment = read_json(file)
    rounds = {
        (line["method"], str(line.get("client")), line.get("round")): line
        for _, line in read_lines(record, checked=(folder / MANIFEST).exists())
        if line.get("kind") == "round" and isinstance(line.get("method"), str)
    }
    return work_by_method(rounds.values(), number(experiment, "train", "batch_size"))


def work_sentence(work: Mapping[str, Work], method: str | None) -> str:
    """Compare the work of a federated method with that of training alone and on pooled data; "" if it is unknown."""
    known = _compared(work, method)
    if not known:
        return ""
    if is_equal_work(work, method):
        return f"{_listing([label(name) for name in known])} did equal work: each was trained on {_examples(max(known.values()))}."
    texts = [f"{label(name)} {_work_text(name, work[name], count)}" for name, count in known.items()]
    return (
        f"The methods did not do equal work: {'; '.join(texts)}. A difference between their scores includes that of the "
        "work."
    )


def is_equal_work(work: Mapping[str, Work], method: str | None) -> bool:
    """Return whether the methods that `work_sentence` compares were trained on equally many examples."""
    counts = _compared(work, method).values()
    return bool(counts) and max(counts) - min(counts) <= EQUAL * max(counts)


def _compared(work: Mapping[str, Work], method: str | None) -> dict[str, int]:
    """Return method → examples for a federated method and the baselines that train; empty if there is nothing to compare."""
    others = [name for name in work if base(name) in ("local", "centralized")]
    compared = [name for name in (method, *others) if name is not None and name in work]
    known = {name: count for name in compared if (count := work[name].examples)}
    return known if method in known and len(known) > 1 else {}


def _examples(count: int) -> str:
    return f"{counted(count, 'example')} in all, repeats included"


def _work_text(method: str, done: Work, examples: int) -> str:
    rounds = counted(done.client_rounds, "client-round" if base(method) != "centralized" else "pooled round")
    return f"{counted(examples, 'example')} in {rounds}"


def _listing(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def work_cells(work: Mapping[str, Work], method: str) -> tuple[str, ...]:
    """Write a method's client-rounds, steps and examples; an em dash for what is unknown or does not apply."""
    done = work.get(method)
    if done is None:
        return (MISSING,) * 3
    rounds = f"{done.client_rounds:,}" if is_federated(method) or base(method) == "local" else MISSING
    return (rounds, *(MISSING if value is None else f"{value:,}" for value in done[1:]))


def cost_table(result: Json, work: Mapping[str, Work] = NO_WORK) -> Table:
    """Return the table of what each method trained, what it sent, and the time it took."""
    columns = (
        "Client-rounds",
        "Steps",
        "Examples",
        "Clients to server",
        "Server to clients",
        "Total",
        "Seconds",
    )
    rows = tuple(
        (
            label(method),
            *work_cells(work, method),
            size(number(result, "bytes", method, "up")),
            size(number(result, "bytes", method, "down")),
            size(bytes_sent(result, method)),
            seconds(number(result, "seconds", method)),
        )
        for method in result["scores"]
    )
    note = (
        "Client-rounds: rounds that clients trained, added over clients. Steps and examples: of all clients, each example as often "
        "as it was trained on; a second pass of a client in the same round, as some methods take, is not counted. "
        "1 MB = 1,000,000 bytes. Seconds are wall-clock time."
    )
    return Table(("Method", *columns), rows, note)
