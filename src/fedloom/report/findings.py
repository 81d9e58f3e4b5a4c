"""The findings of a run, in sentences made from its numbers, for readers new to the project."""

from __future__ import annotations

from fedloom.algorithms import COMPARED
from fedloom.report.confidence_intervals import interval, margin
from fedloom.report.federation_gain import alone_in, fares, main_score, task_scores, worst_client
from fedloom.report.run_results import Json, at, number
from fedloom.report.tables import base, federated, label, percent, signed, title


def headline_method(result: Json) -> str | None:
    """Return the federated method whose gain is reported first: of those with a score FedAvg, else the main one, else the first."""
    found = list(_federated_scores(result))
    preferred = [method for method in (COMPARED, result.get("main")) if method in found]
    return (preferred + found)[0] if found else None


def gap(result: Json) -> tuple[float, float] | None:
    """Return the main scores of mean local and of centralized training; None where either is missing."""
    local, central = (_reference(result, name) for name in ("local", "centralized"))
    return None if local is None or central is None else (local, central)


def _reference(result: Json, name: str) -> float | None:
    main = main_score(result)
    found = (number(scores, main) for method, scores in result["scores"].items() if base(method) == name)
    return next((value for value in found if value is not None), None)


def gap_share(result: Json, method: str) -> float | None:
    """Return the share of the gap between mean local and centralized training that a method closes.

    (a − l) / (c − l) with a, l and c the main scores of the method, of local training (mean over clients)
    and of centralized training; None where one is missing or c ≤ l.
    """
    ends, value = gap(result), number(result["scores"].get(method), main_score(result))
    if ends is None or value is None or ends[1] <= ends[0]:
        return None
    return (value - ends[0]) / (ends[1] - ends[0])


def averaged(scores: Json) -> bool:
    """Return whether a method's scores are means over models, one for each client."""
    return number(scores, "best") is not None


def shares(result: Json) -> bool:
    """Return whether a run's main score is a share of right answers, so that the number of questions gives its precision.

    A mean of the accuracies of several tasks is not.
    """
    return main_score(result) == "accuracy" and len(_tasks(result)) < 2


def _tasks(result: Json) -> list[str]:
    return list(next(iter(task_scores(result).values()), {}))


def finding(result: Json, questions: float | None = None) -> list[str]:
    """Describe what the numbers show, and what they cannot show.

    The first entry gives how well the shared model does on the global test set and, right beside it, how single
    clients fare with it on data like their own: one may improve while the other gets worse.

    Args:
        result: The content of result.json.
        questions: Number of test questions, if known; differences are then tested for significance.
    """
    method = headline_method(result)
    value = number(result["scores"].get(method), main_score(result)) if method else None
    if method is None or value is None:
        return ["No federated method was scored in this run, so there is no gain from federation to report."]
    if not shares(result):
        questions = None
    said = [f"{_gap_sentence(result, method, value, questions)} {client_sentence(result, method)}"]
    said += _best_sentence(result, value)
    said += _linear_sentence(result, questions)
    if questions and not averaged(result["scores"][method]):
        low, high = interval(value, questions)
        said.append(
            f"On {questions:,.0f} test question{'' if questions == 1 else 's'} the 95 % confidence interval (Wilson) of "
            f"{label(method)}'s {percent(value)}% is {percent(low)} to {percent(high)}%; a method that differs from it by "
            f"less than about {percent(margin(value, value, questions))} points does not differ significantly. Scores "
            "also vary between seeds; a single run does not show by how much."
        )
    return said


def in_brief(result: Json) -> str:
    """Summarize in two sentences how a federated method does on the global test set and for single clients; "" without one."""
    method, main = headline_method(result), main_score(result)
    value = number(result["scores"].get(method), main) if method else None
    if method is None or value is None:
        return ""
    told = f"On the global test set {label(method)} reaches {_score_name(result)}{_said(result, value)}{_beside(result)}."
    return f"{told} {client_sentence(result, method)}"


def _beside(result: Json) -> str:
    local = _reference(result, "local")
    return "" if local is None else f", {_alone(result)} {_said(result, local)}"


