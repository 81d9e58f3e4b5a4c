"""`fedloom demo`: several models answer one question on a page that only this machine can open and that requests nothing else."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.e2e.test_runs import experiment, run
from tests.local_pages import request, serving
from typer.testing import CliRunner

import fedloom
from fedloom.cli.run_commands import app
from fedloom.data.python_images import PixelImage
from fedloom.runs.demo import (
    asked_image,
    compared_models,
    demo_server,
    heading,
    offered_examples,
    side_by_side,
)
from fedloom.runs.saved_models import SavedModels, open_models
from fedloom.runs.trained_model import Reply
from fedloom.system.errors import UserError
from fedloom.types import Example, Turn

METHODS = ["zero-shot", "local", "fedavg", "centralized"]


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "run"
    run(experiment(tiny_model, methods=METHODS, algorithms={}, train={"rounds": 1}), folder)
    return folder


@pytest.fixture(scope="module")
def models(finished: Path) -> SavedModels:
    return open_models(finished)


def test_answers_stand_side_by_side_with_the_likeliest_option_first() -> None:
    asked: list[Any] = []

    def knows(*question: Any) -> Reply:
        asked.append(question)
        return Reply("b", {"a": 0.25, "b": 0.75}, "fedavg", None)

    def writes(*question: Any) -> Reply:
        return Reply("a cat", None, "local", 1)

    answers = side_by_side({"one": knows, "two": writes}, None, "a text", "Which?", ["a", "b"])
    assert answers == [
        {"name": "one", "answer": "b", "scores": [("b", 0.75), ("a", 0.25)]},
        {"name": "two", "answer": "a cat", "scores": []},
    ]
    assert asked == [(None, "a text", "Which?", ["a", "b"])]


def test_examples_are_offered_in_even_steps_without_conversations() -> None:
    test = [Example(str(k), "?", "a") for k in range(10)]
    assert [one.id for one in offered_examples(test, 5)] == ["0", "2", "4", "6", "8"]
    assert [one.id for one in offered_examples(test[:3], 5)] == ["0", "1", "2"]
    assert offered_examples([Example("c", "?", "a", turns=(Turn("?", "a"),))], 5) == []


def test_images_that_a_page_sends(encoded: Callable[..., bytes]) -> None:
    png, image = encoded(1), PixelImage.__new__(PixelImage)
    examples = [Example("0", "?", "a"), Example("1", "?", "a", image=image)]
    text = base64.b64encode(png).decode()
    assert asked_image(None, examples) is None
    assert asked_image(1, examples) is image
    assert asked_image(text, examples) == asked_image(f"data:image/png;base64,{text}", examples) == png
    for wrong in (2, -1, True, "é", "a,b", [], {}, 0.5):
        with pytest.raises(UserError, match="image:"):
            asked_image(wrong, examples)


def test_the_run_decides_which_models_are_compared(models: SavedModels) -> None:
    assert [heading(one) for one in compared_models(models, (), 2)] == [
        "base model, untrained",
        "centralized",
        "FedAvg",
        "local, client 2",
    ]
    assert [
        (one.method, one.client) for one in compared_models(models, ["fedavg", "local", "fedavg"], 1)
    ] == [
        ("fedavg", None),
        ("local", 1),
    ]
    with pytest.raises(UserError, match="client 7"):
        compared_models(models, (), 7)
    with pytest.raises(UserError, match="fedavg"):
        compared_models(models, ["fedavgg"], 0)
    with pytest.raises(UserError, match="client 7"):  # also where no client has a model of its own
        compared_models(models, ["fedavg"], 7)


Served = tuple[str, str]


@pytest.fixture(scope="module")
def served(models: SavedModels) -> Iterator[Served]:
    with serving(*demo_server(0, models, compared_models(models, (), 1))) as served:
        yield served


@pytest.fixture(autouse=True)
def only_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.socket.connect

    def to_here(own: socket.socket, address: Any) -> None:
        assert address[0] == "127.0.0.1", "the network was asked"
        connect(own, address)

    monkeypatch.setattr(socket.socket, "connect", to_here)


def send(
    place: str, path: str, value: Any = None, method: str = "POST", **headers: str
) -> tuple[int, dict[str, Any]]:
    body = None if method == "GET" else value if isinstance(value, bytes) else json.dumps(value).encode()
    given = {"Content-Type": "application/json", **headers}
    status, _, content = request(place, path, method, body, **given)
    return status, json.loads(content) if status == 200 else {"text": content.decode()}


def question(**changes: Any) -> dict[str, Any]:
    return {"image": 0, "text": "", "question": "What is it?", "options": ["food", "flag"], **changes}


def test_the_page_gets_the_answers_that_ask_gives(finished: Path, served: Served) -> None:
    place, token = served
    code, about = send(place, f"/about?{token}", method="GET")
    assert code == 200 and about["models"][2:] == ["FedAvg", "local, client 1"]
    assert about["examples"] and about["note"] == ""
    assert all(one["image"].startswith("data:image/png;base64,") for one in about["examples"])
    loaded = fedloom.load_run(finished)
    assert {one["id"] for one in about["examples"]} <= {row.example for row in loaded.predictions}
    code, got = send(place, f"/ask?{token}", question(image=None, text="a red apple"))
    assert code == 200
    for (method, client), one in zip(
        [("zero-shot", None), ("centralized", None), ("fedavg", None), ("local", 1)],
        got["answers"],
        strict=True,
    ):
        expected = loaded.ask(
            text="a red apple",
            question="What is it?",
            options=["food", "flag"],
            method=method,
            client=client,
        )
        assert one["answer"] == expected.answer
        assert dict(one["scores"]) == expected.scores
    _, again = send(place, f"/ask?{token}", question(image=None, text="a red apple"))
    assert again == got
    _, free = send(place, f"/ask?{token}", question(options=[]))
    assert [one["scores"] for one in free["answers"]] == [[]] * 4


def test_an_image_of_ones_own_is_answered(served: Served, encoded: Callable[..., bytes]) -> None:
    place, token = served
    answers = []
    for number in (1, 2):
        image = f"data:image/png;base64,{base64.b64encode(encoded(number)).decode()}"
        code, got = send(place, f"/ask?{token}", question(image=image))
        assert code == 200
        answers.append(got["answers"])
    assert answers[0] != answers[1]


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        (question(question=" "), "question"),
        (question(options=["one"]), "options"),
        (question(options="ab"), "options"),
        (question(text=3), "text"),
        (question(image=999), "image"),
        (question(image=base64.b64encode(b"GIF89a").decode()), "image"),
        ([], "JSON object"),
        (b"{", "JSON object"),
        (b"[" * 100_000, "JSON object"),
    ],
)
def test_a_mistake_is_told_and_the_page_goes_on(wrong: Any, word: str, served: Served) -> None:
    place, token = served
    code, got = send(place, f"/ask?{token}", wrong)
    assert code == 200 and word in got["error"] and "Traceback" not in got["error"]
    assert send(place, f"/ask?{token}", question())[0] == 200


def test_only_the_page_itself_may_ask(served: Served) -> None:
    place, token = served
    assert place.startswith("127.0.0.1:")
    assert send(place, "/ask", question())[0] == 403
    assert send(place, "/ask?token=wrong", question())[0] == 403
    assert send(place, f"/ask?{token}", question(), Host="evil.example")[0] == 403
    assert send(place, f"/ask?{token}", question(), **{"Content-Type": "text/plain"})[0] == 415
    assert send(place, f"/about?{token}", question())[0] == 404
    assert send(place, f"/ask?{token}", b"", **{"Content-Length": "99999999999"})[0] == 413
    assert send(place, f"/ask?{token}", method="GET")[0] == 404


def test_the_page_names_no_other_host(served: Served) -> None:
    place, token = served
    status, headers, content = request(place, f"/?{token}")
    page, policy = content.decode(), headers["content-security-policy"]
    assert status == 200 and "fedloom" in page
    assert re.findall(r"//[\w.]+|url\(|@import", page) == []
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "img-src data:" in policy


def test_without_a_finished_run_there_is_no_page(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["demo", str(tmp_path)])
    assert shown.exit_code == 2 and "Traceback" not in shown.output


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_browser_shows_the_answers_and_asks_no_other_host(finished: Path, tmp_path: Path) -> None:
    """The browser's log of requests has, of those that the page made, only ones to the demo."""
    command = [sys.executable, "-m", "fedloom", "demo", str(finished), "--client", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        (address,) = re.findall(r"http://127\.0\.0\.1:\d+/\?token=\S+", "".join(lines))
        log = tmp_path / "requests.json"
        done = subprocess.run(
            [
                "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
                f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=60000", f"--log-net-log={log}",
                "--dump-dom", address,
            ],
            capture_output=True, text=True, timeout=600, check=True,
            env={**os.environ, "HOME": str(tmp_path)},
        )  # fmt: skip
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(600)
    cards = re.findall(r"<article><h2>([^<]*)</h2><p class=\"answer\">([^<]+)", done.stdout)
    assert [name for name, _ in cards] == [
        "base model, untrained",
        "centralized",
        "FedAvg",
        "local, client 1",
    ]
    assert "Answer in the data:" in done.stdout
    text = log.read_text()
    try:
        events = json.loads(text)["events"]
    except ValueError:  # it was cut short when the browser ended
        events = json.loads(f"{text.rstrip().rstrip(',')}]}}")["events"]
    origin = address.partition("/?")[0]
    made = [
        one["params"]["url"]
        for one in events
        if {"url", "initiator"} <= one.get("params", {}).keys() and one["params"]["initiator"] == origin
    ]
    assert {urlsplit(url).path for url in made} == {"/about", "/ask"}
    assert all(url.startswith(f"{origin}/") for url in made)
