"""Drawings of a grid's comparisons: each value's difference from the reference, with its interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from markupsafe import Markup

from fedloom.report.charts import NARROW
from fedloom.report.paired_tests import Estimate
from fedloom.report.svg_elements import clip, drawing, line, measure, scale, shift, tag, ticks, words
from fedloom.report.sweeps.axis_comparisons import Comparison
from fedloom.report.sweeps.comparison_tables import (
    Compared,
    factor_title,
    measure_title,
    overall,
    value_title,
)
from fedloom.report.sweeps.sweep_tables import shown
from fedloom.report.tables import percent

ROW, NAMED, HEAD, FOOT = 22.0, 14.0, 26.0, 30.0  # pixels: a row, its name above it, above and below a panel
MOST_NAME = 220  # pixels of a value's name

Known = Sequence[tuple[Comparison, Estimate]]


def paired_chart(compared: Compared, width: float) -> Markup:
    """Draw the differences of a factor's values from its reference, a panel for each measure; nothing of only one.

    Of several panels, each has zero in its middle, and those of the same score have the same scale. A dot is
    filled where its interval leaves out zero.

    Args:
        compared: The comparisons of one factor.
        width: In CSS pixels.
    """
    factor = compared[0].factor
    known = [(one, one.found.estimate) for one in overall(compared) if one.found.estimate]
    panels = {
        kind: [pair for pair in known if pair[0].measure == kind]
        for kind in dict.fromkeys(one.measure for one, _ in known)
    }
    if len(known) < 2:
        return Markup()
    names = {one.value: value_title(factor, one.value) for one, _ in known}
    left = min(max(map(measure, names.values())), MOST_NAME) + 12 if width >= NARROW else 4.0
    top, body = 0.0, list[Markup]()
    for kind, rows in panels.items():
        alike = [found for one, found in known if one.measure.metric == kind.metric]
        drawn, height = _panel(rows, names, (left, width - 12), _ticks(alike, centerd=len(panels) > 1))
        body.append(shift(0, top, words(0, 12, f"{measure_title(kind)}, points", "strong"), drawn))
        top += height
    said = "; ".join(
        f"{names[one.value]} {shown(found, '+')} by {measure_title(one.measure)}, {one.found.verdict}"
        for one, found in known
    )
    name = f"{factor_title(factor)}: differences from {value_title(factor, factor.reference)}"
    return drawing(name, f"In points. {said}.", width, top, *body)


def _ticks(found: Sequence[Estimate], *, centerd: bool) -> list[float]:
    ends = [0.0, *(end for one in found for end in _ends(one))]
    if not centerd:
        return ticks(min(ends), max(ends), 7)
    half = [mark for mark in ticks(0, max(map(abs, ends)) or 0.01, 4) if mark]
    return [*(-mark for mark in reversed(half)), 0.0, *half]


def _ends(found: Estimate) -> tuple[float, float]:
    return found.mean - (found.half or 0.0), found.mean + (found.half or 0.0)


def _panel(
    rows: Known, names: dict[str, str], room: tuple[float, float], marks: Sequence[float]
) -> tuple[Markup, float]:
    """Draw the rows of one measure with their axis below; return the height."""
    left, right = room
    beside = left > 4
    x = scale(marks[0], marks[-1], left + 8, right)
    step = ROW if beside else ROW + NAMED
    bottom = HEAD + step * len(rows)
    pieces = [line(x(mark), HEAD - 4, x(mark), bottom, "grid" if mark else "axis") for mark in marks]
    for place, (one, found) in enumerate(rows):
        top = HEAD + step * place
        name = clip(names[one.value], MOST_NAME if beside else right)
        pieces.append(words(left - 8, top + 15, name, None, "end") if beside else words(0, top + 12, name))
        pieces.append(shift(0, top + step - 11, _dot(one, found, x)))
    pieces += [words(x(mark), bottom + 16, _signed(mark), "muted", "middle") for mark in marks]
    return Markup("").join(pieces), bottom + FOOT


def _signed(value: float) -> str:
    """Write a mark of the axis in points, with as many decimals as it has.

    Example:
        >>> _signed(0.05), _signed(-0.005), _signed(0.0)
        ('+5', '−0.5', '0')
    """
    told = percent(abs(value), 0 if round(100 * value, 6) == round(100 * value) else 1)
    return told if not value else ("+" if value > 0 else "−") + told


def _dot(one: Comparison, found: Estimate, x: Callable[[float], float]) -> Markup:
    value = value_title(one.factor, one.value)
    said = tag("title", f"{value}: {shown(found, '+')}, n = {found.seeds}, {one.found.verdict}")
    low, high = map(x, _ends(found))
    whisker = line(low, 0, high, 0, "whisker") if found.half else Markup()
    mark = tag("circle", cx=x(found.mean), cy=0.0, r=4.0, class_="dot" if found.sure else "hollow")
    return tag("g", said, whisker, mark, style="--c:var(--accent)")
