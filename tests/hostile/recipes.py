"""Hostile recipes and arguments: each ends soon, with exit code 2 and a message.

A builder takes an empty folder, writes the files that it needs there, and returns the words after `fedloom`.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

Build = Callable[[Path], list[str]]

ESC = "\x1b"
BIDI = "\u202e"


def content(data: bytes | str, name: str = "mine.yaml", *words: str) -> Build:
    """Validate a file of some bytes."""

    def build(folder: Path) -> list[str]:
        (folder / name).write_bytes(data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data)
        return ["validate", str(folder / name), *words]

    return build


def change(*texts: str) -> Build:
    """Validate a recipe with some `--set`."""
    return lambda folder: ["validate", "smoke", *(word for text in texts for word in ("--set", text))]


def words(*given: str) -> Build:
    """Give these words; `{}` in them is the folder."""
    return lambda folder: [word.replace("{}", str(folder)) for word in given]


def pipe(*given: str) -> Build:
    """Make a pipe that nobody writes into, at `{}/pipe`."""

    def build(folder: Path) -> list[str]:
        os.mkfifo(folder / "pipe")
        return words(*given)(folder)

    return build


def listening(folder: Path) -> list[str]:
    """Make a socket in place of a recipe."""
    server = socket.socket(socket.AF_UNIX)
    before = os.getcwd()
    try:
        os.chdir(folder)  # the path of a socket has at most some 100 bytes
        server.bind("socket")
    finally:
        os.chdir(before)
        server.close()
    return ["validate", str(folder / "socket")]


def huge(folder: Path) -> list[str]:
    """Make a recipe of a hundred megabytes, with a hole in it."""
    with open(folder / "huge.yaml", "wb") as file:
        file.truncate(100_000_000)
    return ["validate", str(folder / "huge.yaml")]


def circle(folder: Path) -> list[str]:
    """Make a link to itself."""
    (folder / "circle.yaml").symlink_to(folder / "circle.yaml")
    return ["validate", str(folder / "circle.yaml")]


def run_folder(files: Mapping[str, bytes], *given: str) -> Build:
    """Make a run folder `{}/run` of some files, besides the experiment."""

    def build(folder: Path) -> list[str]:
        from fedloom.experiment.recipes import load_experiment

        whole = {"experiment.json": load_experiment("smoke").to_json().encode()}
        (folder / "run").mkdir()
        for name, data in (whole | dict(files)).items():
            (folder / "run" / name).write_bytes(data)
        return words(*given)(folder)

    return build


FINISHED = {"report.html": b""}
SWEEP = json.dumps({"name": "x", "digest": "0", "quick": False, "axes": {}, "published": None, "cells": []})

CASES: dict[str, Build] = {
    # what is no file, or no file of text
    "empty": content(b""),
    "zeros": content(b"\0" * 1000),
    "random bytes": content(bytes(range(256)) * 4),
    "not utf-8": content(b"name: caf\xe9\n"),
    "utf-16": content("name: x\n".encode("utf-16")),
    "a pipe": pipe("validate", "{}/pipe"),
    "a pipe to run": pipe("run", "{}/pipe"),
    "a pipe to sweep": pipe("sweep", "{}/pipe"),
    "a pipe to show": pipe("show", "{}/pipe"),
    "a device": words("validate", "/dev/zero"),
    "a terminal": words("validate", "/dev/ptmx"),
    "a folder": words("validate", "{}"),
    "a socket": listening,
    "a link to itself": circle,
    "a hundred megabytes": huge,
    "nothing there": words("validate", "{}/none.yaml"),
    "a name too long": words("validate", "n" * 5000),
    "a path through a file": lambda folder: ["validate", content("")(folder)[1] + "/inner.yaml"],
    "an escape in a name": words("validate", f"{ESC}[2J{ESC}]0;owned\x07.yaml"),
    "a newline in a name": words("validate", "a\nfedloom: all is well"),
    "a direction mark in a name": words("validate", f"{BIDI}lmay.exe"),
    "a surrogate in a name": words("validate", "caf\udce9.yaml"),
    # texts that take long, or go deep
    "four thousand unknown keys": content("".join(f"key{i}: {i}\n" for i in range(4000))),
    "ten thousand unknown keys below": content(
        "train:\n" + "".join(f"  k{i}: 1\n" for i in range(10_000)),
    ),
    "a key of a hundred thousand letters": content('? "' + "k" * 100_000 + '"\n: 1\n'),
    "a value of a hundred thousand letters": content("name: " + "n" * 100_000 + "\n"),
    "nested lists": content("name: " + "[" * 50_000),
    "nested mappings": content("{a: " * 30_000),
    "nested blocks": content("".join(f"{' ' * i}a:\n" for i in range(500))),
    "aliases that multiply": content(
        "a: &a [x, x]\n"
        + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True))
    ),
    "a tag that makes an object": content('name: !!python/object/apply:os.system ["true"]\n'),
    "a binary tag": content("name: !!binary aGVsbG8=\n"),
    "a merge": content("train: {<<: {lr: 1}}\n"),
    "a key given a thousand times": content("name: x\n" * 1000),
    "keys that are no words": content("? [a, b]\n: 1\n? {c: d}\n: 2\n"),
    "two documents": content("name: a\n---\nname: b\n"),
    "a directive": content("%YAML 9.9\n---\nname: a\nnope: 1\n"),
    "a tab for indentation": content("train:\n\tlr: 1\n"),
    "a number of thirty digits": content(f"seed: {'9' * 30}\ntrain: {{rounds: -{'9' * 30}}}\n"),
    "a number without end": content(f"train: {{lr: {'9' * 100_000}}}\n"),
    "infinity": content("train: {lr: .inf}\nscenario: {alpha: .nan}\n"),
    "nothing where something is needed": content("train: null\nmethods: null\nname: null\n"),
    "lists for mappings": content("[train, methods]\n"),
    "text for an experiment": content("just text\n"),
    "a thousand methods": content(f"methods: [{', '.join(f'fedavgx{i}' for i in range(1000))}]\n"),
    "a thousand algorithms": content(
        f"algorithms: {{{', '.join(f'fed{i}: {{a: 1}}' for i in range(1000))}}}\n"
    ),
    "an escape in a value": content('name: "\\e[31mred"\ndata: {name: "\\e]0;x\\a"}\n'),
    "an escape in a key": content('"\\e[2Jkey": 1\n'),
    "newlines in a key": content('"a\\nfedloom: all is well\\n  b": 1\n'),
    "direction marks in a key": content('"\\u202Eyek\\u2066": 1\n'),
    "markup in a key": content('"[red]key[/red] :smile:": 1\n'),
    "braces in a method": content('methods: ["{0}{1!r}{__class__}"]\n'),
    "a zero in a path": content('data: {name: folder, root: "a\\0b"}\n'),
    "a zero in the model's path": content('model: {path: "a\\0b"}\n'),
    # grids
    "a grid of too many cells": content(
        f"grid:\n  seed: [{', '.join(map(str, range(2000)))}]\n  train.rounds: [{', '.join(map(str, range(1, 2001)))}]\n"
    ),
    "a grid of bad cells": content(f"grid:\n  seed: [{', '.join(f'x{i}' for i in range(2000))}]\n"),
    "a grid with a deep key": content(f"grid:\n  {'.'.join('a' * 2000)}: [1]\n"),
    "a grid that is a list": content("grid: [1, 2]\n"),
    "published figures of nothing": content("grid: {seed: [1]}\npublished: {scores: {a: {b: c}}}\n"),
    # changes
    "a change without a key": change("=1"),
    "a change without a value": change("train.lr"),
    "a change of nothing": change(""),
    "a deep change": change(".".join("a" * 5000) + "=1"),
    "a long change": change("name=" + "x" * 100_000),
    "a change with an escape": change(f"train.{ESC}[31mlr=1"),
    "a change with aliases": change("methods=[&a fedavg, *a]"),
    "a change that is no YAML": change("methods=[fedavg"),
    "a thousand changes": change(*(f"train.k{i}=1" for i in range(1000))),
    # other names on the command line
    "an unknown list": words("list", f"{ESC}[31mrecipes"),
    "an unknown data set": words("data", "check", f"{ESC}[31mx"),
    "an unknown option": words("run", "smoke", f"--{ESC}[31mx"),
    "an unknown command": words(f"{ESC}[31mrun"),
    "too few jobs": words("sweep", "smoke", "--jobs", "0"),
    "a run in a pipe": pipe("run", "smoke", "--out", "{}/pipe"),
    "a run below a pipe": pipe("run", "smoke", "--out", "{}/pipe/inner"),
    "a run in a device": words("run", "smoke", "--out", "/dev/null"),
    "a run below /proc": words("run", "smoke", "--out", "/proc/nothing/here"),
    "a sweep in a pipe": pipe("sweep", "smoke", "--set", "grid.seed=[0]", "--out", "{}/pipe"),
    "a report of a pipe": pipe("report", "{}/pipe"),
    "a report of nothing": words("report", "{}/none"),
    "a report of a device": words("report", "/dev/zero"),
    "resuming a pipe": pipe("resume", "{}/pipe"),
    "data that is a pipe": pipe("run", "own-data", "--set", "data.root={}/pipe", "--out", "{}/run"),
    "data that is a device": words("run", "own-data", "--set", "data.root=/dev/zero", "--out", "{}/run"),
    "splitting a pipe": pipe("split", "folder", "--root", "{}/pipe"),
    # run folders
    "a damaged experiment": run_folder({"experiment.json": b"{"}, "resume", "{}/run"),
    "an experiment that is no text": run_folder({"experiment.json": b"\xff\xfe"}, "resume", "{}/run"),
    "an experiment that is a number": run_folder(
        {"experiment.json": b"1"}, "run", "smoke", "--out", "{}/run"
    ),
    "a damaged result": run_folder(
        {**FINISHED, "result.json": b'{"scores": '}, "run", "smoke", "--out", "{}/run"
    ),
    "a result that is a list": run_folder(
        {**FINISHED, "result.json": b"[]"}, "run", "smoke", "--out", "{}/run"
    ),
    "a result without scores": run_folder({**FINISHED, "result.json": b"{}"}, "resume", "{}/run"),
    "a report of a damaged result": run_folder({**FINISHED, "result.json": b"\xff"}, "report", "{}/run"),
    "a damaged sweep": run_folder({"sweep.json": b"{"}, "report", "{}/run"),
    "a sweep of nonsense": run_folder(
        {"sweep.json": SWEEP.replace("[]", "[1]").encode()}, "report", "{}/run"
    ),
}
