"""Read the four files of a run folder into one frozen value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fedloom.config.old_spellings import current_document, current_name
from fedloom.run_log import read_lines
from fedloom.system.errors import UserError
from fedloom.system.json_files import KINDS, read_json, require_key
from fedloom.system.manifest import MANIFEST, check_listed

Json = Mapping[str, Any]

FILES = ("experiment.json", "plan.json", "record.jsonl", "result.json")

REQUIRED: dict[str, dict[str, type]] = {
    "round": {"method": str, "round": int},
    "evaluation": {"method": str, "round": int, "slice": str, "scores": dict},
}
"""Kind of a line in the record → keys that a report requires, with their types; other kinds require none."""

FIGURES = {"*": Any}
CARD = {
    "labels": {
        "count": float,
        "total_variation": float,
        "jensen_shannon": float,
        "effective_per_client": float,
        "effective": float,
    },
    "modalities": {"clients": {"*": int}, "examples": {"*": int}},
    "sizes": {
        "smallest": int,
        "largest": int,
        "median": float,
        "largest_share": float,
        "effective_clients": float,
    },
    "words": {"mean": float, "least": float, "most": float},
}
SHAPES: dict[str, Any] = {
    "experiment.json": {
        "methods": [str],
        **dict.fromkeys(("data", "scenario", "model", "strategy", "train"), FIGURES),
        "algorithms": {"*": FIGURES},
    },
    "plan.json": {"count": int, "card": CARD, "clients": [{"labels": FIGURES}]},
    "result.json": {
        "main": str,
        "scores": {
            "*": {
                "clients": [float],
                "client_tasks": [FIGURES],
                "slices": {"*": FIGURES},
                "tasks": {"*": FIGURES},
            }
        },
        "independent_questions": {"test": FIGURES, "own": FIGURES, "clients": [FIGURES]},
        "agreement": {"*": {"own": FIGURES, "clients": [FIGURES]}},
        "bytes": {"*": FIGURES},
        "seconds": FIGURES,
        "privacy": {"*": [{"clients": [FIGURES]}]},
        "parts": {"*": str},
    },
    "round": {"clients": [FIGURES], "refused": [FIGURES], "missing": [FIGURES], "timers": {"*": float}},
    "data": {"rejected": [str], "unseen": int},
}
"""Document, or kind of line in the record → types of its values; every value may be missing or null.

A mapping has a type for each key ("*" is every key), a list one type for all its entries.
"""


@dataclass(frozen=True)
class Run:
    """The files of a finished run.

    Attributes:
        folder: The run folder.
        experiment: All settings of the run, with defaults filled in.
        plan: The examples that each client holds, and the modalities of them that it sees.
        record: The lines of record.jsonl, in order.
        result: Final scores and costs; `scores` is in the order of the experiment's methods.
    """

    folder: Path
    experiment: Json
    plan: Json
    record: tuple[Json, ...]
    result: Json

    def of_kind(self, kind: str) -> list[Json]:
        """Return the lines of one kind, in order."""
        return [line for line in self.record if line["kind"] == kind]

    @cached_property
    def rounds(self) -> list[Json]:
        """The round lines; of a round that was repeated after a crash, only the last line."""
        return _latest(self.of_kind("round"), ("method", "client", "round"))

    @cached_property
    def evaluations(self) -> list[Json]:
        """The evaluation lines; of an evaluation that was repeated, only the last line."""
        return _latest(self.of_kind("evaluation"), ("method", "client", "round", "slice"))

    @property
    def fullest_slice(self) -> str:
        """The slice with all modalities of the data set: "both", unless it has only one modality."""
        seen = {entry["slice"] for entry in self.evaluations}
        return next((name for name in ("both", "image", "text") if name in seen), "both")

    def questions(self, name: str) -> float | None:
        """Return the number of test questions of a slice; None if it is unknown."""
        counts = [number(entry, "examples") for entry in self.evaluations if entry["slice"] == name]
        return next((count for count in counts if count), None)

    @property
    def text_only(self) -> bool:
        """Whether the model is a language model that sees no images."""
        return any(at(entry, "images") is False for entry in self.of_kind("start"))

    @property
    def unseen_images(self) -> int:
        """Number of examples whose image the model does not see."""
        return int(number((self.of_kind("data") or [{}])[-1], "unseen") or 0)

    @property
    def clients(self) -> list[Json]:
        """The clients of the plan; of a very large federation, only the first ones."""
        return list(self.plan["clients"])

    @property
    def client_count(self) -> int:
        """Number of clients in the plan."""
        return int(number(self.plan, "count") or len(self.clients))

    @property
    def scores(self) -> dict[str, Json]:
        """Method → its scores, in the order of the experiment's methods."""
        return dict(self.result["scores"])


def _latest(lines: list[Json], keys: tuple[str, ...]) -> list[Json]:
    return list({tuple(str(line.get(key)) for key in keys): line for line in lines}.values())


