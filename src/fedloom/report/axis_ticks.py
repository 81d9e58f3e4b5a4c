"""Ticks of an axis in percent: no text twice, and none beyond 100 % unless a score is."""

from __future__ import annotations

from collections.abc import Sequence

from fedloom.report.svg_elements import ticks
from fedloom.report.tables import percent, signed

NARROWEST = 0.001
"""The shortest axis of scores, a fraction."""


def percent_ticks(low: float, high: float, most: int = 7) -> list[tuple[float, str]]:
    """Return the ticks of scores between `low` and `high` as (fraction, text in percent).

    Ticks are at most 1 if all scores are, and have as many decimals as it takes to tell them apart.

    Example:
        >>> percent_ticks(0.992, 1.0, 3), [text for _, text in percent_ticks(0.4, 1.2, 3)]
        ([(0.99, '99.0'), (0.995, '99.5'), (1.0, '100.0')], ['0', '50', '100', '150'])
    """
    low = max(min(low, high - NARROWEST), 0.0)
    marks = [
        mark for mark in ticks(low, max(high, low + NARROWEST), most) if mark >= 0 and (mark <= 1 or high > 1)
    ]
    return list(zip(marks, _distinct(marks, signs=False), strict=True))


def point_ticks(low: float, high: float, most: int = 7) -> list[tuple[float, str]]:
    """Return the ticks of differences between `low` and `high` as (fraction, text in points with its sign)."""
    marks = ticks(low, high, most)
    return list(zip(marks, _distinct(marks, signs=True), strict=True))


def _distinct(marks: Sequence[float], *, signs: bool) -> list[str]:
    write = signed if signs else percent
    for digits in range(4):
        texts = [write(mark, digits) for mark in marks]
        if len(set(texts)) == len(texts) and all(_is_exact(mark, digits) for mark in marks):
            return ["0" if not mark else text for mark, text in zip(marks, texts, strict=True)]
    return [write(mark, 4) for mark in marks]


def _is_exact(mark: float, digits: int) -> bool:
    return abs(round(100 * mark, digits) - 100 * mark) < 1e-6
