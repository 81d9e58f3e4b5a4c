"""The key `plugins` of an experiment: what its plug-ins add, and how mistakes in them are found."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, PlainSerializer, PlainValidator

from fedloom.algorithms import ENTRIES
from fedloom.algorithms.entry import Entry
from fedloom.config.schema import MOST_NAMES, Section, possible_path
from fedloom.config.validation_errors import Conflict, choice_error
from fedloom.config.yaml_document import Document, KeyPath, Place, graft
from fedloom.plugins.plugins import INSTALLED, Layered, Plugins, gathered
from fedloom.system.errors import UserError

if TYPE_CHECKING:
    from fedloom.data import Loader
    from fedloom.models.family_interface import Family
    from fedloom.tasks import Metric

AROUND: tuple[KeyPath, ...] = (("plugins",),)
"""The key whose own mistakes hide all others: a wrong plug-in might have had any unknown name."""

PYTHON = "python"
"""Key that stands for a plug-in which was given as a Python value, in an experiment that is written down."""


def _plugin(value: Any) -> str | Plugins:
    if isinstance(value, Plugins):
        return value
    if isinstance(value, Mapping) and PYTHON in value:
        names = ", ".join(map(str, value[PYTHON]))
        raise choice_error(
            f"{names} came as a Python value, which no file holds; go on from Python, by fedloom.run with the same value"
        )
    if (
        not isinstance(value, str | os.PathLike)
        or not (path := os.fspath(value))
        or not isinstance(path, str)
    ):
        raise choice_error("a plug-in is the path of a Python file, or from Python a fedloom.Plugins")
    return os.path.abspath(possible_path(path))


def _written(plugin: str | Plugins) -> Any:
    return {PYTHON: plugin.names} if isinstance(plugin, Plugins) else plugin


Plugin = Annotated[
    Any, PlainValidator(_plugin, json_schema_input_type=str), PlainSerializer(_written, return_type=Any)
]
"""An absolute path, or a `Plugins`."""


class Pluggable(Section):
    """An experiment with plug-ins, and all that it can name: what comes with fedloom, and what the plug-ins add.

    Files are imported when the experiment is checked, and stay as they were then for as long as the value lives.
    """

    plugins: Annotated[tuple[Plugin, ...], Field(max_length=MOST_NAMES)] = Field(
        default=(),
        description="Python files with algorithms, data sets, metrics or model families; relative to the working directory, "
        "as all paths are.",
    )

    @cached_property
    def added(self) -> Plugins:
        """What the plug-ins of this experiment add.

        Raises:
            UserError: One of them is missing or wrong.
        """
        return gathered(self.plugins)

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Name → entry, of all algorithms and parts of algorithms."""
        return Layered(ENTRIES, self.added.algorithms, INSTALLED.algorithms)

    @property
    def datasets(self) -> Mapping[str, Loader]:
        """Name → loader, of all data sets."""
        return datasets(self.added)

    @property
    def families(self) -> Mapping[str, Family]:
        """`model_type` → family, of all model families."""
        from fedloom.models.family_table import FAMILIES

        return Layered(FAMILIES, self.added.families, INSTALLED.families)

    def metrics(self, names: Sequence[str] | None) -> Mapping[str, Metric]:
        """Return name → metric, of those that are computed besides fedloom's own.

        Args:
            names: `evaluate.metrics`; None takes all that the plug-ins of this experiment add.
        """
        known = Layered(self.added.metrics, INSTALLED.metrics)
        return {name: known[name] for name in (self.added.metrics if names is None else names)}


def datasets(added: Plugins) -> Mapping[str, Loader]:
    """Return name → loader, of all data sets.

    Args:
        added: What the plug-ins of an experiment add.
    """
    from fedloom.data import DATASETS

    return Layered(DATASETS, added.datasets, INSTALLED.datasets)


def with_plugins(document: Document, paths: Sequence[str]) -> Document:
    """Add plug-ins to those that a document names.

    Args:
        document: An experiment or a grid; it is left as it was.
        paths: Paths of Python files, as given by --plugin.
    """
    named = document.value.get("plugins") if isinstance(document.value, dict) else None
    if not paths or not isinstance(named, list | None):
        return document
    before = named or []
    places = {("plugins", index): document.place(("plugins", index)) for index in range(len(before))}
    places |= {
        ("plugins", len(before) + index): Place(f"--plugin {path}") for index, path in enumerate(paths)
    }
    branch: dict[KeyPath, Place] = {path[1:]: place for path, place in places.items()}
    return graft(document, ("plugins",), Document(document.source, [*before, *paths], branch, branch))


def unusable(experiment: Pluggable) -> Iterator[Conflict]:
    """Find plug-ins that cannot be used; without them nothing else of the experiment can be checked."""
    for index, plugin in enumerate(experiment.plugins):
        try:
            gathered([plugin])
        except UserError as error:
            yield Conflict(("plugins", index), f"plugins[{index}]: {error}")
            return
    try:
        _ = experiment.added
    except UserError as error:
        yield Conflict(("plugins",), f"plugins: {error}")
