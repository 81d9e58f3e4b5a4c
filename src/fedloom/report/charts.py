"""Charts of a run's scores as inline SVG; the page's style sheet sets the colors.

Each chart function takes a run and a width in CSS pixels and returns markup, which is empty if there is nothing to
draw. If the width is below `NARROW` pixels, panels are stacked and names move into the legend.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from markupsafe import Markup

from fedloom.report.axis_ticks import percent_ticks
from fedloom.report.confidence_intervals import interval
from fedloom.report.federation_gain import main_score
from fedloom.report.findings import is_share_of_questions
from fedloom.report.run_results import Run, at, number
from fedloom.report.shared_scores import for_everybody, has_own_models
from fedloom.report.svg_elements import (
    Point,
    clip,
    drawing,
    legend,
    line,
    path,
    rect,
    row_name,
    scale,
    shift,
    spread,
    tag,
    text,
    text_width,
    thin,
    ticks,
)
from fedloom.report.tables import base, is_federated, label, percent
from fedloom.report.tables import title as title_of

NARROW = 560
BOLD = 14.0  # bold text of 12 pixels is as wide as plain text of this size
SERIES = 7  # colors the style sheet has for federated methods
SLICES = {"both": "Image and text", "image": "Image only", "text": "Text only"}
DASHES = {"zero-shot": "1.5 4", "linear": "4 3", "local": "8 3 2 3", "centralized": "11 4"}

Curve = list[Point]
Scale = Callable[[float], float]


def short_label(method: str) -> str:
    """Return a method's display name, shortened for charts."""
    return label(method).replace(" regularizer", "").replace(" baseline", "").replace(" (mean)", "")


def score_title(run: Run) -> str:
    """Return the display name of a run's main score."""
    return title_of(main_score(run.result))


def axis_title(run: Run) -> str:
    """Return the display name and unit of a run's main score."""
    return score_title(run) + (" × 100" if main_score(run.result) == "cider" else ", %")


def color_style(method: str, methods: Sequence[str]) -> str:
    """Return the CSS that gives a method its color: baselines have fixed colors, federated methods take turns."""
    if not is_federated(method):
        return f"--c:var(--{base(method)})"
    return f"--c:var(--s{[name for name in methods if is_federated(name)].index(method) % SERIES + 1})"


def full_score(run: Run, method: str) -> float | None:
    """Return the final main score with all modalities shown, of the shared model if there is one."""
    main, scores = main_score(run.result), for_everybody(run.scores[method])
    score = number(scores, "slices", run.fullest_slice, main)
    return number(scores, main) if score is None else score


def score_curves(run: Run) -> dict[str, Curve]:
    """Return method → (completed rounds, main score with all modalities) for methods that train in rounds.

    A federated method begins with the score of the model that was not trained yet, after 0 rounds, if `zero-shot` was scored.
    The points of `local` are means over its clients. Centralized training and methods that are evaluated only once, such
    as zero-shot, have a level and no curve.
    """
    scores: dict[str, dict[float, list[float]]] = {}
    main = main_score(run.result)
    for entry in run.evaluations:
        value, done = number(entry, "scores", main), number(entry, "round")
        if entry["slice"] == run.fullest_slice and value is not None and done is not None:
            scores.setdefault(entry["method"], {}).setdefault(done, []).append(value)
    start = full_score(run, "zero-shot") if "zero-shot" in run.scores else None
    before = {} if start is None else {0.0: [start]}
    return {
        method: sorted((done, fmean(values)) for done, values in (before | scores[method]).items())
        for method in run.scores
        if method in scores
        and (is_federated(method) or (base(method) == "local" and len(scores[method]) > 1))
        # If rounds are chosen on validation, clients that train alone are scored after different rounds.
        if base(method) != "local" or at(run.result, "validation", "round") != "best"
    }


# ---- score by round ----------------------------------------------------------------------------------


def learning_curves(run: Run, width: float) -> Markup:
    """Draw the main score by round: a line for each federated method, a dashed level for each baseline.

    Nothing is drawn if only one round was scored, because the table of final scores shows the same.
    """
    lines = score_curves(run)
    if len({done for points in lines.values() for done, _ in points if done}) < 2:
        return Markup()
    finals = {method: full_score(run, method) for method in run.scores if method not in lines}
    levels = {method: value for method, value in finals.items() if value is not None}
    title = f"{score_title(run)} on the test questions after each round"
    return round_chart(list(run.scores), lines, levels, width, axis_title(run), title)


