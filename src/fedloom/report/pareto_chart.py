"""A chart of quality against traffic, with the methods that no other beats in both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import floor, log10

from markupsafe import Markup

from fedloom.report.axis_ticks import percent_ticks
from fedloom.report.charts import BOLD, NARROW, axis_title, color_style, full_score, short_label
from fedloom.report.run_results import Run
from fedloom.report.svg_elements import Point, clip, drawing, line, path, scale, spread, tag, text, text_width
from fedloom.report.tables import bytes_sent, label, percent, size


def pareto_front(points: Mapping[str, Point]) -> list[str]:
    """Return the methods that no other beats: none sends as little and scores higher, or sends less and scores as high.

    Args:
        points: Method → (bytes, score).

    Returns:
        The methods in the order of their bytes.

    Example:
        >>> pareto_front({"a": (10.0, 0.5), "b": (20.0, 0.7), "c": (30.0, 0.6), "d": (20.0, 0.6)})
        ['a', 'b']
    """

    def is_beaten(method: str) -> bool:
        sent, score = points[method]
        return any(
            other_sent <= sent and other >= score and (other_sent, other) != (sent, score)
            for other_sent, other in points.values()
        )

    return sorted((method for method in points if not is_beaten(method)), key=lambda method: points[method])


def run_pareto(run: Run, width: float) -> Markup:
    """Draw the main score of a run's methods against the bytes that they sent; nothing for fewer than two that sent any."""
    sent = {method: bytes_sent(run.result, method) for method in run.scores}
    values = {method: full_score(run, method) for method in run.scores}
    points = {
        method: (count, value)
        for method, count in sent.items()
        if count and (value := values[method]) is not None
    }
    levels = {m: value for m, value in values.items() if sent[m] == 0 and value is not None}
    return pareto_chart(points, levels, list(run.scores), width, axis_title(run))


def pareto_chart(
    points: Mapping[str, Point],
    levels: Mapping[str, float],
    methods: Sequence[str],
    width: float,
    axis: str,
) -> Markup:
    """Draw scores against bytes on a logarithmic scale; nothing for fewer than two points.

    Args:
        points: Method → (bytes > 0, score), drawn as a dot.
        levels: Method that sends nothing → score, drawn as a horizontal line.
        methods: All methods, which determine the colors.
        width: In CSS pixels.
        axis: Name and unit of the score.
    """
    if len(points) < 2:
        return Markup()
    names = {method: f"{short_label(method)} {percent(value)}" for method, value in levels.items()}
    names |= {method: short_label(method) for method in points}
    left, top, wide = 44.0, 30.0, width >= NARROW
    right = width - (min(max(text_width(name, BOLD) for name in names.values()), 235.0) + 24 if wide else 16)
    bottom = top + (260 if wide else 220)
    values = [*(value for _, value in points.values()), *levels.values()]
    marks = percent_ticks(min(values) - 0.01, min(max(values) + 0.01, max(1.0, *values)), 6)
    counts = [log10(count) for count, _ in points.values()]
    margin = max(0.1 * (max(counts) - min(counts)), 0.05)
    y = scale(marks[0][0], max(marks[-1][0], *values), bottom, top)
    x = scale(min(counts) - margin, max(counts) + margin, left, right)
    body = [text(0, 12, axis, "muted")]
    body += [line(left, y(mark), right, y(mark), "grid") for mark, _ in marks]
    body += [text(left - 6, y(mark) + 4, name, "muted", "end") for mark, name in marks]
    for count in _decimal_ticks(min(counts) - margin, max(counts) + margin):
        body += [line(x(log10(count)), top, x(log10(count)), bottom, "grid")]
        body += [text(x(log10(count)), bottom + 18, size(count), "muted", "middle")]
    body.append(text((left + right) / 2, bottom + 38, "Bytes sent in both directions", "muted", "middle"))
    body += [
        line(
            left,
            y(value),
            right,
            y(value),
            "line",
            style=color_style(method, methods),
            stroke_dasharray="4 3",
        )
        for method, value in levels.items()
    ]
    front = [(x(log10(points[m][0])), y(points[m][1])) for m in pareto_front(points)]
    steps = [
        step
        for one, other in zip(front, front[1:], strict=False)
        for step in (one, (other[0], one[1]), other)
    ]
    body.append(path([steps], "axis", fill="none"))
    body += [
        _dot(method, *points[method], x(log10(points[method][0])), y(points[method][1]), methods)
        for method in points
    ]
    if wide:
        ends = {**{method: y(points[method][1]) for method in points}, **{m: y(v) for m, v in levels.items()}}
        for (method, _), moved in zip(
            ends.items(), spread(list(ends.values()), 16, top, bottom), strict=True
        ):
            start = x(log10(points[method][0])) + 6 if method in points else right
            leader = path([[(start, ends[method]), (right + 10, moved)]], "leader")
            named = text(right + 14, moved + 4, clip(names[method], 235, BOLD), "name")
            body.append(tag("g", leader, named, style=color_style(method, methods)))
    else:
        body += [
            text(x(log10(count)), y(value) - 9, clip(short_label(method), 110), None, "middle")
            for method, (count, value) in points.items()
        ]
    described = "; ".join(f"{label(m)} {percent(v)} with {size(count)}" for m, (count, v) in points.items())
    return drawing("Quality against traffic", f"In percent. {described}.", width, bottom + 44, *body)


def _dot(method: str, count: float, value: float, x: float, y: float, methods: Sequence[str]) -> Markup:
    tooltip = tag("title", f"{label(method)}: {percent(value)} with {size(count)}")
    return tag("circle", tooltip, cx=x, cy=y, r=5.0, class_="dot", style=color_style(method, methods))


def _decimal_ticks(low: float, high: float) -> list[float]:
    """Return round numbers whose logarithms lie between two values: powers of ten with 1, 2 and 5, or finer ones."""
    for digits in ((1,), (1, 2, 5), range(1, 10), [d / 10 for d in range(10, 100)]):
        found = [
            digit * 10.0**power
            for power in range(floor(low) - 1, floor(high) + 1)
            for digit in digits
            if low <= log10(digit * 10.0**power) <= high
        ]
        if len(found) >= 2:
            return found[:: max(1, -(-len(found) // 6))]
    return []