def at(value: Any, *keys: Any) -> Any:
    """Return the value under nested keys and indices; None if one of them is missing.

    Example:
        >>> at({"a": [1, {"b": 2}]}, "a", 1, "b"), at({"a": 1}, "a", "b")
        (2, None)
    """
    for key in keys:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return value


LARGEST = 1e100
"""Larger numbers are treated as missing: their sums and squares would overflow."""


def number(value: Any, *keys: Any) -> float | None:
    """Return the number under nested keys; None if there is none, or if it is NaN, infinite or beyond `LARGEST`.

    Example:
        >>> number({"auc": None}, "auc"), number({"auc": 0.5}, "auc"), number(float("nan")), number(1e308)
        (None, 0.5, None, None)
    """
    result = at(value, *keys)
    if isinstance(result, bool) or not isinstance(result, int | float) or not abs(result) <= LARGEST:
        return None
    return float(result)


def read_run(folder: Path) -> Run:
    """Read the four files of a finished run.

    Raises:
        UserError: A file is missing, is not JSON, or lacks what a report needs; file and line are named.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder")
    for name in FILES:
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: missing; a finished run holds {', '.join(FILES)}")
    check_listed(folder, FILES)
    experiment, plan, result = (read_document(folder / name) for name in FILES if name.endswith(".json"))
    record = _lines(
        folder / "record.jsonl", checked=(folder / MANIFEST).exists()
    )  # version 0.1 wrote neither
    if at(plan, "card") is not None:
        _check_card(str(folder / "plan.json"), plan["card"])
    require_key(folder / "experiment.json", experiment, "name", str)
    require_key(folder / "result.json", result, "scores", dict)
    for method, scores in result["scores"].items():
        if not isinstance(scores, dict):
            raise UserError(f'{folder / "result.json"}: "scores", {method!r}: expected an object')
    for index, client in enumerate(require_key(folder / "plan.json", plan, "clients", list)):
        if not isinstance(client, dict) or "id" not in client:
            raise UserError(f'{folder / "plan.json"}: "clients", entry {index}: expected an object with "id"')
    return Run(folder, experiment, plan, record, {**result, "scores": _in_order(result, experiment)})


def _in_order(result: Json, experiment: Json) -> dict[str, Json]:
    """Sort scores in the order of the experiment's methods, which JSON with sorted keys loses."""
    named = [method for method in at(experiment, "methods") or [] if method is not None]
    rank = {method: index for index, method in enumerate(named)}
    return dict(sorted(result["scores"].items(), key=lambda item: rank.get(item[0], len(rank))))


def read_document(path: Path) -> Json:
    """Read one of the JSON documents of a run folder and check the types of its values.

    Raises:
        UserError: As `fedloom.system.json_files.read_json`, or a value has another type than a run writes; its key is named.
    """
    value = read_json(path)
    if path.name != "plan.json":  # which names no method, and may be long
        value = current_document(value)
    _check(str(path), value, SHAPES[path.name], "")
    return value


def _check(where: str, value: Any, shape: Any, key: str) -> None:
    """Raise a UserError unless a value is null or has a type of `SHAPES`."""
    if value is None or shape is Any:
        return
    if isinstance(shape, dict):
        _require(isinstance(value, dict), where, key, KINDS[dict])
        for name, inner in value.items():
            _check(where, inner, shape.get(name, shape.get("*", Any)), f"{key}.{name}" if key else name)
    elif isinstance(shape, list):
        _require(isinstance(value, list), where, key, KINDS[list])
        for index, inner in enumerate(value):
            _check(where, inner, shape[0], f"{key}[{index}]")
    elif shape is str:
        _require(isinstance(value, str), where, key, KINDS[str])
    else:
        is_type_right = isinstance(value, int) or shape is float
        _require((number(value) is not None and is_type_right) or value != value, where, key, KINDS[shape])


def _check_card(where: str, card: Json) -> None:
    """Raise a UserError if a heterogeneity card lacks a figure; only "labels" and "words" may be null."""
    for total in ("clients", "examples"):
        require_key(where, card, total, int)
    for part, figures in CARD.items():
        values = card.get(part)
        if values is None and part in ("labels", "words") and part in card:
            continue
        complete = all(at(values, name) is not None for name in figures if name != "*")
        if values is not None and part == "modalities" and complete:
            complete = None not in [*values["clients"].values(), *values["examples"].values()]
        if values is None or not complete:
            raise UserError(f'{where}: "card.{part}" lacks a figure')


def _require(condition: bool, where: str, key: str, expected: str) -> None:
    if not condition:
        raise UserError(f'{where}: "{key}" must be {expected}, or null')


def _lines(path: Path, *, checked: bool) -> tuple[Json, ...]:
    lines = []
    for line_number, line in read_lines(path, checked=checked):
        where = f"{path}, line {line_number}"
        kind = require_key(where, line, "kind", str)
        for key, expected in REQUIRED.get(kind, {}).items():
            require_key(where, line, key, expected)
        _check(where, line, SHAPES.get(kind, Any), "")
        lines.append({**line, "method": current_name(line["method"])} if "method" in line else line)
    return tuple(lines)
