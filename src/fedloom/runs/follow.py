"""Read how far a run, a sweep or a deployment has come, from its folder alone, while another process writes there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedloom.report.sweeps.sweep_results import read_state
from fedloom.report.tables import is_federated
from fedloom.system.errors import UserError
from fedloom.system.json_files import parse_object, read_json, require_key
from fedloom.system.manifest import LOCK
from fedloom.system.terminal import shell_word

RECORD, EXPERIMENT, SWEEP, DEPARTED = "record.jsonl", "experiment.json", "sweep.json", "left-this-site.jsonl"
BEGUN = (RECORD, EXPERIMENT, LOCK)
"""Files of which a run's folder has one: a run that still loads its data and model has locked its folder and written nothing."""
RECENT = 8
"""Messages that are shown."""
ANSWERS = ("clients", "missing", "refused")
"""Keys of a round's line: the clients whose updates were accepted, that did not answer, and whose updates were refused."""
WORDS = {"missing": "is missing", "refused": "was refused"}


def progress_of(folder: Path) -> dict[str, Any]:
    """Return how far a run, a sweep, or a site's part in a deployment has come, as a JSON value.

    Returns:
        "kind" (run, sweep or site), "name", "finished", and, of a run, "rounds" and "methods": name → "done" of "rounds", "loss"
        and "scores" as pairs (round, value), bytes "up" and "down", numbers of "missing" and "refused" updates, mean
        "round_seconds", and "clients" with the "rounds" that each took part in and its missing and refused updates; of a sweep,
        "cells" and "run", the cell that is running; of a site, "messages" and "bytes". "notes" are sentences.

    Raises:
        UserError: The folder holds none of these, or its log is damaged.
    """
    if (folder / SWEEP).is_file():
        return _sweep(folder)
    if (folder / DEPARTED).is_file():
        return _site(folder)
    if any((folder / name).is_file() for name in BEGUN):
        return _run(folder)
    raise UserError(f"{folder} holds no run, sweep or site; give the folder that --out named")


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the content of each whole line of a log; the last one may still be being written.

    Raises:
        UserError: A line is no JSON object.
    """
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, parse_object(path, line.decode(errors="replace"), number)


def _run(folder: Path) -> dict[str, Any]:
    experiment: Mapping[str, Any] = {}
    with suppress(UserError):
        experiment = read_json(folder / EXPERIMENT)
    methods: dict[str, dict[str, Any]] = {}
    notes, finished = list[str](), False
    for number, line in _lines(folder / RECORD):
        kind = line.get("kind")
        finished = kind == "end"
        if kind == "damaged":
            notes.append(str(line.get("reason")))
        if "method" not in line or kind not in ("round", "evaluation", "validation"):
            continue
        method = methods.setdefault(str(line["method"]), {"done": 0, "loss": {}, "scores": {}, "lines": {}})
        try:
            if kind == "round":
                _add_round(method, line, notes)
            elif kind == "evaluation":
                _add_score(method, line)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            raise _damaged(folder, RECORD, number) from None
    train = experiment.get("train")
    rounds = train.get("rounds") if isinstance(train, dict) and isinstance(train.get("rounds"), int) else None
    planned = experiment.get("methods")
    return {
        "kind": "run",
        "name": experiment.get("name", folder.name),
        "finished": finished,
        "rounds": rounds,
        "planned": [str(name) for name in planned] if isinstance(planned, list) else [],
        "methods": {name: _totals(name, method, rounds) for name, method in methods.items()},
        "notes": notes[-RECENT:],
    }


def _damaged(folder: Path, log: str, number: int) -> UserError:
    advice = f"`fedloom verify {shell_word(folder)}` checks all files"
    return UserError(f"{folder / log}, line {number}, is not as it was written; {advice}")


def _add_round(method: dict[str, Any], line: Mapping[str, Any], notes: list[str]) -> None:
    done = int(line["round"]) + 1
    method["done"] = max(method["done"], done)
    if isinstance(line.get("loss"), int | float):
        method["loss"].setdefault(done, {})[line.get("client")] = line["loss"]
    if (done, line.get("client")) not in method["lines"]:
        notes += [
            f"{line['method']}, round {done}: the update of client {one['client']} {WORDS[key]}: {one['reason']}"
            for key in WORDS
            for one in line.get(key, ())
        ]
    # A round that was run again after an interruption replaces its first attempt.
    method["lines"][done, line.get("client")] = {
        "clients": [(int(one["client"]), key) for key in ANSWERS for one in line.get(key, ())],
        **{key: float(line.get(key, 0)) for key in ("bytes_up", "bytes_down", "seconds")},
    }


def _means(figures: Mapping[int, Mapping[int | None, float]]) -> list[list[float]]:
    """Return pairs (round, value): of the model of all clients (None) or else the mean over clients that train alone."""
    return [[done, of.get(None, sum(of.values()) / len(of))] for done, of in sorted(figures.items())]


def _totals(name: str, method: Mapping[str, Any], rounds: int | None) -> dict[str, Any]:
    """Return what is shown of a method: its sums over rounds, and over the rounds of each client.

    Clients that train alone, and training on pooled data, send nothing, though their log has the sizes of messages.
    """
    lines = method["lines"].values()
    sent = is_federated(name)
    clients: dict[int, dict[str, int]] = {}
    for number, key in (pair for line in lines for pair in line["clients"]):
        clients.setdefault(number, dict.fromkeys(ANSWERS, 0))[key] += 1
    shared = [line["seconds"] for (_, client), line in method["lines"].items() if client is None]
    return {
        "done": method["done"],
        "rounds": max(rounds or 0, method["done"]) or None,
        "loss": _means(method["loss"]),
        "scores": _means(method["scores"]),
        "up": int(sum(line["bytes_up"] for line in lines if sent)),
        "down": int(sum(line["bytes_down"] for line in lines if sent)),
        "missing": sum(counts["missing"] for counts in clients.values()),
        "refused": sum(counts["refused"] for counts in clients.values()),
        "round_seconds": sum(shared) / len(shared) if shared else None,
        "clients": [
            {"client": number, "rounds": one["clients"], "missing": one["missing"], "refused": one["refused"]}
            for number, one in sorted(clients.items())
        ],
    }


def _add_score(method: dict[str, Any], line: Mapping[str, Any]) -> None:
    scores, done = line["scores"], int(line["round"])
    value = next((value for value in scores.values() if isinstance(value, int | float)), None)
    if value is not None:  # the first slice is the fullest
        method["scores"].setdefault(done, {}).setdefault(line.get("client"), value)


def read_cells(file: Path, *keys: str) -> dict[str, Any]:
    """Return the content of a `sweep.json`, each of whose cells has texts under some keys.

    Raises:
        UserError: It is missing or damaged.
    """
    value = read_state(file)
    require_key(file, value, "cells", list)
    for cell in value["cells"]:
        if not isinstance(cell, dict):
            raise UserError(f'{file}: every entry of "cells" must be an object')
        for key in keys:
            require_key(file, cell, key, str)
    return value


def _sweep(folder: Path) -> dict[str, Any]:
    value = read_cells(folder / SWEEP, "name", "state", "folder")
    cells = [
        {"name": cell["name"], "state": cell["state"], "error": cell.get("error")} for cell in value["cells"]
    ]
    begun = [cell["folder"] for cell in value["cells"] if cell["state"] == "begun"]
    return {
        "kind": "sweep",
        "name": value.get("name", folder.name),
        "finished": all(cell["state"] in ("done", "failed") for cell in cells),
        "cells": cells,
        "run": _cell(folder / begun[-1]) if begun else None,
        "notes": [f"{cell['name']}: {cell['error']}" for cell in cells if cell["error"]][-RECENT:],
    }


def _cell(folder: Path) -> dict[str, Any] | None:
    """Return how far the run of a cell has come; None if it has written nothing, or its log is damaged."""
    with suppress(UserError):
        return _run(folder) if any((folder / name).is_file() for name in BEGUN) else None
    return None


def _site(folder: Path) -> dict[str, Any]:
    sizes = list[int]()
    for number, line in _lines(folder / DEPARTED):
        if not isinstance(size := line.get("bytes", 0), int):
            raise _damaged(folder, DEPARTED, number)
        sizes.append(size)
    return {
        "kind": "site",
        "name": folder.name,
        "finished": False,
        "messages": len(sizes),
        "bytes": sum(sizes),
        "notes": [],
    }


def status_lines(progress: Mapping[str, Any]) -> Iterator[str]:
    """Yield how far something has come, in lines for people."""
    state = "finished" if progress["finished"] else "not finished"
    yield f"{progress['kind']} {progress['name']}: {state}"
    if progress["kind"] == "sweep":
        done = sum(cell["state"] in ("done", "failed") for cell in progress["cells"])
        yield f"  {done} of {len(progress['cells'])} cells ended"
        if progress["run"] is not None:
            yield from (f"  {line}" for line in status_lines(progress["run"]))
    elif progress["kind"] == "site":
        yield f"  {progress['messages']:,} messages left this site, {progress['bytes']:,} bytes"
    else:
        for name in dict.fromkeys([*progress["methods"], *progress["planned"]]):
            yield f"  {_method_line(name, progress['methods'].get(name))}"
    yield from (f"  note: {note}" for note in progress["notes"])


def _method_line(name: str, method: Mapping[str, Any] | None) -> str:
    if method is None:
        return f"{name}: waiting"
    parts = [f"{name}: round {method['done']} of {method['rounds']}"] if method["done"] else [f"{name}:"]
    if method["loss"]:
        parts.append(f"loss {method['loss'][-1][1]:.4g}")
    if method["scores"]:
        round, score = method["scores"][-1]
        parts.append(f"test {100 * score:.1f} %" + (f" after round {round}" if round else ""))
    if method["up"]:
        parts.append(f"{method['up']:,} bytes up, {method['down']:,} down")
    if faults := method["missing"] + method["refused"]:
        parts.append(f"{faults} updates missing or refused")
    return ", ".join(parts).replace(":,", ":")
