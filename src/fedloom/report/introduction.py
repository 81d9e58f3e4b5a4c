"""The introduction of a report: sentences about a run for readers new to the project.

The clients' data and their participation are counted in the plan and in the record. The experiment's settings are used
only for values that neither of them has, such as the number of epochs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

from fedloom.algorithms import ENTRIES
from fedloom.report.run_results import Json, Run, at, number
from fedloom.report.site_scores_table import is_tested_at_sites
from fedloom.report.tables import base, counted, is_federated, label, part_label

DATA = {
    "emoji": "emoji, small images with keywords; the question is which group an emoji belongs to",
    "digits": "digits, small scans of handwritten digits; the question is which digit an image shows",
    "shapes": "shapes, drawn scenes of colored shapes with questions about them",
    "folder": "a folder of the user's own examples",
}

PARTITIONS = {
    "iid": "at random",
    "dirichlet": "by label, with shares drawn from a Dirichlet distribution with α = {alpha}",
    "by_group": "by group (such as topic, site or vendor)",
    "by_source": "by source: those with an image to clients that hold images, the others to clients that hold text",
}
"""Partition → how it divides examples. How much the clients differ as a result is measured."""

BUNDLED_MODELS = {
    "bundled": "The model is the small one bundled with fedloom",
    "bundled-free": "The model is the small one without a vision encoder that is bundled with fedloom",
}
LORA = "low-rank adapters in the language model (LoRA, rank {rank})"
CONNECTOR = "the connector, which maps image features to the input of the language model"
TRAINED = {
    "lora": LORA,
    "connector": CONNECTOR,
    "both": f"{LORA} and {CONNECTOR}",
    "two-stage": f"{CONNECTOR}, and then {LORA}",
    "share-connector": f"{CONNECTOR}, which is shared, and {LORA}, which each client keeps to itself",
    "share-lora": f"{LORA}, which are shared, and {CONNECTOR}, which each client keeps to itself",
}

GLOSSARY = {
    "zero-shot": "The pretrained model without training on this data: the score that the other methods must beat.",
    "linear": "A linear classifier on edges, colors and word counts, trained on the pooled data of all clients. It needs no "
    "neural network and shows how hard the task is.",
    "local": "Each client trains alone on its own data. Scores on the global test set are means over the "
    "clients' own models; figures in brackets are the best and the worst of them.",
    "centralized": "Training on all clients' data pooled together. Real clients would not allow this; it shows what federation could "
    "reach.",
}

LOCAL_AT_SITES = (
    "Each client trains alone on its own data, at its site, and its model never leaves. Scores are means over the sites, each "
    "with its own model on its own test part; figures in brackets are the best and the worst of them."
)
"""The meaning of `local` where sites test models."""

EMBEDDED = (
    "A linear classifier on edges, colors and sentence embeddings of the text (all-MiniLM-L6-v2), trained on the pooled "
    "data of all clients. The embeddings come from a pretrained network, which is not trained further."
)
"""The meaning of `linear` with `evaluate.linear_text: minilm`."""


def glossary(
    methods: Sequence[str], parts: Json, text_only: bool = False, texts: str = "words"
) -> list[tuple[str, str]]:
    """Explain each baseline, algorithm and part of the methods, in their order, as (name, meaning).

    Args:
        methods: Names of methods.
        parts: Name of an algorithm or part → what it does, from the result of a run.
        text_only: Whether the model is a language model without images; the linear baseline then sees no images either.
        texts: The text features of the linear baseline, `evaluate.linear_text`.
    """
    linear = EMBEDDED if texts == "minilm" else GLOSSARY["linear"]
    meanings = {**GLOSSARY, "linear": linear.replace("edges, colors and ", "") if text_only else linear}
    names = {method.split("+")[0]: label(method.split("+")[0]) for method in methods}
    names |= {part: f"+ {part_label(part)}" for method in methods for part in method.split("+")[1:]}
    order = dict.fromkeys(part for method in methods for part in method.split("+"))
    # Results of version 0.1 have no such texts; then they come from the pages of the algorithms.
    entries = ((names[part], meanings.get(part) or parts.get(part) or _about(part)) for part in order)
    return [(name, about) for name, about in entries if about]


def _about(part: str) -> str | None:
    return ENTRIES[part].about if part in ENTRIES else None


def run_glossary(run: Run) -> list[tuple[str, str]]:
    """Explain the methods of a run and their parts as (name, meaning)."""
    texts = at(run.experiment, "evaluate", "linear_text") or "words"
    entries = glossary(list(run.scores), at(run.result, "parts") or {}, run.text_only, texts)
    if not is_tested_at_sites(run.result):
        return entries
    return [(name, LOCAL_AT_SITES if text == GLOSSARY["local"] else text) for name, text in entries]


PURPOSE = (
    "A vision-language model reads images and text and answers in words. Federated fine-tuning adapts such a model to a task "
    "whose examples belong to several owners, called clients, who do not pool them: each client trains on its own "
    "examples and sends only the change in the model to a server, which combines the changes into one shared model."
)


NO_FEDERATION = "This run has no federated method, only baselines."


def purpose(methods: Sequence[str], text_only: bool = False) -> str:
    """Explain federated fine-tuning if a method is federated, else state that none is."""
    return definition(text_only) if any(map(is_federated, methods)) else NO_FEDERATION


def definition(text_only: bool) -> str:
    """Explain federated fine-tuning, for a model that sees images or, with `text_only`, for a language model."""
    seen, read = "vision-language model reads images and text", "language model reads text"
    return PURPOSE.replace(seen, read) if text_only else PURPOSE


def introduction(run: Run) -> str:
    """Describe a run in one paragraph: data, clients, model, training and seed."""
    experiment = run.experiment
    pieces = [
        f"The data set is {DATA.get(data := str(at(experiment, 'data', 'name')), data)}.",
        _division_sentence(run),
        _difference_sentence(run),
        modalities_seen(run),
        "Data and modalities are drawn as in FedMLLM's published code, the same for every seed."
        if at(experiment, "scenario", "mode") == "published"
        else "",
        f"{_model_sentence(experiment)}.",
        _unseen_images(run),
        *training_sentences(run),
        f"The run has seed {at(experiment, 'seed')}.",
    ]
    return " ".join(piece for piece in pieces if piece)


# ---- who holds what ----------------------------------------------------------------------------------


def _division_sentence(run: Run) -> str:
    data, scenario = (run.of_kind("data") or [{}])[-1], at(run.experiment, "scenario")
    held, train, test = examples_held(run.plan), number(data, "train"), number(data, "test")
    count = train if held is None else held
    examples = "The training examples" if count is None else counted(int(count), "training example")
    if held is not None and train is not None and held != train:
        examples = f"{held:,} of {train:,.0f} training examples"
    verb = "was" if examples.startswith("1 ") else "were"
    clients = run.client_count
    if clients == 1:
        sentence = f"{examples} {verb} given to one client"
    else:
        how = PARTITIONS.get(str(at(scenario, "partition")), "")
        sentence = f"{examples} {verb} divided among {clients} clients{', ' if how else ''}{fill_settings(how, scenario)}"
    questions = "held-out questions" if test is None else counted(int(test), "held-out question")
    return f"{sentence}; scores are on {questions}."


def examples_held(plan: Json) -> int | None:
    """Return the number of examples of all clients; None if the plan does not have it."""
    card = number(plan, "card", "examples")
    sizes = [number(client, "size") for client in plan["clients"]]
    known = [size for size in sizes if size is not None]
    if card is None and (len(known) < len(sizes) or len(sizes) < (number(plan, "count") or len(sizes))):
        return None
    return int(sum(known) if card is None else card)


def _difference_sentence(run: Run) -> str:
    """Describe the measured distance of the clients' label distributions from the pooled one."""
    labels = at(run.plan, "card", "labels")
    far, kinds = number(labels, "jensen_shannon"), number(labels, "count")
    if far is None or run.client_count < 2 or kinds is None or kinds < 2:
        return ""
    return (
        f"On average a client's label distribution is {far:.2f} from that of all clients together (Jensen-Shannon distance: 0 "
        "is identical, 1 is nothing in common)."
    )


