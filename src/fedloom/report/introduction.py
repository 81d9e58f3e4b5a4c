"""A description of a run, in sentences for readers new to the project.

What clients hold and who took part is counted in the plan and in the record. The experiment's settings are used only for
what they alone decide, such as a rate or a number of epochs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

from fedloom.algorithms import ENTRIES
from fedloom.report.run_results import Json, Run, at, number
from fedloom.report.tables import base, counted, federated, label, part_label

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
"""Partition → how it divides examples. How much the clients then differ is measured."""

OURS = {
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
    "centralized": "Training on the pooled examples of all clients, which the clients are assumed not to allow: "
    "a baseline for what federation could reach.",
}

EMBEDDED = (
    "A linear classifier on edges, colors and sentence embeddings of the text (all-MiniLM-L6-v2), trained on the pooled "
    "data of all clients. The embeddings come from a pretrained network, which is not trained further."
)
"""What `linear` is with `evaluate.linear_text: minilm`."""


def glossary(
    methods: Sequence[str], parts: Json, text_only: bool = False, texts: str = "words"
) -> list[tuple[str, str]]:
    """Explain every baseline, algorithm and part that has an explanation, in the order of the methods.

    Args:
        methods: Their names.
        parts: What algorithms and parts do, by name, as the result of a run has it.
        text_only: Whether the model is a language model without images; the linear baseline then sees none either.
        texts: What the linear baseline knows of texts, `evaluate.linear_text`.
    """
    linear = EMBEDDED if texts == "minilm" else GLOSSARY["linear"]
    told = {**GLOSSARY, "linear": linear.replace("edges, colors and ", "") if text_only else linear}
    names = {method.split("+")[0]: label(method.split("+")[0]) for method in methods}
    names |= {part: f"+ {part_label(part)}" for method in methods for part in method.split("+")[1:]}
    order = dict.fromkeys(part for method in methods for part in method.split("+"))
    # Results of version 0.1 have no such texts; then they come from the pages of the algorithms.
    found = ((names[part], told.get(part) or parts.get(part) or _about(part)) for part in order)
    return [(name, about) for name, about in found if about]


def _about(part: str) -> str | None:
    return ENTRIES[part].about if part in ENTRIES else None


def explained(run: Run) -> list[tuple[str, str]]:
    """Explain the methods of a run and what is added to them."""
    texts = at(run.experiment, "evaluate", "linear_text") or "words"
    return glossary(list(run.scores), at(run.result, "parts") or {}, run.text_only, texts)


PURPOSE = (
    "A vision-language model reads images and text and answers in words. Federated fine-tuning adapts such a model to a task "
    "whose examples belong to several owners, called clients, who do not pool them: each client trains on its own "
    "examples and sends only the change in the model to a server, which combines the changes into one shared model."
)


NO_FEDERATION = "This run has no federated method, only baselines."


def purpose(methods: Sequence[str], text_only: bool = False) -> str:
    """Return what federated fine-tuning is, where a run has any."""
    return described(text_only) if any(map(federated, methods)) else NO_FEDERATION


def described(text_only: bool) -> str:
    """Return what federated fine-tuning is, of a model that sees images or of one that sees text only."""
    seen, read = "vision-language model reads images and text", "language model reads text"
    return PURPOSE.replace(seen, read) if text_only else PURPOSE


def introduction(run: Run) -> str:
    """Describe in one paragraph what was run."""
    experiment = run.experiment
    pieces = [
        f"The data set is {DATA.get(data := str(at(experiment, 'data', 'name')), data)}.",
        _division(run),
        _difference(run),
        evidence(run),
        "Data and modalities are drawn as in FedMLLM's published code, the same for every seed."
        if at(experiment, "scenario", "mode") == "published"
        else "",
        f"{_model(experiment)}.",
        _unseen(run),
        *training(run),
        f"The run has seed {at(experiment, 'seed')}.",
    ]
    return " ".join(piece for piece in pieces if piece)


# ---- who holds what ----------------------------------------------------------------------------------


def _division(run: Run) -> str:
    data, scenario = (run.of_kind("data") or [{}])[-1], at(run.experiment, "scenario")
    held, train, test = dealt(run.plan), number(data, "train"), number(data, "test")
    found = train if held is None else held
    examples = "The training examples" if found is None else counted(int(found), "training example")
    if held is not None and train is not None and held != train:
        examples = f"{held:,} of {train:,.0f} training examples"
    verb = "was" if examples.startswith("1 ") else "were"
    clients = run.client_count
    if clients == 1:
        told = f"{examples} {verb} given to one client"
    else:
        how = PARTITIONS.get(str(at(scenario, "partition")), "")
        told = (
            f"{examples} {verb} divided among {clients} clients{', ' if how else ''}{filled(how, scenario)}"
        )
    questions = "held-out questions" if test is None else counted(int(test), "held-out question")
    return f"{told}; scores are on {questions}."


def dealt(plan: Json) -> int | None:
    """Return how many examples the clients hold together; None where the plan does not say."""
    card = number(plan, "card", "examples")
    sizes = [number(client, "size") for client in plan["clients"]]
    known = [size for size in sizes if size is not None]
    if card is None and (len(known) < len(sizes) or len(sizes) < (number(plan, "count") or len(sizes))):
        return None
    return int(sum(known) if card is None else card)


def _difference(run: Run) -> str:
    """Return how far the clients' label distributions are from the pooled one, as measured."""
    labels = at(run.plan, "card", "labels")
    far, kinds = number(labels, "jensen_shannon"), number(labels, "count")
    if far is None or run.client_count < 2 or kinds is None or kinds < 2:
        return ""
    return (
        f"On average a client's label distribution is {far:.2f} from that of all clients together (Jensen-Shannon distance: 0 "
        "is identical, 1 is nothing in common)."
    )


