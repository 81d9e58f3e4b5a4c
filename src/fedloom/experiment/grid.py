"""Expand a grid, one recipe for many experiments, into cells, which are all checked before any of them runs.

    grid:                                    # every entry is an axis; a cell takes one value of each
      scenario:                              # an axis of named points, each setting several keys
        - {name: aligned-5, scenario.alpha: 5.0}
        - {name: missing-30, scenario.pattern: missing, scenario.rate: 0.3}
      algorithms.fedadam.lr: [0.01, 0.1]     # an axis named by a key is a list of its values
      seed: [0, 1, 2]                        # reports average over this one; the last axis changes fastest
    quick:                                   # changes for `fedloom sweep --quick`
      train.rounds: 2
      grid: {scenario: [missing-30], seed: [0]}    # values that replace those above; a point is given by its name
    published:                               # figures of others, shown next to ours
      source: "their source"
      metric: auc
      scores: {missing-30: {fedadam: 76.82}}

    choose: [algorithms.fedadam.lr]          # axes whose value is chosen for each method by its validation score

All other keys belong to the experiment that the cells have in common. `--set grid.seed=[0, 1]` changes an axis.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedloom.config.schema import Published, Section
from fedloom.config.validation_errors import check_document, did_you_mean, error_text, unknown_name
from fedloom.config.yaml_document import (
    Document,
    KeyPath,
    Mistake,
    dotted,
    parse_override,
    read_document,
    replace_at,
    subdocument,
    without_keys,
)
from fedloom.experiment.experiment import Experiment
from fedloom.experiment.grid_axes import Axis, Change, Point, changes_of, overlaps, read_axes
from fedloom.experiment.methods import parse_method
from fedloom.experiment.plugins_key import with_plugins
from fedloom.experiment.recipes import SWEEP_KEYS, experiment_text, refuse_sweep_key, takes_text
from fedloom.system.errors import UserError

SEED = "seed"  # the axis that reports average over
MOST_CELLS = 10_000
MOST_BAD = 1_000  # cells with mistakes after which no more cells are checked
MOST_FOLDER = 60  # characters of a cell's name in the name of its folder


@dataclass(frozen=True)
class Cell:
    """One experiment of a grid.

    Attributes:
        name: The labels, such as "missing-30, seed=0".
        values: Axis → label.
        experiment: The experiment that is run.
    """

    name: str
    values: Mapping[str, Any]
    experiment: Experiment

    @property
    def folder(self) -> str:
        """Name of the cell's run folder; the digest in it makes similar names different."""
        return f"{slug(self.name)}-{self.experiment.digest[:8]}"


@dataclass(frozen=True)
class Grid:
    """A recipe with all its cells.

    Attributes:
        name: The name of the base experiment.
        quick: Whether this is the quick form.
        axes: Axis → labels.
        cells: All combinations; the last axis changes fastest.
        published: Figures of others to show next to ours.
        choose: Axes whose value is chosen for each method by its validation score.
    """

    name: str
    quick: bool
    axes: Mapping[str, tuple[Any, ...]]
    cells: tuple[Cell, ...]
    published: Published | None = None
    choose: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """The SHA-256 of the cells' names and experiments."""
        rows = [[cell.name, cell.experiment.digest] for cell in self.cells]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


class _Extra(Section):
    published: Published


def slug(name: str) -> str:
    """Return a name with only the characters that a folder's name may have.

    Example:
        >>> slug("missing 30 %, seed=0")
        'missing_30_seed-0'
    """
    plain = re.sub(r"[^A-Za-z0-9.-]+", "_", name.replace("=", "-"))
    return plain.strip("_.-")[:MOST_FOLDER] or "cell"


