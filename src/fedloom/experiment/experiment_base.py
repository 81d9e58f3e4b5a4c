"""The keys of an experiment, with their sections and derived values; they are not checked against each other here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from fedloom.config.engine_schema import Communication, Engine
from fedloom.config.old_spellings import KEYS
from fedloom.config.schema import (
    MOST_NAMES,
    Aggregate,
    Argument,
    Arguments,
    CurrentName,
    Data,
    Evaluate,
    FewNames,
    Index,
    Limits,
    Model,
    Report,
    Scenario,
    Strategy,
    Text,
    Train,
)
from fedloom.experiment.methods import Method, default_methods, parse_method
from fedloom.experiment.plugins_key import Pluggable
from fedloom.seeds import seed_of_repeat

if TYPE_CHECKING:
    from fedloom.algorithms.compose import Given

MethodNames = Annotated[tuple[CurrentName, ...], Field(min_length=1), FewNames]


class ExperimentBase(Pluggable):
    """Every key of an experiment, each valid by itself."""

    OLD_KEYS = KEYS

    name: Text = Field(default="experiment", description="Name of the run folder; changes nothing else.")
    seed: Index = Field(default=0, description="Seed of every random draw.")
    mode: Literal["corrected", "published"] = Field(
        default="corrected",
        description="corrected follows the papers; published takes settings that are not given from FedMLLM's code.",
    )
    data: Data = Data()
    scenario: Scenario = Scenario()
    model: Model = Model()
    strategy: Strategy = Strategy()
    train: Train = Train()
    methods: MethodNames = Field(
        default_factory=default_methods,
        description="Methods that are compared, as listed by `fedloom list methods`.",
    )
    main: CurrentName | None = Field(
        default=None, description="Method whose adapter is exported; null is the first federated one."
    )
    algorithms: Annotated[Mapping[Text, Arguments], Field(max_length=MOST_NAMES)] = Field(
        default={}, description="Arguments of algorithms and of parts that are added to them, by name."
    )
    evaluate: Evaluate = Evaluate()
    aggregate: Aggregate = Aggregate()
    admission: Limits = Limits()
    communication: Communication = Communication()
    engine: Engine = Engine()
    report: Report = Report()

    def method(self, name: str) -> Method:
        """Parse the name of a method."""
        return parse_method(name, self.entries)

    @property
    def federated_methods(self) -> tuple[str, ...]:
        """The methods that train with clients and a server, in the order of `methods`."""
        return tuple(name for name in self.methods if self.method(name).federated)

    @property
    def exported(self) -> str | None:
        """The method whose adapter is exported, or None where no method is federated."""
        return self.main or next(iter(self.federated_methods), None)

    def arguments(self, name: str) -> Mapping[str, Argument]:
        """Return the arguments of an algorithm or a part: those that are given, else the mode's own."""
        own = self.entries[name].published if self.mode == "published" else {}
        return {**own, **self.algorithms.get(name, {})}

    def arguments_of(self, method: Method) -> Callable[[str], Mapping[str, Argument]]:
        """Return a function name → arguments for a method's algorithm and parts; the algorithm of a baseline has none."""
        return lambda name: self.arguments(name) if method.federated or name in method.parts else {}

    @property
    def training_seed(self) -> int:
        """The seed of all draws of training; that of the data and of who holds what is `seed`."""
        return self.seed if self.train.repeat == 0 else seed_of_repeat(self.seed, self.train.repeat)

    @property
    def given(self) -> Given:
        """The context that algorithms and parts get in the first stage, before a model is loaded."""
        from fedloom.algorithms.compose import Given, any_layout

        lora = self.strategy.name != "connector"
        layout = any_layout(self.strategy.rank if lora else None)
        return Given(self.scenario.clients, self.train.cohort, self.training_seed, layout=layout)
