"""The command `fedloom list`: list recipes, algorithms, data sets and more, each with a sentence."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from fedloom.cli.options import Debug, Json, PluginFiles, echo, echo_json, report_errors, require_known
from fedloom.system.errors import UserError
from fedloom.system.terminal import display_width, pad

if TYPE_CHECKING:
    from fedloom.algorithms.entry import Entry
    from fedloom.data import Loader
    from fedloom.experiment.plugins_key import Pluggable

T = TypeVar("T")


def _about(value: Any) -> str:
    """Return the first line of a docstring, without its pointer to other code."""
    return (inspect.getdoc(value) or "").partition("\n")[0].partition(" See `")[0]


def _name(name: str, value: Any) -> str:
    return name


def _each(
    entries: Mapping[str, T], about: Callable[[T], str], label: Callable[[str, T], str] = _name
) -> dict[str, str]:
    """Return name → description; an entry of an installed package that cannot be used is listed with the reason."""
    descriptions: dict[str, str] = {}
    for name in entries:
        try:
            descriptions[label(name, entries[name])] = about(entries[name])
        except UserError as error:
            descriptions[name] = f"cannot be used: {error}"
    return descriptions


def _recipes(plugged: Pluggable) -> dict[str, str]:
    del plugged
    from fedloom.experiment.recipes import recipes

    first_lines = {
        name: file.read_text(encoding="utf-8").partition("\n")[0] for name, file in recipes().items()
    }
    return {name: line.removeprefix("#").strip() for name, line in first_lines.items()}


def _algorithms(plugged: Pluggable) -> dict[str, str]:
    def label(name: str, entry: Entry) -> str:
        return name if entry.kind == "server" else f"+{name}"

    return _each(plugged.entries, lambda entry: entry.about, label)


def _datasets(plugged: Pluggable) -> dict[str, str]:
    from fedloom.data import Source
    from fedloom.data.plugin_data import PluginLoader

    def about(load: Loader) -> str:
        if isinstance(load, Source):
            return load.title
        return _about(load.load if isinstance(load, PluginLoader) else inspect.getmodule(load))

    return _each(plugged.datasets, about)


def _models(plugged: Pluggable) -> dict[str, str]:
    from fedloom.models.added_models import ADDED, added_digest

    bundled = {
        "bundled": "The small bundled model; needs no download.",
        "bundled-free": "A small bundled model without an encoder.",
    }

    def state(name: str) -> str:
        try:
            digest = added_digest(name)
        except UserError as error:
            return f"damaged: {error}"
        return f"add it with `fedloom models add {name}`" if digest is None else f"added, SHA-256 {digest}"

    added = {name: f"{row.summary}; {state(name)}" for name, row in ADDED.items()}
    return bundled | added | _each(plugged.families, lambda family: family.summary)


def _strategies(plugged: Pluggable) -> dict[str, str]:
    del plugged
    from fedloom.tuning.strategies import SEQUENCES, STRATEGIES

    ways = {"full": "in full", "lora": "by low-rank adapters"}
    names = {"connector": "connector", "llm": "language model"}
    kept = {"connector": "connector", "llm": "adapters"}

    def describe(what: str, personal: tuple[str, ...]) -> str:
        parts = " and ".join(f"the {names[part]} {ways[way]}" for part, way in STRATEGIES[what].items())
        own = " and ".join(kept[part] for part in personal)
        return f"{parts}; each client keeps its own {own}" if personal else parts

    return {
        name: f"Train {', then '.join(describe(*stage) for stage in stages)}."
        for name, stages in SEQUENCES.items()
    }


def _scenarios(plugged: Pluggable) -> dict[str, str]:
    del plugged
    from fedloom.scenarios import PARTITIONS, PATTERNS

    sides = {"partition": PARTITIONS, "pattern": PATTERNS}
    return {f"{side}={name}": _about(draw) for side, draws in sides.items() for name, draw in draws.items()}


def _methods(plugged: Pluggable) -> dict[str, str]:
    from fedloom.algorithms.baselines import BASELINES

    return {name: baseline.about for name, baseline in BASELINES.items()} | _algorithms(plugged)


_LISTS: dict[str, Callable[[Pluggable], dict[str, str]]] = {
    "recipes": _recipes,
    "algorithms": _algorithms,
    "datasets": _datasets,
    "models": _models,
    "strategies": _strategies,
    "scenarios": _scenarios,
    "methods": _methods,
}


def _complete_kind(incomplete: str) -> list[str]:
    return [kind for kind in _LISTS if kind.startswith(incomplete)]


def list_(
    kind: Annotated[str, typer.Argument(help=f"One of {', '.join(_LISTS)}.", autocompletion=_complete_kind)],
    plugins: PluginFiles = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List recipes, algorithms, datasets, models, strategies, scenarios or methods."""
    with report_errors(debug, as_json=as_json):
        from fedloom.experiment.plugins_key import Pluggable

        require_known("list", kind, _LISTS)
        rows = _LISTS[kind](Pluggable(plugins=tuple(plugins or ())))
        if as_json:
            echo_json(rows)
            return
        width = max(map(display_width, rows))
        for name, about in rows.items():
            echo(f"{pad(name, width)}  {about}".rstrip())
