"""The main figures of a report: scores on the global test set beside those on clients' own data, and clients' gains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from fedloom.report.axis_ticks import percent_ticks, point_ticks
from fedloom.report.charts import NARROW, Scale, color_style, short_label
from fedloom.report.client_verdicts import Verdict, own_mean
from fedloom.report.confidence_intervals import interval
from fedloom.report.federation_gain import main_score, tasks_in
from fedloom.report.findings import independent, is_share_of_questions
from fedloom.report.run_results import Json, Run, number
from fedloom.report.shared_scores import for_everybody, shared_model
from fedloom.report.site_scores_table import is_tested_at_sites
from fedloom.report.svg_elements import clip, drawing, line, row_name, scale, shift, tag, text, text_width
from fedloom.report.tables import label, percent, signed
from fedloom.report.verdict_tables import interval_text, name_in

ROW, HEAD, FOOT, GAP = 24.0, 26.0, 26.0, 54.0  # pixels; GAP is right of a panel and has the figure of a row
Titles = tuple[str, str]
"""What the two panels of an overview are called."""

HERE: Titles = ("Global test set", "Data like each client's own")
AT_SITES: Titles = ("Shared model at the sites", "Each site's own model")
"""Titles where sites test models: both panels are on their own test parts."""


class Mark(NamedTuple):
    """A score with the ends of its 95 % confidence interval, which are None if it is unknown."""

    value: float
    low: float | None = None
    high: float | None = None


class Row(NamedTuple):
    """A row of an overview: a name, the method that gives it its color, and a mark or None for each panel.

    With `own`, the figure on everybody's questions is a mean over clients' own models, as there is no shared one.
    """

    name: str
    method: str
    marks: tuple[Mark | None, ...]
    own: bool = False


def run_overview(run: Run, width: float) -> Markup:
    """Draw each method's score on the global test set and on clients' own data; nothing for a run of several tasks."""
    if len(tasks_in(run.result)) > 1:
        return Markup()
    rows = [
        Row(short_label(name), name, run_marks(run, name), shared_model(scores) is None)
        for name, scores in run.scores.items()
    ]
    return overview(rows, list(run.scores), width, panel_titles(run.result))


def panel_titles(result: Json) -> Titles:
    """Return the titles of the panels for a run's result."""
    return AT_SITES if is_tested_at_sites(result) else HERE


def run_marks(run: Run, method: str) -> tuple[Mark | None, Mark | None]:
    """Return a method's main score on the global test set and on clients' own data, with intervals for the questions.

    On the global test set it is that of the shared model, if there is one. The mean over the clients' own models is treated as one share, although its answers vary less; its interval is too wide
    rather than too narrow.
    """
    scores, tasks = run.scores[method], tasks_in(run.result)
    own = number(run.result, "independent_questions", "own", tasks[0]) if tasks else None
    shared = independent(run.result, run.questions(run.fullest_slice))
    is_share = is_share_of_questions(run.result)
    return (
        _mark(number(for_everybody(scores), main_score(run.result)), shared if is_share else None),
        _mark(own_mean(scores), own if is_share else None),
    )


def _mark(value: float | None, questions: float | None) -> Mark | None:
    if value is None:
        return None
    if not questions or not 0 <= value <= 1:
        return Mark(value)
    return Mark(value, *interval(value, questions))


def overview(rows: Sequence[Row], methods: Sequence[str], width: float, titles: Titles = HERE) -> Markup:
    """Draw a dot with its interval for each row and panel; nothing without a score.

    Args:
        rows: The rows.
        methods: All methods, which determine the colors.
        width: In CSS pixels; below `NARROW` panels are stacked.
        titles: The titles of the panels.
    """
    shown = [panel for panel in (0, 1) if any(row.marks[panel] for row in rows)]
    ends = [end for row in rows for mark in row.marks if mark for end in mark if end is not None]
    if not ends:
        return Markup()
    wide = width >= NARROW
    left = min(max(text_width(row.name) for row in rows), 180.0) + 12
    across = len(shown) if wide else 1
    room = (width - left) / across - GAP
    marks = percent_ticks(max(min(ends) - 0.02, 0.0), min(max(ends) + 0.02, max(1.0, *ends)), 6)
    x = scale(min(*ends, marks[0][0]), max(*ends, marks[-1][0]), 0, room)
    tall, body = HEAD + ROW * len(rows) + FOOT, list[Markup]()
    for place, panel in enumerate(shown):
        at = (left + place * (room + GAP), 0.0) if wide else (left, place * (tall + 12))
        body.append(shift(*at, _panel(rows, panel, titles[panel], methods, x, marks)))
        if place == 0 or not wide:
            body += [
                row_name(left - 12, at[1] + HEAD + ROW * k + 12, row.name, left - 12)
                for k, row in enumerate(rows)
            ]
    height = tall if wide else (tall + 12) * len(shown) - 12
    described = "; ".join(
        f"{row.name}: "
        + ", ".join(f"{titles[k].lower()} {_words(mark)}" for k, mark in enumerate(row.marks) if mark)
        for row in rows
    )
    return drawing("Scores of the methods", f"In percent. {described}.", width, height, *body)


