"""Charts of a sweep: how methods compare along one of its axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from markupsafe import Markup

from fedloom.algorithms.baselines import BASELINES
from fedloom.report.charts import NARROW, SERIES, brief, paint
from fedloom.report.paired_tests import Estimate
from fedloom.report.svg_elements import clip, drawing, legend, line, measure, scale, shift, tag, ticks, words
from fedloom.report.sweeps.sweep_results import CellRun, SweepRun, along, over_seeds, rows_of
from fedloom.report.sweeps.sweep_tables import shown
from fedloom.report.tables import base, federated, label, percent, title

LANE, GAP = 9.0, 14.0  # pixels for one method, and between two values of the axis

Shape = Callable[[float, float], Markup]


def _circle(x: float, y: float) -> Markup:
    return tag("circle", cx=x, cy=y, r=3.6, class_="dot")


def _square(x: float, y: float) -> Markup:
    return tag("rect", x=x - 3.2, y=y - 3.2, width=6.4, height=6.4, class_="dot")


def _diamond(x: float, y: float) -> Markup:
    turned = f"rotate(45 {x:.1f} {y:.1f})"
    return tag("rect", x=x - 3, y=y - 3, width=6.0, height=6.0, class_="dot", transform=turned)


SHAPES: tuple[Shape, ...] = (_circle, _square, _diamond)


def shape_of(method: str, methods: Sequence[str]) -> Shape:
    """Return how a method is marked: where the colors start again, the shape changes."""
    if not federated(method):
        return SHAPES[list(BASELINES).index(base(method)) % len(SHAPES)]
    return SHAPES[[name for name in methods if federated(name)].index(method) // SERIES % len(SHAPES)]


def axis_chart(sweep: SweepRun, axis: str | None, width: float) -> Markup:
    """Draw each method's mean score at each value of an axis, with its interval over seeds.

    Args:
        sweep: What was read.
        axis: Averages go over all others; None draws one row for each combination.
        width: In CSS pixels.
    """
    together = rows_of(sweep) if axis is None else along(sweep, axis)
    rows = {name: _marks(sweep, cells) for name, cells in together.items()}
    rows = {name: marks for name, marks in rows.items() if marks}
    ends = [end for marks in rows.values() for one in marks.values() for end in _ends(one)]
    if not ends:
        return Markup()
    methods = [method for method in sweep.methods if any(method in marks for marks in rows.values())]
    keys = [(_key(method, methods), brief(method)) for method in methods]
    head, top = legend(keys, width, 12)
    beside = width >= NARROW
    left = min(max(measure(name) for name in rows), 200) + 12 if beside else 4.0
    marks = [
        mark for mark in ticks(min(ends), max(ends), 7) if mark > -0.001 and (mark < 1.001 or max(ends) > 1)
    ]
    x = scale(min(*ends, marks[0]), max(*ends, marks[-1]), left + 8, width - 12)
    y, body = top + 14, list[Markup]()
    for name, found in rows.items():
        y += 0 if beside else 14
        height = LANE * len(methods)
        named = words(left - 8, y + height / 2 + 4, clip(name, 200), "strong", "end")
        body.append(named if beside else words(0, y - 5, name, "strong"))
        body.append(line(left, y + height + GAP / 2, width - 12, y + height + GAP / 2, "grid"))
        body += [
            shift(0, y + LANE * (place + 0.5), _mark(method, found[method], x, methods))
            for place, method in enumerate(methods)
            if method in found
        ]
        y += height + GAP
    grid = [line(x(mark), top + 8, x(mark), y, "grid") for mark in marks]
    axis_words = [words(x(mark), y + 16, percent(mark, 0), "muted", "middle") for mark in marks]
    axis_words.append(words((left + width) / 2, y + 36, f"{title(sweep.metric)}, %", "muted", "middle"))
    said = "; ".join(
        f"{name}: " + ", ".join(f"{label(method)} {shown(one)}" for method, one in found.items())
        for name, found in rows.items()
    )
    name = f"{title(sweep.metric)} of each method" + ("" if axis is None else f" by {axis}")
    return drawing(name, f"In percent. {said}.", width, y + 44, head, *grid, *body, *axis_words)


def _marks(sweep: SweepRun, cells: Sequence[CellRun]) -> dict[str, Estimate]:
    found = {method: over_seeds(cells, method) for method in sweep.methods}
    return {method: one for method, one in found.items() if one is not None}


def _ends(found: Estimate) -> tuple[float, float]:
    half = found.half or 0.0
    most = 1.0 if found.mean <= 1 else float("inf")  # scores of captions may exceed 1
    return max(found.mean - half, 0.0), min(found.mean + half, most)


def _key(method: str, methods: Sequence[str]) -> Markup:
    return tag("g", shape_of(method, methods)(5.0, 0.0), style=paint(method, methods))


def _mark(method: str, found: Estimate, x: Callable[[float], float], methods: Sequence[str]) -> Markup:
    said = tag("title", f"{label(method)}: {shown(found)}%, n = {found.seeds}")
    low, high = map(x, _ends(found))
    whisker = line(low, 0, high, 0, "whisker") if found.half else Markup()
    return tag(
        "g", said, whisker, shape_of(method, methods)(x(found.mean), 0.0), style=paint(method, methods)
    )
