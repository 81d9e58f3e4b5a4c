"""Tables of what a method does for each client, against the model that the client trained alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fedloom.report.client_verdicts import LEVEL, Verdict, client_tasks, own_mean, own_scores, verdicts
from fedloom.report.federation_gain import baseline_of, local_method
from fedloom.report.run_results import Json, at, number
from fedloom.report.score_tables import headline_title
from fedloom.report.significance import SAME
from fedloom.report.tables import MISSING, Table, label, percent, signed
from fedloom.tasks.score_answers import HEADLINES

SIGNIFICANT = "*"
RULE = f"Same: the scores differ by less than {100 * SAME:g} points."
ABOUT = (
    "Scores on data like each client's own, in percent; gains over the model that the client trained alone, in points. "
    "Bottom fifth: mean gain of the fifth of clients that gain least."
)
INTERVALS = (
    "Brackets: 95 % confidence intervals (Newcombe) that account for the questions, not for the seed; questions about the same "
    "image count as one."
)
INDEPENDENT = " The two models' answers are taken as independent, which makes intervals too wide rather than too narrow."
PAIRED = " They are paired: both models answered the same questions."
HOLM = f"after Holm's correction over a method's clients, at {100 * LEVEL:g} %"


def baseline_note(baselines: Mapping[str, str | None], alone: str | None) -> str:
    """Name the methods whose gains are not over plain training alone, and their baseline; "" if there are none.

    Args:
        baselines: Method → its baseline, or None.
        alone: Plain training alone.
    """
    others: dict[str, list[str]] = {}
    for method, other in baselines.items():
        if other is not None and alone is not None and other != alone:
            others.setdefault(other, []).append(label(method))
    return "".join(
        f" Gains of {', '.join(names)} are over {_plain(name)}, whose models were fine-tuned in the same way; all others are over "
        f"{_plain(alone or '')}."
        for name, names in others.items()
    )


def _plain(method: str) -> str:
    return label(method).replace(" (mean)", "")


def interval_text(value: float, interval: tuple[float, float] | None) -> str:
    """Write a gain in points with its interval in brackets.

    Example:
        >>> interval_text(0.05, (-0.01, 0.11)), interval_text(-0.05, None)
        ('+5.0 (−1.0 to +11.0)', '−5.0')
    """
    return signed(value) + (f" ({signed(interval[0])} to {signed(interval[1])})" if interval else "")


def verdict_tables(result: Json, names: Sequence[str] = ()) -> list[tuple[str, Table]]:
    """Return for each task a table with a row for each method: its own-data score and the verdict on it.

    Args:
        result: The content of result.json.
        names: The clients' names; those that are missing are named by their numbers.

    Returns:
        Title and table of each task; none for a run without local training.
    """
    tables = [(task, _verdict_table(result, task, names)) for task in client_tasks(result)]
    return _with_one_note([(_title(task), table) for task, table in tables if table is not None])


def _with_one_note(tables: Sequence[tuple[str, Table]]) -> list[tuple[str, Table]]:
    """Keep one note, the longest, below the last table."""
    note = max((table.note for _, table in tables), key=len, default="")
    last = len(tables) - 1
    return [
        (title, replace(table, note=note if k == last else "")) for k, (title, table) in enumerate(tables)
    ]


def _title(task: str) -> str:
    return headline_title(task, HEADLINES.get(task, "accuracy"))


def _about_intervals(result: Json) -> str:
    return INTERVALS + (PAIRED if at(result, "agreement") else INDEPENDENT)


def name_in(names: Sequence[str], client: int) -> str:
    """Return a client's name, or its number as a name."""
    return names[client] if client < len(names) else f"Client {client}"


def _verdict_table(result: Json, task: str, names: Sequence[str]) -> Table | None:
    found, alone = verdicts(result, task), local_method(result["scores"])
    if not found or alone is None:
        return None
    marked = any(verdict.gained is not None for verdict in found)
    empty = (MISSING,) * (7 if marked else 6)
    rows = [(label(alone), percent(own_mean(result["scores"][alone], task)), *empty)]
    rows += [
        (
            label(verdict.method),
            percent(own_mean(result["scores"][verdict.method], task)),
            interval_text(verdict.mean, verdict.interval),
            signed(verdict.bottom_fifth),
            f"{signed(verdict.worst.points)} ({name_in(names, verdict.worst.client)})",
            *map(str, verdict.counts[:3]),
            *([_significant(verdict)] if marked else []),
        )
        for verdict in found
    ]
    heads = ("Method", "Own data", "Mean gain", "Bottom fifth", "Worst client", "Better", "Same", "Worse")
    note = f"{ABOUT}{baseline_note({one.method: one.alone for one in found}, alone)} {RULE}"
    if marked:
        note += f" {_about_intervals(result)} Significant: clients that gain / lose significantly {HOLM}."
    return Table((*heads, *(["Significant"] if marked else [])), tuple(rows), note)