def round_chart(
    methods: Sequence[str],
    lines: Mapping[str, Curve],
    levels: Mapping[str, float],
    width: float,
    axis: str,
    title: str,
    chosen: Mapping[str, float] | None = None,
) -> Markup:
    """Draw scores by round; nothing if there is no line.

    Args:
        methods: All methods of the run, which determine the colors.
        lines: Method → (completed rounds, score as a fraction), ascending.
        levels: Method without rounds → score as a fraction, drawn as a horizontal line.
        width: In CSS pixels.
        axis: Name and unit of the score.
        title: The chart's title.
        chosen: Method → the chosen round, whose point gets a ring.
    """
    if not lines:
        return Markup()
    ends = {**{method: points[-1][1] for method, points in lines.items()}, **levels}
    names = {method: _end_name(method, value, width) for method, value in ends.items()}
    head, height = legend(
        [(_legend_key(method, methods), label(method)) for method in methods if method in ends], width, 24
    )
    left, right = 40.0, width - max(text_width(name, BOLD) for name in names.values()) - 20
    top, last = height + 36, max(points[-1][0] for points in lines.values())
    first = min(points[0][0] for points in lines.values())
    bottom = top + (320 if width >= NARROW else 240)
    seen = [value for points in lines.values() for _, value in points] + list(levels.values())
    low, high = _axis_range(seen)
    marks = [mark for mark in percent_ticks(low, high) if low <= mark[0] <= high]
    x, y = scale(first if first < last else 0, last, left + 8, right), scale(low, high, bottom, top)
    body = [text(0, top - 14, axis, "muted"), _rows(y, marks, left, right)]
    body.append(_rounds(x, (first, last), (left, right), bottom))
    body += [_level(method, y(value), (left, right), methods) for method, value in levels.items()]
    body += [_curve(method, points, x, y, methods) for method, points in lines.items()]
    body += [
        tag("circle", cx=x(done), cy=y(value), r=6.0, class_="ring", style=color_style(method, methods))
        for method, points in lines.items()
        for done, value in points
        if done == (chosen or {}).get(method)
    ]
    label_heights = spread([y(value) for value in ends.values()], 16, top, bottom)
    for (method, value), label_height in zip(ends.items(), label_heights, strict=True):
        start = x(lines[method][-1][0]) + 5 if method in lines else right
        leader = path([[(start, y(value)), (right + 14, label_height)]], "leader")
        named = text(right + 17, label_height + 4, names[method], "name")
        body.append(tag("g", leader, named, style=color_style(method, methods)))
    description = "; ".join(f"{label(method)} {percent(value)}" for method, value in ends.items())
    return drawing(title, f"At the end, in percent: {description}.", width, bottom + 42, head, *body)


def _end_name(method: str, value: float, width: float) -> str:
    return percent(value) if width < NARROW else f"{clip(short_label(method), 235, BOLD)} {percent(value)}"


def _legend_key(method: str, methods: Sequence[str]) -> Markup:
    return line(
        0, 0, 24, 0, "line", style=color_style(method, methods), stroke_dasharray=DASHES.get(base(method))
    )


def _level(method: str, y: float, ends: Point, methods: Sequence[str]) -> Markup:
    style, dashes = color_style(method, methods), DASHES.get(base(method))
    return line(ends[0], y, ends[1], y, "line", style=style, stroke_dasharray=dashes)


def _curve(method: str, points: Curve, x: Scale, y: Scale, methods: Sequence[str]) -> Markup:
    pixels = [(x(done), y(value)) for done, value in thin(points, 120)]
    shown = thin(points, 120)
    dots = [
        tag("circle", _tooltip(method, *point), cx=x(point[0]), cy=y(point[1]), r=2.8, class_="dot")
        for point in (shown if len(shown) <= 20 else thin(points, 20))
    ]
    drawn = path([pixels], "line", stroke_dasharray=DASHES.get(base(method)))
    return tag("g", drawn, *dots, style=color_style(method, methods))


def _tooltip(method: str, done: float, value: float) -> Markup:
    return tag("title", f"{label(method)}, {done:.0f} rounds: {percent(value)}")