def modalities_seen(run: Run) -> str:
    """Describe the modalities that clients see, as counted in the plan; "" if it has no counts."""
    kinds = _kinds(run.plan)
    if kinds is None or not (total := sum(kinds.values())):
        return ""
    both, image, text, none = (kinds[name] for name in ("both", "image_only", "text_only", "none"))
    card = at(run.plan, "card")
    at_sites = card is not None and at(card, "labels") is None  # where only the sites know the words
    words = card is None or at_sites or at(card, "words") is not None
    textual = "a text and no image" if words else "neither an image nor a text, but only the question,"
    phrases = {
        both: "both an image and a text",
        image: "an image and no text",
        text: textual,
        none: "neither image nor text",
    }
    if total in phrases:
        return f"Clients see {phrases[total]} in every example."
    parts = {"image and text": both, "the image only": image, "no image": text, "neither": none}
    listing = ", ".join(f"{what} in {count:,}" for what, count in parts.items() if count)
    return f"Of the {total:,} examples, clients see {listing}{_by_client(run.plan)}."


def _kinds(plan: Json) -> dict[str, int] | None:
    """Return the numbers of examples that show both modalities, only one, or none."""
    names = ("both", "image_only", "text_only", "none")
    card = at(plan, "card", "modalities", "examples")
    complete = len(plan["clients"]) == (number(plan, "count") or len(plan["clients"]))
    rows = [card] if isinstance(card, Mapping) else plan["clients"] if complete else []
    counts = {name: [number(row, name) for row in rows] for name in names}
    if not rows or any(value is None for values in counts.values() for value in values):
        return None
    return {name: int(sum(value for value in values if value is not None)) for name, values in counts.items()}