def _gap_sentence(result: Json, method: str, value: float, questions: float | None) -> str:
    name, ends, between = label(method), gap(result), "the gap between local and centralized training"
    score = f"{_score_name(result)}{_said(result, value)}"
    where = ", the mean of its models, one per client" if averaged(result["scores"][method]) else ""
    reached = f"On the global test set {name} reaches {score}{where}"
    if ends is None:
        lacking = [
            name
            for name, found in (("local", "local"), ("centralized", "centralized"))
            if _reference(result, found) is None
        ]
        return f"{reached}{_beside(result)}. The share of {between} that it closes cannot be computed, because the run has no score for {' and '.join(lacking)} training."
    local, central = ends
    marks = f"{_alone(result)} {_said(result, local)} and training on pooled data reaches {_said(result, central)}"
    if central <= local:
        return f"{reached}. Pooling the data brings no gain here ({marks}), so there is no gap to close."
    if questions and central - local < margin(local, central, questions):
        return (
            f"{reached}. {between.capitalize()} is not significant on {questions:,.0f} test questions ({marks}), so no share "
            "of it is reported."
        )
    return f"On the global test set {name} closes {_part((value - local) / (central - local))} of {between}: it reaches {score}{where}, while {marks}."


def _score_name(result: Json) -> str:
    if len(_tasks(result)) > 1:
        return "a mean accuracy over tasks of "
    main = main_score(result)
    return "" if main == "accuracy" else f"a {title(main)} of "


def _alone(result: Json) -> str:
    clients = at(result["scores"], alone_in(result["scores"]), "clients")
    if isinstance(clients, list) and len(clients) == 1:
        return "the client's own model reaches"
    return "clients' own models reach a mean of"


def _part(share: float) -> str:
    """Write a share so that it rounds neither to nothing nor to all."""
    if share <= 0:
        return "none"
    if share >= 1:
        return "all"
    return "less than 1%" if share < 0.01 else "more than 99%" if share > 0.99 else f"{percent(share, 0)}%"


def client_sentence(result: Json, method: str) -> str:
    """Return how single clients fare with a method, each on data like its own, beside their own models."""
    scores, name = result["scores"], label(method)
    local = alone_in(scores)
    if local is None:
        return "Whether any client does better than alone is unknown, because no client trained alone in this run."
    found = fares(scores[method], scores[local])
    if not found:
        return "The scores of single clients, on data like their own, were not recorded."
    own = "alone"
    unknown = f" ({found.unknown} more cannot be compared)" if found.unknown else ""
    if found.known + found.unknown == 1:
        how = "better" if found.better else "worse" if found.worse else "neither better nor worse"
        told = f"On data like its own, the only client fares {how} with {name} than with the model that it trained {own}"
    else:
        fare = "fares" if found.better == 1 else "fare"
        told = (
            f"On data like their own, {found.better} of {found.known} clients{unknown} {fare} better with {name} than with the "
            f"model that each trained {own}, {found.same} the same and {found.worse} worse"
        )
    return f"{told}{_worst(result, worst_client(scores[method], scores[local]), found.known)}."


def _worst(result: Json, worst: Json | None, clients: int) -> str:
    if worst is None:
        return ""
    gain, score, alone = worst["gain"], worst["score"], worst["alone"]
    figures = (
        f"a mean gain over its tasks of {signed(gain)}%"
        if score is None or alone is None
        else f"{_said(result, score)} instead of {_said(result, alone)}"
    )
    if clients == 1:
        return f": {figures}"
    if gain == 0:
        return "; no client loses"
    what = "loses most" if gain < 0 else "gains least"
    return f"; client {worst['client']} {what}: {figures}"


def _best_sentence(result: Json, value: float) -> list[str]:
    known = _federated_scores(result)
    most = max(known.values())
    best = [name for name in known if known[name] == most]
    if len(known) == 1:
        return []
    if most <= value:
        return ["No other federated method scores higher on the test part."]
    share = gap_share(result, best[0])
    score = f"{_said(result, most)}" + ("" if share is None else f" ({percent(share, 0)}% of the gap)")
    names = " and ".join(map(label, best))
    return [
        f"Of the {len(known)} federated methods {names} {'scores' if len(best) == 1 else 'score'} highest on the test "
        f"part, with {score}; a score that is selected for being the highest is likely an overestimate."
    ]


def _linear_sentence(result: Json, questions: float | None) -> list[str]:
    linear = number(result["scores"].get("linear"), main_score(result))
    if linear is None:
        return []
    best = max(_federated_scores(result).values())
    how = "below" if linear < best else "above" if linear > best else "level with"
    close = questions and linear != best and abs(best - linear) < margin(best, linear, questions)
    tail = ", though the difference is not significant" if close else ""
    told = f"The linear baseline reaches {_said(result, linear)}, {how} the federated method that scores highest on the test part"
    return [f"{told}{tail}."]


def _federated_scores(result: Json) -> dict[str, float]:
    main = main_score(result)
    found = {name: number(scores, main) for name, scores in result["scores"].items() if federated(name)}
    return {name: value for name, value in found.items() if value is not None}


def _said(result: Json, value: float) -> str:
    """Write a main score; CIDEr is not a share and has no percent sign."""
    return percent(value) + ("" if main_score(result) == "cider" else "%")