def _axis_range(values: Sequence[float]) -> Point:
    """Return the range of an axis for scores, with a margin."""
    more = max(0.06 * (max(values) - min(values)), 0.01)
    most = 1.0 if max(values) <= 1 else max(values) + more  # CIDEr may exceed 1
    return max(min(values) - more, 0.0), min(max(values) + more, most)


def _rows(y: Scale, marks: Sequence[tuple[float, str]], left: float, right: float) -> Markup:
    lines = [line(left, y(mark), right, y(mark), "grid") for mark, _ in marks]
    return Markup("").join(
        [*lines, *(text(left - 6, y(mark) + 4, name, "muted", "end") for mark, name in marks)]
    )


def _rounds(x: Scale, span: Point, ends: Point, bottom: float) -> Markup:
    marks = [mark for mark in ticks(0, span[1], 9) if mark == int(mark) and span[0] <= mark <= span[1]]
    pieces = [text(x(mark), bottom + 18, f"{mark:.0f}", "muted", "middle") for mark in marks]
    name = text(sum(ends) / 2, bottom + 37, "Completed rounds", "muted", "middle")
    return Markup("").join([line(ends[0], bottom, ends[1], bottom, "axis"), *pieces, name])


# ---- final score by modality -------------------------------------------------------------------------


def slices_shown(run: Run) -> list[str]:
    """Return the slices in which at least one method has a main score."""
    main = main_score(run.result)
    return [
        name
        for name in SLICES
        if any(number(scores, "slices", name, main) is not None for scores in run.scores.values())
    ]


def slice_bars(run: Run, width: float) -> Markup:
    """Draw the final main score with both modalities, images only, and texts only: a bar for each method."""
    main = main_score(run.result)
    panels = {
        name: {method: number(scores, "slices", name, main) for method, scores in run.scores.items()}
        for name in SLICES
    }
    panels = {name: panels[name] for name in slices_shown(run)}
    if not panels:
        return Markup()
    names = min(max(text_width(short_label(method)) for method in run.scores), 210) + 10
    across = len(panels) if width >= NARROW else 1
    step = (width - (names if across > 1 else 0)) / across
    row, head = 25.0, 30.0
    height = head + row * len(run.scores)
    body = []
    for index, (name, bars) in enumerate(panels.items()):
        left, top = (names + index * step, 0.0) if across > 1 else (names, index * (height + 22))
        room = step - 16 if across > 1 else width - names
        body.append(shift(left, top, _panel(run, name, bars, room - 40, row, head)))
        if index == 0 or across == 1:
            rows = enumerate(run.scores)
            drawn = [row_name(names - 10, head + row * n + 11, short_label(m), names - 10) for n, m in rows]
            body.append(shift(0, top, *drawn))
    total = height if across > 1 else (height + 22) * len(panels)
    description = "; ".join(
        f"{label(method)}: "
        + ", ".join(f"{SLICES[name].lower()} {percent(bars[method])}" for name, bars in panels.items())
        for method in run.scores
    )
    return drawing(
        f"{score_title(run)} at the end by the modalities shown",
        f"In percent. {description}.",
        width,
        total + 6,
        *body,
    )


def _panel(
    run: Run, name: str, bars: Mapping[str, float | None], room: float, row: float, head: float
) -> Markup:
    main, methods = main_score(run.result), list(run.scores)
    seen = [number(scores, "slices", part, main) or 0.0 for scores in run.scores.values() for part in SLICES]
    x = scale(0, max(1.0, *seen), 0, room)  # CIDEr may exceed 1
    pieces = [text(0, 12, SLICES[name], "strong")]
    for mark in (0, 0.5, 1):
        pieces.append(line(x(mark), head - 6, x(mark), head + row * len(bars), "grid"))
    for index, (method, value) in enumerate(bars.items()):
        top, style = head + row * index, color_style(method, methods)
        if value is None:
            pieces.append(text(4, top + 15, "—", "muted"))
            continue
        end = x(value)
        tooltip = tag("title", f"{label(method)}, {SLICES[name].lower()}: {percent(value)}")
        drawn = [tooltip, rect(0, top + 3, end, row - 9, "bar")]
        count = run.questions(name)
        if (
            count
            and is_share_of_questions(run.result)
            and not has_own_models(run.scores[method])
            and 0 <= value <= 1
        ):
            low, high = map(x, interval(value, count))
            middle = top + row / 2 - 1.5
            drawn += [line(low, middle, high, middle, class_) for class_ in ("halo", "whisker")]
            end = high
        pieces += [tag("g", *drawn, style=style), text(end + 6, top + 15, percent(value))]
    return Markup("").join(pieces)


