"""An experiment: every choice of a run as one frozen, validated value, and how it is read from a file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from fedloom.conflicts import conflicts_of
from fedloom.document import MAX_BYTES, Document, KeyPath, override, read
from fedloom.hashes import json_digest
from fedloom.methods import (
    PUBLISHED_SETTINGS,
    REFERENCES,
    Method,
    default_methods,
    parse_method,
)
from fedloom.mistakes import (
    Conflict,
    choice_error,
    did_you_mean,
    refusal,
    resolve,
    schema_at,
    schema_of,
)
from fedloom.plugin_section import Pluggable, unknown_names, unusable, with_plugins
from fedloom.record import read_text
from fedloom.scenarios.published import REPAIR
from fedloom.sections import (
    MOST_NAMES,
    Aggregate,
    Argument,
    Arguments,
    Communication,
    Data,
    Engine,
    Evaluate,
    FewNames,
    Gate,
    Index,
    Model,
    Scenario,
    Section,
    Strategy,
    Text,
    Train,
)
from fedloom.types import UserError

if TYPE_CHECKING:
    from fedloom.algorithms.compose import Given

__all__ = [
    "REFERENCES",
    "Aggregate",
    "Communication",
    "Data",
    "Engine",
    "Evaluate",
    "Experiment",
    "Gate",
    "Method",
    "Model",
    "Scenario",
    "Strategy",
    "Train",
    "experiment_text",
    "load_experiment",
    "parse_method",
    "recipes",
]


LATER = {
    "data": ("validation",),
    "evaluate": ("round", "metrics"),
    "aggregate": ("over",),
    "communication": ("up", "down", "feedback"),
}
"""Keys, by section, that experiments of version 0.1 did not have."""


MethodNames = Annotated[tuple[Text, ...], Field(min_length=1), FewNames]


class Experiment(Pluggable):
    """Every choice of a run.

    Example:
        >>> experiment = Experiment(name="mine", train={"rounds": 2})
        >>> Experiment.from_json(experiment.to_json()) == experiment
        True
    """

    name: Text = Field(default="experiment", description="Name of the run folder; changes nothing else.")
    seed: Index = Field(default=0, description="Seed of every random draw.")
    mode: Literal["corrected", "published"] = Field(
        default="corrected",
        description="As the papers say, or all that an experiment does not give as FedMLLM's code has it.",
    )
    data: Data = Data()
    scenario: Scenario = Scenario()
    model: Model = Model()
    strategy: Strategy = Strategy()
    train: Train = Train()
    methods: MethodNames = Field(
        default_factory=default_methods,
        description="What is compared, as listed by `fedloom list methods`.",
    )
    main: Text | None = Field(
        default=None, description="Method whose adapter is exported; null is the first federated one."
    )
    algorithms: Annotated[Mapping[Text, Arguments], Field(max_length=MOST_NAMES)] = Field(
        default={}, description="Arguments of algorithms and of parts that are added to them, by name."
    )
    evaluate: Evaluate = Evaluate()
    aggregate: Aggregate = Aggregate()
    gate: Gate = Gate()
    communication: Communication = Communication()
    engine: Engine = Engine()

    @model_validator(mode="before")
    @classmethod
    def _published_throughout(cls, value: Any) -> Any:
        """Let one switch set all others that the experiment leaves open, so that the record has them."""
        if not isinstance(value, Mapping) or value.get("mode") != "published":
            return value
        return {
            **value,
            **{name: _over(own, value.get(name, {})) for name, own in PUBLISHED_SETTINGS.items()},
        }

    @field_validator("name")
    @classmethod
    def _name_is_a_folder(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", name):
            raise choice_error(
                f'"{name}" cannot name a folder; use at most 80 letters, digits, ".", "_" and "-"'
            )
        return name

    @field_validator("scenario")
    @classmethod
    def _repaired_as_published(cls, scenario: Scenario, info: ValidationInfo) -> Scenario:
        """Write down which labels published mode repairs, so that the record does not leave it open."""
        if scenario.mode == "corrected" or scenario.repair is not None or "data" not in info.data:
            return scenario
        return scenario.model_copy(update={"repair": REPAIR.get(info.data["data"].name, "each")})

    @model_validator(mode="after")
    def _nothing_conflicts(self) -> Experiment:
        if conflicts := _all_conflicts(self):
            raise refusal(conflicts)
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of everything but the name and how fast it is done, as hexadecimal text."""
        return self.digest_without({"name": True, "engine": True})

    def digest_without(self, left_out: Mapping[str, Any]) -> str:
        """Return the SHA-256 of everything but some keys, as hexadecimal text.

        Keys that came later count only where they are not at their defaults, so that digests stay what they were.
        """
        value = self.model_dump(mode="json", exclude={**left_out, "plugins": True})
        if self.plugins and "plugins" not in left_out:  # their code counts, not where it lies
            value["plugins"] = sorted(self.added.digests.values())
        for section, keys in LATER.items():
            for key in keys:
                if value[section][key] == type(getattr(self, section)).model_fields[key].default:
                    del value[section][key]
            if not value[section]:
                del value[section]
        return json_digest(value)

    def method(self, name: str) -> Method:
        """Take the name of a method apart."""
        return parse_method(name, self.entries)

    @property
    def exported(self) -> str | None:
        """The method whose adapter is exported, or None where no method is federated."""
        federated = (name for name in self.methods if self.method(name).federated)
        return self.main or next(federated, None)

    def arguments(self, name: str) -> Mapping[str, Argument]:
        """Return the arguments of an algorithm or a part: those given, over what the mode has of its own."""
        own = self.entries[name].published if self.mode == "published" else {}
        return {**own, **self.algorithms.get(name, {})}

    def arguments_of(self, method: Method) -> Callable[[str], Mapping[str, Argument]]:
        """Return a function name → arguments for what a method is put together from; baselines train by a plain algorithm."""
        return lambda name: self.arguments(name) if method.federated or name in method.parts else {}

    @property
    def given(self) -> Given:
        """What algorithms and parts are given before a model is there, in the first stage."""
        from fedloom.algorithms.compose import Given, any_layout

        lora = self.strategy.name != "connector"
        layout = any_layout(self.strategy.rank if lora else None)
        return Given(self.scenario.clients, self.train.cohort, self.seed, layout=layout)

    def to_json(self) -> str:
        """Write every value, defaults too, as indented JSON."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"

    @staticmethod
    def from_json(text: str, source: str = "experiment.json") -> Experiment:
        """Read what `to_json` wrote, or any other experiment in YAML or JSON.

        Args:
            text: The document.
            source: Its name in error messages.

        Raises:
            UserError: Every mistake in it, one a line.
        """
        return resolve(Experiment, read(text, source))


def _over(own: Mapping[str, Any], given: Any) -> Any:
    """Put what is given of a section over the mode's own values; what is no section is left to be refused."""
    if isinstance(given, Section):
        given = given.model_dump(exclude_unset=True)
    return {**own, **given} if isinstance(given, Mapping) else given


