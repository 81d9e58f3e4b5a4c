"""The findings of a run: sentences about its scores for readers new to the project."""

from __future__ import annotations

from collections.abc import Sequence

from fedloom.algorithms import COMPARED
from fedloom.report.client_verdicts import Verdict, verdict_on
from fedloom.report.confidence_intervals import interval, margin
from fedloom.report.federation_gain import (
    baseline_of,
    count_clients,
    local_method,
    main_score,
    task_scores,
    worst_client,
)
from fedloom.report.run_results import Json, at, number
from fedloom.report.shared_scores import for_everybody, has_own_models, shared_model
from fedloom.report.significance import SAME
from fedloom.report.site_scores_table import is_tested_at_sites, tested_on
from fedloom.report.tables import base, is_federated, label, percent, signed, title


def headline_method(result: Json) -> str | None:
    """Return the federated method that is reported first: FedAvg if it has a score, else the main one, else the first."""
    candidates = list(_federated_scores(result))
    preferred = [method for method in (COMPARED, result.get("main")) if method in candidates]
    return (preferred + candidates)[0] if candidates else None


def local_and_centralized(result: Json) -> tuple[float, float] | None:
    """Return the main scores of local training (mean) and centralized training; None if either is missing."""
    local, central = (_baseline_score(result, name) for name in ("local", "centralized"))
    return None if local is None or central is None else (local, central)


def _baseline_score(result: Json, name: str) -> float | None:
    main = main_score(result)
    candidates = (number(scores, main) for method, scores in result["scores"].items() if base(method) == name)
    return next((value for value in candidates if value is not None), None)


def gap_share(result: Json, method: str) -> float | None:
    """Return the share of the gap between mean local and centralized training that a method closes.

    This is (a − l) / (c − l), where a, l and c are the main scores of the method, of local training (mean over clients)
    and of centralized training. None if a score is missing or c ≤ l.
    """
    ends, value = local_and_centralized(result), global_score(result, method)
    if ends is None or value is None or ends[1] <= ends[0]:
        return None
    return (value - ends[0]) / (ends[1] - ends[0])


def global_score(result: Json, method: str) -> float | None:
    """Return a method's main score on everybody's questions: that of its shared model, else the mean over clients' own ones."""
    return number(for_everybody(result["scores"].get(method) or {}), main_score(result))


def subject(result: Json, method: str) -> str:
    """Name the model whose score `global_score` is; where clients have models of their own besides, that is said."""
    scores = result["scores"][method]
    both = has_own_models(scores) and shared_model(scores) is not None
    return f"the shared model of {label(method)}" if both else label(method)


def _possessor(result: Json, method: str) -> str:
    return "the" if subject(result, method) != label(method) else f"{label(method)}'s"


def _own_clause(result: Json, method: str) -> str:
    """Describe the scores of clients' own models on the same questions; "" if there are none."""
    scores = result["scores"][method]
    value = number(scores, main_score(result))
    if not has_own_models(scores) or value is None:
        return ""
    if shared_model(scores) is None:
        return ", the mean of its models, one per client"
    return f" (its clients' own models a mean of {_score_text(result, value)})"


def is_share_of_questions(result: Json) -> bool:
    """Return whether a run's main score is a share of right answers, to which a binomial interval applies.

    A mean of the accuracies of several tasks is no such share.
    """
    return main_score(result) == "accuracy" and len(_tasks(result)) < 2


def _tasks(result: Json) -> list[str]:
    return list(next(iter(task_scores(result).values()), {}))


def run_findings(result: Json, questions: float | None = None, names: Sequence[str] = ()) -> list[str]:
    """Describe what the scores show, and what they cannot show.

    The first entry has the shared model's score on the global test set together with the number of clients that are
    better off and worse off with it, because one may improve while the other gets worse.

    Args:
        result: The content of result.json.
        questions: Number of test questions, or None if unknown. If it is known, differences are tested for
            significance.
        names: The clients' names, for sentences about single clients.
    """
    method = headline_method(result)
    value = global_score(result, method) if method else None
    if method is None or value is None:
        return ["No federated method was scored in this run, so there is no gain from federation to report."]
    if not is_share_of_questions(result):
        questions = None
    count = independent(result, questions)
    sentences = [f"{_gap_sentence(result, method, value, count)} {client_sentence(result, method, names)}"]
    sentences += _best_sentence(result, value)
    sentences += _linear_sentence(result, count)
    return sentences + chance_sentences(result, questions)


def independent(result: Json, questions: float | None) -> float | None:
    """Return the number of independent test questions, of which there are at most `questions`; None if that is unknown.

    Questions about the same image count as one; results of version 0.1 do not have that number.
    """
    tasks = _tasks(result)
    known = number(result, "independent_questions", "test", tasks[0]) if len(tasks) == 1 else None
    return questions if known is None or not questions else min(known, questions)


