"""Charts of the clients' data and of their training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from markupsafe import Markup

from fedloom.report.charts import BOLD, NARROW, Curve, Scale, color_style, short_label
from fedloom.report.run_results import Json, Run, at, number
from fedloom.report.svg_elements import (
    clip,
    drawing,
    legend,
    line,
    path,
    rect,
    scale,
    shift,
    tag,
    text,
    text_width,
    thin,
    ticks,
)
from fedloom.report.tables import MISSING, is_federated

MAX_CLIENTS = 40  # clients that get a row; the plan has all
TINTS = 9  # colors the style sheet has for labels
STRAND_POINTS = 240  # of all thin lines of a panel together
OTHERS = "other labels"
PRESENCE = {"both": "both", "image_only": "image only", "text_only": "text only", "none": "neither"}
LENGTH, DISTANCE = "mean words", "label distance"
ROW, HEAD = 26.0, 36.0
CELL = 58.0  # width of a column next to the bars

# ---- who holds what ----------------------------------------------------------------------------------


def holdings_chart(run: Run, width: float) -> Markup:
    """Draw each client's examples by label and modality, its mean text length, and its distance from the pooled labels."""
    shown = run.clients[:MAX_CLIENTS]
    if not shown:
        return Markup()
    tops = _top_labels(shown)
    tints = {name: f"tint t{index % TINTS + 1}" for index, name in enumerate(tops)}
    side, side_columns = width >= NARROW, columns(shown)
    matrix_width = CELL * len(side_columns) if side else width
    bars_width = width - matrix_width - 24 if side else width
    keys = [(rect(0, -7, 14, 14, class_), name) for name, class_ in tints.items()]
    head, height = legend(keys, width, 14) if len(tops) > 1 else (Markup(), 0.0)
    bars, matrix = (
        _label_bars(shown, tints, bars_width),
        _matrix(shown, side_columns, matrix_width, named=not side),
    )
    tall = HEAD + ROW * len(shown)
    at_matrix = (width - matrix_width, height + 14) if side else (0.0, height + 14 + tall + 24)
    total = at_matrix[1] + tall
    listing = "; ".join(
        f"{name_of(client).replace('Client', 'client', 1)} {_size(client):.0f}" for client in shown
    )
    body = [head, shift(0, height + 14, bars), shift(*at_matrix, matrix)]
    return drawing("Who holds what", f"Training examples: {listing}.", width, total + 4, *body)


def name_of(client: Json) -> str:
    """Return a client's name in charts: its number, and its group if it holds only one."""
    group = at(client, "group")
    return f"{client['id']} {group}" if isinstance(group, str) and group else f"Client {client['id']}"


def client_names(clients: Sequence[Json]) -> list[str]:
    """Return the clients' names: their groups, such as sites, if each has one of its own, else those of `name_of`."""
    groups = [at(client, "group") for client in clients]
    if len(set(map(str, groups))) == len(groups) and all(
        isinstance(group, str) and group for group in groups
    ):
        return [str(group) for group in groups]
    return [name_of(client) for client in clients]


def _size(client: Json) -> float:
    return number(client, "size") or 0.0


def _labels(client: Json) -> dict[str, float]:
    """Return label → count; all examples of a client without labels count as one label."""
    labels = at(client, "labels")
    counts = (
        {str(name): number(count) or 0.0 for name, count in labels.items()}
        if isinstance(labels, Mapping)
        else {}
    )
    return counts or {"examples": _size(client)}


def _top_labels(clients: Sequence[Json]) -> list[str]:
    """Return the most frequent labels, which get a color each; the others share the last color."""
    totals: Counter[str] = Counter()
    for client in clients:
        totals.update(_labels(client))
    names = [name for name, _ in totals.most_common()]
    # Sorted, so that a label has the same color in every run of a comparison.
    return sorted(names) if len(names) <= TINTS else [*sorted(names[: TINTS - 1]), OTHERS]


