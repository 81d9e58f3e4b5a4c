"""Tables of results: final scores, scores as published code computes them, and gains from federation."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from statistics import fmean

from fedloom.report.federation_gain import comparison, main_score, tasks_in
from fedloom.report.findings import in_brief
from fedloom.report.run_results import Json, at, number
from fedloom.report.tables import (
    MISSING,
    Table,
    label,
    percent,
    printable,
    seconds,
    sent,
    signed,
    size,
    title,
)

TASKS = {"choice": "Choice", "vqa": "VQA", "caption": "Caption", "grounding": "Grounding"}
SHOWN = {
    "choice": ("accuracy", "macro_f1", "auc"),
    "vqa": ("accuracy", "accuracy_open", "accuracy_closed", "accuracy_judged", "token_f1"),
    "caption": ("cider", "bleu_4", "rouge_l"),
    "grounding": ("iou", "accuracy", "accuracy@0.75"),
}
"""Task → the scores that the main table shows where it is the only task; the headline comes first."""

PUBLISHED = "_published"
READING = {
    "choice": "In percent. Published: as the papers' code scores the same answers. A letter is the first capital "
    "from A to G, or further where there are more options, anywhere in the reply; AUC and macro F1 are those of "
    "hard labels, with unreadable replies counted as the third option (FedMLLM). Without letters what follows "
    '"is" counts, beside other tasks only its first character (FedVLMBench).',
    "vqa": 'In percent. Published: what follows "is" is compared as it stands, beside other tasks only its first '
    "character (FedVLMBench).",
    "caption": "In percent. Published: with case and punctuation; where right answers have the form "
    '"The caption is …", replies without "is" are left out (FedVLMBench).',
    "grounding": "In percent. Published: replies that are not exactly one box are left out (FedVLMBench).",
}
"""Task → what its published scores are."""

LIKELIHOOD = "Options were compared by likelihood"
FREELY = "were generated freely."
SCORING = {
    "generate": f"The model's answers {FREELY}",
    "teacher-forced": "The model's answers are teacher-forced, the published scoring of FedVLMBench: every token was "
    "predicted from the correct tokens before it. They cannot be compared with generated answers.",
}


def score_table(result: Json) -> Table:
    """Make the table of final scores and costs, one row a method, in the order of `result["scores"]`.

    A run of one task shows that task's scores; one of several shows each task's headline and the mean rank.
    """
    compared = comparison(result["scores"])
    several = len(compared["headlines"]) > 1
    heads, cells = _by_task(compared) if several else _of_one_task(result, compared)
    costs = {method: (size(sent(result, method)), _time(result, method)) for method in result["scores"]}
    rows = tuple((label(method), *cells[method], *costs[method]) for method in result["scores"])
    return Table(("Method", *heads, "Sent", "Seconds"), rows, _note(result, several))


Cells = dict[str, tuple[str, ...]]


def _tasks(result: Json) -> list[str]:
    return list(comparison(result["scores"])["headlines"]) or ["choice"]


def task_heads(result: Json) -> dict[str, str]:
    """Return task → head of the column of its headline score."""
    return _heads(comparison(result["scores"]))


def _heads(compared: Json) -> dict[str, str]:
    return {task: headline_title(task, name) for task, name in compared["headlines"].items()}


def headline_title(task: str, name: str) -> str:
    """Return the name of a task and of its headline score for readers; the task may be "", not recorded.

    Example:
        >>> headline_title("caption", "cider"), headline_title("", "accuracy")
        ('Caption: CIDEr', 'Accuracy')
    """
    return f"{_name(task)}: {_title(task, name)}" if task else title(name)


def _by_task(compared: Json) -> tuple[tuple[str, ...], Cells]:
    """Return column heads and method → cells of a run with several tasks."""
    cells = {
        method: (*map(percent, scores.values()), _plain(compared["mean_rank"][method]))
        for method, scores in compared["tasks"].items()
    }
    return (*_heads(compared).values(), "Mean rank"), cells


def _of_one_task(result: Json, compared: Json) -> tuple[tuple[str, ...], Cells]:
    scores, main = result["scores"], main_score(result)
    task = next(iter(compared["headlines"]), "choice")
    paths = {_title(task, name): (name,) for name in SHOWN.get(task, ("accuracy",))}
    if task != "choice":
        paths = {head: path for head, path in paths.items() if _known(result, *path)}
    paths |= {_title(task, name): (name,) for name in result.get("metrics", ())}
    paths |= {SLICES[name]: ("slices", name, main) for name in _withheld(result)}
    cells = {
        method: tuple(percent(number(found, *path)) for path in paths.values())
        for method, found in scores.items()
    }
    for method, found in scores.items():
        best, worst = number(found, "best"), number(found, "worst")
        if best is not None and worst is not None and cells[method]:
            first, *others = cells[method]
            cells[method] = (f"{first} ({percent(best)}–{percent(worst)})", *others)
    return tuple(paths), cells


def _name(task: str) -> str:
    return TASKS.get(task, task)


def _title(task: str, name: str) -> str:
    """Return a score's name for readers; an accuracy of boxes is named by its threshold."""
    return title(f"{name}@0.5" if (task, name) == ("grounding", "accuracy") else name)


SLICES = {"image": "Image only", "text": "Text only"}