def chance_sentences(result: Json, questions: float | None) -> list[str]:
    """Describe the uncertainty of the headline method's score from the number of questions; empty if it is unknown."""
    method = headline_method(result)
    value = global_score(result, method) if method else None
    if method is None or value is None or not questions or not is_share_of_questions(result):
        return []
    if shared_model(result["scores"][method]) is None:
        return []
    count = independent(result, questions) or questions
    low, high = interval(value, count)
    fewer = "" if round(count) >= questions else f" (as informative as {count:,.0f} independent ones)"
    return [
        f"On {questions:,.0f} test question{'' if questions == 1 else 's'}{fewer} the 95 % confidence interval (Wilson) of "
        f"{_possessor(result, method)} {percent(value)}% is {percent(low)} to {percent(high)}%. If answers are taken as "
        f"independent, differences below about {percent(margin(value, value, count))} points are not significant at the 5 % "
        "level; paired ones may be. Scores also vary by seed, which one run cannot show."
    ]


def short_findings(result: Json, names: Sequence[str] = ()) -> list[str]:
    """Summarize a federated method in two sentences: on everybody's questions, and for each client; empty without one."""
    method = headline_method(result)
    value = global_score(result, method) if method else None
    if method is None or value is None:
        return []
    reached = f"{subject(result, method)} reaches {_score_name(result)}{_score_text(result, value)}{_own_clause(result, method)}"
    sentence = f"On {tested_on(result)} {reached}{_reference_clause(result)}."
    return [sentence, client_sentence(result, method, names)]


def short_summary(result: Json, names: Sequence[str] = ()) -> str:
    """Return `short_findings` as one text."""
    return " ".join(short_findings(result, names))


def _reference_clause(result: Json) -> str:
    """Give the score of training alone, in a run without it that of the model before training; "" without either."""
    local, before = _baseline_score(result, "local"), _baseline_score(result, "zero-shot")
    if local is not None:
        return f", {_local_subject(result)} {_score_text(result, local)}"
    return "" if before is None else f", the model before training {_score_text(result, before)}"


def _gap_sentence(result: Json, method: str, value: float, questions: float | None) -> str:
    ends = local_and_centralized(result)
    between = "the gap between local and centralized training"
    score = f"{_score_name(result)}{_score_text(result, value)}"
    name, where = subject(result, method), _own_clause(result, method)
    reached = f"On {tested_on(result)} {name} reaches {score}{where}"
    if ends is None:
        names = ("local", "centralized")
        lacking = [baseline for baseline in names if _baseline_score(result, baseline) is None]
        return f"{reached}{_reference_clause(result)}. The share of {between} that it closes cannot be computed, because the run has no score for {' and '.join(lacking)} training."
    local, central = ends
    comparison = f"{_local_subject(result)} {_score_text(result, local)} and training on pooled data reaches {_score_text(result, central)}"
    if central <= local:
        return f"{reached}. Pooling the data brings no gain here ({comparison}), so there is no gap to close."
    if questions and central - local < margin(local, central, questions):
        return (
            f"{reached}. {between.capitalize()} is not significant on {questions:,.0f} test questions ({comparison}), so no share "
            "of it is reported."
        )
    return f"On {tested_on(result)} {name} closes {_share_text((value - local) / (central - local))} of {between}: it reaches {score}{where}, while {comparison}."


def _score_name(result: Json) -> str:
    if len(_tasks(result)) > 1:
        return "a mean accuracy over tasks of "
    main = main_score(result)
    return "" if main == "accuracy" else f"a {title(main)} of "


def _local_subject(result: Json) -> str:
    clients = at(result["scores"], local_method(result["scores"]), "clients")
    if isinstance(clients, list) and len(clients) == 1:
        return "the client's own model reaches"
    return "clients' own models reach a mean of"


def _share_text(share: float) -> str:
    """Write a share so that it is not rounded to 0% or 100%."""
    if share <= 0:
        return "none"
    if share >= 1:
        return "all"
    return "less than 1%" if share < 0.01 else "more than 99%" if share > 0.99 else f"{percent(share, 0)}%"


