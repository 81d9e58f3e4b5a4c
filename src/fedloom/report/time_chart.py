"""Where a method's time went, as stacked bars beside what a bare training loop would have taken."""

from __future__ import annotations

from collections.abc import Mapping

from markupsafe import Markup

from fedloom.report.charts import brief
from fedloom.report.run_results import Run, at, number
from fedloom.report.svg_elements import (
    clip,
    drawing,
    legend,
    line,
    measure,
    rect,
    scale,
    shift,
    tag,
    ticks,
    words,
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
"""What is drawn together: name in the legend → timers of the record."""

FLOOR = ("forward", "backward", "step")
"""Timers of what a bare loop over the same batches does as well."""


def timers(run: Run) -> dict[str, dict[str, float]]:
    """Return method → timer → seconds over the whole run, for methods whose rounds were timed."""
    found: dict[str, dict[str, float]] = {}
    for entry in run.rounds:
        for name, value in (at(entry, "timers") or {}).items():
            took = found.setdefault(entry["method"], {})
            took[name] = took.get(name, 0.0) + (number(value) or 0.0)
    for entry in run.evaluations:
        value = number(entry, "seconds")
        if entry["method"] in found and value is not None:
            took = found[entry["method"]]
            took["evaluate"] = took.get("evaluate", 0.0) + value
    return {method: found[method] for method in run.scores if method in found}


def time_bars(run: Run, width: float) -> Markup:
    """Draw a stacked bar of seconds for each method; a tick marks what a bare loop would have taken."""
    methods = timers(run)
    if not methods:
        return Markup()
    names = min(max(measure(brief(method)) for method in methods), 210) + 10
    totals = {method: sum(took.values()) for method, took in methods.items()}
    longest = max(totals.values()) or 1.0
    x = scale(0, longest, 0, width - names - 64)
    key, below = legend(
        [(rect(0, -9, 12, 10, f"tint t{place}"), name) for place, name in enumerate(GROUPS, start=1)]
        + [(line(6, -10, 6, 2, "mean"), "a bare loop's time")],
        width,
        mark=12,
    )
    row, bottom = 26.0, below + 12 + 26.0 * len(methods)
    body = [key]
    for mark in [mark for mark in ticks(0, longest, 5) if mark <= longest]:
        body.append(line(names + x(mark), below + 6, names + x(mark), bottom, "grid"))
        body.append(words(names + x(mark), bottom + 16, f"{mark:g} s", "muted", "middle"))
    for place, (method, took) in enumerate(methods.items()):
        top = below + 10 + row * place
        body.append(words(names - 10, top + 14, clip(brief(method), names), None, "end"))
        body.append(shift(names, top, _bar(method, took, x(1) - x(0))))
        body.append(words(names + x(totals[method]) + 6, top + 14, seconds(totals[method])))
    said = "; ".join(f"{label(method)}: {seconds(total)}" for method, total in totals.items())
    return drawing("Where the time went", f"In seconds. {said}.", width, bottom + 22, *body)


def _bar(method: str, took: Mapping[str, float], unit: float) -> Markup:
    pieces, left = [], 0.0
    for place, (name, parts) in enumerate(GROUPS.items(), start=1):
        value = sum(took.get(part, 0.0) for part in parts)
        piece = rect(left * unit, 2, value * unit, 17, f"tint t{place}")
        pieces.append(tag("g", tag("title", f"{label(method)}, {name.lower()}: {seconds(value)}"), piece))
        left += value
    floor = sum(took.get(part, 0.0) for part in FLOOR)
    pieces.append(line(floor * unit, -1, floor * unit, 22, "mean"))
    return Markup("").join(pieces)