def load_grid(
    path_or_recipe: str | Document,
    overrides: Sequence[str] = (),
    plugins: Sequence[str] = (),
    *,
    quick: bool = False,
) -> Grid:
    """Read a grid from a recipe or a YAML or JSON file.

    Args:
        path_or_recipe: The name of a bundled recipe, a path, or a document that was read before.
        overrides: Changes such as `train.lr=3e-4` or `grid.seed=[0, 1]`, applied in order.
        plugins: Python files that are added to those that the base names.
        quick: Whether to apply the recipe's `quick` section; `overrides` come after it.

    Raises:
        UserError: The base, the grid or a cell has mistakes; the message lists each of them once.
    """
    document = (
        path_or_recipe
        if isinstance(path_or_recipe, Document)
        else read_document(*experiment_text(path_or_recipe))
    )
    if document.mistakes or not isinstance(document.value, dict):
        base = without_keys(document, SWEEP_KEYS)
        raise UserError(error_text(document.source, check_document(Experiment, base)[1]))
    mistakes: list[Mistake] = []
    fewer, changes = _quick(document, mistakes) if quick else ({}, ())
    choose_document = subdocument(document, ("choose",)) if "choose" in document.value else None
    base, set_by_hand = without_keys(document, SWEEP_KEYS), list[tuple[KeyPath, Document]]()
    for path, branch in changes:
        base = replace_at(base, path, branch)
    for text in overrides:
        path, branch = parse_override(text, takes_text)
        mistakes += branch.mistakes
        if path[0] == "grid" and len(path) > 1:
            fewer[dotted(path[1:])] = branch
        elif path == ("choose",):
            choose_document = branch
        elif not branch.mistakes:
            refuse_sweep_key(path)
            base = replace_at(base, path, branch)
            set_by_hand.append((path, branch))
    base = with_plugins(base, plugins)
    axes, whole = read_axes(document, fewer, mistakes)
    mistakes += overlaps(axes, set_by_hand)
    choose = _choose(choose_document, axes, mistakes) if choose_document is not None and axes else ()
    labels = [label for axis in whole if axis.name not in choose for label in axis.labels]
    published = _published(document, labels, mistakes)
    if not axes and not mistakes:
        for key in document.value:
            if key not in {*Experiment.model_fields, *SWEEP_KEYS} and (
                guess := did_you_mean(str(key), SWEEP_KEYS)
            ):
                message = f"{key} is not a known key{guess}"
                raise UserError(
                    error_text(document.source, [Mistake(document.place((key,), of_key=True), message)])
                )
        message = "there is no grid in it; add one, for example with --set grid.seed=[0,1,2]"
        raise UserError(f"{document.source}: {message}")
    cells = _cells(base, axes, mistakes)
    if choose and choose_document is not None:
        mistakes += _incomparable(choose_document, choose, cells) or _unvalidated(choose_document, cells)
    if mistakes:
        raise UserError(error_text(document.source, list(dict.fromkeys(mistakes))))
    name = base.value.get("name", Experiment.model_fields["name"].default)
    return Grid(name, quick, {axis.name: axis.labels for axis in axes}, cells, published, choose)


def _quick(document: Document, mistakes: list[Mistake]) -> tuple[dict[str, Document], tuple[Change, ...]]:
    """Return the axes that the quick form replaces, and its other changes."""
    if "quick" not in document.value:
        place = document.place((), of_key=True)
        mistakes.append(Mistake(place, "--quick needs a section `quick` with what it changes"))
        return {}, ()
    section = subdocument(document, ("quick",))
    if not isinstance(section.value, dict):
        mistakes.append(Mistake(section.place(()), "quick must be a mapping from keys to values"))
        return {}, ()
    axes = subdocument(section, ("grid",)) if "grid" in section.value else Document(document.source, {})
    if not isinstance(axes.value, dict):
        mistakes.append(Mistake(axes.place(()), "quick.grid must be a mapping from axes to lists"))
        return {}, ()
    fewer = {name: subdocument(axes, (name,)) for name in axes.value}
    return fewer, tuple(changes_of(without_keys(section, ("grid",))))


