"""Turn a plug-in's loader, data set or list of examples into a loader whose mistakes are reported."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from operator import index
from typing import TYPE_CHECKING, Any

from fedloom.data.duplicates import content_keys, normalized_text
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
        return PluginLoader(name, _Divided(name, tuple(value), tasks), tasks)
    if not callable(value):
        kind = "an empty list" if value == [] else f"a value of type {type(value).__name__}"
        if isinstance(value, list | tuple) and value:
            other = next(one for one in value if not isinstance(one, Example))
            kind = f"a list that holds a {type(other).__name__}"
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
        parts = {
            part: checked_examples(self.name, getattr(data, part), self.tasks)
            for part in ("train", "test", "validation")
        }
        ids = set[str]()
        for example in (example for examples in parts.values() for example in examples):
            if example.id in ids:
                raise UserError(f"data: {self.name} has two examples with the id {example.id!r}")
            ids.add(example.id)
        return replace(data, name=self.name, **parts)


def checked_examples(name: str, examples: Iterable[Any], tasks: Collection[str]) -> tuple[Example, ...]:
    """Return the examples of a data set, with options as a tuple and labels as plain numbers.

    Args:
        name: The data set's name.
        examples: Its examples, as a plug-in gave them.
        tasks: The tasks that an example may have.

    Raises:
        UserError: One is no example, or has a field of the wrong kind.
    """
    checked = list[Example]()
    for example in examples:
        if not isinstance(example, Example):
            raise UserError(f"data: {name} holds a {type(example).__name__} where an Example belongs")
        try:
            plain = _plain(example)
            reason = _mistake(plain, tasks)
        except TypeError as error:
            plain, reason = example, str(error)
        if reason is not None:
            raise UserError(f"data: example {example.id!r} of {name} {reason}")
        checked.append(plain)
    return tuple(checked)


def _plain(example: Example) -> Example:
    """Return an example whose options are a tuple, whose label is an int and whose group is text.

    A list of options, labels of numpy and numbers of groups become these.

    Raises:
        TypeError: One cannot; the message ends a sentence that begins with the example.
    """
    options, label, group = example.options, example.label, example.group
    if not isinstance(options, Sequence) or isinstance(options, str):
        raise TypeError(f"has options {options!r:.40}; they must be a tuple of texts")
    try:
        label = None if label is None else index(label)
    except TypeError:
        raise TypeError(f"has the label {label!r:.40}; it must be the index of the right option") from None
    try:
        group = group if group is None or isinstance(group, str) else str(index(group))
    except TypeError:
        raise TypeError(f"has the group {group!r:.40}; it must be text") from None
    return replace(example, options=tuple(options), label=label, group=group)


def _mistake(example: Example, tasks: Collection[str]) -> str | None:
    """Return what is wrong with an example, or None."""
    for name in ("id", "question", "answer"):
        if not isinstance(value := getattr(example, name), str):
            return f"has the {name} {value!r:.40}; it must be text"
    if not isinstance(example.text, str | None):
        return f"has the text {example.text!r:.40}; it must be text or None"
    for image in (*example.pictures, *example.spare):
        if not isinstance(getattr(image, "key", None), str) or not callable(getattr(image, "pixels", None)):
            kind = type(image).__name__
            return (
                f"has an image of type {kind}; an image has `key` and `pixels()`, and "
                "fedloom.data.python_images.python_image makes one of a path, a PIL image or an array"
            )
    if example.task not in tasks:
        return f"has the task {example.task!r}; there are {', '.join(tasks)}"
    options, label = example.options, example.label
    if not all(isinstance(option, str) for option in options):
        return "has options that are no texts"
    if example.task != "choice":
        return None
    if label is None or not 0 <= label < len(options):
        return "needs options and the index of the right one as label"
    if len(set(map(normalized_text, options))) < len(options):
        return "has options that differ only in case and space"
    if normalized_text(options[label]) != normalized_text(example.answer):
        return f"has the answer {example.answer!r:.40}, but its label is that of {options[label]!r:.40}"
    return None


@dataclass(frozen=True)
class _Constant:
    data: DataSet

    def __call__(self, settings: Data, seed: int) -> DataSet:
        del settings, seed
        return self.data


@dataclass(frozen=True)
class _Divided:
    name: str
    examples: tuple[Example, ...]
    tasks: Collection[str]

    def __call__(self, settings: Data, seed: int) -> DataSet:
        examples = checked_examples(self.name, self.examples, self.tasks)
        train, test = divide(examples, content_keys(examples), settings.test_share, seed)
        return DataSet("", train, test)
