"""What a report tells of the validation part: where it came from, what was chosen by it, and its scores."""

from __future__ import annotations

from collections.abc import Sequence

from fedloom.report.records import Json, Run, at, number
from fedloom.report.tables import MISSING, Table, label, percent, title


def validation_told(run: Run) -> str:
    """Say where the validation part came from and what was chosen by it; "" without one."""
    part = at(run.result, "validation")
    if not isinstance(part, dict):
        return ""
    count, source, without = number(part, "examples") or 0, part.get("from"), number(part, "without") or 0
    if source == "published":
        told = f"The owners' validation part of {count:,.0f} examples was not trained on."
    else:
        told = (
            f"{count:,.0f} training examples, a share of {source} of each client's, were kept out for validation and not "
            "trained on, so scores are not those of training on all examples."
        )
        told += f" {without:,.0f} of the clients had too few examples and kept them all." if without else ""
    if part.get("round") == "best":
        return (
            f"{told} Scores and the adapter are those of the round with the highest validation score, the mean over "
            "clients weighted by their numbers of validation examples; each client that trains alone has a round of its own."
        )
    return f"{told} Scores and the adapter are those of the last round; validation chose nothing in this run."


def validation_table(run: Run) -> Table | None:
    """Make the table of final validation scores, one row a method; None without a validation part."""
    methods = at(run.result, "validation", "methods")
    if not isinstance(methods, dict):
        return None
    rows = tuple(
        (label(method), _score(methods[method]), _rounds(at(methods[method], "rounds")))
        for method in run.scores
        if isinstance(methods.get(method), dict)
    )
    metric = next((str(at(one, "metric")) for one in methods.values() if at(one, "metric")), "accuracy")
    note = f"{title(metric)} in percent, on examples that were neither trained nor tested on."
    return Table(("Method", "Validation", "Round"), rows, note) if rows else None


def validation_curves(run: Run) -> Table | None:
    """Make the table of validation scores by round: the mean over models, weighted by their numbers of examples."""
    found: dict[tuple[str, int], dict[str, tuple[float, float]]] = {}
    for line in run.of_kind("validation"):
        value, done, count = number(line, "score"), number(line, "round"), number(line, "examples")
        method = str(line.get("method"))
        if value is not None and done and count and method in run.scores:
            found.setdefault((method, int(done)), {})[str(line.get("client"))] = (value, count)
    rounds = sorted({done for _, done in found})
    methods = [method for method in run.scores if any(method == one for one, _ in found)]
    if not rounds:
        return None
    rows = [(str(done), *(_mean(found.get((method, done))) for method in methods)) for done in rounds]
    note = "Validation scores in percent after each round that was evaluated."
    return Table(("Round", *map(label, methods)), tuple(rows), note)


def _mean(models: dict[str, tuple[float, float]] | None) -> str:
    if not models:
        return MISSING
    total = sum(count for _, count in models.values())
    return percent(sum(value * count for value, count in models.values()) / total)


def _score(found: Json) -> str:
    value = number(found, "score")
    return MISSING if value is None else percent(value)


def _rounds(found: Sequence[int] | None) -> str:
    """Write the round, or the smallest and the largest of clients' own."""
    if not found:
        return MISSING
    return str(found[0]) if len(set(found)) == 1 else f"{min(found)}–{max(found)}"
