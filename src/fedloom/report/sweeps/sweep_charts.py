"""Charts of a sweep: the scores of the methods along one of its axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from markupsafe import Markup

from fedloom.algorithms.baselines import BASELINES
from fedloom.report.axis_ticks import percent_ticks
from fedloom.report.charts import NARROW, SERIES, color_style, short_label
from fedloom.report.significance import Estimate
from fedloom.report.svg_elements import (
    clip,
    drawing,
    legend,
    line,
    scale,
    shift,
    tag,
    text,
    text_width,
)
from fedloom.report.sweeps.estimate_texts import estimate_text
from fedloom.report.sweeps.sweep_results import (
    CellRun,
    SweepRun,
    cells_by_setting,
    cells_by_value,
    mean_over_seeds,
)
from fedloom.report.tables import base, is_federated, label, title

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
    """Return the marker of a method; methods of the same color have different shapes."""
    if not is_federated(method):
        return SHAPES[list(BASELINES).index(base(method)) % len(SHAPES)]
    return SHAPES[[name for name in methods if is_federated(name)].index(method) // SERIES % len(SHAPES)]


def axis_chart(sweep: SweepRun, axis: str | None, width: float) -> Markup:
    """Draw each method's mean score at each value of an axis, with its interval over seeds.

    Args:
        sweep: The sweep to draw.
        axis: The axis; scores are averaged over all others. None draws a row for each setting.
        width: In CSS pixels.
    """
    groups = cells_by_setting(sweep) if axis is None else cells_by_value(sweep, axis)
    rows = {name: _estimates(sweep, cells) for name, cells in groups.items()}
    rows = {name: marks for name, marks in rows.items() if marks}
    ends = [end for marks in rows.values() for estimate in marks.values() for end in _ends(estimate)]
    if not ends:
        return Markup()
    methods = [method for method in sweep.methods if any(method in marks for marks in rows.values())]
    keys = [(_legend_key(method, methods), short_label(method)) for method in methods]
    head, top = legend(keys, width, 12)
    names_beside = width >= NARROW
    left = min(max(text_width(name) for name in rows), 200) + 12 if names_beside else 4.0
    marks = percent_ticks(min(ends), max(ends), 7)
    x = scale(min(*ends, marks[0][0]), max(*ends, marks[-1][0]), left + 8, width - 12)
    y, body = top + 14, list[Markup]()
    for name, estimates in rows.items():
        y += 0 if names_beside else 14
        height = LANE * len(methods)
        named = text(left - 8, y + height / 2 + 4, clip(name, 200), "strong", "end")
        body.append(named if names_beside else text(0, y - 5, name, "strong"))
        body.append(line(left, y + height + GAP / 2, width - 12, y + height + GAP / 2, "grid"))
        body += [
            shift(0, y + LANE * (index + 0.5), _mark(method, estimates[method], x, methods))
            for index, method in enumerate(methods)
            if method in estimates
        ]
        y += height + GAP
    grid = [line(x(mark), top + 8, x(mark), y, "grid") for mark, _ in marks]
    axis_words = [text(x(mark), y + 16, name, "muted", "middle") for mark, name in marks]
    axis_words.append(text((left + width) / 2, y + 36, f"{title(sweep.metric)}, %", "muted", "middle"))
    description = "; ".join(
        f"{name}: "
        + ", ".join(f"{label(method)} {estimate_text(estimate)}" for method, estimate in estimates.items())
        for name, estimates in rows.items()
    )
    name = f"{title(sweep.metric)} of each method" + ("" if axis is None else f" by {axis}")
    return drawing(name, f"In percent. {description}.", width, y + 44, head, *grid, *body, *axis_words)


def _estimates(sweep: SweepRun, cells: Sequence[CellRun]) -> dict[str, Estimate]:
    estimates = {method: mean_over_seeds(cells, method) for method in sweep.methods}
    return {method: estimate for method, estimate in estimates.items() if estimate is not None}


def _ends(estimate: Estimate) -> tuple[float, float]:
    half = estimate.half or 0.0
    most = 1.0 if estimate.mean <= 1 else float("inf")  # CIDEr may exceed 1
    return max(estimate.mean - half, 0.0), min(estimate.mean + half, most)


def _legend_key(method: str, methods: Sequence[str]) -> Markup:
    return tag("g", shape_of(method, methods)(5.0, 0.0), style=color_style(method, methods))


def _mark(method: str, estimate: Estimate, x: Callable[[float], float], methods: Sequence[str]) -> Markup:
    tooltip = tag("title", f"{label(method)}: {estimate_text(estimate)}%, n = {estimate.seeds}")
    low, high = map(x, _ends(estimate))
    whisker = line(low, 0, high, 0, "whisker") if estimate.half else Markup()
    return tag(
        "g",
        tooltip,
        whisker,
        shape_of(method, methods)(x(estimate.mean), 0.0),
        style=color_style(method, methods),
    )
