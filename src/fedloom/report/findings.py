"""The findings of a run: sentences about its scores for readers new to the project."""

from __future__ import annotations

from fedloom.algorithms import COMPARED
from fedloom.report.confidence_intervals import interval, margin
from fedloom.report.federation_gain import count_clients, local_method, main_score, task_scores, worst_client
from fedloom.report.run_results import Json, at, number
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
    ends, value = local_and_centralized(result), number(result["scores"].get(method), main_score(result))
    if ends is None or value is None or ends[1] <= ends[0]:
        return None
    return (value - ends[0]) / (ends[1] - ends[0])


def is_mean_over_clients(scores: Json) -> bool:
    """Return whether a method's scores are means over models, one for each client."""
    return number(scores, "best") is not None


def is_share_of_questions(result: Json) -> bool:
    """Return whether a run's main score is a share of right answers, to which a binomial interval applies.

    A mean of the accuracies of several tasks is no such share.
    """
    return main_score(result) == "accuracy" and len(_tasks(result)) < 2


def _tasks(result: Json) -> list[str]:
    return list(next(iter(task_scores(result).values()), {}))


def run_findings(result: Json, questions: float | None = None) -> list[str]:
    """Describe what the scores show, and what they cannot show.

    The first entry has the shared model's score on the global test set together with the number of clients that are
    better off and worse off with it, because one may improve while the other gets worse.

    Args:
        result: The content of result.json.
        questions: Number of test questions, or None if unknown. If it is known, differences are tested for
            significance.
    """
    method = headline_method(result)
    value = number(result["scores"].get(method), main_score(result)) if method else None
    if method is None or value is None:
        return ["No federated method was scored in this run, so there is no gain from federation to report."]
    if not is_share_of_questions(result):
        questions = None
    sentences = [f"{_gap_sentence(result, method, value, questions)} {client_sentence(result, method)}"]
    sentences += _best_sentence(result, value)
    sentences += _linear_sentence(result, questions)
    if questions and not is_mean_over_clients(result["scores"][method]):
        low, high = interval(value, questions)
        sentences.append(
            f"On {questions:,.0f} test question{'' if questions == 1 else 's'} the 95% confidence interval (Wilson) of "
            f"{label(method)}'s {percent(value)}% is {percent(low)} to {percent(high)}%. Differences below about "
            f"{percent(margin(value, value, questions))} points are not significant. Scores also vary by seed, which one "
            "run cannot show."
        )
    return sentences


def short_summary(result: Json) -> str:
    """Summarize in two sentences the scores of a federated method, on the global test set and for clients; "" without one."""
    method, main = headline_method(result), main_score(result)
    value = number(result["scores"].get(method), main) if method else None
    if method is None or value is None:
        return ""
    sentence = f"On {tested_on(result)} {label(method)} reaches {_score_name(result)}{_score_text(result, value)}{_local_clause(result)}."
    return f"{sentence} {client_sentence(result, method)}"


def _local_clause(result: Json) -> str:
    local = _baseline_score(result, "local")
    return "" if local is None else f", {_local_subject(result)} {_score_text(result, local)}"


def _gap_sentence(result: Json, method: str, value: float, questions: float | None) -> str:
    name, ends = label(method), local_and_centralized(result)
    between = "the gap between local and centralized training"
    score = f"{_score_name(result)}{_score_text(result, value)}"
    where = (
        ", the mean of its models, one per client" if is_mean_over_clients(result["scores"][method]) else ""
    )
    reached = f"On {tested_on(result)} {name} reaches {score}{where}"
    if ends is None:
        names = ("local", "centralized")
        lacking = [baseline for baseline in names if _baseline_score(result, baseline) is None]
        return f"{reached}{_local_clause(result)}. The share of {between} that it closes cannot be computed, because the run has no score for {' and '.join(lacking)} training."
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


def client_sentence(result: Json, method: str) -> str:
    """Compare a method with the clients' own models, each client on data like its own."""
    scores, name = result["scores"], label(method)
    local = local_method(scores)
    if local is None:
        return "Whether clients are better off than alone is unknown, because no client trained alone in this run."
    counts = count_clients(scores[method], scores[local])
    if not counts:
        return "The scores of single clients, on data like their own, were not recorded."
    at_sites = is_tested_at_sites(result)
    unknown = f" ({counts.unknown} more cannot be compared)" if counts.unknown else ""
    if counts.known + counts.unknown == 1:
        how = "better" if counts.better else "worse" if counts.worse else "neither better nor worse"
        sentence = f"On {'its own test part' if at_sites else 'data like its own'}, the only client is {how} off with {name} than with the model that it trained alone"
    else:
        verb = "is" if counts.better == 1 else "are"
        sentence = (
            f"On {'their own test parts' if at_sites else 'data like their own'}, {counts.better} of {counts.known} clients{unknown} {verb} better off with {name} than with the "
            f"model that each trained alone, {counts.same} equally well off and {counts.worse} worse off"
        )
    return f"{sentence}{_worst_clause(result, worst_client(scores[method], scores[local]), counts.known)}."


def _worst_clause(result: Json, worst: Json | None, clients: int) -> str:
    if worst is None:
        return ""
    gain, score, alone = worst["gain"], worst["score"], worst["alone"]
    figures = (
        f"a mean gain over its tasks of {signed(gain)}%"
        if score is None or alone is None
        else f"{_score_text(result, score)} instead of {_score_text(result, alone)}"
    )
    if clients == 1:
        return f": {figures}"
    if gain == 0:
        return "; no client loses"
    what = "loses most" if gain < 0 else "gains least"
    return f"; client {worst['client']} {what}: {figures}"


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
    main = main_score(result)
    main_scores = {
        name: number(scores, main) for name, scores in result["scores"].items() if is_federated(name)
    }
    return {name: value for name, value in main_scores.items() if value is not None}


def _score_text(result: Json, value: float) -> str:
    """Write a main score; CIDEr is not a share and has no percent sign."""
    return percent(value) + ("" if main_score(result) == "cider" else "%")
