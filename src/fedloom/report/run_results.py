"""Read a run folder back: four files in, one frozen value out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fedloom.config.old_spellings import current_document, current_name
from fedloom.run_log import read_lines
from fedloom.system.errors import UserError
from fedloom.system.json_files import KINDS, expect, read_json
from fedloom.system.manifest import check_files, read_manifest

Json = Mapping[str, Any]

FILES = ("experiment.json", "plan.json", "record.jsonl", "result.json")

REQUIRED: dict[str, dict[str, type]] = {
    "round": {"method": str, "round": int},
    "evaluation": {"method": str, "round": int, "slice": str, "scores": dict},
}
"""What a line of the record needs before it can be drawn; other kinds are shown as far as they go."""

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
        "bytes": {"*": FIGURES},
        "seconds": FIGURES,
    },
    "round": {"clients": [FIGURES], "refused": [FIGURES], "missing": [FIGURES], "timers": {"*": float}},
    "data": {"rejected": [str], "unseen": int},
}
"""Document, or kind of line in the record → what its values are where they are there and not null.

A mapping says it key by key, "*" is every key; a list says it of each of its entries.
"""


@dataclass(frozen=True)
class Run:
    """What a run wrote down, as it was read.

    Attributes:
        folder: Where it was read from.
        experiment: Every choice of the run, defaults filled in.
        plan: Which client holds which examples, and which modalities of them it sees.
        record: The lines of the log, in order.
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
        """The round lines; of a round that was done again after a crash, only the last one."""
        return _latest(self.of_kind("round"), ("method", "client", "round"))

    @cached_property
    def evaluations(self) -> list[Json]:
        """The evaluation lines; of one that was done again, only the last one."""
        return _latest(self.of_kind("evaluation"), ("method", "client", "round", "slice"))

    @property
    def fullest(self) -> str:
        """The slice that shows every modality there is: "both", unless the data set has only one modality."""
        seen = {entry["slice"] for entry in self.evaluations}
        return next((name for name in ("both", "image", "text") if name in seen), "both")

    def questions(self, name: str) -> float | None:
        """Return how many test questions the scores of a slice rest on."""
        counts = [number(entry, "examples") for entry in self.evaluations if entry["slice"] == name]
        return next((count for count in counts if count), None)

    @property
    def text_only(self) -> bool:
        """Whether the model is a language model that sees no images."""
        return any(at(entry, "images") is False for entry in self.of_kind("start"))

    @property
    def unseen(self) -> int:
        """How many examples have an image that the model does not see."""
        return int(number((self.of_kind("data") or [{}])[-1], "unseen") or 0)

    @property
    def clients(self) -> list[Json]:
        """The clients of the plan; of very many, the first ones only."""
        return list(self.plan["clients"])

    @property
    def client_count(self) -> int:
        """How many clients the plan has."""
        return int(number(self.plan, "count") or len(self.clients))

    @property
    def scores(self) -> dict[str, Json]:
        """Method → its scores, in the order of the experiment's methods."""
        return dict(self.result["scores"])


def _latest(lines: list[Json], keys: tuple[str, ...]) -> list[Json]:
    return list({tuple(str(line.get(key)) for key in keys): line for line in lines}.values())


