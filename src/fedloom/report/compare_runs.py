"""Tables of several runs: runs that differ only in their seed become one row with mean and standard deviation."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from statistics import fmean, stdev

from fedloom.report.client_verdicts import own_mean, verdict_on
from fedloom.report.federation_gain import (
    baseline_of,
    compare_methods,
    count_clients,
    local_method,
    main_score,
)
from fedloom.report.findings import gap_share
from fedloom.report.run_results import Json, Run, at, number
from fedloom.report.score_tables import OWN, splits_global_test, task_heads
from fedloom.report.shared_scores import (
    OWN_DATA,
    OWN_MODELS,
    SHARED_MODEL,
    for_everybody,
    own_models,
    shared_model,
)
from fedloom.report.significance import ClientCounts
from fedloom.report.site_scores_table import is_tested_at_sites
from fedloom.report.tables import MISSING, Table, is_federated, label, percent, signed, title
from fedloom.report.verdict_tables import baseline_note

UNSET = "not set"
NOT_SETTINGS = ("seed", "name", "report")  # labels and looks; scores are averaged over seeds


def flat_settings(experiment: Json) -> dict[str, str]:
    """Flatten an experiment into dotted keys, without its seed and name.

    Example:
        >>> flat_settings({"seed": 1, "train": {"rounds": 6}})
        {'train.rounds': '6'}
    """
    return dict(_leaves({key: value for key, value in experiment.items() if key not in NOT_SETTINGS}))


def _leaves(value: object, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def group_by_experiment(runs: Sequence[Run]) -> list[list[Run]]:
    """Group runs of experiments that differ only in seed and name, in order of first appearance."""
    groups: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(sorted(flat_settings(run.experiment).items())), []).append(run)
    return list(groups.values())


def varying_settings(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Return for each group the settings in which the groups differ, "" for a single group."""
    values = [flat_settings(group[0].experiment) for group in groups]
    keys = list(dict.fromkeys(key for setting in values for key in setting))
    varying = [key for key in keys if len({setting.get(key, UNSET) for setting in values}) > 1]
    return [", ".join(f"{key} = {setting.get(key, UNSET)}" for key in varying) for setting in values]


def varying_table(groups: Sequence[Sequence[Run]]) -> Table | None:
    """Return the table of the settings in which groups differ, one column for each group; None if there are none."""
    values = [flat_settings(group[0].experiment) for group in groups]
    keys = list(dict.fromkeys(key for setting in values for key in setting))
    rows = tuple(
        (key, *(setting.get(key, UNSET) for setting in values))
        for key in keys
        if len({setting.get(key, UNSET) for setting in values}) > 1
    )
    columns = ("Setting", *group_names(groups))
    return Table(columns, rows, left=len(columns)) if rows else None


def mean_deviation(values: Sequence[float | None], write: Callable[[float], str] = percent) -> str:
    """Write mean ± sample standard deviation, in percent by default; missing values are ignored.

    Example:
        >>> mean_deviation([0.7, 0.8]), mean_deviation([0.7]), mean_deviation([None])
        ('75.0 ± 7.1', '70.0', '—')
    """
    known = [value for value in values if value is not None]
    if not known:
        return MISSING
    return write(fmean(known)) + (f" ± {write(stdev(known)).removeprefix('+')}" if len(known) > 1 else "")


