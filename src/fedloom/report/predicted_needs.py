"""What a run was predicted to need before it trained anything, beside what it did need."""

from __future__ import annotations

from fedloom.report.run_results import Json, Run, at, number
from fedloom.report.tables import MISSING, Table, seconds, size
from fedloom.system.terminal import one_line

PARTS = {"features": "Features of images, s", "training": "Training, s", "evaluation": "Evaluation, s"}
"""Part of a predicted wall time → its name in the table."""


def predicted_table(run: Run) -> Table | None:
    """Return the table of predicted and measured needs; None for a run without a prediction.

    The prediction is the line "plan" of the run's log, which is written once, before the first training step.
    """
    plan, end = _first(run, "plan"), (run.of_kind("end") or [None])[-1]
    if plan is None or end is None or "failed" in plan:
        return None
    spent = _seconds_by_part(run)
    expected = {part: number(plan, "seconds", part) for part in PARTS}
    known = [value for value in expected.values() if value is not None]
    rows = [
        ("Peak memory", size(number(plan, "peak_bytes")), size(number(end, "peak_bytes"))),
        *((name, seconds(expected[part]), seconds(spent[part])) for part, name in PARTS.items()),
        ("Wall time, s", seconds(sum(known) if known else None), seconds(number(end, "seconds"))),
        ("Messages", size(_sent(at(plan, "bytes"))), size(_sent(_measured_bytes(run, plan)))),
    ]
    shown = tuple(row for row in rows if row[1] != MISSING or row[2] != MISSING)
    note = (
        "Predicted at the start of the run from shapes, examples and the speed of a matrix product, as the command fedloom plan "
        "does. The predicted wall time leaves out the loading of libraries, data and model, and counts features of images that the "
        "cache holds. Peak memory is that of the main process."
    )
    if len(run.of_kind("start")) > 1:
        note += " The run was resumed: measured wall time and peak memory are those of its last part."
    return Table(("Need", "Predicted", "Measured"), shown, note)


def failed_prediction(run: Run) -> str:
    """Return why a run's needs could not be predicted, as a sentence; "" if they could, or if nobody tried."""
    plan = _first(run, "plan")
    if plan is None or "failed" not in plan:
        return ""
    return f"What the run would need could not be predicted: {one_line(str(plan['failed'])).rstrip('.')}."


def _first(run: Run, kind: str) -> Json | None:
    return next(iter(run.of_kind(kind)), None)


def _seconds_by_part(run: Run) -> dict[str, float]:
    """Return the measured seconds of each part, added over methods; a repeated round counts once."""
    asked = [*run.evaluations, *run.of_kind("shared"), *run.of_kind("validation")]
    lines = {"features": run.of_kind("vision"), "training": run.rounds, "evaluation": asked}
    return {part: sum(number(line, "seconds") or 0.0 for line in found) for part, found in lines.items()}


def _measured_bytes(run: Run, plan: Json) -> Json:
    sent = at(run.result, "bytes") or {}
    return {method: sent.get(method) for method in at(plan, "bytes") or {}}


def _sent(by_method: Json | None) -> float | None:
    """Return the bytes of all messages of methods, both ways; None if those of one are unknown."""
    values = [number(sent, way) for sent in (by_method or {}).values() for way in ("up", "down")]
    return sum(value for value in values if value is not None) if values and None not in values else None
