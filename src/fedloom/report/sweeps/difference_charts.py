"""Charts of a sweep's paired comparisons: each value's difference from the reference, with its interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from markupsafe import Markup

from fedloom.report.charts import NARROW
from fedloom.report.significance import Estimate
from fedloom.report.svg_elements import clip, drawing, line, scale, shift, tag, text, text_width, ticks
from fedloom.report.sweeps.axis_comparisons import Comparison
from fedloom.report.sweeps.comparison_tables import (
    Compared,
    factor_title,
    measure_title,
    overall,
    value_title,
)
from fedloom.report.sweeps.estimate_texts import estimate_text
from fedloom.report.tables import percent

ROW, NAMED, HEAD, FOOT = 22.0, 14.0, 26.0, 30.0  # pixels: a row, its name above it, above and below a panel
MAX_NAME_WIDTH = 220  # pixels of a value's name

Rows = Sequence[tuple[Comparison, Estimate]]


def paired_chart(compared: Compared, width: float) -> Markup:
    """Draw the differences of a factor's values from its reference, a panel for each measure; nothing for one difference.

    If there are several panels, zero is in the middle of each, and panels of the same score have the same scale. A dot is
    filled if the difference is significant.

    Args:
        compared: The comparisons of one factor.
        width: In CSS pixels.
    """
    factor = compared[0].factor
    known = [
        (comparison, comparison.result.estimate)
        for comparison in overall(compared)
        if comparison.result.estimate
    ]
    panels = {
        measure: [pair for pair in known if pair[0].measure == measure]
        for measure in dict.fromkeys(comparison.measure for comparison, _ in known)
    }
    if len(known) < 2:
        return Markup()
    names = {comparison.value: value_title(factor, comparison.value) for comparison, _ in known}
    left = min(max(map(text_width, names.values())), MAX_NAME_WIDTH) + 12 if width >= NARROW else 4.0
    top, body = 0.0, list[Markup]()
    for measure, rows in panels.items():
        estimates = [
            estimate for comparison, estimate in known if comparison.measure.metric == measure.metric
        ]
        drawn, height = _panel(rows, names, (left, width - 12), _ticks(estimates, centered=len(panels) > 1))
        body.append(shift(0, top, text(0, 12, f"{measure_title(measure)}, points", "strong"), drawn))
        top += height
    description = "; ".join(
        f"{names[comparison.value]} {estimate_text(estimate, '+')} by {measure_title(comparison.measure)}, {comparison.verdict}"
        for comparison, estimate in known
    )
    name = f"{factor_title(factor)}: differences from {value_title(factor, factor.reference)}"
    return drawing(name, f"In points. {description}.", width, top, *body)


def _ticks(estimates: Sequence[Estimate], *, centered: bool) -> list[float]:
    ends = [0.0, *(end for estimate in estimates for end in _ends(estimate))]
    if not centered:
        return ticks(min(ends), max(ends), 7)
    half = [mark for mark in ticks(0, max(map(abs, ends)) or 0.01, 4) if mark]
    return [*(-mark for mark in reversed(half)), 0.0, *half]


def _ends(estimate: Estimate) -> tuple[float, float]:
    return estimate.mean - (estimate.half or 0.0), estimate.mean + (estimate.half or 0.0)


def _panel(
    rows: Rows, names: dict[str, str], room: tuple[float, float], marks: Sequence[float]
) -> tuple[Markup, float]:
    """Draw the rows of one measure with their axis below; return the drawing and its height."""
    left, right = room
    names_beside = left > 4
    x = scale(marks[0], marks[-1], left + 8, right)
    step = ROW if names_beside else ROW + NAMED
    bottom = HEAD + step * len(rows)
    pieces = [line(x(mark), HEAD - 4, x(mark), bottom, "grid" if mark else "axis") for mark in marks]
    for index, (comparison, estimate) in enumerate(rows):
        top = HEAD + step * index
        name = clip(names[comparison.value], MAX_NAME_WIDTH if names_beside else right)
        pieces.append(
            text(left - 8, top + 15, name, None, "end") if names_beside else text(0, top + 12, name)
        )
        pieces.append(shift(0, top + step - 11, _dot(comparison, estimate, x)))
    pieces += [text(x(mark), bottom + 16, _signed(mark), "muted", "middle") for mark in marks]
    return Markup("").join(pieces), bottom + FOOT


def _signed(value: float) -> str:
    """Write a tick of the axis in percentage points, with a decimal only if it has one.

    Example:
        >>> _signed(0.05), _signed(-0.005), _signed(0.0)
        ('+5', '−0.5', '0')
    """
    digits = percent(abs(value), 0 if round(100 * value, 6) == round(100 * value) else 1)
    return digits if not value else ("+" if value > 0 else "−") + digits


def _dot(comparison: Comparison, estimate: Estimate, x: Callable[[float], float]) -> Markup:
    value = value_title(comparison.factor, comparison.value)
    tooltip = tag(
        "title", f"{value}: {estimate_text(estimate, '+')}, n = {estimate.seeds}, {comparison.verdict}"
    )
    low, high = map(x, _ends(estimate))
    whisker = line(low, 0, high, 0, "whisker") if estimate.half else Markup()
    mark = tag(
        "circle", cx=x(estimate.mean), cy=0.0, r=4.0, class_="dot" if comparison.significant else "hollow"
    )
    return tag("g", tooltip, whisker, mark, style="--c:var(--accent)")
