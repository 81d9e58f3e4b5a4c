"""The section of a report about validation: the source of the examples, the chosen rounds, and the scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from fedloom.report.charts import Curve, round_chart
from fedloom.report.run_results import Json, Run, at, number
from fedloom.report.tables import MISSING, Table, label, percent, title


def validation_text(run: Run) -> str:
    """Describe where the validation examples came from and how they were used; "" without any."""
    part = at(run.result, "validation")
    if not isinstance(part, dict):
        return ""
    count, source, without = number(part, "examples") or 0, part.get("from"), number(part, "without") or 0
    if source == "published":
        text = f"The owners' validation set of {count:,.0f} examples was not used for training."
    else:
        text = (
            f"{count:,.0f} training examples, a share of {source} of each client's, were held out for validation, "
            "so scores are not those of training on all examples."
        )
        text += f" {without:,.0f} of the clients had too few examples and kept them all." if without else ""
    if part.get("round") == "best":
        return (
            f"{text} Scores and the adapter are those of the round with the highest validation score, the mean over "
            "clients weighted by their numbers of validation examples; for each client that trains alone, the round is chosen separately."
        )
    return f"{text} Scores and the adapter are those of the last round; validation scores were not used to choose a round."


def validation_table(run: Run) -> Table | None:
    """Return the table of final validation scores, one row for each method; None without validation examples."""
    methods = _methods(run)
    rows = tuple(
        (label(method), _score(methods[method]), _rounds(at(methods[method], "rounds")))
        for method in run.scores
        if method in methods
    )
    note = f"{title(_metric(run))} in percent, on examples that are in neither the training nor the test set."
    return Table(("Method", "Validation", "Round"), rows, note) if rows else None


def validation_curves(run: Run) -> dict[str, Curve]:
    """Return method → (completed rounds, validation score), for methods that were validated after a round.

    The score is the mean over a method's models, weighted by their numbers of validation examples.
    """
    scores: dict[tuple[str, float], dict[str, tuple[float, float]]] = {}
    for line in run.of_kind("validation"):
        value, done, count = number(line, "score"), number(line, "round"), number(line, "examples")
        if value is not None and done and count:
            scores.setdefault((str(line.get("method")), done), {})[str(line.get("client"))] = (value, count)
    return {
        method: sorted((done, _mean(models)) for (name, done), models in scores.items() if name == method)
        for method in run.scores
        if any(method == name for name, _ in scores)
    }


def _mean(models: Mapping[str, tuple[float, float]]) -> float:
    total = sum(count for _, count in models.values())
    return sum(value * count for value, count in models.values()) / total


def curve_table(run: Run) -> Table | None:
    """Return the table of validation scores by round; None if no round was validated."""
    curves = {method: dict(points) for method, points in validation_curves(run).items()}
    rounds = sorted({done for points in curves.values() for done in points})
    rows = [(f"{done:.0f}", *(percent(points.get(done)) for points in curves.values())) for done in rounds]
    note = "Validation scores in percent after each evaluated round."
    return Table(("Round", *map(label, curves)), tuple(rows), note) if rows else None


def validation_chart(run: Run, width: float) -> Markup:
    """Draw validation scores by round; nothing if only one round was validated.

    A method without rounds, such as zero-shot, is a horizontal line. A ring marks the chosen round if it is the same
    for all models of a method.
    """
    lines = validation_curves(run)
    if len({done for points in lines.values() for done, _ in points}) < 2:
        return Markup()
    methods = _methods(run)
    ends = {method: number(methods, method, "score") for method in run.scores if method not in lines}
    levels = {method: value for method, value in ends.items() if value is not None}
    chosen: dict[str, float] = {}
    if at(run.result, "validation", "round") == "best":
        rounds = {method: _rounds(at(methods, method, "rounds")) for method in lines}
        chosen = {method: float(text) for method, text in rounds.items() if text.isdigit()}
    unit = " × 100" if _metric(run) == "cider" else ", %"
    description = f"{title(_metric(run))} on the validation set after each round"
    return round_chart(
        list(run.scores), lines, levels, width, title(_metric(run)) + unit, description, chosen
    )


def _metric(run: Run) -> str:
    """Return the name of the validation score."""
    return next((str(entry["metric"]) for entry in _methods(run).values() if entry.get("metric")), "accuracy")


def _methods(run: Run) -> dict[str, Json]:
    """Return method → final validation scores, for methods that have any."""
    methods = at(run.result, "validation", "methods")
    entries = methods if isinstance(methods, dict) else {}
    return {method: entry for method, entry in entries.items() if isinstance(entry, dict)}


def _score(entry: Json) -> str:
    value = number(entry, "score")
    return MISSING if value is None else percent(value)


def _rounds(rounds: Sequence[int] | None) -> str:
    """Write the chosen round, or the range of the clients' rounds."""
    if not rounds:
        return MISSING
    return str(rounds[0]) if len(set(rounds)) == 1 else f"{min(rounds)}–{max(rounds)}"
