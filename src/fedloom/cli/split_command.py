"""The command `fedloom split`: show how data would be divided among clients, without a model or training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedloom.cli.options import PluginFiles, courteous, say, say_json
from fedloom.system.errors import UserError

if TYPE_CHECKING:
    from fedloom.experiment.experiment import Experiment

CLIENTS, COHORT = 10, 2
"""The values of FedMLLM; an experiment has its own defaults."""

OWN = {"missing": ("rate", "lose_all"), "cross": ("image_clients",), "hybrid": ("p",)}
"""Keys of the `scenario` section that only one scenario reads."""

COMMAND = "the command fedloom split"


def _complete_data(incomplete: str) -> list[str]:
    from fedloom.data import DATASETS

    return [name for name in DATASETS if name.startswith(incomplete)]


def _complete_scenario(incomplete: str) -> list[str]:
    from fedloom.scenarios import PATTERNS

    return [name for name in PATTERNS if name.startswith(incomplete)]


def split(
    dataset: Annotated[
        str | None,
        typer.Argument(help="Data set, as listed by `fedloom list datasets`.", autocompletion=_complete_data),
    ] = None,
    root: Annotated[Path | None, typer.Option(help="The data set's folder.")] = None,
    plugins: PluginFiles = None,
    scenario: Annotated[
        str, typer.Option(help="aligned, missing, cross or hybrid.", autocompletion=_complete_scenario)
    ] = "aligned",
    mode: Annotated[
        str, typer.Option(help="corrected, or published for the draws of FedMLLM's code.")
    ] = "corrected",
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one key, e.g. alpha=0.1; may be repeated."),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="Show the clients of each round instead, drawn by the corrected or the published sampler."
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Number of rounds to show.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON to standard output.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the Python traceback of an error.")] = False,
) -> None:
    """Show which client would hold what, and how much the clients would differ."""
    with courteous(debug):
        from fedloom.report.split_table import cohorts_table, split_text

        if (dataset is None) == (sampler is None):
            raise UserError("fedloom split needs either a data set (`fedloom list datasets`) or --sampler")
        if sampler is not None:
            given = {"train.sampler": ("--sampler", sampler), "train.rounds": ("--rounds", rounds)}
            found = cohorts(experiment_of(given, changes or ()))
            _show({"rounds": found}, None if as_json else cohorts_table(found).text())
            return
        given = {
            "data.name": ("DATASET", dataset),
            "data.root": ("--root", root),
            "scenario.pattern": ("--scenario", scenario),
            "scenario.mode": ("--mode", mode),
        }
        value = plan_and_validation(experiment_of(given, changes or (), scenario, plugins or ()))
        _show(value, None if as_json else split_text(value))


def _show(value: dict[str, Any], text: str | None) -> None:
    """Print the text, or the value as JSON where there is none."""
    say_json(value) if text is None else say(text, nl=False)


def experiment_of(
    given: dict[str, tuple[str, Any]],
    changes: Sequence[str],
    scenario: str | None = None,
    plugins: Sequence[str] = (),
) -> Experiment:
    """Make an experiment from options and changes; a key of the `scenario` section is named by its last word.

    Args:
        given: Key → the option's name, for messages, and its value.
        changes: Texts such as `alpha=0.5`, as `--set` takes them.
        scenario: If given, a key that only another scenario reads is refused.
        plugins: Python files that are added.

    Raises:
        UserError: Every mistake, with the option it stands in.
    """
    from fedloom.config.validation_errors import resolve
    from fedloom.config.yaml_document import Document, KeyPath, Place, override
    from fedloom.experiment.experiment import Experiment
    from fedloom.experiment.plugins_key import with_plugins
    from fedloom.scenarios.published_draws import TWO_SOURCES

    sources = given.get("data.name", ("", None))[1] in TWO_SOURCES
    value: dict[str, dict[str, Any]] = {
        "scenario": {"clients": CLIENTS, "partition": "by_source" if sources else "dirichlet"},
        "train": {"cohort": COHORT},
    }
    places: dict[KeyPath, Place] = {}
    for key, (option, chosen) in given.items():
        section, name = key.split(".")
        value.setdefault(section, {})[name] = chosen
        places[section, name] = Place(option)
    document = Document(COMMAND, value, places, places)
    for change in _whole_keys(changes, scenario):
        document = override(document, change, lambda _: False)
    return resolve(Experiment, with_plugins(document, plugins))


def _whole_keys(changes: Sequence[str], scenario: str | None) -> Iterator[str]:
    """Complete `alpha=0.5` to `scenario.alpha=0.5`."""
    for change in changes:
        key, equals, text = change.partition("=")
        key = key.strip().removeprefix("scenario.")
        readers = [name for name, keys in OWN.items() if key in keys]
        if scenario is not None and readers and scenario not in readers:
            reads = OWN.get(scenario, ("alpha",))[0]
            raise UserError(
                f"--set {change}: {key} is read by the scenario {readers[0]} only, and --scenario is "
                f"{scenario}. Did you mean {reads}, or --scenario {readers[0]}?"
            )
        whole = key if "." in key or key == "seed" else f"{'train' if key == 'cohort' else 'scenario'}.{key}"
        yield f"{whole}{equals}{text}"


def plan_and_validation(experiment: Experiment) -> dict[str, Any]:
    """Load the data and divide them; return what --json prints."""
    from fedloom.data import load_data
    from fedloom.scenarios.heterogeneity_card import card, client_rows, survey
    from fedloom.scenarios.validation_part import plan_and_validation as divided_among
    from fedloom.scenarios.validation_part import validation_json

    data = load_data(experiment.data, experiment.seed, experiment.datasets)
    plan, kept = divided_among(data, experiment.data, experiment.scenario, experiment.seed)
    found = survey(plan, data.train)
    return {
        "digest": plan.digest,
        "data": data.name,
        "scenario": dict(plan.scenario),
        "seed": experiment.seed,
        "card": card(found),
        "clients": client_rows(found),
        **({} if kept is None else {"validation": validation_json(kept)}),
    }


def cohorts(experiment: Experiment) -> list[dict[str, Any]]:
    """Draw the clients of each round."""
    from fedloom.engine.rounds import Schedule, draw_cohort

    train = experiment.train
    everyone = tuple(range(experiment.scenario.clients))
    schedule = Schedule(train.rounds, everyone, train.cohort, experiment.seed, train.sampler)
    return [{"round": round, "clients": list(draw_cohort(schedule, round))} for round in range(train.rounds)]
