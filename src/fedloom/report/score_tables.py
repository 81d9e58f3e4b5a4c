"""Tables of a run: final scores, scores as published code computes them, and gains from federation."""

from __future__ import annotations

from collections.abc import Sequence

from fedloom.report.client_verdicts import own_mean
from fedloom.report.federation_gain import compare_methods, main_score, task_scores, tasks_in
from fedloom.report.run_results import Json, at, number
from fedloom.report.shared_scores import (
    ABOUT,
    OWN_DATA,
    OWN_MODELS,
    SHARED_MODEL,
    has_both,
    own_models,
    shared_model,
)
from fedloom.report.site_scores_table import OVER_SITES, is_tested_at_sites
from fedloom.report.tables import (
    MISSING,
    Table,
    bytes_sent,
    label,
    percent,
    seconds,
    size,
    title,
)

TASKS = {"choice": "Choice", "vqa": "VQA", "caption": "Caption", "grounding": "Grounding"}
MAIN_SCORES = {
    "choice": ("accuracy", "macro_f1", "auc"),
    "vqa": ("accuracy", "accuracy_open", "accuracy_closed", "accuracy_judged", "token_f1"),
    "caption": ("cider", "bleu_4", "rouge_l"),
    "grounding": ("iou", "accuracy", "accuracy@0.75"),
}
"""Task → the scores in the main table of a run of this task alone; the headline score comes first."""

PUBLISHED = "_published"
PUBLISHED_NOTES = {
    "choice": "In percent. Published: the same answers, scored as in the papers' code. The answer is the first capital "
    "letter from A to G anywhere in the reply (or a later letter if there are more options). AUC and macro F1 are computed "
    "from hard labels, and unreadable replies count as the third option (FedMLLM). If options have no letters, the answer "
    'is the text after "is"; in a run of several tasks, only its first character (FedVLMBench).',
    "vqa": 'In percent. Published: the text after "is" is compared exactly; in a run of several tasks, only its first '
    "character (FedVLMBench).",
    "caption": "In percent. Published: with case and punctuation; if right answers have the form "
    '"The caption is …", replies without "is" are left out (FedVLMBench).',
    "grounding": "In percent. Published: replies that are not exactly one box are left out (FedVLMBench).",
}
"""Task → note on its published scores."""

LIKELIHOOD = "Options were compared by likelihood"
FREELY = "were generated freely."
SCORING = {
    "generate": f"The model's answers {FREELY}",
    "teacher-forced": "The model's answers are teacher-forced, as in the published scoring of FedVLMBench: every token was "
    "predicted from the correct tokens before it. They cannot be compared with generated answers.",
}


def score_table(result: Json) -> Table:
    """Return the table of final scores and costs, one row for each method, in the order of `result["scores"]`.

    A run of one task shows the scores of that task. A run of several tasks shows each task's headline score and the mean
    rank.
    """
    compared = compare_methods(result["scores"])
    several = len(compared["headlines"]) > 1
    heads, cells = _by_task(compared) if several else _of_one_task(result, compared)
    costs = {
        method: (size(bytes_sent(result, method)), _seconds_text(result, method))
        for method in result["scores"]
    }
    rows = tuple((label(method), *cells[method], *costs[method]) for method in result["scores"])
    if several:
        rows = _with_shared_models(result, rows)
    return Table(("Method", *heads, "Sent", "Seconds"), rows, _note(result, several))


Cells = dict[str, tuple[str, ...]]


def _tasks(result: Json) -> list[str]:
    return list(compare_methods(result["scores"])["headlines"]) or ["choice"]


def task_heads(result: Json) -> dict[str, str]:
    """Return task → column heading of its headline score."""
    return _heads(compare_methods(result["scores"]))


def _heads(compared: Json) -> dict[str, str]:
    return {task: headline_title(task, name) for task, name in compared["headlines"].items()}


def headline_title(task: str, name: str) -> str:
    """Return the display name of a task and its headline score; the task is "" if it was not recorded.

    Example:
        >>> headline_title("caption", "cider"), headline_title("", "accuracy")
        ('Caption: CIDEr', 'Accuracy')
    """
    return f"{_task_name(task)}: {_title(task, name)}" if task else title(name)