def _withheld(result: Json) -> list[str]:
    """List the slices that withhold something: those known, of data that have another slice too."""
    known = [name for name in ("both", *SLICES) if _known(result, "slices", name, main_score(result))]
    return [name for name in known if name in SLICES] if len(known) > 1 else []


def _scoring(result: Json) -> list[str]:
    """Return how answers were found, for the kinds of question that the run has."""
    how, tasks = str(result.get("scoring")), tasks_in(result)
    if how != "likelihood":
        return [SCORING[how]] if how in SCORING else []
    if tasks == ["choice"]:
        return [f"{LIKELIHOOD}."]
    if tasks and "choice" not in tasks:
        return [f"Answers {FREELY}"]
    return [f"{LIKELIHOOD}; answers to questions without options {FREELY}"]


def _known(result: Json, *path: str) -> bool:
    return any(number(found, *path) is not None for found in result["scores"].values())


def _plain(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"


def _time(result: Json, method: str) -> str:
    return seconds(number(result, "seconds", method))


def _note(result: Json, several: bool) -> str:
    scores, main = result["scores"], main_score(result)
    said = ["Scores in percent."]
    if any(at(found, "tasks", "caption") for found in scores.values()):
        said.append("CIDEr may exceed 100.")
    if several:
        said.append("Mean rank: over tasks, 1 is best.")
    elif withheld := _withheld(result):
        names = " and ".join(SLICES[name] for name in withheld).capitalize()
        said.append(f"{names}: {_in_text(main)} when just that is shown.")
    own = [label(method) for method, found in scores.items() if number(found, "best") is not None]
    if own:
        brackets = "" if several else ", the best and the worst of them in brackets"
        said.append(
            f"Scores are on the global test set; for {', '.join(own)} they are means over clients' own models{brackets}."
        )
    said += _scoring(result)
    unread = {method: number(found, "unparsed") for method, found in scores.items()}
    shown = [f"{label(method)} {percent(share)}" for method, share in unread.items() if share]
    if shown:
        said.append(f"Unreadable answers, counted as wrong: {', '.join(shown)}.")
    return " ".join(said)


def _in_text(name: str) -> str:
    return "accuracy" if name == "accuracy" else title(name)


def task_tables(result: Json) -> list[tuple[str, Table]]:
    """Make a table of all scores of each task, unless the only task is multiple choice."""
    found = comparison(result["scores"])["headlines"]
    return [
        (_name(task), _task_table(result, task, _names(result, task), "In percent."))
        for task in found
        if set(found) != {"choice"}
    ]


def published_tables(result: Json) -> list[tuple[str, Table]]:
    """Make a table for each task of its scores as published code computes them, each beside ours."""
    tables: list[tuple[str, Table]] = []
    for task in comparison(result["scores"])["headlines"]:
        ours = _names(result, task)
        pairs = [(name.removesuffix(PUBLISHED), name) for name in _names(result, task, published=True)]
        columns = [name for pair in pairs for name in pair if name in ours or name.endswith(PUBLISHED)]
        if columns:
            tables.append((_name(task), _task_table(result, task, columns, READING.get(task, ""))))
    return tables


def _names(result: Json, task: str, *, published: bool = False) -> list[str]:
    """List the scores of a task that are known for some method."""
    names = dict.fromkeys(
        name for scores in result["scores"].values() for name in at(scores, "tasks", task) or {}
    )
    return [
        name
        for name in names
        if name.endswith(PUBLISHED) == published and _known(result, "tasks", task, name)
    ]


def _task_table(result: Json, task: str, names: Sequence[str], note: str) -> Table:
    rows = tuple(
        (label(method), *(percent(number(found, "tasks", task, name)) for name in names))
        for method, found in result["scores"].items()
    )
    return Table(("Method", *(_title(task, name) for name in names)), rows, note)


def gain_table(result: Json, clients: Sequence[str] = ()) -> Table | None:
    """Make the table of each client's gain over local training; None for a run without local training.

    Args:
        result: The content of result.json.
        clients: Heads of the columns, one for each client; none for the summary alone.
    """
    compared = comparison(result["scores"])
    gains = compared["gain"]
    rows = [
        (
            label(method),
            *_summary(found, compared["clients"][method]),
            *(signed(number(found, place)) for place in range(len(clients))),
        )
        for method, found in gains.items()
        if number(compared, "clients", method, "unknown") != len(found)
    ]
    if not rows:
        return None
    heads = (
        "Mean gain",
        "Best",
        "Worst",
        "Helped",
        "Same",
        "Hurt",
        *clients,
    )
    note = "Relative gain over local training, in percent, of each client on data like its own. Helped, same, hurt: number of clients that fare better, equally well, and worse."
    return Table(("Method", *heads), tuple(rows), note)


def _summary(gains: Sequence[float | None], clients: Json) -> tuple[str, ...]:
    known = [gain for gain in gains if gain is not None]
    ends = (fmean(known), max(known), min(known)) if known else (None, None, None)
    return (*map(signed, ends), *(str(clients[name]) for name in ("better", "same", "worse")))


def terminal_table(result: Json) -> str:
    """Write final scores, gains and a sentence about clients for a terminal of 80 columns, without color."""
    tables = [score_table(result), gain_table(result)]
    pieces = [table.text(80) for table in tables if table]
    if told := in_brief(result):
        pieces.append(f"{textwrap.fill(printable(told), 80)}\n")
    return "\n".join(pieces)