# ---- scores of each client ---------------------------------------------------------------------------


def client_dots(run: Run, width: float) -> Markup:
    """Draw each client's score with each method: a dot with the client's number, and a tick for the mean."""
    ids = [str(client["id"]) for client in run.clients]
    rows = {}
    for method, scores in run.scores.items():
        values = [(number(scores, "clients", index), name) for index, name in enumerate(ids)]
        rows[method] = [(value, name) for value, name in values if value is not None]
    rows = {method: dots for method, dots in rows.items() if dots}
    if not rows:
        return Markup()
    radius = 8.5 if len(ids) <= 12 and max(map(len, ids)) <= 2 else 4.0
    wide = width >= NARROW
    left = min(max(text_width(short_label(method)) for method in rows), 210) + 26 if wide else 14.0
    seen = [value for dots in rows.values() for value, _ in dots]
    marks = percent_ticks(min(seen), max(seen), 6)
    x = scale(marks[0][0], max(marks[-1][0], max(seen)), left, width - 16)
    body, top = [], 8.0
    for method, dots in rows.items():
        name = short_label(method)
        strip, height = _strip(dots, x, radius)
        middle = top + height / 2 + (0 if wide else 16)
        at_side = (
            row_name(left - 26, middle, name, left - 26) if wide else text(0, top + 16, clip(name, width))
        )
        row = [line(left, 0, width - 16, 0, "grid"), strip]
        body += [at_side, shift(0, middle, tag("g", *row, style=color_style(method, list(run.scores))))]
        top += height + (0 if wide else 16)
    axis = [text(x(mark), top + 20, name, "muted", "middle") for mark, name in marks]
    axis_text = f"{axis_title(run)}; each dot is a client, the bar their mean"
    axis.append(text((left + width - 16) / 2, top + 40, axis_text, "muted", "middle"))
    grid = [line(x(mark), 4, x(mark), top + 6, "grid") for mark, _ in marks]
    description = "; ".join(
        f"{label(method)} {percent(min(dots)[0])} to {percent(max(dots)[0])}" for method, dots in rows.items()
    )
    title = f"{score_title(run)} for each client under each method"
    described = f"Worst to best client, in percent: {description}."
    return drawing(title, described, width, top + 48, *grid, *body, *axis)


def _strip(dots: Sequence[tuple[float, str]], x: Scale, radius: float) -> tuple[Markup, float]:
    """Draw one method's dots around y = 0 without overlaps; return the drawing and its height."""
    step = 2 * radius + 1
    # There are at most twelve dots with numbers; with a lane for each, all numbers are readable.
    lanes = _lanes([x(value) for value, _ in dots], step, 12 if radius > 6 else 9)
    # An even number of lanes has one more above the middle than below; half a step centers them.
    moved = step / 2 if max(lanes) % 2 else 0.0
    mean = x(fmean(value for value, _ in dots))
    drawn = [
        _client_dot(x(value), moved + step * _offset(lane), radius, client, value)
        for (value, client), lane in zip(dots, lanes, strict=True)
    ]
    return Markup("").join([line(mean, -14, mean, 14, "mean"), *drawn]), step * (max(lanes) + 1) + 15


def _client_dot(x: float, y: float, radius: float, client: str, value: float) -> Markup:
    tooltip = tag("title", f"Client {client}: {percent(value)}%")
    dot = tag("circle", tooltip, cx=x, cy=y, r=radius, class_="dot")
    return dot + text(x, y + 4, client, "in-dot") if radius > 6 else dot


def _offset(lane: int) -> int:
    """Return how many steps a lane lies below the middle: 0, −1, 1, −2, 2 and so on."""
    return (lane + 1) // 2 * (-1 if lane % 2 else 1)


def _lanes(positions: Sequence[float], gap: float, most: int) -> list[int]:
    """Return for each position the first lane in which it is `gap` away from all others, else the last lane."""
    taken: list[list[float]] = [[] for _ in range(most)]
    lanes = [0] * len(positions)
    for index in sorted(range(len(positions)), key=lambda index: positions[index]):
        free = [
            lane for lane in range(most) if all(abs(positions[index] - other) >= gap for other in taken[lane])
        ]
        lanes[index] = free[0] if free else most - 1
        taken[lanes[index]].append(positions[index])
    return lanes
