"""The key `plugins` of an experiment, what its plug-ins add, and the mistakes in them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, PlainSerializer, PlainValidator

from fedloom.algorithms import ENTRIES
from fedloom.algorithms.entry import Entry
from fedloom.config.schema import MOST_NAMES, Section, valid_path
from fedloom.config.validation_errors import Conflict, choice_error
from fedloom.config.yaml_document import Document, KeyPath, Place, replace_at
from fedloom.plugins.plugins import INSTALLED, Layered, Plugins, combine_plugins
from fedloom.system.errors import UserError

if TYPE_CHECKING:
    from fedloom.data import Loader
    from fedloom.models.family_interface import Family
    from fedloom.tasks import Metric

AROUND: tuple[KeyPath, ...] = (("plugins",),)
"""The key whose mistakes hide all others: an unknown name might come from a plug-in that cannot be used."""

PYTHON = "python"
"""Key of a plug-in that is a Python value, in an experiment as JSON."""


def _plugin(value: Any) -> str | Plugins:
    if isinstance(value, Plugins):
        return value
    if isinstance(value, Mapping) and PYTHON in value:
        names = ", ".join(map(str, value[PYTHON]))
        raise choice_error(
            f"{names} was a Python value, which no file holds; continue in Python, by fedloom.run with the same value"
        )
    if (
        not isinstance(value, str | os.PathLike)
        or not (path := os.fspath(value))
        or not isinstance(path, str)
    ):
        raise choice_error("a plug-in is the path of a Python file, or from Python a fedloom.Plugins")
    return os.path.abspath(valid_path(path))


def _as_json(plugin: str | Plugins) -> Any:
    return {PYTHON: plugin.names} if isinstance(plugin, Plugins) else plugin


Plugin = Annotated[
    Any, PlainValidator(_plugin, json_schema_input_type=str), PlainSerializer(_as_json, return_type=Any)
]
"""An absolute path, or a `Plugins`."""


class Pluggable(Section):
    """An experiment with plug-ins, and all names that it can use: fedloom's own, and those that plug-ins add.

    Files are imported once, when the experiment is checked; later changes of a file have no effect on the value.
    """

    plugins: Annotated[tuple[Plugin, ...], Field(max_length=MOST_NAMES)] = Field(
        default=(),
        description="Python files with algorithms, data sets, metrics or model families; relative to the working directory, "
        "as all paths are.",
    )

    @cached_property
    def added(self) -> Plugins:
        """Everything that the plug-ins of this experiment add.

        Raises:
            UserError: One of them is missing or wrong.
        """
        return combine_plugins(self.plugins)

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Name → entry, for all algorithms and parts of algorithms."""
        return Layered(ENTRIES, self.added.algorithms, INSTALLED.algorithms)

    @property
    def datasets(self) -> Mapping[str, Loader]:
        """Name → loader, for all data sets."""
        return datasets(self.added)

    @property
    def families(self) -> Mapping[str, Family]:
        """`model_type` → family, for all model families."""
        from fedloom.models.family_table import FAMILIES

        return Layered(FAMILIES, self.added.families, INSTALLED.families)

    def metrics(self, names: Sequence[str] | None) -> Mapping[str, Metric]:
        """Return name → metric, for the metrics that are computed besides fedloom's own.

        Args:
            names: `evaluate.metrics`; None takes all that the plug-ins of this experiment add.
        """
        metrics = Layered(self.added.metrics, INSTALLED.metrics)
        return {name: metrics[name] for name in (self.added.metrics if names is None else names)}


def datasets(added: Plugins) -> Mapping[str, Loader]:
    """Return name → loader, for all data sets.

    Args:
        added: Everything that the plug-ins of an experiment add.
    """
    from fedloom.data import DATASETS

    return Layered(DATASETS, added.datasets, INSTALLED.datasets)


def with_plugins(document: Document, paths: Sequence[str]) -> Document:
    """Return a document with additional plug-ins.

    Args:
        document: An experiment or a grid, which is not changed itself.
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
    return replace_at(document, ("plugins",), Document(document.source, [*before, *paths], branch, branch))


def unusable_plugins(experiment: Pluggable) -> Iterator[Conflict]:
    """Yield plug-ins that cannot be used; without them nothing else of the experiment can be checked."""
    for index, plugin in enumerate(experiment.plugins):
        try:
            combine_plugins([plugin])
        except UserError as error:
            yield Conflict(("plugins", index), f"plugins[{index}]: {error}")
            return
    try:
        _ = experiment.added
    except UserError as error:
        yield Conflict(("plugins",), f"plugins: {error}")
