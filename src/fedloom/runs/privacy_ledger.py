"""The privacy ledger of a run: how much of a client's or an example's privacy each round of a method with noise spent.

Parts of a method that protect a unit are accounted for as `fedloom.algorithms.gaussian_privacy` describes, without
amplification by sampling. Neighboring runs differ in one unit, whose contribution is replaced by zero:

* client (as `dp` protects): each round in which it reported is a release.
* training example (as `dp-sgd` protects): it is in one batch of each epoch, so each epoch is a release.

Updates that the server refused count too. What is stated is therefore never less than what was spent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from fedloom.algorithms.compose import settable_arguments
from fedloom.algorithms.gaussian_privacy import composed, epsilon_of
from fedloom.client.site import Site
from fedloom.experiment.experiment import Experiment
from fedloom.run_log import read_lines
from fedloom.runs.run_context import RunContext


def privacy_of(context: RunContext) -> dict[str, Any]:
    """Return the entry "privacy" of `result.json`: method → a ledger for each part with noise; an empty dict without any.

    A ledger has "part", "unit", "noise" (its multiplier), "delta", and "clients": for each client its "rounds", "releases"
    and "epsilon", the sums after each of these rounds; ε is None where it is infinite. A single client None stands
    for all of them where data are pooled, and where a round had more clients than the log lists.
    """
    experiment = context.experiment
    if not (parts := _parts_with_noise(experiment)):
        return {}
    lines = [line for _, line in read_lines(context.record.path) if line["kind"] == "round"]
    return {
        "privacy": {
            name: [
                _ledger(
                    experiment,
                    context.site,
                    name,
                    part,
                    rounds_by_client(
                        [one for one in lines if one["method"] == name], pooled=_is_pooled(experiment, name)
                    ),
                )
                for part in used
            ]
            for name, used in parts.items()
        }
    }


def planned_privacy(
    experiment: Experiment, site: Site, cohorts: Callable[[str], Iterable[Sequence[int]]]
) -> dict[str, list[dict[str, Any]]]:
    """Return method → what its planned rounds will spend at most, for each part with noise.

    It has "part", "unit", "noise" and "delta" as a ledger has, and "releases" and "epsilon" of the client with the most releases.

    Args:
        experiment: Every choice.
        site: The run's site.
        cohorts: Method → the clients of each of its rounds, in order.
    """
    planned = dict[str, list[dict[str, Any]]]()
    for name, used in _parts_with_noise(experiment).items():
        for part in used:
            described, releases = _described(experiment, site, name, part)
            totals = Counter[int | None]()
            for clients, released in zip(cohorts(name), releases, strict=True):
                for client in [None] if _is_pooled(experiment, name) else clients:
                    totals[client] += released
            most = max(totals.values())
            epsilon = epsilon_of(composed(described["noise"], most), described["delta"])
            planned.setdefault(name, []).append({**described, "releases": most, "epsilon": epsilon})
    return planned


def _parts_with_noise(experiment: Experiment) -> dict[str, list[str]]:
    """Return method → its parts that protect a unit by noise, for methods with any."""
    return {
        name: used
        for name in experiment.methods
        if (used := [part for part in experiment.method(name).parts if experiment.entries[part].protects])
    }


def _is_pooled(experiment: Experiment, name: str) -> bool:
    return experiment.method(name).base == "centralized"


def _ledger(
    experiment: Experiment, site: Site, name: str, part: str, rounds: Mapping[int | None, Sequence[int]]
) -> dict[str, Any]:
    described, releases = _described(experiment, site, name, part)
    noise, delta = described["noise"], described["delta"]
    return {
        **described,
        "clients": [
            {"client": client, "rounds": taken, **spent(noise, delta, [releases[k] for k in taken])}
            for client, taken in rounds.items()
        ],
    }


def _described(
    experiment: Experiment, site: Site, name: str, part: str
) -> tuple[dict[str, Any], Sequence[int]]:
    """Return what a part with noise protects and how, and the number of its releases in each round."""
    entry = experiment.entries[part]
    arguments = {**settable_arguments(entry.make), **experiment.arguments(part)}
    stages = site.method(name).stages
    epochs = [stage.settings.epochs for stage in stages for _ in range(stage.settings.rounds)]
    noise, delta = float(arguments["noise"]), float(arguments["delta"])
    described = {"part": part, "unit": entry.protects, "noise": noise, "delta": delta}
    return described, epochs if entry.protects == "example" else [1] * len(epochs)


def spent(noise: float, delta: float, releases: Iterable[int]) -> dict[str, Any]:
    """Return the sums of "releases" and their "epsilon" after each round.

    Args:
        noise: The noise multiplier, ≥ 0.
        delta: δ, in (0, 1).
        releases: Number of releases in each round.
    """
    sums = list(accumulate(releases))
    epsilons = {total: epsilon_of(composed(noise, total), delta) for total in sums}
    return {"releases": sums, "epsilon": [epsilons[total] for total in sums]}


def rounds_by_client(
    lines: Iterable[Mapping[str, Any]], *, pooled: bool = False
) -> dict[int | None, list[int]]:
    """Return client → the rounds in which it reported, in order.

    Args:
        lines: The lines of a method's rounds. A round that was repeated after a crash drew the same noise, and counts once.
        pooled: Whether the data of all clients are one's, named None.
    """
    rounds = dict[int | None, set[int]]()
    for line in lines:
        for client in _clients(line):
            rounds.setdefault(None if pooled else client, set()).add(line["round"])
    if None in rounds:  # whoever is not listed may have reported
        rounds = {None: set[int]().union(*rounds.values())}
    return {client: sorted(taken) for client, taken in sorted(rounds.items(), key=lambda item: item[0] or 0)}


def _clients(line: Mapping[str, Any]) -> Iterator[int | None]:
    """Yield the clients that returned an update; None if not all of them are listed."""
    listed = [one["client"] for one in line.get("clients", ())]
    yield from listed
    if len(listed) + len(line.get("missing", ())) < line.get("cohort", 0):
        yield None