def _by_client(plan: Json) -> str:
    """Describe how many clients see which modalities; "" if all see the same."""
    counts = at(plan, "card", "modalities", "clients")
    if not isinstance(counts, Mapping):
        return ""
    names = {"IT": "both modalities", "I": "images only", "T": "texts only", "": "neither"}
    known = {what: int(count) for key, what in names.items() if (count := number(counts, key))}
    if len(known) < 2:
        return ""
    return "; " + ", ".join(
        f"{counted(count, 'client')} {'sees' if count == 1 else 'see'} {what}"
        for what, count in known.items()
    )


# ---- what was trained --------------------------------------------------------------------------------


def is_assembled(experiment: Json) -> bool:
    """Return whether the model is assembled from an encoder and a language model."""
    return at(experiment, "model", "encoder") is not None and at(experiment, "model", "llm") is not None


def _model_sentence(experiment: Json) -> str:
    model = at(experiment, "model")
    path, form, weights = str(at(model, "path")), at(model, "connector"), at(model, "connector_weights")
    trained = f"a pretrained connector ({form or 'mlp2'}, {weights})"
    connector = f"a newly initialized connector ({form or 'mlp2'})" if weights is None else trained
    if is_assembled(experiment):
        return f"The model joins the encoder {at(model, 'encoder')} and the language model {at(model, 'llm')} with {connector}"
    text = BUNDLED_MODELS.get(path, f"The model is {path}")
    return f"{text}, with {connector}" if form else text


def _unseen_images(run: Run) -> str:
    """Describe a model that sees no images, with the number of images left out; "" for any other model."""
    if not run.text_only:
        return ""
    sentence = "It is a language model without a vision encoder and sees text only"
    if not (count := run.unseen_images):
        return f"{sentence}."
    return f"{sentence}; the images of {counted(count, 'example')} were left out of training and test."


