"""A chart of the time that each method took, by step, next to the time of a bare training loop."""

from __future__ import annotations

from collections.abc import Mapping

from markupsafe import Markup

from fedloom.report.charts import short_label
from fedloom.report.run_results import Run, at, number
from fedloom.report.svg_elements import (
    drawing,
    legend,
    line,
    rect,
    row_name,
    scale,
    shift,
    tag,
    text,
    text_width,
    ticks,
)
from fedloom.report.tables import label, seconds

GROUPS: dict[str, tuple[str, ...]] = {
    "Forward": ("forward",),
    "Backward": ("backward",),
    "Optimizer step": ("step",),
    "Batches and images": ("data", "vision"),
    "Loading clients": ("load",),
    "Aggregation": ("aggregate", "wire"),
    "Evaluation": ("evaluate",),
}
"""Name in the legend → timers of the record that are added up."""

FLOOR = ("forward", "backward", "step")
"""Timers of the steps that a bare loop over the same batches also takes."""


def seconds_by_timer(run: Run) -> dict[str, dict[str, float]]:
    """Return method → timer → seconds over the whole run, for methods whose rounds were timed."""
    totals: dict[str, dict[str, float]] = {}
    for entry in run.rounds:
        for name, value in (at(entry, "timers") or {}).items():
            timers = totals.setdefault(entry["method"], {})
            timers[name] = timers.get(name, 0.0) + (number(value) or 0.0)
    for entry in run.evaluations:
        value = number(entry, "seconds")
        if entry["method"] in totals and value is not None:
            timers = totals[entry["method"]]
            timers["evaluate"] = timers.get("evaluate", 0.0) + value
    return {method: totals[method] for method in run.scores if method in totals}


def time_bars(run: Run, width: float) -> Markup:
    """Draw a stacked bar of seconds for each method; a tick marks the time of a bare loop."""
    methods = seconds_by_timer(run)
    if not methods:
        return Markup()
    names = min(max(text_width(short_label(method)) for method in methods), 210) + 10
    totals = {method: sum(timers.values()) for method, timers in methods.items()}
    longest = max(totals.values()) or 1.0
    x = scale(0, longest, 0, width - names - 64)
    key, below = legend(
        [(rect(0, -9, 12, 10, f"tint t{index}"), name) for index, name in enumerate(GROUPS, start=1)]
        + [(line(6, -10, 6, 2, "mean"), "a bare loop's time")],
        width,
        mark=12,
    )
    row, bottom = 26.0, below + 12 + 26.0 * len(methods)
    body = [key]
    for mark in [mark for mark in ticks(0, longest, 5) if mark <= longest]:
        body.append(line(names + x(mark), below + 6, names + x(mark), bottom, "grid"))
        body.append(text(names + x(mark), bottom + 16, f"{mark:g} s", "muted", "middle"))
    for index, (method, timers) in enumerate(methods.items()):
        top = below + 10 + row * index
        body.append(row_name(names - 10, top + 10, short_label(method), names - 10))
        body.append(shift(names, top, _bar(method, timers, x(1) - x(0))))
        body.append(text(names + x(totals[method]) + 6, top + 14, seconds(totals[method])))
    description = "; ".join(f"{label(method)}: {seconds(total)}" for method, total in totals.items())
    return drawing("Where the time went", f"In seconds. {description}.", width, bottom + 22, *body)


def _bar(method: str, timers: Mapping[str, float], unit: float) -> Markup:
    pieces, left = [], 0.0
    for index, (name, parts) in enumerate(GROUPS.items(), start=1):
        value = sum(timers.get(part, 0.0) for part in parts)
        piece = rect(left * unit, 2, value * unit, 17, f"tint t{index}")
        pieces.append(tag("g", tag("title", f"{label(method)}, {name.lower()}: {seconds(value)}"), piece))
        left += value
    floor = sum(timers.get(part, 0.0) for part in FLOOR)
    pieces.append(line(floor * unit, -1, floor * unit, 22, "mean"))
    return Markup("").join(pieces)
