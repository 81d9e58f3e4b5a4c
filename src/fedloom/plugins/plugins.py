"""Plug-ins: algorithms, data sets, metrics and model families from outside fedloom, as a value that is passed on.

They come from Python files that an experiment names, from Python values, or from the entry points of installed packages
(`fedloom.algorithms`, `fedloom.datasets`, `fedloom.metrics`, `fedloom.families`). None of fedloom's own dicts changes,
nothing is downloaded, and the code is sent nowhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from fedloom.algorithms import PLACES
from fedloom.algorithms.baselines import BASELINES
from fedloom.algorithms.entry import Entry
from fedloom.plugins.code_digest import file_code_digest, source_digest, value_digest
from fedloom.plugins.import_file import find_line, import_file
from fedloom.system.errors import UserError

if TYPE_CHECKING:
    from fedloom.data import Loader
    from fedloom.models.family_interface import Family
    from fedloom.tasks import Metric

V = TypeVar("V")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""A valid name in a plug-in."""


class Kind(NamedTuple):
    """A kind of plug-in.

    Attributes:
        dict: Name of the dict in a file.
        what: The kind in words, singular.
        names: Function that returns the names of fedloom's own.
        convert: Function (name, value as written) → value that fedloom uses; raises `ValueError` with what would be right.
    """

    dict: str
    what: str
    names: Callable[[], Iterable[str]]
    convert: Callable[[str, Any], Any]


@dataclass(frozen=True)
class Plugins:
    """Everything that plug-ins add to fedloom; see `Plugins.of`.

    Attributes:
        algorithms: Name → entry, of an algorithm or a part of one.
        datasets: Name → loader.
        metrics: Name → metric; its result has the score under that name.
        families: `model_type` → model family.
        digests: Name of code that affects results → its SHA-256.
    """

    algorithms: Mapping[str, Entry] = field(default_factory=dict[str, Entry])
    datasets: Mapping[str, Loader] = field(default_factory=dict[str, "Loader"])
    metrics: Mapping[str, Metric] = field(default_factory=dict[str, "Metric"])
    families: Mapping[str, Family] = field(default_factory=dict[str, "Family"])
    digests: Mapping[str, str] = field(default_factory=dict[str, str])

    @staticmethod
    def of(
        algorithms: Mapping[str, Any] | None = None,
        datasets: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        families: Mapping[str, Any] | None = None,
    ) -> Plugins:
        """Return a plug-in of Python values.

        Args:
            algorithms: Name → an `Entry`, a function that makes an algorithm, or an algorithm itself.
            datasets: Name → a loader (settings, seed) → `DataSet`, a `Source`, a `DataSet`, or a list of examples.
            metrics: Name → a function (example, answer) → 0..1, or a `Metric`.
            families: `model_type` → `Family`.

        Raises:
            UserError: fedloom has a name already, or a value is of the wrong kind.

        Example:
            >>> Plugins.of(metrics={"same": lambda example, answer: float(answer == example.answer)}).names
            ['same']
        """
        values_by_kind = {
            "algorithms": algorithms,
            "datasets": datasets,
            "metrics": metrics,
            "families": families,
        }
        converted = {
            kind: _checked(kind, values, _in_python(kind))
            for kind, values in values_by_kind.items()
            if values
        }
        # A data set is identified by its examples, not by the code that loads them.
        codes = {
            f"code of {name}": _code(value)
            for kind, values in values_by_kind.items()
            if kind != "datasets"
            for name, value in (values or {}).items()
        }
        return Plugins(**converted, digests=codes)

    @property
    def names(self) -> list[str]:
        """The names of everything that is added."""
        return [name for kind in KINDS for name in getattr(self, kind)]