TERMINAL_NOTE = (
    "Own data: score on data like each client's own, in percent. Gain: over the model that the client trained alone, in points, "
    "with the 95 % confidence interval for the questions. Bottom fifth: mean gain of the fifth of clients that gain least. "
    f"Clients: better / equally well / worse off than alone; equally means by less than {100 * SAME:g} points."
)


def terminal_verdicts(result: Json) -> list[tuple[str, Table]]:
    """Return the tables of `verdict_tables` in a form that fits a terminal; `terminal_note` explains them."""
    tables, alone = [], local_method(result["scores"])
    for task in client_tasks(result):
        found = verdicts(result, task)
        if found and alone is not None:
            rows = [(label(alone), percent(own_mean(result["scores"][alone], task)), *(MISSING,) * 4)]
            rows += [
                (
                    label(verdict.method),
                    percent(own_mean(result["scores"][verdict.method], task)),
                    interval_text(verdict.mean, verdict.interval).replace(" ", "\u00a0"),
                    signed(verdict.bottom_fifth),
                    signed(verdict.worst.points),
                    "/".join(map(str, verdict.counts[:3])),
                )
                for verdict in found
            ]
            heads = ("Method", "Own data", "Mean gain", "Bottom fifth", "Worst", "Clients")
            tables.append((_title(task), Table(heads, tuple(rows))))
    return tables


def terminal_note(result: Json) -> str:
    """Explain the tables of `terminal_verdicts`."""
    scores = result["scores"]
    return TERMINAL_NOTE + baseline_note(
        {name: baseline_of(name, scores) for name in scores}, local_method(scores)
    )


def _significant(verdict: Verdict) -> str:
    if verdict.gained is None or verdict.lost is None:
        return MISSING
    return f"{len(verdict.gained)} / {len(verdict.lost)}"


def client_gain_tables(result: Json, names: Sequence[str]) -> list[tuple[str, Table]]:
    """Return for each task a table with a row for each named client: its score alone, and its gain with each method."""
    tables = [(task, _client_table(result, task, names)) for task in client_tasks(result)]
    return _with_one_note([(_title(task), table) for task, table in tables if table is not None])


def _client_table(result: Json, task: str, names: Sequence[str]) -> Table | None:
    found, alone = verdicts(result, task), local_method(result["scores"])
    if not found or alone is None:
        return None
    own = own_scores(result["scores"][alone], task)
    cells = {verdict.method: _client_cells(verdict) for verdict in found}
    counts = {k: number(result, "independent_questions", "clients", k, task) for k in own}
    counted = any(count is not None for count in counts.values())
    rows = tuple(
        (
            names[k],
            *([f"{count:.0f}" if (count := counts[k]) else MISSING] if counted else []),
            percent(own[k]),
            *(of_client.get(k, MISSING) for of_client in cells.values()),
        )
        for k in own
        if k < len(names)
    )
    columns = ("Client", *(["Questions"] if counted else []), "Alone", *map(label, cells))
    note = (
        f"Alone: score of the client's own model ({_plain(alone)}), in percent. Others: gain over it, in points."
        f"{baseline_note({one.method: one.alone for one in found}, alone)}"
    )
    if counted:
        note += f" {_about_intervals(result)} {SIGNIFICANT} significant {HOLM}. Questions: independent test questions behind the client's scores."
    return Table(columns, rows, note) if rows else None


def _client_cells(verdict: Verdict) -> dict[int, str]:
    clear = {*(verdict.gained or ()), *(verdict.lost or ())}
    return {
        gain.client: interval_text(gain.points, gain.interval) + (SIGNIFICANT if gain.client in clear else "")
        for gain in verdict.gains
    }