def training_sentences(run: Run) -> list[str]:
    """Describe the trained part of the model, the rounds, and the clients that took part."""
    strategy, epochs = at(run.experiment, "strategy"), at(run.experiment, "train", "epochs")
    if all(base(method) in ("zero-shot", "linear") for method in run.scores):
        return ["No part of the model was trained."]
    part = TRAINED.get(str(at(strategy, "name")))
    passes = "one epoch" if epochs == 1 else f"{epochs} epochs"
    sentences = [f"Training changed only {fill_settings(part, strategy)}."] if part else []
    planned = at(strategy, "stage_rounds") or [at(run.experiment, "train", "rounds")]
    last = sum(count for count in planned if isinstance(count, int)) or inf  # a final stage comes after it
    rounds = [
        entry
        for entry in run.rounds
        if is_federated(entry["method"]) and entry["method"] in run.scores and entry["round"] < last
    ]
    if not rounds:
        return sentences
    cohorts = [_size(entry) for entry in rounds]
    done = [
        sum(entry["method"] == method for entry in rounds) for method in {entry["method"] for entry in rounds}
    ]
    duration = counted(done[0], "round") if len(set(done)) == 1 else f"{min(done)} to {max(done)} rounds"
    who = _who(cohorts, run.client_count)
    during = "1 round, in which" if duration == "1 round" else f"{duration}; in each,"
    sentences.append(
        f"Federated training took {during} {who} trained for {passes} on {_possessive(cohorts)} examples."
    )
    if at(run.experiment, "aggregate", "over") == "reporters":
        sentences.append(
            "The connector was averaged only over the clients that hold images, since no other can train it."
        )
    return sentences + _absent_clients(run, rounds)


def _possessive(cohorts: Sequence[int]) -> str:
    return "its" if max(cohorts) == 1 else "their"


def _size(entry: Json) -> int:
    listed = at(entry, "clients")
    return int(number(entry, "cohort") or (len(listed) if isinstance(listed, list) else 0))


def _who(cohorts: Sequence[int], clients: int) -> str:
    least, most = min(cohorts), max(cohorts)
    if least == most == clients:
        return {1: "the only client", 2: "both clients"}.get(clients, f"all {clients:,} clients")
    size = f"{most:,}" if least == most else f"{least:,} to {most:,}"
    return f"{size} of the {counted(clients, 'client')}"


def _absent_clients(run: Run, rounds: Sequence[Json]) -> list[str]:
    """Describe the clients that were never drawn for a round, and those whose updates were never used."""
    listed = [at(entry, "clients") for entry in rounds]
    missing = [at(entry, "missing") or [] for entry in rounds]
    if any(
        not isinstance(reports, list) or len(reports) + len(absent) < _size(entry)
        for reports, absent, entry in zip(listed, missing, rounds, strict=True)
    ):
        return []  # the record of large cohorts lists their first clients only
    participants = {_key(report, "client") for reports in (*listed, *missing) for report in reports}
    accepted = {
        _key(report, "client")
        for entry, reports in zip(rounds, listed, strict=True)
        for report in reports
        if _key(report, "client") not in {_key(other, "client") for other in at(entry, "refused") or []}
    }
    ids = [_key(client, "id") for client in run.clients]
    never, unused = (
        [client for client in ids if client not in participants],
        [client for client in ids if client in participants - accepted],
    )
    sentences = []
    if never and len(run.clients) == run.client_count:
        sentences.append(f"{_clients(never)} never took part.")
    if unused:
        sentences.append(f"Every update of {_clients(unused).lower()} was refused or missing.")
    return sentences


def _key(value: Any, name: str) -> str:
    return str(at(value, name))


def _clients(ids: Sequence[str], most: int = 6) -> str:
    if len(ids) > most:
        return f"{len(ids):,} clients"
    return f"Client {ids[0]}" if len(ids) == 1 else f"Clients {', '.join(ids[:-1])} and {ids[-1]}"


def fill_settings(text: str, values: Any) -> str:
    """Insert settings into the placeholders of a phrase."""
    return text.format(**{key: at(values, key) for key in ("alpha", "rate", "p", "rank")})