def _choose(document: Document, axes: Sequence[Axis], mistakes: list[Mistake]) -> tuple[str, ...]:
    """Read the axes whose value is chosen; each must be an axis of the grid, but not the seed."""
    if not isinstance(document.value, list) or not document.value:
        message = "choose must be a list of axes of the grid, and not empty, such as [train.lr]"
        mistakes.append(Mistake(document.place(()), message))
        return ()
    names = [axis.name for axis in axes if axis.name != SEED]
    for index, name in enumerate(document.value):
        problem = ""
        if name == SEED:
            problem = f"choose[{index}] is {SEED}, which is averaged over and cannot be chosen"
        elif name not in names:
            problem = f"choose[{index}]: {unknown_name('axis to choose a value of', str(name), names)}"
        elif name in document.value[:index]:
            problem = f'choose[{index}] repeats "{name}"'
        if problem:
            mistakes.append(Mistake(document.place((index,)), problem))
    return tuple(name for name in names if name in document.value)


def _unvalidated(document: Document, cells: Sequence[Cell]) -> list[Mistake]:
    """Return a mistake if a value is chosen but a cell has no validation set, so that only test scores could choose."""
    lacking = [cell.name for cell in cells if not cell.experiment.data.validation]
    if not lacking:
        return []
    where = "" if len(lacking) == len(cells) else f" in {lacking[0]}"
    message = (
        f"choose needs a validation set, but data.validation is 0{where}, so only test scores could choose; set "
        "data.validation to a share such as 0.1"
    )
    return [Mistake(document.place((), of_key=True), message)]


def _incomparable(document: Document, choose: Sequence[str], cells: Sequence[Cell]) -> list[Mistake]:
    """Return a mistake for every chosen axis whose values are not validated on the same examples in the same way."""
    mistakes: list[Mistake] = []
    for name in choose:
        first: dict[str, dict[str, Any]] = {}
        for cell in cells:
            others = json.dumps({axis: label for axis, label in cell.values.items() if axis != name})
            own = _validation_settings(cell.experiment)
            expected = first.setdefault(others, own)
            changed = [key for key in expected | own if expected.get(key) != own.get(key)]
            if changed:
                at = document.value.index(name)
                message = (
                    f"choose[{at}] is {name}, but validation scores with different {changed[0]} cannot be compared; "
                    f"leave {name} out of choose"
                )
                mistakes.append(Mistake(document.place((at,)), message))
                break
    return mistakes


def _validation_settings(experiment: Experiment) -> dict[str, Any]:
    """Return the settings that decide the validation examples, their modalities, and how answers are scored."""
    # The owners' part does not depend on the division among clients.
    owners = experiment.data.validation == "published"
    data = experiment.data.model_dump(exclude={"max_rejected"} | ({"limit"} if owners else set()))
    scenario = {} if owners else experiment.scenario.model_dump()
    return {
        "seed": experiment.seed,
        **{f"data.{key}": value for key, value in data.items()},
        **{f"scenario.{key}": value for key, value in scenario.items()},
        "evaluate.scoring": experiment.evaluate.scoring,
    }


def _published(document: Document, labels: Sequence[Any], mistakes: list[Mistake]) -> Published | None:
    """Read the figures of others; every label must be a label of the grid."""
    if "published" not in document.value:
        return None
    others = [key for key in document.value if key != "published"]
    extra, wrong = check_document(_Extra, without_keys(document, others))
    mistakes += wrong
    published = extra.published if extra else None
    names = [str(label) for label in labels]
    for label, figures in published.scores.items() if published else ():
        path: KeyPath = ("published", "scores", label)
        if names.count(label) != 1:
            hint = did_you_mean(label, names) or f". Allowed: {', '.join(dict.fromkeys(names))}"
            message = f'published.scores: "{label}" is not the label of one point of the grid{hint}'
            mistakes.append(Mistake(document.place(path, of_key=True), message))
        for method in figures:
            try:
                parse_method(method)
            except UserError as error:
                message = f"{dotted(path)}: {error}"
                mistakes.append(Mistake(document.place((*path, method), of_key=True), message))
    return published