def _all_conflicts(experiment: Experiment) -> list[Conflict]:
    """Find all conflicts; where a name is not known, without what depends on it."""
    if found := list(unusable(experiment)):
        return found
    if not (found := list(unknown_names(experiment))):
        return list(conflicts_of(experiment))
    defaults = {"data": Data(), "methods": default_methods(), "evaluate": Evaluate()}
    wrong = {str(conflict.path[0]) for conflict in found}
    rest = conflicts_of(experiment.model_copy(update={key: defaults[key] for key in wrong}))
    return [*found, *(one for one in rest if not wrong & {key[0] for key in (one.path, *one.others)})]


def recipes() -> dict[str, Traversable]:
    """Return the shipped experiments, name → file, in alphabetical order; names have folders in them."""
    return dict(sorted(_recipes(resources.files("fedloom").joinpath("recipes"))))


def _recipes(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, Traversable]]:
    for file in folder.iterdir():
        if file.is_dir():
            yield from _recipes(file, f"{prefix}{file.name}/")
        elif file.name.endswith(".yaml"):
            yield prefix + file.name.removesuffix(".yaml"), file


def experiment_text(path_or_recipe: str) -> tuple[str, str]:
    """Return the text of a recipe or of a file, and the name it goes by in messages.

    Raises:
        UserError: There is neither a recipe nor a readable file of that name.
    """
    shipped = recipes()
    if path_or_recipe in shipped:
        return shipped[path_or_recipe].read_text(encoding="utf-8"), f"{path_or_recipe}.yaml (recipe)"
    try:
        return read_text(Path(path_or_recipe), MAX_BYTES).removeprefix("\ufeff"), path_or_recipe
    except FileNotFoundError:
        hint = did_you_mean(path_or_recipe, list(shipped))
        names = ", ".join(shipped)
        raise UserError(
            f"{path_or_recipe} is neither a file nor a recipe{hint or '.'} Recipes: {names}"
        ) from None


SWEEP_KEYS = ("grid", "quick", "published", "choose")
"""Keys of a recipe that describes many experiments; see `fedloom.grid`."""


def load_experiment(
    path_or_recipe: str, overrides: Sequence[str] = (), plugins: Sequence[str] = ()
) -> Experiment:
    """Read an experiment from a recipe or a YAML or JSON file.

    Args:
        path_or_recipe: The name of a shipped recipe, or a path.
        overrides: Changes such as `train.lr=3e-4`, applied in order.
        plugins: Python files that are added to those that the experiment names.

    Raises:
        UserError: Every mistake, with file, line, column and key; or it is a grid of experiments.
    """
    document = read(*experiment_text(path_or_recipe))
    if _sweep_keys(document):
        told = f"it holds a grid of experiments; run them all with `fedloom sweep {path_or_recipe}`"
        raise UserError(f"{document.source}: {told}")
    for change in overrides:
        document = override(document, change, takes_text)
    return resolve(Experiment, with_plugins(document, plugins))


def sweep_keys(path_or_recipe: str) -> tuple[str, ...]:
    """Return the keys of a recipe that only a sweep understands; none where it is a single experiment."""
    return _sweep_keys(read(*experiment_text(path_or_recipe)))


def _sweep_keys(document: Document) -> tuple[str, ...]:
    return tuple(key for key in SWEEP_KEYS if isinstance(document.value, dict) and key in document.value)


def takes_text(path: KeyPath) -> bool:
    """Return whether the value of an experiment's key is text."""
    part = schema_at(schema_of(Experiment), path)
    return {option.get("type") for option in part.get("anyOf", [part])} in ({"string"}, {"string", "null"})
