"""Read the axes of a grid from a recipe, and collect every mistake with its place."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fedloom.config.validation_errors import unknown_name
from fedloom.config.yaml_document import (
    Document,
    KeyPath,
    Mistake,
    Place,
    dotted,
    subdocument,
    subdocuments,
    without_keys,
)
from fedloom.experiment.recipes import SWEEP_KEYS

MOST_LABEL = 40  # characters of a point's name

Change = tuple[KeyPath, Document]


class Point(NamedTuple):
    """A value of an axis: its label, and the keys that it sets."""

    label: Any
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Axis:
    """One dimension of a grid.

    Attributes:
        name: A dotted key, or any name where the points have names.
        points: The values.
        named: Whether the points have names.
    """

    name: str
    points: tuple[Point, ...]
    named: bool

    @property
    def labels(self) -> tuple[Any, ...]:
        """The names of the points, or the values."""
        return tuple(point.label for point in self.points)


def read_axes(
    document: Document, fewer: Mapping[str, Document], mistakes: list[Mistake]
) -> tuple[list[Axis], list[Axis]]:
    """Return the axes of the sweep, and the recipe's axes with all their values."""
    grid = subdocument(document, ("grid",)) if "grid" in document.value else Document(document.source, {})
    if not isinstance(grid.value, dict) or ("grid" in document.value and not grid.value):
        mistakes.append(Mistake(grid.place(()), "grid must be a mapping from axes to lists of values"))
        return [], []
    whole = {str(name): _axis(str(name), rows, None, mistakes) for name, rows in subdocuments(grid).items()}
    replacing = {name: _axis(name, rows, whole.get(name), mistakes) for name, rows in fewer.items()}
    axes = [axis for axis in (whole | replacing).values() if axis is not None]
    return axes, [axis for axis in whole.values() if axis is not None]


def _axis(name: str, rows: Document, before: Axis | None, mistakes: list[Mistake]) -> Axis | None:
    """Read the values of an axis; if the recipe's axis has named points, a name refers to one of them."""
    if not isinstance(rows.value, list) or not rows.value:
        mistakes.append(Mistake(rows.place(()), f"grid.{name} must be a list of values, and not empty"))
        return None
    named = (before is not None and before.named) or any(isinstance(row, dict) for row in rows.value)
    points_by_label = {point.label: point for point in before.points} if before and before.named else {}
    points, seen = list[Point](), set[str]()
    items = subdocuments(rows)
    for index, row in enumerate(rows.value):
        item = items[index]
        key = f"grid.{name}[{index}]"
        if isinstance(row, dict):
            point, problem = _named_point(item, key)
        elif not named:
            point, problem = _plain_point(name, item, rows.place((), of_key=True)), ""
        else:
            point, problem = points_by_label.get(row) if isinstance(row, str) else None, ""
            if point is None:
                reason = (
                    unknown_name(f"point of {name}", str(row), list(points_by_label))
                    if points_by_label
                    else "expected a mapping"
                )
                problem = f"{key}: {reason}"
        if point is not None and (label := json.dumps(point.label)) in seen:
            point, problem = None, f"{key} repeats {label}"
        if point is None:
            mistakes.append(Mistake(item.place(()), problem))
        else:
            seen.add(json.dumps(point.label))
            points.append(point)
    return Axis(name, tuple(points), named) if points else None


def _plain_point(name: str, item: Document, key: Place) -> Point:
    """Return a point with one value; a mistake in its key is reported once, at the axis."""
    label = json.dumps(item.value) if isinstance(item.value, list) else item.value
    branch = Document(item.source, item.value, {**item.keys, (): key}, item.values)
    return Point(label, ((tuple(name.split(".")), branch),))


def _named_point(item: Document, key: str) -> tuple[Point | None, str]:
    """Read `{name: …, key: value, …}`."""
    name = item.value.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= MOST_LABEL or not name.isprintable():
        return None, f"{key} needs a name: text of at most {MOST_LABEL} characters, and the keys that it sets"
    changes = tuple(changes_of(without_keys(item, ("name",))))
    if any(path[0] in SWEEP_KEYS for path, _ in changes):
        return None, f"{key} may set keys of an experiment only"
    return Point(name, changes), ""


def overlaps(axes: Sequence[Axis], set_by_hand: Sequence[Change]) -> Iterator[Mistake]:
    """Yield keys that are set twice, so that one of the values would be lost silently."""
    taken_by = [_paths(axis) for axis in axes]
    for index, axis in enumerate(axes):
        for point in axis.points:
            for path, branch in point.changes:
                if path == ("name",):
                    yield Mistake(
                        branch.place((), of_key=True), "name cannot be an axis: it only names the folder"
                    )
                for other, others in zip(axes[:index], taken_by, strict=False):
                    if any(_within(path, taken) or _within(taken, path) for taken in others):
                        message = f"{dotted(path)} is set by grid.{axis.name} and by grid.{other.name}"
                        yield Mistake(branch.place((), of_key=True), message)
        for path, branch in set_by_hand:
            if all(any(_within(path, taken) for taken, _ in point.changes) for point in axis.points):
                message = f"every cell gets its {dotted(path)} from the grid; set grid.{axis.name} instead"
                yield Mistake(branch.place(()), message)


def _paths(axis: Axis) -> set[KeyPath]:
    return {path for point in axis.points for path, _ in point.changes}


def _within(path: KeyPath, around: KeyPath) -> bool:
    return path[: len(around)] == around


def changes_of(document: Document, above: KeyPath = ()) -> Iterator[Change]:
    """Yield the keys that a mapping sets, which may be dotted, nested or both."""
    for key, branch in subdocuments(document).items():
        path = (*above, *str(key).split("."))
        if isinstance(branch.value, dict) and branch.value:
            yield from changes_of(branch, path)
        else:
            yield path, branch