def at(value: Any, *keys: Any) -> Any:
    """Follow keys into nested mappings and lists; None where the way ends.

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
"""Figures of a run are smaller; sums and squares of larger ones would overflow."""


def number(value: Any, *keys: Any) -> float | None:
    """Follow keys to a number; None for anything else, NaN, infinity and beyond `LARGEST` included.

    Example:
        >>> number({"auc": None}, "auc"), number({"auc": 0.5}, "auc"), number(float("nan")), number(1e308)
        (None, 0.5, None, None)
    """
    found = at(value, *keys)
    if isinstance(found, bool) or not isinstance(found, int | float) or not abs(found) <= LARGEST:
        return None
    return float(found)


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
    manifest = read_manifest(folder)  # runs of version 0.1 have none
    if manifest is not None:
        check_files(folder, manifest, FILES)
    experiment, plan, result = (read_shaped(folder / name) for name in FILES if name.endswith(".json"))
    record = _lines(folder / "record.jsonl", checked=manifest is not None)
    if at(plan, "card") is not None:
        _check_card(str(folder / "plan.json"), plan["card"])
    expect(folder / "experiment.json", experiment, "name", str)
    expect(folder / "result.json", result, "scores", dict)
    for method, scores in result["scores"].items():
        if not isinstance(scores, dict):
            raise UserError(f'{folder / "result.json"}: "scores", {method!r}: expected an object')
    for index, client in enumerate(expect(folder / "plan.json", plan, "clients", list)):
        if not isinstance(client, dict) or "id" not in client:
            raise UserError(f'{folder / "plan.json"}: "clients", entry {index}: expected an object with "id"')
    return Run(folder, experiment, plan, record, {**result, "scores": _in_order(result, experiment)})


def _in_order(result: Json, experiment: Json) -> dict[str, Json]:
    """Put scores in the order in which the user named the methods; JSON written with sorted keys loses it."""
    named = [method for method in at(experiment, "methods") or [] if method is not None]
    rank = {method: place for place, method in enumerate(named)}
    return dict(sorted(result["scores"].items(), key=lambda item: rank.get(item[0], len(rank))))


def read_shaped(path: Path) -> Json:
    """Read one of the documents of a run folder, and check what a report takes from it.

    Raises:
        UserError: As `fedloom.system.json_files.read_json`, or a value is of another kind than a run writes; its key is named.
    """
    value = read_json(path)
    if path.name != "plan.json":  # which names no method, and may be long
        value = current_document(value)
    _check(str(path), value, SHAPES[path.name], "")
    return value


def _check(place: str, value: Any, shape: Any, key: str) -> None:
    """Refuse a value that is neither null nor of a shape; see `SHAPES`."""
    if value is None or shape is Any:
        return
    if isinstance(shape, dict):
        _require(isinstance(value, dict), place, key, KINDS[dict])
        for name, inner in value.items():
            _check(place, inner, shape.get(name, shape.get("*", Any)), f"{key}.{name}" if key else name)
    elif isinstance(shape, list):
        _require(isinstance(value, list), place, key, KINDS[list])
        for index, inner in enumerate(value):
            _check(place, inner, shape[0], f"{key}[{index}]")
    elif shape is str:
        _require(isinstance(value, str), place, key, KINDS[str])
    else:
        whole = isinstance(value, int) or shape is float
        _require((number(value) is not None and whole) or value != value, place, key, KINDS[shape])


def _check_card(place: str, card: Json) -> None:
    """Refuse a heterogeneity card that lacks a figure; only its part about words may be null."""
    for total in ("clients", "examples"):
        expect(place, card, total, int)
    for part, figures in CARD.items():
        known = card.get(part)
        if known is None and part == "words" and part in card:
            continue
        whole = all(at(known, name) is not None for name in figures if name != "*")
        if known is not None and part == "modalities" and whole:
            whole = None not in [*known["clients"].values(), *known["examples"].values()]
        if known is None or not whole:
            raise UserError(f'{place}: "card.{part}" lacks a figure')


def _require(holds: bool, place: str, key: str, wanted: str) -> None:
    if not holds:
        raise UserError(f'{place}: "{key}" must be {wanted}, or null')


def _lines(path: Path, *, checked: bool) -> tuple[Json, ...]:
    found = []
    for place, line in read_lines(path, checked=checked):
        where = f"{path}, line {place}"
        kind = expect(where, line, "kind", str)
        for key, wanted in REQUIRED.get(kind, {}).items():
            expect(where, line, key, wanted)
        _check(where, line, SHAPES.get(kind, Any), "")
        found.append({**line, "method": current_name(line["method"])} if "method" in line else line)
    return tuple(found)
