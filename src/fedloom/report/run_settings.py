"""The settings of a run and what identifies it, as pairs of name and value for a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedloom.report import introduction
from fedloom.report.run_results import Json, Run, at, number
from fedloom.report.tables import MISSING, label, seconds

HARDWARE = (
    ("version", "fedloom"),
    ("python", "Python"),
    ("torch", "PyTorch"),
    ("transformers", "Transformers"),
    ("machine", "Machine"),
    ("threads", "Threads"),
    ("model", "Model digest"),
    ("trained", "Trained parameters"),
    ("started", "Started"),
)

TRAINED = {
    "lora": "LoRA, rank {rank}",
    "both": "LoRA, rank {rank}, and connector",
    "two-stage": "connector, then LoRA, rank {rank}",
    "share-connector": "connector (shared) and LoRA, rank {rank} (not shared)",
    "share-lora": "LoRA, rank {rank} (shared), and connector (not shared)",
}


def facts(run: Run) -> list[tuple[str, str]]:
    """Return the main settings of a run as (name, value)."""
    experiment = run.experiment
    scenario, model = at(experiment, "scenario") or {}, at(experiment, "model") or {}
    assembled = introduction.is_assembled(experiment)
    partition = str(at(scenario, "partition"))
    alpha = f", α = {at(scenario, 'alpha')}" if partition == "dirichlet" else ""
    extent = {"missing": "rate", "cross": "image_clients", "hybrid": "p"}.get(str(at(scenario, "pattern")))
    strategy = str(at(experiment, "strategy", "name"))
    setting = None if extent is None else at(scenario, extent)
    degree = "" if extent is None or setting is None else f", {extent.replace('_', ' ')} = {setting}"
    entries = [
        ("Data", at(experiment, "data", "name")),
        ("Clients", run.client_count),
        ("Partition", partition.replace("_", " ") + alpha),
        ("Pattern of modalities", f"{at(scenario, 'pattern')}{degree}"),
        ("Scenario mode", at(scenario, "mode") or "corrected"),
        ("Model", f"{model['encoder']} + {model['llm']}" if assembled else at(model, "path")),
        (
            "Trained",
            TRAINED.get(strategy, strategy).replace("{rank}", str(at(experiment, "strategy", "rank"))),
        ),
        ("Rounds", at(experiment, "train", "rounds")),
        ("Seed", at(experiment, "seed")),
    ]
    return [(name, MISSING if value is None else str(value)) for name, value in entries]


SCENARIO_MODES = {
    "corrected": "corrected: drawn with the experiment's seed; no example loses both modalities unless the experiment asks for it",
    "published": "published: drawn as in FedMLLM's code, the same for every seed",
}
SAMPLERS = {
    "corrected": "corrected: the clients of a round are drawn with the experiment's seed",
    "published": "published: the clients of a round are those of FedMLLM's code, the same for every seed",
}

OPTIMIZERS = {"adamw": "AdamW", "sgd": "SGD"}


def mode_text(experiment: Json) -> str:
    """Describe whether algorithms follow their papers or the published code."""
    if at(experiment, "mode") == "published":
        return "published: algorithms as in FedMLLM's code, with its faults and constants"
    corrected = "corrected: algorithms as in their papers, where the published code differs"
    arguments = at(experiment, "algorithms")
    names = (
        [name for name, values in arguments.items() if at(values, "published") is True] if arguments else []
    )
    return f"{corrected}; but as published: {', '.join(map(label, names))}" if names else corrected


def client_loop_text(experiment: Json) -> str:
    """Describe the settings of local training in which papers differ."""
    train = at(experiment, "train")
    optimizer = str(at(train, "optimizer") or "adamw")
    beta2 = "" if optimizer == "sgd" else f" with β₂ = {at(train, 'beta2') or 0.999}"
    inside = at(train, "local_schedule") or "constant"
    return (
        f"{OPTIMIZERS.get(optimizer, optimizer)}{beta2}; learning rate {at(train, 'schedule') or 'cosine'} over the "
        f"rounds, {inside} inside each; LoRA dropout {number(experiment, 'strategy', 'dropout') or 0:g}"
    )


def _named(names: Mapping[str, str], value: object) -> str:
    return names.get(str(value or "corrected"), str(value))


def provenance(run: Run) -> list[tuple[str, str]]:
    """Return what identifies a run as (name, value): digests, seed, mode, versions, machine and time."""
    starts: list[Json] = run.of_kind("start")
    first: Mapping[str, Any] = starts[0] if starts else {}
    end = (run.of_kind("end") or [{}])[-1]
    entries = [
        ("Experiment digest", run.result.get("digest")),
        ("Plan digest", run.plan.get("digest")),
        ("Seed", run.experiment.get("seed")),
        ("Scenario mode", _named(SCENARIO_MODES, at(run.experiment, "scenario", "mode"))),
        ("Sampler", _named(SAMPLERS, at(run.experiment, "train", "sampler"))),
        ("Mode", mode_text(run.experiment)),
        ("Client loop", client_loop_text(run.experiment)),
        *((name, first.get(key)) for key, name in HARDWARE),
        ("Resumed", f"{len(starts) - 1} times" if len(starts) > 1 else None),
        ("Wall-clock seconds", seconds(number(end, "seconds"))),
    ]
    return [(name, str(value)) for name, value in entries if value is not None]
