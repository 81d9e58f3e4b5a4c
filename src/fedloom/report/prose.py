"""What a run was and what it found, in sentences made from its numbers, for readers new to the project."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from fedloom.report.gain import comparison, main_score, task_scores
from fedloom.report.records import Json, Run, at, number
from fedloom.report.tables import MODIFIERS, base, federated, label, percent, title

DATA = {
    "emoji": "emoji, small images with words that describe them; the question is to which group one belongs",
    "digits": "digits, small scans of handwritten digits; the question is which digit is shown",
    "shapes": "shapes, drawn scenes of coloured shapes with questions about them",
    "folder": "a folder of the user's own examples",
}

PATTERNS = {
    "aligned": "every client sees both the image and the text of each of its examples",
    "missing": "each example loses its image, and likewise its text, with probability {rate}",
    "cross": "some clients see only images and the others only text",
    "hybrid": "each client holds each kind of evidence with probability {p}, so some see only one of them",
}

PARTITIONS = {
    "iid": "The examples were dealt out at random, so clients resemble each other.",
    "dirichlet": "Clients differ in what they hold: the mix of labels was drawn from a "
    "Dirichlet distribution with α = {alpha} (the smaller, the more uneven).",
    "by_group": "Clients differ in what they hold: examples were divided by group (topic, site or label).",
    "by_source": "Clients differ in what they hold: examples with an image went to clients that hold images, "
    "the others to clients that hold text.",
}

OURS = {
    "shipped": "The model is the small one that comes with fedloom.",
    "shipped-free": "The model is the small one without a vision encoder that comes with fedloom.",
}
TRAINED = {
    "lora": "small added matrices in the language model (LoRA, rank {rank})",
    "connector": "the connector, the small part that hands what the image encoder sees to the language model",
    "both": "small added matrices in the language model (LoRA, rank {rank}) and the connector, "
    "the small part that hands what the image encoder sees to the language model",
}

GLOSSARY = {
    "zero-shot": "The model as it comes, with no training on this data. What the others must beat.",
    "linear": "A linear classifier on edges, colours and word counts, trained on the clients' data pooled, "
    "without any neural network. It shows how hard the task is.",
    "local": "Each client trains alone on what it holds. Figures are means over the clients' own models; "
    "brackets show the best and the worst of them.",
    "centralised": "All examples pooled in one place, which the clients are assumed not to allow. "
    "An upper mark for what sharing can reach.",
    "fedavg": "Federated averaging: clients train, and the server averages their changes, "
    "weighted by number of examples.",
    "fedmean": "As FedAvg, with every client counting alike however many examples it holds.",
    "fedprox": "As FedAvg, with a pull that keeps each client near the shared model while it trains.",
    "fedavgm": "As FedAvg, with momentum at the server.",
    "fedadagrad": "As FedAvg, with Adagrad as the server's optimiser: step sizes adapt to each parameter.",
    "fedyogi": "As FedAvg, with Yogi as the server's optimiser: step sizes adapt, more slowly than Adam's.",
    "fedadam": "As FedAvg, with Adam as the server's optimiser: step sizes adapt to each parameter.",
    "scaffold": "As FedAvg, with control variates that correct each client's drift from the others.",
    "fednova": "As FedAvg, with changes normalised by how many steps each client took.",
    "yoco": "One-shot: adapters start from the model's own weights, clients keep the signs of one factor and "
    "keep the other sparse, and the server weighs clients by how far they agree.",
    "prompt": "The instruction uses the same words whatever evidence is there, instead of naming the image "
    "or the text (FedMLLM).",
    "adaptive": "While a client trains, the middle layers of its language model are held near the shared "
    "model (FedMLLM).",
}

Z = 1.959964


def glossary(methods: Sequence[str]) -> list[tuple[str, str]]:
    """Explain every method and modifier that has an explanation, in the order of the methods."""
    parts = dict.fromkeys(part for method in methods for part in method.split("+"))
    names = {part: f"+ {MODIFIERS[part]}" if part in MODIFIERS else label(part) for part in parts}
    return [(names[part], GLOSSARY[part]) for part in parts if part in GLOSSARY]


PURPOSE = (
    "A vision-language model reads an image and text and answers in words. This experiment asks how well one "
    "can be adapted to a task when the examples lie with several owners, called clients, who cannot pool "
    "them: each client trains on its own examples and sends only the change in the model to a server, which "
    "combines the changes into one shared model."
)


def introduction(run: Run) -> str:
    """Tell in one paragraph what was run."""
    experiment, data = run.experiment, (run.of_kind("data") or [{}])[-1]
    name, scenario = str(at(experiment, "data", "name")), at(experiment, "scenario") or {}
    strategy, train = at(experiment, "strategy") or {}, at(experiment, "train") or {}
    pattern = PATTERNS.get(str(at(scenario, "pattern")))
    part = TRAINED.get(str(at(strategy, "name")), "a part of the model")
    cohort, clients = at(train, "cohort"), run.client_count
    published = at(scenario, "mode") == "published"
    who = "every client" if cohort is None else f"{cohort} of the clients"
    pieces = [
        f"The data set is {DATA.get(name, name)}.",
        f"{_count(data, 'train', 'The')} training examples were divided among "
        f"{'one client' if clients == 1 else f'{clients} clients'}; scores come from "
        f"{_count(data, 'test', 'the')} held-out questions that no client trained on.",
        _fill(PARTITIONS.get(str(at(scenario, "partition")), ""), scenario),
        f"As to evidence, {_fill(pattern, scenario)}." if pattern else "",
        "All that is drawn as FedMLLM's published code draws it, alike for every seed." if published else "",
        f"{_model(run)} Training changed only {_fill(part, strategy)}.",
        f"In each of {at(train, 'rounds')} rounds, {who} trained {_times(at(train, 'epochs'))}.",
        f"All random draws follow from the seed {at(experiment, 'seed')}, so the run can be repeated.",
    ]
    return " ".join(piece for piece in pieces if piece)


def _count(data: Json, key: str, unknown: str) -> str:
    found = number(data, key)
    return unknown if found is None else f"{found:,.0f}"


def _model(run: Run) -> str:
    path = at(run.experiment, "model", "path")
    return OURS.get(str(path), f"The model is {path}.")


def _times(epochs: object) -> str:
    return "for one pass over its examples" if epochs == 1 else f"for {epochs} passes over its examples"


def _fill(text: str, values: Json) -> str:
    known = {key: at(values, key) for key in ("alpha", "rate", "p", "rank")}
    return text.format(**known)


# ---- what came out -----------------------------------------------------------------------------------


def headline_method(result: Json) -> str | None:
    """Return the federated method whose gain is told first: FedAvg, else the main one, else the first."""
    found = [method for method in result["scores"] if federated(method)]
    preferred = [method for method in ("fedavg", result.get("main")) if method in found]
    return (preferred + found)[0] if found else None


def gap(result: Json) -> tuple[float, float] | None:
    """Return the main scores of mean local and of centralised training; None where either is missing."""
    ends = [
        next(
            (
                value
                for method, scores in result["scores"].items()
                if base(method) == name and (value := number(scores, main_score(result))) is not None
            ),
            None,
        )
        for name in ("local", "centralised")
    ]
    return None if ends[0] is None or ends[1] is None else (ends[0], ends[1])


def gap_share(result: Json, method: str) -> float | None:
    """Return how much of the way from mean local to centralised training a method goes.

    (a − l) / (c − l) with a, l and c the main scores of the method, of local training (mean over clients)
    and of centralised training; None where one is missing or c ≤ l.
    """
    ends, value = gap(result), number(result["scores"].get(method), main_score(result))
    if ends is None or value is None or ends[1] <= ends[0]:
        return None
    return (value - ends[0]) / (ends[1] - ends[0])


def margin(first: float, second: float, questions: float) -> float:
    """Return the 95% margin of the difference of two accuracies, each measured on `questions` answers."""
    spread = first * (1 - first) + second * (1 - second)
    return Z * sqrt(max(spread, 0.0) / questions)


def finding(result: Json, questions: float | None = None) -> list[str]:
    """Say what the numbers show, sentence by sentence, and what they cannot show.

    Args:
        result: The content of result.json.
        questions: Number of test questions, if known; differences are then judged against chance.
    """
    method = headline_method(result)
    value = number(result["scores"].get(method), main_score(result)) if method else None
    if method is None or value is None:
        return ["No federated method was scored in this run, so there is no gain from federation to report."]
    main = main_score(result)
    if main != "accuracy":
        questions = None  # how far chance goes is known for shares of right answers only
    said = [_gap_sentence(result, method, value, questions)]
    said += _gain_sentences(result, method)
    said += _best_sentence(result, value)
    said += _linear_sentence(result, questions)
    if questions:
        width = margin(value, value, questions)
        said.append(
            f"With {questions:,.0f} test questions and one seed, two methods that differ by less than about "
            f"{100 * width:.1f} points may do so by chance alone."
        )
    return said


def _gap_sentence(result: Json, method: str, value: float, questions: float | None) -> str:
    name, ends, between = label(method), gap(result), "the gap between local and centralised training"
    main = main_score(result)
    score = "" if main == "accuracy" else f"a {title(main)} of "
    if len(task_scores(result)[method]) > 1:
        score = "a mean accuracy over tasks of "
    reached = f"{name} reaches {score}{_said(result, value)}"
    if ends is None:
        return f"{reached}. How much of {between} it closes cannot be computed: the run lacks one of the two."
    local, central = ends
    alone, together = _said(result, local), _said(result, central)
    marks = f"clients on their own reach {alone} on average and pooled data reaches {together}"
    if central <= local:
        return f"{reached}. Pooling the data brought no gain here ({marks}), so there is no gap to close."
    if questions and central - local < margin(local, central, questions):
        return (
            f"{reached}. {between.capitalize()} is within chance ({marks}; {questions:,.0f} test questions), "
            "so no share of it is given."
        )
    share = (value - local) / (central - local)
    part = "none" if share <= 0 else "all" if share >= 1 else f"{percent(share, 0)}%"
    return f"{name} closes {part} of {between}: it reaches {score}{_said(result, value)}, while {marks}."


def _best_sentence(result: Json, value: float) -> list[str]:
    known = _federated_scores(result)
    best = max(known, key=lambda name: known[name])
    if len(known) == 1:
        return []
    if known[best] <= value:
        return ["No other federated method does better."]
    share = gap_share(result, best)
    score = f"{_said(result, known[best])}" + ("" if share is None else f" ({percent(share, 0)}% of the gap)")
    return [
        f"The best of the {len(known)} federated methods is {label(best)} with {score}; "
        "picked by looking at these very scores, it is flattered by them."
    ]


def _linear_sentence(result: Json, questions: float | None) -> list[str]:
    linear = number(result["scores"].get("linear"), main_score(result))
    if linear is None:
        return []
    best = max(_federated_scores(result).values())
    how = "below" if linear < best else "above" if linear > best else "level with"
    close = questions and linear != best and abs(best - linear) < margin(best, linear, questions)
    tail = ", though the difference is within chance" if close else ""
    return [f"The linear reference reaches {_said(result, linear)}, {how} the best federated method{tail}."]


def _federated_scores(result: Json) -> dict[str, float]:
    main = main_score(result)
    found = {name: number(scores, main) for name, scores in result["scores"].items() if federated(name)}
    return {name: value for name, value in found.items() if value is not None}


def _said(result: Json, value: float) -> str:
    """Write a main score; CIDEr is no share and has no percent sign."""
    return percent(value) + ("" if main_score(result) == "cider" else "%")


def _gain_sentences(result: Json, method: str) -> list[str]:
    gains = comparison(result["scores"])["gain"].get(method, [])
    known = [gain for gain in gains if gain is not None]
    if not known:
        return []
    helped, hurt = sum(gain > 0 for gain in known), sum(gain < 0 for gain in known)
    return [
        f"Compared with its own model trained alone, the model of {label(method)} serves {helped} of "
        f"{len(known)} clients better and {hurt} worse, each on data like its own."
    ]