def _words(mark: Mark) -> str:
    bounds = "" if mark.low is None else f" ({percent(mark.low)} to {percent(mark.high)})"
    return f"{percent(mark.value)}{bounds}"


def _panel(
    rows: Sequence[Row],
    panel: int,
    title: str,
    methods: Sequence[str],
    x: Scale,
    marks: Sequence[tuple[float, str]],
) -> Markup:
    bottom = HEAD + ROW * len(rows)
    pieces = [text(0, 12, title, "strong")]
    pieces += [line(x(mark), HEAD - 4, x(mark), bottom, "grid") for mark, _ in marks]
    pieces += [text(x(mark), bottom + 17, name, "muted", "middle") for mark, name in marks]
    for k, row in enumerate(rows):
        y, mark = HEAD + ROW * k + 12, row.marks[panel]
        if mark is None:
            pieces.append(text(4, y + 4, "—", "muted"))
            continue
        style, end = color_style(row.method, methods), x(mark.value) + 6
        drawn = [tag("title", f"{row.name}: {_words(mark)}")]
        if mark.low is not None and mark.high is not None:
            drawn.append(line(x(mark.low), y, x(mark.high), y, "band"))
            end = max(x(mark.high), end)
        class_ = "hollow" if row.own and panel == 0 else "dot"
        drawn.append(tag("circle", cx=x(mark.value), cy=y, r=4.5, class_=class_))
        pieces += [tag("g", *drawn, style=style), text(end + 6, y + 4, percent(mark.value))]
    return Markup("").join(pieces)


def gain_chart(verdict: Verdict, names: Sequence[str], methods: Sequence[str], width: float) -> Markup:
    """Draw each client's gain over its own model with its interval, the largest first.

    Args:
        verdict: The verdict on the method.
        names: The clients' names; clients without one are left out.
        methods: All methods, which determine the color.
        width: In CSS pixels.
    """
    gains = sorted(
        (gain for gain in verdict.gains if gain.client < len(names)), key=lambda g: (-g.points, g.client)
    )
    if not gains:
        return Markup()
    left = min(max(text_width(name_in(names, gain.client)) for gain in gains), 140.0) + 12
    ends = [0.0, *(end for gain in gains for end in (gain.points, *(gain.interval or ())))]
    marks = point_ticks(min(ends), max(ends), 7 if width >= NARROW else 5)
    x = scale(marks[0][0], marks[-1][0], left, width - 56)
    step = 22.0
    bottom = 8 + step * len(gains)
    body = [line(x(mark), 4, x(mark), bottom, "grid" if mark else "axis") for mark, _ in marks]
    body += [text(x(mark), bottom + 17, name, "muted", "middle") for mark, name in marks]
    body.append(
        text(
            (left + width - 56) / 2,
            bottom + 36,
            "Gain over the client's own model, points",
            "muted",
            "middle",
        )
    )
    clear = {*(verdict.gained or ()), *(verdict.lost or ())}
    for k, gain in enumerate(gains):
        y, name = 8 + step * (k + 0.5), name_in(names, gain.client)
        drawn = [tag("title", f"{name}: {interval_text(gain.points, gain.interval)} points")]
        end = x(gain.points) + 5
        if gain.interval is not None:
            drawn.append(line(x(gain.interval[0]), y, x(gain.interval[1]), y, "band"))
            end = max(x(gain.interval[1]), end)
        class_ = "dot" if gain.client in clear else "hollow"
        drawn.append(tag("circle", cx=x(gain.points), cy=y, r=4.5, class_=class_))
        body.append(text(left - 12, y + 4, clip(name, left - 12), None, "end"))
        body += [tag("g", *drawn, style=color_style(verdict.method, methods))]
        body.append(text(end + 6, y + 4, signed(gain.points)))
    described = "; ".join(f"{name_in(names, g.client)} {interval_text(g.points, g.interval)}" for g in gains)
    return drawing(
        f"Gain of each client with {label(verdict.method)}",
        f"In points. {described}.",
        width,
        bottom + 44,
        *body,
    )