def evidence(run: Run) -> str:
    """Describe which modalities clients see, as counted in the plan; "" where it has no counts."""
    kinds = _kinds(run.plan)
    if kinds is None or not (total := sum(kinds.values())):
        return ""
    both, image, text, none = (kinds[name] for name in ("both", "image_only", "text_only", "none"))
    words = at(run.plan, "card", "words") is not None or at(run.plan, "card") is None
    textual = "its text and no image" if words else "neither image nor text besides its question"
    whole = {
        both: "both an image and a text",
        image: "an image and no text",
        text: textual,
        none: "neither image nor text",
    }
    if total in whole:
        return f"Of every example the client sees {whole[total].replace('its text', 'a text')}."
    parts = {"image and text": both, "the image only": image, "no image": text, "nothing": none}
    told = ", ".join(f"{what} of {count:,}" for what, count in parts.items() if count)
    return f"Of the {total:,} examples clients see {told}{_by_client(run.plan)}."


def _kinds(plan: Json) -> dict[str, int] | None:
    """Return how many examples show both modalities, only one, or none."""
    names = ("both", "image_only", "text_only", "none")
    card = at(plan, "card", "modalities", "examples")
    whole = len(plan["clients"]) == (number(plan, "count") or len(plan["clients"]))
    rows = [card] if isinstance(card, Mapping) else plan["clients"] if whole else []
    found = {name: [number(row, name) for row in rows] for name in names}
    if not rows or any(value is None for values in found.values() for value in values):
        return None
    return {name: int(sum(value for value in values if value is not None)) for name, values in found.items()}


def _by_client(plan: Json) -> str:
    """Return how many clients see images in none of their examples, or in some no text."""
    counts = at(plan, "card", "modalities", "clients")
    if not isinstance(counts, Mapping):
        return ""
    said = {"IT": "both modalities", "I": "images only", "T": "texts only", "": "neither"}
    known = {what: int(count) for key, what in said.items() if (count := number(counts, key))}
    if len(known) < 2:
        return ""
    return "; " + ", ".join(
        f"{counted(count, 'client')} {'sees' if count == 1 else 'see'} {what}"
        for what, count in known.items()
    )


# ---- what was trained --------------------------------------------------------------------------------


def assembled(experiment: Json) -> bool:
    """Return whether the model was joined from an encoder and a language model."""
    return at(experiment, "model", "encoder") is not None and at(experiment, "model", "llm") is not None