def _cells(base: Document, axes: Sequence[Axis], mistakes: list[Mistake]) -> tuple[Cell, ...]:
    """Return all combinations; a mistake is reported once, with the values of the axes on which it depends."""
    count = 1
    for axis in axes:
        count *= len(axis.points)
    if count > MOST_CELLS:
        message = f"the grid has {count:,} cells; at most {MOST_CELLS:,} are possible"
        mistakes.append(Mistake(base.place(()), message))
        return ()
    cells, tried, bad = list[Cell](), list[tuple[Point, ...]](), 0
    combinations_of = dict[Mistake, list[tuple[Point, ...]]]()
    for points in itertools.product(*(axis.points for axis in axes)):
        document = base
        for point in points:
            for path, branch in point.changes:
                document = replace_at(document, path, branch)
        experiment, wrong = check_document(Experiment, document)
        for mistake in dict.fromkeys(wrong):
            combinations_of.setdefault(mistake, []).append(points)
        tried.append(points)
        bad += bool(wrong)
        if bad == MOST_BAD:
            break
        if experiment is not None and not wrong:
            cells.append(_cell(axes, points, experiment))
    mistakes += [
        Mistake(place, message + _where(axes, combinations, Mistake(place, message), tried))
        for (place, message), combinations in combinations_of.items()
    ]
    if twice := [name for name, times in Counter(cell.name for cell in cells).items() if times > 1]:
        message = f'several cells are called "{twice[0]}"; give the points of the grid other names'
        mistakes.append(Mistake(base.place(()), message))
    return tuple(cells)


def _cell(axes: Sequence[Axis], points: Sequence[Point], experiment: Experiment) -> Cell:
    values = {axis.name: point.label for axis, point in zip(axes, points, strict=True)}
    name = ", ".join(
        str(point.label) if axis.named else f"{short}={_text(point.label)}"
        for axis, point, short in zip(axes, points, short_names([axis.name for axis in axes]), strict=True)
    )
    titled = experiment.model_copy(update={"name": f"{experiment.name}-{slug(name)}"[:80]})
    return Cell(name, values, titled)


def _text(label: Any) -> str:
    return label if isinstance(label, str) else json.dumps(label, ensure_ascii=False)


def short_names(names: Sequence[str]) -> list[str]:
    """Return the last words of dotted keys, or the whole keys where the last words are equal.

    Example:
        >>> short_names(["seed", "train.lr"]), short_names(["train.lr", "algorithms.fedadam.lr"])
        (['seed', 'lr'], ['train.lr', 'algorithms.fedadam.lr'])
    """
    last = [name.rpartition(".")[2] for name in names]
    counts = Counter(last)
    return [word if counts[word] == 1 else name for word, name in zip(last, names, strict=True)]


def _where(
    axes: Sequence[Axis],
    combinations: Sequence[tuple[Point, ...]],
    mistake: Mistake,
    tried: Sequence[tuple[Point, ...]],
) -> str:
    """Return a text with the values of the axes on which a mistake depends; "" if it is in the base."""
    named = []
    for index, axis in enumerate(axes):
        labels = list(dict.fromkeys(_text(points[index].label) for points in combinations))
        set_here = any(
            branch.place(()) == mistake.place
            for points in combinations
            for _, branch in points[index].changes
        )
        if set_here or len(labels) < len({_text(points[index].label) for points in tried}):
            named.append(f"{axis.name}: {', '.join(labels)}")
    if not named and len(combinations) < len(tried):
        labels = [_text(point.label) for point in combinations[0]]
        named = [f"for example {', '.join(labels)}"]
    return f" (in the grid with {'; '.join(named)})" if named else ""