def client_sentence(result: Json, method: str, names: Sequence[str] = ()) -> str:
    """Compare a method with the clients' own models, each client on data like its own.

    Args:
        result: The content of result.json.
        method: The method.
        names: The clients' names; those that are missing are named by their numbers.
    """
    scores, name = result["scores"], label(method)
    local = baseline_of(method, scores)
    if local is None:
        return "Whether clients are better off than alone is unknown, because no client trained alone in this run."
    counts = count_clients(scores[method], scores[local])
    if not counts:
        return "The scores of single clients, on data like their own, were not recorded."
    verdict = verdict_on(result, method)
    at_sites = is_tested_at_sites(result)
    unknown = f" ({counts.unknown} more cannot be compared)" if counts.unknown else ""
    if counts.known + counts.unknown == 1:
        how = "better" if counts.better else "worse" if counts.worse else "neither better nor worse"
        sentence = f"On {'its own test part' if at_sites else 'data like its own'}, the only client is {how} off with {name} than with the model that it trained alone{_tuned_clause(scores, local)}"
    else:
        verb = "is" if counts.better == 1 else "are"
        sentence = (
            f"On {'their own test parts' if at_sites else 'data like their own'}, {counts.better} of {counts.known} clients{unknown} {verb} better off with {name} than with the "
            f"model that each trained alone{_tuned_clause(scores, local)}, {counts.same} equally well off and {counts.worse} worse off"
            f"{_gain_clause(verdict)}"
        )
    if verdict is not None:
        clause = _verdict_clause(result, verdict, counts.known, names)
    else:
        clause = _worst_clause(worst_client(scores[method], scores[local]), counts.known, names)
    return f"{sentence}{clause}."


def _tuned_clause(scores: Json, alone: str) -> str:
    """Name the baseline where it is not plain training alone."""
    return (
        ""
        if alone == local_method(scores)
        else f" and fine-tuned in the same way ({label(alone).replace(' (mean)', '')})"
    )


def _gain_clause(verdict: Verdict | None) -> str:
    """Describe the mean gain in points, with its interval, and that of the bottom fifth of several clients."""
    if verdict is None or len(verdict.gains) < 2:
        return ""
    low, high = verdict.interval or (None, None)
    bounds = "" if low is None else f" (95 % confidence interval {signed(low)} to {signed(high)})"
    return (
        f"; the mean gain is {signed(verdict.mean)} points{bounds}, that of the bottom fifth "
        f"{signed(verdict.bottom_fifth)}"
    )


def _verdict_clause(result: Json, verdict: Verdict, clients: int, names: Sequence[str]) -> str:
    worst = verdict.worst
    figures = f"{_score_text(result, worst.score)} instead of {_score_text(result, worst.alone)}"
    if clients == 1:
        return f": {figures}"
    if not verdict.counts.worse and worst.points < SAME:
        return "; no client loses"
    what = "loses most" if worst.points < 0 else "gains least"
    return f"; {_client_name(names, worst.client)} {what}: {figures}"


def _worst_clause(worst: Json | None, clients: int, names: Sequence[str]) -> str:
    """Describe the worst client of a run of several tasks."""
    if worst is None:
        return ""
    score, alone, gain = worst["score"], worst["alone"], worst["gain"]
    figures = (
        f"a mean gain over its tasks of {signed(gain)}% of its own scores"
        if score is None or alone is None
        else f"{percent(score)} instead of {percent(alone)} in its task"
    )
    if clients == 1:
        return f": {figures}"
    if gain == 0:
        return "; no client loses"
    what = "loses most" if gain < 0 else "gains least"
    return f"; {_client_name(names, worst['client'])} {what} in relation to its own score: {figures}"


def _client_name(names: Sequence[str], client: int) -> str:
    name = names[client] if client < len(names) else f"client {client}"
    return name.replace("Client", "client", 1)


def _best_sentence(result: Json, value: float) -> list[str]:
    scores = _federated_scores(result)
    highest = max(scores.values())
    best = [name for name in scores if scores[name] == highest]
    if len(scores) == 1:
        return []
    if highest <= value:
        return [f"No other federated method scores higher on {_test_set(result)}."]
    share = gap_share(result, best[0])
    score = f"{_score_text(result, highest)}" + (
        "" if share is None else f" ({percent(share, 0)}% of the gap)"
    )
    names = " and ".join(map(label, best))
    return [
        f"Of the {len(scores)} federated methods {names} {'scores' if len(best) == 1 else 'score'} highest on "
        f"{_test_set(result)}, with {score}; a score that is selected for being the highest is likely an overestimate."
    ]


def _linear_sentence(result: Json, questions: float | None) -> list[str]:
    linear = number(result["scores"].get("linear"), main_score(result))
    if linear is None:
        return []
    best = max(_federated_scores(result).values())
    how = "below" if linear < best else "above" if linear > best else "level with"
    close = questions and linear != best and abs(best - linear) < margin(best, linear, questions)
    tail = ", though the difference is not significant" if close else ""
    sentence = f"The linear baseline reaches {_score_text(result, linear)}, {how} the federated method that scores highest on {_test_set(result)}"
    return [f"{sentence}{tail}."]


def _test_set(result: Json) -> str:
    return tested_on(result).replace("global ", "")


def _federated_scores(result: Json) -> dict[str, float]:
    main_scores = {name: global_score(result, name) for name in result["scores"] if is_federated(name)}
    return {name: value for name, value in main_scores.items() if value is not None}


def _score_text(result: Json, value: float) -> str:
    """Write a main score; CIDEr is not a share and has no percent sign."""
    return percent(value) + ("" if main_score(result) == "cider" else "%")