def _by_task(compared: Json) -> tuple[tuple[str, ...], Cells]:
    """Return the column headings and method → cells for a run of several tasks."""
    cells = {
        method: (*map(percent, scores.values()), _rank_text(compared["mean_rank"][method]))
        for method, scores in compared["tasks"].items()
    }
    return (*_heads(compared).values(), "Mean rank"), cells


def _with_shared_models(result: Json, rows: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
    """Add a row for the shared model of each method whose row has means over clients' own models."""
    scores, found = result["scores"], list[tuple[str, ...]]()
    for (method, entry), row in zip(scores.items(), rows, strict=True):
        found.append(row)
        if has_both({method: entry}):
            by_task = task_scores({"scores": {**scores, method: shared_model(entry)}})[method]
            found[-1:] = [
                (f"{row[0]}, own models", *row[1:]),
                (f"{row[0]}, shared model", *map(percent, by_task.values()), *(MISSING,) * 3),
            ]
    return tuple(found)


def _of_one_task(result: Json, compared: Json) -> tuple[tuple[str, ...], Cells]:
    scores, main = result["scores"], main_score(result)
    task = next(iter(compared["headlines"]), "choice")
    paths = {_title(task, name): (name,) for name in MAIN_SCORES.get(task, ("accuracy",))}
    if task != "choice":
        paths = {head: path for head, path in paths.items() if _has_score(result, *path)}
    paths |= {_title(task, name): (name,) for name in result.get("metrics", ())}
    owned = {method: own_mean(entry) for method, entry in scores.items()}
    paths |= {SLICES[name]: ("slices", name, main) for name in _withheld_slices(result)}
    cells = {
        method: tuple(percent(number(entry, *path)) for path in paths.values())
        for method, entry in scores.items()
    }
    for method, entry in scores.items():
        best, worst = number(entry, "best"), number(entry, "worst")
        if best is not None and worst is not None and cells[method]:
            first, *others = cells[method]
            cells[method] = (f"{first} ({percent(best)}–{percent(worst)})", *others)
    if splits_global_test(result):
        split = {
            method: (
                percent(number(shared_model(entry), main)),
                row[0] if own_models(entry) else MISSING,
                percent(owned[method]),
                *row[1:],
            )
            for (method, row), entry in zip(cells.items(), scores.values(), strict=True)
        }
        return (SHARED_MODEL, OWN_MODELS, OWN_DATA, *list(paths)[1:]), split
    if all(value is None for value in owned.values()):
        return tuple(paths), cells
    beside = {method: (row[0], percent(owned[method]), *row[1:]) for method, row in cells.items() if row}
    return (next(iter(paths)), OWN, *list(paths)[1:]), beside


def _task_name(task: str) -> str:
    return TASKS.get(task, task)


def _title(task: str, name: str) -> str:
    """Return the display name of a score; the accuracy of boxes is named by its threshold."""
    return title(f"{name}@0.5" if (task, name) == ("grounding", "accuracy") else name)


def splits_global_test(result: Json) -> bool:
    """Whether tables have columns for shared and for own models on the global test set; where sites test, there is no such set."""
    return has_both(result["scores"]) and not is_tested_at_sites(result)


OWN = "Own data"
"""The column of scores on data like each client's own, which stands beside that of the global test set."""

SLICES = {"image": "Image only", "text": "Text only"}


def _withheld_slices(result: Json) -> list[str]:
    """Return the slices that withhold a modality; none if the scores have only one slice."""
    known = [name for name in ("both", *SLICES) if _has_score(result, "slices", name, main_score(result))]
    return [name for name in known if name in SLICES] if len(known) > 1 else []


def _scoring_sentence(result: Json) -> list[str]:
    """Describe how the answers were obtained, for the kinds of questions in the run."""
    how, tasks = str(result.get("scoring")), tasks_in(result)
    if how != "likelihood":
        return [SCORING[how]] if how in SCORING else []
    if tasks == ["choice"]:
        return [f"{LIKELIHOOD}."]
    if tasks and "choice" not in tasks:
        return [f"Answers {FREELY}"]
    return [f"{LIKELIHOOD}; answers to questions without options {FREELY}"]


def _has_score(result: Json, *path: str) -> bool:
    return any(number(entry, *path) is not None for entry in result["scores"].values())


def _rank_text(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"


def _seconds_text(result: Json, method: str) -> str:
    return seconds(number(result, "seconds", method))


def _note(result: Json, several: bool) -> str:
    scores, main = result["scores"], main_score(result)
    sentences = ["Scores in percent."]
    if any(at(entry, "tasks", "caption") for entry in scores.values()):
        sentences.append("CIDEr may exceed 100.")
    if several:
        sentences.append("Mean rank: over tasks, 1 is best.")
    elif withheld := _withheld_slices(result):
        names = " and ".join(SLICES[name] for name in withheld).capitalize()
        sentences.append(f"{names}: {_in_text(main)} if only that modality is shown.")
    at_sites = is_tested_at_sites(result)
    split = has_both(scores) and not several and not at_sites
    if split:
        sentences.append(f"The first three columns are {_in_text(main)}. {ABOUT}")
    elif not several and not at_sites and any(own_mean(entry) is not None for entry in scores.values()):
        sentences.append(
            f"{OWN}: the mean over clients of {_in_text(main)} on data like each client's own; all other scores are on the global "
            "test set."
        )
    own = [label(method) for method, entry in scores.items() if number(entry, "best") is not None]
    if own:
        brackets = "" if several else ", the best and the worst of them in brackets"
        if at_sites:
            sentences.append(
                f"{OVER_SITES}; for {', '.join(own)} they are those of each site's own model{brackets}."
            )
        elif split:
            sentences.append(
                f"All other scores of {', '.join(own)} are means over clients' own models; brackets: the best and the worst of them."
            )
        else:
            sentences.append(
                f"For {', '.join(own)}, scores on the global test set are means over clients' own models{brackets}."
            )
    elif at_sites:
        sentences.append(f"{OVER_SITES}.")
    if has_both(scores) and several:
        sentences.append("Own models: means over the clients that hold a task, each with its own model.")
    sentences += _scoring_sentence(result)
    unread = {method: number(entry, "unparsed") for method, entry in scores.items()}
    shown = [f"{label(method)} {percent(share)}" for method, share in unread.items() if share]
    if shown:
        sentences.append(f"Unreadable answers, counted as wrong: {', '.join(shown)}.")
    return " ".join(sentences)


def _in_text(name: str) -> str:
    return "accuracy" if name == "accuracy" else title(name)


def task_tables(result: Json) -> list[tuple[str, Table]]:
    """Return a table of all scores for each task; none if the only task is multiple choice."""
    tasks = compare_methods(result["scores"])["headlines"]
    return [
        (_task_name(task), _task_table(result, task, _names(result, task), "In percent."))
        for task in tasks
        if set(tasks) != {"choice"}
    ]


def published_tables(result: Json) -> list[tuple[str, Table]]:
    """Return a table for each task of its scores as published code computes them, next to our scores."""
    tables: list[tuple[str, Table]] = []
    for task in compare_methods(result["scores"])["headlines"]:
        ours = _names(result, task)
        pairs = [(name.removesuffix(PUBLISHED), name) for name in _names(result, task, published=True)]
        columns = [name for pair in pairs for name in pair if name in ours or name.endswith(PUBLISHED)]
        if columns:
            tables.append(
                (_task_name(task), _task_table(result, task, columns, PUBLISHED_NOTES.get(task, "")))
            )
    return tables


def _names(result: Json, task: str, *, published: bool = False) -> list[str]:
    """Return the names of a task's scores that are known for at least one method."""
    names = dict.fromkeys(
        name for scores in result["scores"].values() for name in at(scores, "tasks", task) or {}
    )
    return [
        name
        for name in names
        if name.endswith(PUBLISHED) == published and _has_score(result, "tasks", task, name)
    ]


def _task_table(result: Json, task: str, names: Sequence[str], note: str) -> Table:
    rows = tuple(
        (label(method), *(percent(number(entry, "tasks", task, name)) for name in names))
        for method, entry in result["scores"].items()
    )
    return Table(("Method", *(_title(task, name) for name in names)), rows, note)
