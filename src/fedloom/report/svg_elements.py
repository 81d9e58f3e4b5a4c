"""Building blocks of charts: escaped SVG elements, scales, ticks, and labels that do not overlap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, floor, log10

from markupsafe import Markup, escape

Point = tuple[float, float]

SMALL = 11.0
"""Font size of names that take two lines, pixels."""


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """Write one element. Text and attribute values are escaped; `Markup` is not.

    Example:
        >>> tag("text", "a < b", x=1.0, class_="muted")
        Markup('<text x="1" class="muted">a &lt; b</text>')
    """
    pairs = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(format_value(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inner = "".join(map(escape, children))
    return Markup(f"<{name}{pairs}>{inner}</{name}>" if children else f"<{name}{pairs}/>")


def format_value(value: object) -> str:
    """Write a float with at most one decimal, which is finer than a screen shows, and any other value as text."""
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)


def drawing(title: str, description: str, width: float, height: float, *children: object) -> Markup:
    """Return an SVG image with a title and a description for screen readers."""
    box = f"0 0 {format_value(float(width))} {format_value(float(height))}"
    head = (tag("title", title), tag("desc", description))
    style = f"max-width:{width:.0f}px"
    return tag("svg", *head, *children, viewBox=box, role="img", aria_label=title, style=style)


def text(x: float, y: float, content: object, class_: str | None = None, anchor: str | None = None) -> Markup:
    """Write text with its baseline at y; `anchor` is start (default), middle or end."""
    return tag("text", str(content), x=float(x), y=float(y), class_=class_, text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, class_: str = "rule", **more: object) -> Markup:
    """Draw a straight line."""
    return tag("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=class_, **more)


def rect(
    x: float, y: float, width: float, height: float, class_: str, *children: object, **more: object
) -> Markup:
    """Draw a rectangle; a negative width counts as zero."""
    size = {"width": max(float(width), 0.0), "height": float(height)}
    return tag("rect", *children, x=float(x), y=float(y), **size, class_=class_, **more)


def path(lines: Sequence[Sequence[Point]], class_: str, **more: object) -> Markup:
    """Draw one or more polylines as one element."""
    pieces = [
        "M" + "L".join(f"{format_value(x)} {format_value(y)}" for x, y in points)
        for points in lines
        if points
    ]
    return tag("path", d="".join(pieces), class_=class_, **more)


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """Keep at most `most` (≥ 2) points, evenly spread; the first and the last are always kept."""
    if len(points) <= most:
        return list(points)
    step = (len(points) - 1) / (most - 1)
    return [points[round(index * step)] for index in range(most)]


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """Return a function that maps low…high linearly to start…end; an empty range maps to the middle."""
    if high == low:
        start, end, high = (start + end) / 2, (start + end) / 2, low + 1
    return lambda value: start + (value - low) / (high - low) * (end - start)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Choose about `most` round values that enclose low…high.

    Example:
        >>> ticks(0.31, 0.74, 6)
        [0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    """
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** floor(log10(span / (most - 1)))
    step = next(unit * power for unit in (1, 2, 5, 10, 20) if span / (unit * power) <= most - 1)
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    return [round(count * step, 12) for count in range(first, max(last, first + 1) + 1)]


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move positions as little as needed so that neighbors keep `gap` and all lie in low…high.

    Neighbors that are too close are pooled, and each pool is centered on the positions of its members (isotonic
    regression of y_i − i·gap). If the range is too small for the gap, positions are spaced evenly.

    Args:
        positions: Positions in any order.
        gap: Smallest distance, ≥ 0.
        low: Lower end of the range.
        high: Upper end of the range, ≥ low.

    Returns:
        The moved positions, in the order of the arguments.
    """
    gap = min(gap, (high - low) / max(len(positions) - 1, 1))
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    pools: list[tuple[float, int]] = []
    for rank, index in enumerate(order):
        mean, count = positions[index] - rank * gap, 1
        while pools and pools[-1][0] >= mean:
            before, many = pools.pop()
            mean, count = (before * many + mean * count) / (many + count), many + count
        pools.append((mean, count))
    room = high - (len(positions) - 1) * gap
    bases = [min(max(mean, low), room) for mean, count in pools for _ in range(count)]
    moved = [0.0] * len(positions)
    for rank, index in enumerate(order):
        moved[index] = bases[rank] + rank * gap
    return moved


def text_width(text: str, points: float = 12) -> float:
    """Estimate the width of a text in pixels, rather too large than too small."""
    return sum(1.0 if ord(character) > 0x2E80 else 0.6 for character in text) * points


def clip(text: str, width: float, points: float = 12) -> str:
    """Shorten a text to at most `width` pixels; a shortened text ends with an ellipsis."""
    if text_width(text, points) <= width:
        return text
    while text and text_width(text + "…", points) > width:
        text = text[:-1]
    return text.rstrip() + "…"


def row_name(x: float, middle: float, name: str, width: float) -> Markup:
    """Write the name of a row, which ends at x, around `middle`: at most `width` pixels wide, if need be in two smaller lines."""
    if text_width(name) <= width:
        return text(x, middle + 4, name, None, "end")
    first, rest = "", name.split(" ")
    while rest and text_width(longer := f"{first} {rest[0]}".strip(), SMALL) <= width:
        first, rest = longer, rest[1:]
    lines = [part for part in (first, clip(" ".join(rest), width, SMALL)) if part]
    heights = (middle + 4,) if len(lines) == 1 else (middle - 1.5, middle + 9.5)
    return Markup("").join(
        tag("text", part, x=float(x), y=y, text_anchor="end", style=f"font-size:{SMALL:g}px")
        for part, y in zip(lines, heights, strict=True)
    )


def legend(entries: Sequence[tuple[Markup, str]], width: float, mark: float = 16) -> tuple[Markup, float]:
    """Arrange marks, drawn from (0, 0) to (`mark`, 0), and their names in rows; a name that is longer than a row is shortened.

    Returns:
        The rows with their top at y = 0, and their height.
    """
    pieces, x, y, height = [], 0.0, 12.0, 20.0
    for drawn, whole in entries:
        name = clip(whole, width - mark - 6)
        need = mark + 6 + text_width(name)
        if x and x + need > width:
            x, y = 0.0, y + height
        pieces.append(tag("g", drawn, transform=f"translate({format_value(x)} {format_value(y - 4)})"))
        pieces.append(text(x + mark + 6, y, name))
        x += need + 16
    return Markup("").join(pieces), (y + height - 6 if entries else 0.0)


def shift(x: float, y: float, *children: object) -> Markup:
    """Move elements by x to the right and y down."""
    return tag("g", *children, transform=f"translate({format_value(float(x))} {format_value(float(y))})")