def _label_bars(clients: Sequence[Json], tints: Mapping[str, str], width: float) -> Markup:
    left = min(max(text_width(name_of(client)) for client in clients), 110.0) + 8
    x = scale(0, max(max(map(_size, clients)), 1.0), 0, width - left - 40)
    pieces = [text(left, HEAD - 12, "Training examples by label", "strong")]
    for row, client in enumerate(clients):
        top, start = HEAD + ROW * row, 0.0
        pieces.append(text(left - 8, top + 16, clip(name_of(client), left), None, "end"))
        counts = dict.fromkeys(tints, 0.0)
        for name, count in _labels(client).items():
            counts[name if name in tints else OTHERS] += count
        for name, count in counts.items():
            if count:
                pieces.append(_segment(left + x(start), top + 2, x(count), name, count, tints[name]))
                start += count
        pieces.append(text(left + x(start) + 6, top + 16, f"{_size(client):.0f}", "muted"))
    return Markup("").join(pieces)


def _segment(x: float, y: float, width: float, name: str, count: float, class_: str) -> Markup:
    box = rect(x, y, width, ROW - 5, class_, tag("title", f"{name}: {count:.0f}"))
    fits = next((content for content in (name, f"{count:.0f}") if text_width(content, 11) + 6 <= width), None)
    return box + text(x + width / 2, y + 14.5, fits, "in-tint") if fits else box


@dataclass(frozen=True)
class Column:
    """A column of figures next to the bars, one figure for each client.

    Attributes:
        head: The heading.
        texts: The figures as text.
        shares: The figures as fractions of their maximum, 0 to 1.
        bar: Whether the fraction is drawn as the length of a line, rather than as the depth of a color.
    """

    head: str
    texts: tuple[str, ...]
    shares: tuple[float, ...]
    bar: bool = False


def columns(clients: Sequence[Json]) -> list[Column]:
    """Return the known columns: examples by modality, mean text length, and distance from the pooled labels."""
    kinds = [kind for kind in PRESENCE if kind != "none" or any(number(client, kind) for client in clients)]
    result = []
    for kind in kinds:
        counts = [number(client, kind) or 0.0 for client in clients]
        sizes = [max(_size(client), 1.0) for client in clients]
        shares = tuple(min(count / size, 1.0) for count, size in zip(counts, sizes, strict=True))
        result.append(Column(PRESENCE[kind], tuple(f"{count:.0f}" for count in counts), shares))
    lengths = [number(client, "words") for client in clients]
    if most := max((length for length in lengths if length is not None), default=0.0):
        result.append(_gauge(LENGTH, lengths, most, 1))
    apart = [number(client, "jensen_shannon") for client in clients]
    several = len({name for client in clients for name in _labels(client)}) > 1
    if several and any(value is not None for value in apart):
        result.append(_gauge(DISTANCE, apart, 1.0, 2))
    return result


def _gauge(head: str, values: Sequence[float | None], most: float, digits: int) -> Column:
    texts = tuple(MISSING if value is None else f"{value:.{digits}f}" for value in values)
    return Column(head, texts, tuple(min(max((value or 0.0) / most, 0.0), 1.0) for value in values), bar=True)


def _matrix(clients: Sequence[Json], columns: Sequence[Column], width: float, named: bool) -> Markup:
    """Draw a cell for each client and column; its color, or the length of its line, shows the fraction."""
    left = min(max(text_width(name_of(client)) for client in clients), 110.0) + 8 if named else 0.0
    cell = (width - left) / len(columns)
    pieces = []
    for index, column in enumerate(columns):
        for up, word in enumerate(reversed(column.head.split(" ", 1))):
            pieces.append(text(left + cell * (index + 0.5), HEAD - 12 - 14 * up, word, "strong", "middle"))
    for index, client in enumerate(clients):
        top = HEAD + ROW * index
        if named:
            pieces.append(text(left - 8, top + 16, clip(name_of(client), left), None, "end"))
        for across, column in enumerate(columns):
            pieces.append(_cell(column, index, left + cell * across, top, cell))
    return Markup("").join(pieces)


def _cell(column: Column, index: int, left: float, top: float, width: float) -> Markup:
    share, content = column.shares[index], column.texts[index]
    depth = 0.04 if column.bar else 0.04 + 0.5 * share
    pieces = [rect(left + 1, top + 2, width - 2, ROW - 5, "heat", fill_opacity=f"{depth:.2f}")]
    if column.bar and share:
        pieces.append(rect(left + 1, top + ROW - 6, (width - 2) * share, 3, "heat", fill_opacity="0.6"))
    pieces.append(text(left + width / 2, top + 16, content, None if share else "muted", "middle"))
    return Markup("").join(pieces)