class Layered(Mapping[str, V]):
    """Several mappings as one; a name is looked up in the first mapping that has it."""

    def __init__(self, *layers: Mapping[str, V]) -> None:
        self._layers = layers

    def __getitem__(self, name: str) -> V:
        for layer in self._layers:
            if name in layer:
                return layer[name]
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        return any(name in layer for layer in self._layers)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(name for layer in self._layers for name in layer))

    def __len__(self) -> int:
        return len(list(iter(self)))


def combine_plugins(plugins: Sequence[str | Plugins]) -> Plugins:
    """Return several plug-ins as one.

    Args:
        plugins: Absolute paths of Python files, or values.

    Raises:
        UserError: A file cannot be used, or two plug-ins have the same name.
    """
    whole: dict[str, dict[str, Any]] = {added.name: {} for added in fields(Plugins)}
    for plugin in plugins:
        added = read_plugin(Path(plugin)) if isinstance(plugin, str) else plugin
        for kind, values in whole.items():
            for name, value in getattr(added, kind).items():
                if name in values and kind != "digests":
                    where = plugin if isinstance(plugin, str) else "a plug-in"
                    raise UserError(
                        f"{where}: another plug-in has a {KINDS[kind].what} {name!r} too; rename one of them"
                    )
                values[f"{name} ({len(values) + 1})" if name in values else name] = value
    return Plugins(**whole)


def read_plugin(path: Path) -> Plugins:
    """Read the dicts `ALGORITHMS`, `DATASETS`, `METRICS` and `FAMILIES` of a Python file, which has at least one of them.

    Args:
        path: An absolute path.

    Raises:
        UserError: The file cannot be imported, has none of the dicts, or has a wrong value in one; the message has the
            file and the line.
    """
    module, digest = import_file(path)
    return _read(path, digest, vars(module))


def _read(path: Path, digest: str, values: Mapping[str, Any]) -> Plugins:
    dicts = {kind: values[added.dict] for kind, added in KINDS.items() if added.dict in values}
    if not dicts:
        names = ", ".join(added.dict for added in KINDS.values())
        raise UserError(f"{path}: it has none of the dicts {names}, so it adds nothing")

    def place(kind: str, name: str | None) -> str:
        line = find_line(path, KINDS[kind].dict, name)
        of = "" if name is None else f"[{name!r}]"
        return f"{path}{'' if line is None else f', line {line}'}: {KINDS[kind].dict}{of}"

    converted = {kind: _checked(kind, value, partial(place, kind)) for kind, value in dicts.items()}
    return Plugins(**converted, digests={f"plug-in {path.name}": digest})


def _in_python(kind: str) -> Callable[[str | None], str]:
    return lambda name: f"Plugins: {kind}{'' if name is None else f'[{name!r}]'}"


def _checked(kind: str, values: Any, place: Callable[[str | None], str]) -> dict[str, Any]:
    """Check a dict of one kind, and return it with converted values.

    Args:
        kind: A key of `KINDS`.
        values: The dict as written.
        place: Function that returns the place of a name in the dict, in words, or of the dict for None.

    Raises:
        UserError: It is no dict, fedloom has a name already, or a value is of the wrong kind.
    """
    if not isinstance(values, Mapping) or not values:
        raise UserError(f"{place(None)} must be a dict from names to {KINDS[kind].what}s, and not empty")
    converted: dict[str, Any] = {}
    for name, value in values.items():
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise UserError(
                f'{place(None)}: {name!r} cannot be a name; use at most 64 letters, digits, "_" and "-", and begin with a '
                "letter or a digit"
            )
        if name in KINDS[kind].names():
            raise UserError(
                f"{place(name)}: fedloom has a {KINDS[kind].what} {name!r} itself; choose another name"
            )
        try:
            converted[name] = KINDS[kind].convert(name, value)
        except ValueError as error:
            raise UserError(f"{place(name)} {error}") from error
    return converted


def _entry(name: str, value: Any) -> Entry:
    """Return a guarded entry for an entry, a factory, or an algorithm."""
    from fedloom.algorithms.plugin_algorithms import as_entry, guarded

    return guarded(name, as_entry(name, value))


