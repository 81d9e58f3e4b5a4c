"""Run folders with the structure of real ones and made-up content."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

METHODS = ("zero-shot", "linear", "local", "fedavg", "fedadam", "fedavg+prompt+adaptive", "centralized")
LEVELS = {"zero-shot": 0.18, "linear": 0.74, "local": 0.56, "centralized": 0.86}
LABELS = ("smileys", "people", "animals", "food", "travel", "objects", "symbols", "flags")
TEST = 268
REJECTED = [f"images/{place}.png, line {place}: cut short after {20 * place} bytes" for place in range(1, 6)]


def experiment_of(seed: int, clients: int, rounds: int, methods: Sequence[str]) -> dict[str, Any]:
    return {
        "name": "emoji-hybrid",
        "seed": seed,
        "data": {"name": "emoji", "root": None, "test_share": 0.25, "limit": None, "max_rejected": 0.01},
        "scenario": {
            "clients": clients,
            "partition": "dirichlet",
            "alpha": 0.5,
            "pattern": "hybrid",
            "rate": 0.3,
            "image_clients": None,
            "p": 0.7,
        },
        "model": {"path": "bundled", "network": False, "threads": 1},
        "strategy": {"name": "both", "rank": 8, "alpha": 16.0, "targets": ["q_proj", "v_proj"]},
        "train": {"rounds": rounds, "cohort": None, "epochs": 1, "batch_size": 8, "lr": 1e-3},
        "methods": list(methods),
        "main": None,
        "algorithms": {"fedadam": {"lr": 0.01}},
    }


def plan_of(draw: random.Random, names: Sequence[Any], labels: Sequence[str]) -> dict[str, Any]:
    clients = []
    for name in names:
        counts = {label: int(draw.paretovariate(1.1) * 7) % 60 for label in labels}
        size = sum(counts.values()) or 1
        both = 0 if draw.random() < 0.4 else size
        image = (size if draw.random() < 0.5 else 0) if both == 0 else 0
        parts = {"both": both, "image_only": image, "text_only": size - both - image, "none": 0}
        clients.append(
            {"id": name, "indices": [], "image": [], "text": [], "size": size, "labels": counts} | parts
        )
    return {"digest": f"{draw.getrandbits(256):064x}", "scenario": {}, "clients": clients}


class Writer:
    """Collects the lines of a record and the scores of a result for one made-up run."""

    def __init__(self, draw: random.Random, names: Sequence[Any], rounds: int) -> None:
        self.draw, self.names, self.rounds = draw, names, rounds
        self.lines: list[dict[str, Any]] = []

    def level(self, top: float, done: int, speed: float = 2.5) -> float:
        grown = 1 - 2.718 ** (-speed * done / max(self.rounds, 1))
        return min(max(0.18 + (top - 0.18) * grown + self.draw.gauss(0, 0.012), 0.0), 1.0)

    def scores(self, accuracy: float) -> dict[str, Any]:
        auc = min(0.5 + accuracy / 2, 1.0)
        return {"accuracy": accuracy, "macro_f1": accuracy * 0.94, "auc": auc, "unparsed": 0.0}

    def evaluate(
        self, method: str, client: Any, done: int, accuracy: float, name: str = "both"
    ) -> dict[str, Any]:
        scores = self.scores(accuracy)
        place = {"method": method, "client": client, "round": done, "slice": name, "examples": TEST}
        self.lines.append({"kind": "evaluation", **place, "seconds": 0.5, "scores": scores})
        return scores

    def train(self, method: str, client: Any, done: int, refused: Sequence[Any] = ()) -> None:
        def loss() -> float:
            return 0.3 + 1.6 * 2.718 ** (-0.5 * done) + abs(self.draw.gauss(0, 0.12))

        reports = [
            {"client": name, "weight": 100, "loss": loss(), "steps": 13, "norm": 1.4 * loss(), "seconds": 0.4}
            for name in self.names
        ]
        reasons = [{"client": name, "reason": "norm 81.2 is 41.3 times the median"} for name in refused]
        federated = method not in LEVELS
        sent = 412_345 * len(reports) if federated else 0
        self.lines.append(
            {"kind": "round", "method": method, "client": client, "round": done, "loss": loss(), "lr": 1e-3}
            | {"timers": {"forward": 1.0, "backward": 1.5, "step": 0.25, "load": 0.25, "vision": 0.2}}
            | {"bytes_up": sent, "bytes_down": sent, "seconds": 3.2, "diagnostics": {"delta_norm": 1.0}}
            | {"clients": reports if federated else [], "refused": reasons if federated else []}
        )

    def method(self, method: str) -> dict[str, Any]:
        top = LEVELS.get(method, 0.70 + 0.04 * (len(method) % 4))
        runs = list(self.names) if method == "local" else [None]
        if method not in ("zero-shot", "linear"):
            for client in runs:
                for done in range(self.rounds):
                    refused = [self.names[-1]] if method == "fedadam" and done == 1 else []
                    self.train(method, client, done, refused)
                    if method not in LEVELS:
                        self.evaluate(method, client, done + 1, self.level(top, done + 1))
        ends = [
            self.evaluate(method, client, self.rounds, self.level(top, self.rounds, 6)) for client in runs
        ]
        accuracy = sum(end["accuracy"] for end in ends) / len(ends)
        slices = {"both": self.scores(accuracy)}
        for name, share in (("image", 0.78), ("text", 0.88)):
            slices[name] = self.evaluate(method, None, self.rounds, accuracy * share, name)
        per_client = [min(max(accuracy + self.draw.gauss(0, 0.05), 0.0), 1.0) for _ in self.names]
        scores_of_method = {**self.scores(accuracy), "slices": slices, "clients": per_client}
        if method == "local":
            scores_of_method |= {
                "best": max(end["accuracy"] for end in ends),
                "worst": min(end["accuracy"] for end in ends),
            }
        if method == "linear":
            scores_of_method["auc"] = None
        return scores_of_method

    def validate(self, draw: random.Random, methods: Sequence[str], chosen: str) -> dict[str, Any]:
        """Validate each round of those methods that have any, and return what the result holds."""
        by_method: dict[str, Any] = {}
        for method in methods:
            rounds = range(1, self.rounds + 1) if method not in ("zero-shot", "linear") else [0]
            own: dict[Any, list[tuple[float, int]]] = {}
            for client in self.names if method == "local" else [None]:
                own[client] = [(0.2 + 0.6 * draw.random(), done) for done in rounds]
                self.lines += [
                    {"kind": "validation", "method": method, "client": client, "round": done}
                    | {"score": score, "metric": "accuracy", "examples": 20, "seconds": 0.1}
                    for score, done in own[client]
                ]
            ends = [max(scores) if chosen == "best" else scores[-1] for scores in own.values()]
            score = sum(value for value, _ in ends) / len(ends) if ends else None
            by_method[method] = {"score": score, "metric": "accuracy", "rounds": [done for _, done in ends]}
        return {"from": 0.1, "examples": 20, "without": 0, "round": chosen, "methods": by_method}


def make_run(
    folder: Path,
    *,
    seed: int = 0,
    names: Sequence[Any] = (0, 1, 2, 3, 4),
    rounds: int = 6,
    methods: Sequence[str] = METHODS,
    labels: Sequence[str] = LABELS,
    rejected: Sequence[str] = tuple(REJECTED),
    experiment: dict[str, Any] | None = None,
    validation: str | None = None,
) -> Path:
    """Write a run folder; equal arguments write equal files. With a validation set its round is "last" or "best"."""
    draw = random.Random(seed)
    writer = Writer(draw, names, rounds)
    plan = plan_of(draw, names, labels)
    start = {"digest": "ab" * 32, "version": "0.1.0", "seed": seed, "python": "3.11.9", "torch": "2.10.0"}
    start |= {
        "transformers": "5.3.0",
        "threads": 1,
        "machine": "x86_64, 2 cores",
        "started": "2026-11-20T10:00:00",
    }
    writer.lines.append({"kind": "start", **start})
    writer.lines.append(
        {"kind": "data", "name": "emoji", "train": 804, "test": TEST, "rejected": list(rejected)}
    )
    scores = {method: writer.method(method) for method in methods}
    writer.lines.append({"kind": "end", "seconds": 214.2})
    sent = {method: 0 if method in LEVELS else 412_345 * len(names) * rounds for method in methods}
    result = {
        "name": "emoji-hybrid",
        "digest": "ab" * 32,
        "main": next((method for method in methods if method not in LEVELS), None),
        "scores": scores,
        "bytes": {method: {"up": count, "down": count} for method, count in sent.items()},
        "seconds": {method: 20 + draw.random() * 40 for method in methods},
        "adapter": "adapter",
        "report": "report.html",
    }
    if validation is not None:
        result["validation"] = writer.validate(random.Random(seed), methods, validation)
    (folder / "adapter").mkdir(parents=True, exist_ok=True)
    (folder / "adapter/adapter_model.safetensors").touch()
    settings = experiment_of(seed, len(names), rounds, methods) | (experiment or {})
    for file, value in (("experiment.json", settings), ("plan.json", plan), ("result.json", result)):
        (folder / file).write_text(json.dumps(value, sort_keys=True), encoding="utf-8")
    lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in writer.lines)
    (folder / "record.jsonl").write_text(lines, encoding="utf-8")
    return folder


@pytest.fixture
def run_folder(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a run folder under the test's own folder."""

    def make(name: str = "run", **arguments: Any) -> Path:
        return make_run(tmp_path / name, **arguments)

    return make


@pytest.fixture(scope="session")
def scratch_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return the same for tests that make many runs: each call gets a new folder."""

    def make(**arguments: Any) -> Path:
        return make_run(tmp_path_factory.mktemp("scratch") / "run", **arguments)

    return make