def _model(experiment: Json) -> str:
    model = at(experiment, "model")
    path, form, weights = str(at(model, "path")), at(model, "connector"), at(model, "connector_weights")
    trained = f"a pretrained connector ({form or 'mlp2'}, {weights})"
    connector = f"a newly initialized connector ({form or 'mlp2'})" if weights is None else trained
    if assembled(experiment):
        return f"The model joins the encoder {at(model, 'encoder')} and the language model {at(model, 'llm')} with {connector}"
    told = OURS.get(path, f"The model is {path}")
    return f"{told}, with {connector}" if form else told


def _unseen(run: Run) -> str:
    """Return a sentence about a model that sees no images, with the number of images left out; "" for any other."""
    if not run.text_only:
        return ""
    told = "It is a language model without a vision encoder and sees text only"
    if not (count := run.unseen):
        return f"{told}."
    return f"{told}; the images of {counted(count, 'example')} were left out of training and test."


def training(run: Run) -> list[str]:
    """Describe what was trained, how often and by whom; empty for a run that trained nothing."""
    strategy, epochs = at(run.experiment, "strategy"), at(run.experiment, "train", "epochs")
    if all(base(method) in ("zero-shot", "linear") for method in run.scores):
        return ["No part of the model was trained."]
    part = TRAINED.get(str(at(strategy, "name")))
    passes = "one epoch" if epochs == 1 else f"{epochs} epochs"
    told = [f"Training changed only {filled(part, strategy)}."] if part else []
    planned = at(strategy, "stage_rounds") or [at(run.experiment, "train", "rounds")]
    last = sum(one for one in planned if isinstance(one, int)) or inf  # a final stage comes after it
    rounds = [
        entry
        for entry in run.rounds
        if federated(entry["method"]) and entry["method"] in run.scores and entry["round"] < last
    ]
    if not rounds:
        return told
    cohorts = [_size(entry) for entry in rounds]
    done = [sum(one["method"] == method for one in rounds) for method in {one["method"] for one in rounds}]
    taken = counted(done[0], "round") if len(set(done)) == 1 else f"{min(done)} to {max(done)} rounds"
    who = _who(cohorts, run.client_count)
    told.append(
        f"Federated training took {taken}; in each, {who} trained for {passes} on {_own(cohorts)} examples."
    )
    if at(run.experiment, "aggregate", "over") == "reporters":
        told.append(
            "The connector was averaged only over the clients that hold images, since no other can train it."
        )
    return told + _absent(run, rounds)


def _own(cohorts: Sequence[int]) -> str:
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


def _absent(run: Run, rounds: Sequence[Json]) -> list[str]:
    """Name the clients that no federated method's rounds drew, and those of which no update was used."""
    listed = [at(entry, "clients") for entry in rounds]
    missing = [at(entry, "missing") or [] for entry in rounds]
    if any(
        not isinstance(found, list) or len(found) + len(lost) < _size(entry)
        for found, lost, entry in zip(listed, missing, rounds, strict=True)
    ):
        return []  # the record of large cohorts lists their first clients only
    took = {_key(one, "client") for found in (*listed, *missing) for one in found}
    accepted = {
        _key(one, "client")
        for entry, found in zip(rounds, listed, strict=True)
        for one in found
        if _key(one, "client") not in {_key(other, "client") for other in at(entry, "refused") or []}
    }
    ids = [_key(client, "id") for client in run.clients]
    never, unused = ([one for one in ids if one not in took], [one for one in ids if one in took - accepted])
    told = []
    if never and len(run.clients) == run.client_count:
        told.append(f"{_clients(never)} never took part.")
    if unused:
        told.append(f"Every update of {_clients(unused).lower()} was refused or missing.")
    return told


def _key(value: Any, name: str) -> str:
    return str(at(value, name))


def _clients(ids: Sequence[str], most: int = 6) -> str:
    if len(ids) > most:
        return f"{len(ids):,} clients"
    return f"Client {ids[0]}" if len(ids) == 1 else f"Clients {', '.join(ids[:-1])} and {ids[-1]}"


def filled(text: str, values: Any) -> str:
    """Fill settings into a phrase."""
    return text.format(**{key: at(values, key) for key in ("alpha", "rate", "p", "rank")})