def _loader(name: str, value: Any) -> Loader:
    """Return a checked loader for a loader, a data set, or examples."""
    from fedloom.data.plugin_data import plugin_loader
    from fedloom.tasks import TASKS

    return plugin_loader(name, value, tuple(TASKS))


def _metric(name: str, value: Any) -> Metric:
    """Return a checked metric for a metric, or for a function (example, answer) → 0..1."""
    from fedloom.tasks.plugin_metrics import plugin_metric

    return plugin_metric(name, value)


def _family(name: str, value: Any) -> Family:
    from fedloom.models.family_interface import Family

    if not isinstance(value, Family):
        raise ValueError(
            f"must be a fedloom.models.family_interface.Family, not a value of type {type(value).__name__}"
        )
    return value


def _taken_algorithms() -> Iterable[str]:
    return (*PLACES, *BASELINES)


def _taken_datasets() -> Iterable[str]:
    from fedloom.data import DATASETS

    return DATASETS


def _taken_metrics() -> Iterable[str]:
    from fedloom.tasks.plugin_metrics import reserved_names

    return reserved_names()


def _taken_families() -> Iterable[str]:
    from fedloom.models.family_table import FAMILIES

    return FAMILIES


KINDS: Mapping[str, Kind] = {
    "algorithms": Kind("ALGORITHMS", "method", _taken_algorithms, _entry),
    "datasets": Kind("DATASETS", "data set", _taken_datasets, _loader),
    "metrics": Kind("METRICS", "score", _taken_metrics, _metric),
    "families": Kind("FAMILIES", "model family", _taken_families, _family),
}
"""Field of `Plugins` → kind."""


def _code(value: Any) -> str:
    """Return the digest of a Python value's code; one that is neither a function nor a factory is known by itself only."""
    function = value.make if isinstance(value, Entry) else value
    return source_digest(function) if callable(function) else value_digest(function)


class _Installed(Mapping[str, Any]):
    """The entry points of installed packages of one kind; each is imported when it is looked up."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def _points(self) -> dict[str, list[EntryPoint]]:
        points: dict[str, list[EntryPoint]] = {}
        for point in entry_points(group=f"fedloom.{self._kind}"):
            points.setdefault(point.name, []).append(point)
        return {name: points[name] for name in sorted(points)}

    def __getitem__(self, name: str) -> Any:
        points = self._points()[name]
        from_ = " and ".join(sorted({point.dist.name if point.dist else point.value for point in points}))
        where = f"the installed package {from_}"
        if len({point.value for point in points}) > 1:
            raise UserError(f"{from_} both have a {KINDS[self._kind].what} {name!r}; uninstall one of them")
        return _from_package(self._kind, points[0], where)

    def __contains__(self, name: object) -> bool:  # Mapping's own would import it
        return name in self._points()

    def __iter__(self) -> Iterator[str]:
        return iter(self._points())

    def __len__(self) -> int:
        return len(self._points())


def _from_package(kind: str, point: EntryPoint, where: str) -> Any:
    try:
        value = point.load()
    except (Exception, SystemExit) as error:
        raise UserError(
            f"{where}: its entry point {point.value} fails: {type(error).__name__}: {error}"
        ) from error
    return _checked(kind, {point.name: value}, lambda _: f"{where}: its entry point {point.value}")[
        point.name
    ]


def installed_code(kind: str, name: str) -> str:
    """Return the SHA-256 of an entry point's module, and of the files of its own package that it imports.

    Args:
        kind: A key of `KINDS`.
        name: The name of the entry point.
    """
    point = next(iter(entry_points(group=f"fedloom.{kind}", name=name)))
    file = import_module(point.module).__file__
    return (
        file_code_digest(Path(file).resolve()) if file and file.endswith(".py") else value_digest(point.value)
    )


INSTALLED = Plugins(**{kind: _Installed(kind) for kind in KINDS})
"""All entry points of installed packages."""