def group_names(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Return the name of each group's experiment, with its settings if names alone are ambiguous."""
    plain = [_common_name([str(run.experiment["name"]) for run in group]) for group in groups]
    if len(set(plain)) == len(plain):
        return plain
    return [f"{name}: {setting}" for name, setting in zip(plain, varying_settings(groups), strict=True)]


def _common_name(names: Sequence[str]) -> str:
    """Return the name of runs that differ in their seed: what their names begin with, without the word seed.

    Example:
        >>> _common_name(["small-alpha-5.0_seed-0", "small-alpha-5.0_seed-1"]), _common_name(["a", "b"])
        ('small-alpha-5.0', 'a')
    """
    if len(set(names)) == 1:
        return names[0]
    letters = takewhile(lambda column: len(set(column)) == 1, zip(*names, strict=False))
    return re.sub(r"[\s,_-]*(seed)?[\s=_-]*$", "", "".join(column[0] for column in letters)) or names[0]


def experiments_tables(groups: Sequence[Sequence[Run]]) -> list[tuple[str, Table]]:
    """Return tables of main scores, on everybody's questions and on clients' own data, each with its title.

    They have one row for each group of runs and one column for each method. A table without any figure is left out.
    """
    methods = list(dict.fromkeys(method for group in groups for run in group for method in run.scores))
    at_sites = all(is_tested_at_sites(run.result) for group in groups for run in group)
    both = any(splits_global_test(run.result) for group in groups for run in group)
    kinds = [(SHARED_MODEL, shared_model), (OWN_MODELS, own_models)]
    kinds = kinds if both else [("Sites' test parts" if at_sites else "Global test", for_everybody)]
    tables = [
        (name, _experiments_table(groups, methods, lambda run, method, of=of: _main_score(run, of, method)))
        for name, of in kinds
    ]
    own = _experiments_table(groups, methods, lambda run, method: own_mean(run.scores.get(method, {})))
    tables.append((OWN_DATA if both else OWN, own))
    return [
        (f"{name}: score of each method in each experiment", table)
        for name, table in tables
        if any(cell != MISSING for row in table.rows for cell in row[1:])
    ]


def _experiments_table(
    groups: Sequence[Sequence[Run]], methods: Sequence[str], score: Callable[[Run, str], float | None]
) -> Table:
    rows = tuple(
        (name, *(mean_deviation([score(run, method) for run in group]) for method in methods))
        for name, group in zip(group_names(groups), groups, strict=True)
    )
    titles = dict.fromkeys(title(main_score(group[0].result)) for group in groups)
    note = f"{', '.join(titles)} in percent: mean ± sample standard deviation over seeds."
    return Table(("Experiment", *map(label, methods)), rows, note)


def _main_score(run: Run, of: Callable[[Json], Json | None], method: str) -> float | None:
    return number(of(run.scores.get(method, {})), main_score(run.result))


def seeds_table(group: Sequence[Run]) -> Table:
    """Return the table of one group's scores, averaged over its runs, one row for each method; columns without figures are left out."""
    methods = dict.fromkeys(method for run in group for method in run.scores)
    columns = _by_task(group) if len(task_heads(group[0].result)) > 1 else _of_one_task(group)
    rows = tuple(
        (
            label(method),
            *(
                mean_deviation([value(run, method) for run in group], write)
                for value, write in columns.values()
            ),
            _clients_text(group, method),
        )
        for method in methods
    )
    seeds = ", ".join(str(run.experiment.get("seed", MISSING)) for run in group)
    spread = "mean ± sample standard deviation over seeds" if len(group) > 1 else "one run, seed"
    closes = GAP in columns and any(
        columns[GAP][0](run, method) is not None for run in group for method in methods
    )
    note = f"In percent; {spread} {seeds}. "
    note += (
        "Gap closed: share of the gap between mean local and centralized training that a federated method closes. "
        if closes
        else ""
    )
    note += "" if GAP in columns else "Mean rank: over tasks, 1 is best. Gain over local: mean over clients. "
    note += (
        "Own data: mean over clients of the score on data like each client's own; gains over the clients' own models are in points, "
        "and the bottom fifth is the fifth of clients that gain least. Clients: how many are better off / equally well off / worse off than alone, each on data like its own, over all "
        "runs."
    )
    if len(group) > 1:
        note += " A deviation of 0.0 means that the seeds agree, not that the figure is exact."
    baselines = {name: baseline_of(name, run.scores) for run in group for name in run.scores}
    note += baseline_note(baselines, local_method(methods))
    table = Table(("Method", *columns, "Clients"), rows, note)
    kept = [k for k in range(len(table.columns)) if k < 2 or any(row[k] != MISSING for row in rows)]
    return replace(
        table,
        columns=tuple(table.columns[k] for k in kept),
        rows=tuple(tuple(row[k] for k in kept) for row in rows),
    )


def _clients_text(group: Sequence[Run], method: str) -> str:
    counts = ClientCounts()
    for run in group:
        local = baseline_of(method, run.scores)
        if local is not None and method in run.scores:
            counts = counts.plus(count_clients(run.scores[method], run.scores[local]))
    return f"{counts.better} / {counts.same} / {counts.worse}" if counts else MISSING


GAP = "Gap closed"
Column = tuple[Callable[[Run, str], float | None], Callable[[float], str]]
"""A function from run and method to a figure, and one that writes the figure."""


def _of_one_task(group: Sequence[Run]) -> dict[str, Column]:
    main = main_score(group[0].result)
    paths = {
        title(main): (main,),
        "Macro F1": ("macro_f1",),
        "Image only": ("slices", "image", main),
        "Text only": ("slices", "text", main),
    }

    def column(*path: str) -> Column:
        return lambda run, method: number(run.scores.get(method), *path), percent

    def closed(run: Run, method: str) -> float | None:
        return gap_share(run.result, method) if is_federated(method) else None

    def own(run: Run, method: str) -> float | None:
        return own_mean(run.scores.get(method, {}))

    def gain(run: Run, method: str) -> float | None:
        verdict = verdict_on(run.result, method)
        return None if verdict is None else verdict.mean

    def lowest(run: Run, method: str) -> float | None:
        verdict = verdict_on(run.result, method)
        return None if verdict is None else verdict.bottom_fifth

    first, *others = paths
    columns = {
        head: column(*paths[head])
        for head in others
        if any(number(scores, *paths[head]) is not None for run in group for scores in run.scores.values())
    }
    if any(own(run, method) is not None for run in group for method in run.scores):
        columns = {
            OWN: (own, percent),
            "Mean gain": (gain, signed),
            "Bottom fifth": (lowest, signed),
            **columns,
        }
    if any(splits_global_test(run.result) for run in group):
        own_data = columns.pop(OWN, None)
        split = {
            SHARED_MODEL: (lambda run, method: _main_score(run, shared_model, method), percent),
            OWN_MODELS: (lambda run, method: _main_score(run, own_models, method), percent),
            **({OWN_DATA: own_data} if own_data else {}),
        }
        return {**split, **columns, GAP: (closed, percent)}
    return {first: column(main), **columns, GAP: (closed, percent)}


def _by_task(group: Sequence[Run]) -> dict[str, Column]:
    compared = {run.folder: compare_methods(run.scores) for run in group}

    def score(task: str) -> Column:
        return lambda run, method: number(compared[run.folder], "tasks", method, task), percent

    def rank(run: Run, method: str) -> float | None:
        return number(compared[run.folder], "mean_rank", method)

    def gain(run: Run, method: str) -> float | None:
        gains = at(compared[run.folder], "gain", method) or []
        known = [gain for gain in gains if gain is not None]
        return fmean(known) if known else None

    scores = {head: score(task) for task, head in task_heads(group[0].result).items()}
    return {**scores, "Mean rank": (rank, "{:.2f}".format), "Gain over local": (gain, percent)}