# ---- how clients train -------------------------------------------------------------------------------


def training_curves(run: Run, key: str) -> dict[str, dict[str, Curve]]:
    """Return method → client → (round, value) of what the clients reported: "loss" or "norm"."""
    curves: dict[str, dict[str, Curve]] = {}
    for entry in run.rounds:
        method, rounds_done = entry["method"], number(entry, "round")
        if method not in run.scores or rounds_done is None:
            continue
        reports = at(entry, "clients") or []
        for client in reports if is_federated(method) else [entry]:
            value = number(client, key)
            if value is not None:
                curves.setdefault(method, {}).setdefault(str(at(client, "client")), []).append(
                    (rounds_done + 1, value)
                )
    return {method: curves[method] for method in run.scores if method in curves}


def training_panels(key: str, run: Run, width: float) -> Markup:
    """Draw a small chart for each method: a thin line for each client, a thick one for their mean.

    Args:
        key: What the clients reported: "loss" or "norm".
        run: The run to draw.
        width: In CSS pixels.
    """
    panels = training_curves(run, key)
    if not panels:
        return Markup()
    seen = [value for lines in panels.values() for points in lines.values() for _, value in points]
    last = max(done for lines in panels.values() for points in lines.values() for done, _ in points)
    if last < 2:  # a point for each client is in record.jsonl, and no curve
        return Markup()
    rows = -(-len(panels) // (3 if width >= NARROW else 2))
    across = -(-len(panels) // rows)
    high = 1.05 * max(seen) or 1.0
    marks = [mark for mark in ticks(0, high, 4) if mark <= high]
    gap, tall = 14.0, 104.0
    left = max(text_width(f"{mark:g}") for mark in marks) + 10
    room = (width - left - gap * (across - 1)) / across
    x, y = scale(1, last, 6, room - 6), scale(0, high, tall, 0)
    body = []
    for index, (method, lines) in enumerate(panels.items()):
        column, row = index % across, index // across
        pieces = [text(0, -9, clip(short_label(method), room, BOLD), "strong")]
        pieces += [line(0, y(mark), room, y(mark), "grid") for mark in marks]
        if column == 0:
            pieces += [text(-6, y(mark) + 4, f"{mark:g}", "muted", "end") for mark in marks]
        pieces.append(_round_axis(last, room, tall))
        pieces.append(_bundle(lines, x, y, color_style(method, list(run.scores))))
        body.append(shift(left + column * (room + gap), 26 + row * (tall + 58), *pieces))
    height = 26 + rows * (tall + 58) - 34
    what = {"loss": "Training loss", "norm": "Size of the update"}.get(key, key)
    return drawing(
        f"{what} by round", f"One small chart for each of {len(panels)} methods.", width, height, *body
    )


def _round_axis(last: float, room: float, tall: float) -> Markup:
    """Write the first and the last round at the ends of an axis, and its name where it fits between them."""
    ends = [text(0, tall + 16, "1", "muted", "start"), text(room, tall + 16, f"{last:.0f}", "muted", "end")]
    taken = 2 * text_width(f"{last:.0f}") + text_width("round") + 16
    name = [text(room / 2, tall + 16, "round", "muted", "middle")] if taken <= room else []
    return Markup("").join([*ends, *name])


def _bundle(lines: Mapping[str, Curve], x: Scale, y: Scale, style: str) -> Markup:
    """Draw the lines of one panel, with few points so that a page of many runs stays small."""
    most = min(40, max(2, STRAND_POINTS // len(lines)))
    strands = [[(x(done), y(value)) for done, value in thin(points, most)] for points in lines.values()]
    together: dict[float, list[float]] = {}
    for points in lines.values():
        for done, value in points:
            together.setdefault(done, []).append(value)
    pieces = [path(strands, "strand")] if len(lines) > 1 else []
    means = [(done, fmean(values)) for done, values in sorted(together.items())]
    points = "; ".join(f"{done:.0f}: {value:.3g}" for done, value in thin(means, 12))
    tooltip = tag("title", f"Mean by round: {points}")
    return tag(
        "g",
        tooltip,
        *pieces,
        path([[(x(done), y(value)) for done, value in thin(means, 60)]], "line"),
        style=style,
    )
