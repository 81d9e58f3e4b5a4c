"""Read an experiment from a bundled recipe or a file, with changes and plug-ins from the command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from fedloom.config.validation_errors import (
    build_model,
    did_you_mean,
    schema_at,
    schema_of,
)
from fedloom.config.yaml_document import (
    MAX_BYTES,
    Document,
    KeyPath,
    apply_override,
    dotted,
    parse_override,
    read_document,
)
from fedloom.experiment.experiment import Experiment
from fedloom.experiment.plugins_key import with_plugins
from fedloom.system.errors import UserError
from fedloom.system.given_path import given_path
from fedloom.system.json_files import read_text
from fedloom.system.terminal import shell_word

FIRST = ("smoke", "quickstart", "own-data")
"""Recipes that a message about an unknown one names."""


def recipes() -> dict[str, Traversable]:
    """Return name → file of the bundled experiments, in alphabetical order; names contain folders."""
    return dict(sorted(_recipes(resources.files("fedloom").joinpath("recipes"))))


def _recipes(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, Traversable]]:
    for file in folder.iterdir():
        if file.is_dir():
            yield from _recipes(file, f"{prefix}{file.name}/")
        elif file.name.endswith(".yaml"):
            yield prefix + file.name.removesuffix(".yaml"), file


def experiment_text(path_or_recipe: str) -> tuple[str, str]:
    """Return the text of a recipe or of a file, and its name in messages.

    Raises:
        UserError: There is neither a recipe nor a readable file of that name.
    """
    bundled = recipes()
    if path_or_recipe in bundled:
        return bundled[path_or_recipe].read_text(encoding="utf-8"), f"{path_or_recipe}.yaml (recipe)"
    try:
        return read_text(Path(path_or_recipe), MAX_BYTES).removeprefix("\ufeff"), path_or_recipe
    except FileNotFoundError:
        hint = did_you_mean(path_or_recipe, list(bundled))
        first = ", ".join(name for name in FIRST if name in bundled)
        raise UserError(
            f"{path_or_recipe} is neither a file nor a recipe{hint or '.'} Recipes to begin with: {first}; "
            f"`fedloom list recipes` lists all {len(bundled)}"
        ) from None


SWEEP_KEYS = ("grid", "quick", "published", "choose")
"""Keys of a recipe that describes many experiments; see `fedloom.experiment.grid`."""


def load_experiment(
    path_or_recipe: str, overrides: Sequence[str] = (), plugins: Sequence[str] = ()
) -> Experiment:
    """Read an experiment from a recipe or a YAML or JSON file.

    Args:
        path_or_recipe: The name of a bundled recipe, or a path.
        overrides: Changes such as `train.lr=3e-4`, applied in order.
        plugins: Python files that are added to those that the experiment names.

    Raises:
        UserError: The file has mistakes, which the message lists with file, line, column and key; or it is a grid.
    """
    document = read_document(*experiment_text(path_or_recipe))
    for change in overrides:
        refuse_sweep_key(parse_override(change, takes_text)[0])
    if _sweep_keys(document):
        advice = (
            f"it is a grid of experiments; run them all with `fedloom sweep {shell_word(path_or_recipe)}`"
        )
        raise UserError(f"{document.source}: {advice}")
    for change in overrides:
        document = apply_override(document, change, takes_text)
    return build_model(Experiment, with_plugins(document, plugins))


def experiment_of(value: Any) -> Experiment:
    """Return an experiment that Python gives: itself, the name of a recipe, a path, or a dict of its keys.

    Raises:
        UserError: It is none of these, has mistakes, or is a grid.
    """
    if isinstance(value, Experiment):
        return value
    if isinstance(value, str | Path):
        return load_experiment(str(given_path(value, "experiment")))
    if not isinstance(value, Mapping):
        kinds = "a fedloom.Experiment, the name of a recipe, a path, or a dict with the keys of an experiment"
        raise UserError(f"experiment: expected {kinds}, not a value of type {type(value).__name__}")
    if any(key in value for key in SWEEP_KEYS):
        raise UserError("experiment: the dict is a grid of experiments; run them all with fedloom.sweep")
    return Experiment(**{str(key): inner for key, inner in value.items()})


def sweep_keys(path_or_recipe: str) -> tuple[str, ...]:
    """Return the keys of a recipe that only a sweep reads; none if it is a single experiment."""
    return _sweep_keys(read_document(*experiment_text(path_or_recipe)))


def is_grid(path_or_recipe: str, changes: Sequence[str] = ()) -> bool:
    """Return whether a recipe with changes describes many experiments, which only a sweep runs."""
    return any(change.lstrip().startswith("grid.") for change in changes) or bool(sweep_keys(path_or_recipe))


def refuse_sweep_key(path: KeyPath) -> None:
    """Raise a `UserError` if a change sets a key of a grid that only a file can set, or one of a grid that is not there."""
    if path == ("grid",):
        raise UserError("--set grid: set each axis by itself, for example --set grid.seed=[0,1,2]")
    if path[0] in SWEEP_KEYS:
        raise UserError(
            f"--set {dotted(path)}: {path[0]} is a key of grids that only a file can set; choose alone can be given here, "
            "together with a grid, for example --set grid.train.lr=[1e-3,3e-3] --set choose=[train.lr]"
        )


def _sweep_keys(document: Document) -> tuple[str, ...]:
    return tuple(key for key in SWEEP_KEYS if isinstance(document.value, dict) and key in document.value)


def takes_text(path: KeyPath) -> bool:
    """Return whether the value of an experiment's key is text."""
    part = schema_at(schema_of(Experiment), path)
    return {option.get("type") for option in part.get("anyOf", [part])} in ({"string"}, {"string", "null"})
