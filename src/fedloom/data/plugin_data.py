"""Turn a plug-in's loader, data set or list of examples into a loader whose mistakes are reported."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedloom.data.duplicates import content_keys
from fedloom.data.loading import Loader, divide
from fedloom.data.published_data_set import Source
from fedloom.system.errors import UserError, client_failure
from fedloom.types import DataSet, Example

if TYPE_CHECKING:
    from fedloom.config.schema import Data


def plugin_loader(name: str, value: Any, tasks: Collection[str]) -> Loader:
    """Return a loader that checks its examples and reports exceptions as mistakes of the plug-in.

    Args:
        name: The data set's name.
        value: A loader (settings, seed) → `DataSet`, a `Source`, a `DataSet`, or a sequence of examples, of which a share
            of `data.test_share` is held out for testing.
        tasks: The tasks that an example may have.

    Raises:
        ValueError: The value is none of these.
    """
    if isinstance(value, Source):
        return value
    if isinstance(value, DataSet):
        return PluginLoader(name, _Constant(value), tasks)
    if isinstance(value, Sequence) and value and all(isinstance(example, Example) for example in value):
        return PluginLoader(name, _Divided(tuple(value)), tasks)
    if not callable(value):
        kind = "an empty list" if value == [] else f"a value of type {type(value).__name__}"
        raise ValueError(
            f"must be a function (settings, seed) that returns a DataSet, a Source, a DataSet or a list of examples, not {kind}"
        )
    try:
        inspect.signature(value).bind(None, 0)
    except TypeError:
        raise ValueError("must take two arguments, the settings and the seed") from None
    return PluginLoader(name, value, tasks)


@dataclass(frozen=True)
class PluginLoader:
    """A loader of a plug-in that checks its examples and reports exceptions as mistakes of the plug-in.

    Attributes:
        name: The data set's name.
        load: (settings, seed) → data set.
        tasks: The tasks that an example may have.
    """

    name: str
    load: Any
    tasks: Collection[str]

    def __call__(self, settings: Data, seed: int) -> DataSet:
        """Load the data set.

        Raises:
            UserError: The loader raises an exception or returns something else, an example is invalid, or two have one id.
        """
        try:
            data = self.load(settings, seed)
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            raise UserError(f"data: the loader of {self.name} fails: {client_failure(error)}") from error
        if not isinstance(data, DataSet):
            raise UserError(
                f"data: the loader of {self.name} must return a DataSet, not a {type(data).__name__}"
            )
        parts = {part: tuple(getattr(data, part)) for part in ("train", "test", "validation")}
        self._check([example for examples in parts.values() for example in examples])
        return replace(data, name=self.name, **parts)

    def _check(self, examples: Sequence[Any]) -> None:
        ids = set[str]()
        for example in examples:
            if not isinstance(example, Example):
                raise UserError(
                    f"data: {self.name} holds a {type(example).__name__} where an Example belongs"
                )
            if wrong := [
                name for name in ("id", "question", "answer") if not isinstance(getattr(example, name), str)
            ]:
                raise UserError(f"data: the {wrong[0]} of example {example.id!r} of {self.name} must be text")
            if example.text is not None and not isinstance(example.text, str):
                raise UserError(
                    f"data: the text of example {example.id!r} of {self.name} must be text or None"
                )
            if isinstance(example.image, str | Path | bytes):
                raise UserError(
                    f"data: the image of example {example.id!r} of {self.name} is a {type(example.image).__name__}; "
                    "see docs/add-a-data-set.md for images"
                )
            if example.id in ids:
                raise UserError(f"data: {self.name} has two examples with the id {example.id!r}")
            if example.task not in self.tasks:
                raise UserError(
                    f"data: example {example.id!r} of {self.name} has the task {example.task!r}; there are {', '.join(self.tasks)}"
                )
            if example.task == "choice" and (
                example.label is None or not 0 <= example.label < len(example.options)
            ):
                raise UserError(
                    f"data: example {example.id!r} of {self.name} needs options and the index of the right one as label"
                )
            ids.add(example.id)


@dataclass(frozen=True)
class _Constant:
    data: DataSet

    def __call__(self, settings: Data, seed: int) -> DataSet:
        del settings, seed
        return self.data


@dataclass(frozen=True)
class _Divided:
    examples: tuple[Example, ...]

    def __call__(self, settings: Data, seed: int) -> DataSet:
        train, test = divide(self.examples, content_keys(self.examples), settings.test_share, seed)
        return DataSet("", train, test)
