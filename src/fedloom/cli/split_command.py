"""The command `fedloom split`: show how data would be divided among clients, without a model or training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedloom.cli.options import Debug, Json, PluginFiles, echo, echo_json, report_errors
from fedloom.system.errors import UserError

if TYPE_CHECKING:
    from fedloom.experiment.experiment import Experiment

CLIENTS, COHORT = 10, 2
"""The defaults of this command, which are FedMLLM's; an experiment has other defaults."""

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
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show which client would hold what, and how much the clients would differ."""
    with report_errors(debug, as_json=as_json):
        from fedloom.report.split_table import cohorts_table, split_text

        if (dataset is None) == (sampler is None):
            raise UserError("fedloom split needs either a data set (`fedloom list datasets`) or --sampler")
        if sampler is not None:
            options = {"train.sampler": ("--sampler", sampler), "train.rounds": ("--rounds", rounds)}
            rounds_drawn = draw_cohorts(build_experiment(options, changes or ()))
            _show({"rounds": rounds_drawn}, None if as_json else cohorts_table(rounds_drawn).text())
            return
        options = {
            "data.name": ("DATASET", dataset),
            "data.root": ("--root", root),
            "scenario.pattern": ("--scenario", scenario),
            "scenario.mode": ("--mode", mode),
        }
        value = divide_data(build_experiment(options, changes or (), scenario, plugins or ()))
        _show(value, None if as_json else split_text(value))


def _show(value: dict[str, Any], text: str | None) -> None:
    """Print the text, or the value as JSON where there is none."""
    echo_json(value) if text is None else echo(text, nl=False)


def build_experiment(
    options: dict[str, tuple[str, Any]],
    changes: Sequence[str],
    scenario: str | None = None,
    plugins: Sequence[str] = (),
) -> Experiment:
    """Build an experiment from options and changes; keys of the `scenario` section need no prefix.

    Args:
        options: Key → name of its option, for messages, and value.
        changes: Texts such as `alpha=0.5`, as given by `--set`.
        scenario: If given, a key that only another scenario reads is refused.
        plugins: Python files that are added.

    Raises:
        UserError: The options have mistakes; the message lists all of them, each with its option.
    """
    from fedloom.config.validation_errors import build_model
    from fedloom.config.yaml_document import Document, KeyPath, Place, apply_override
    from fedloom.experiment.experiment import Experiment
    from fedloom.experiment.plugins_key import with_plugins
    from fedloom.scenarios.published_draws import TWO_SOURCES

    sources = options.get("data.name", ("", None))[1] in TWO_SOURCES
    value: dict[str, dict[str, Any]] = {
        "scenario": {"clients": CLIENTS, "partition": "by_source" if sources else "dirichlet"},
        "train": {"cohort": COHORT},
    }
    places: dict[KeyPath, Place] = {}
    for key, (option, setting) in options.items():
        section, name = key.split(".")
        value.setdefault(section, {})[name] = setting
        places[section, name] = Place(option)
    document = Document(COMMAND, value, places, places)
    for change in _whole_keys(changes, scenario):
        document = apply_override(document, change, lambda _: False)
    return build_model(Experiment, with_plugins(document, plugins))


def _whole_keys(changes: Sequence[str], scenario: str | None) -> Iterator[str]:
    """Yield changes with whole keys: `scenario.alpha=0.5` for `alpha=0.5`."""
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


def divide_data(experiment: Experiment) -> dict[str, Any]:
    """Return the division of the data among clients, as --json prints it."""
    from fedloom.data import load_data
    from fedloom.data.duplicates import content_keys, near_duplicate_keys
    from fedloom.scenarios.heterogeneity_card import card, client_rows, shared_with_others, survey
    from fedloom.scenarios.validation_part import plan_and_validation as divided_among
    from fedloom.scenarios.validation_part import validation_json

    data = load_data(experiment.data, experiment.seed, experiment.datasets)
    plan, validation = divided_among(data, experiment.data, experiment.scenario, experiment.seed)
    counts = survey(plan, data.train)
    return {
        "digest": plan.digest,
        "data": data.name,
        "scenario": dict(plan.scenario),
        "seed": experiment.seed,
        "card": {
            **card(counts),
            "duplicates": {
                "content": shared_with_others(plan, content_keys(data.train)),
                "near": shared_with_others(plan, near_duplicate_keys(data.train)),
            },
        },
        "clients": client_rows(counts),
        **({} if validation is None else {"validation": validation_json(validation)}),
    }


def draw_cohorts(experiment: Experiment) -> list[dict[str, Any]]:
    """Return the clients of each round."""
    from fedloom.engine.client_sampling import Schedule, draw_cohort

    train = experiment.train
    everyone = tuple(range(experiment.scenario.clients))
    schedule = Schedule(train.rounds, everyone, train.cohort, experiment.training_seed, train.sampler)
    return [{"round": round, "clients": list(draw_cohort(schedule, round))} for round in range(train.rounds)]
