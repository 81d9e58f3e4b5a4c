"""Following a run: functions that are called with its log, trackers, and the state that `watch` and `live` show."""

from __future__ import annotations

import http.client
import importlib.util
import io
import json
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.e2e.test_runs import experiment
from typer.testing import CliRunner

from fedloom.cli.run_commands import app
from fedloom.run_log import RunLog
from fedloom.runs.follow import progress_of, status_lines
from fedloom.runs.followers import TRACKERS, figures_of, follow_with, open_trackers
from fedloom.runs.run_lock import open_run_folder
from fedloom.runs.single_run import run_experiment
from fedloom.system.errors import UserError
from fedloom.system.live_server import live_server
from fedloom.system.progress import Progress


@pytest.fixture(scope="module")
def followed(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Mapping[str, Any]], str]:
    """A finished run, the lines that a follower got, and what its progress printed; another follower raised."""
    folder, lines, printed = (
        tmp_path_factory.mktemp("followed") / "run",
        list[Mapping[str, Any]](),
        io.StringIO(),
    )
    value = experiment(
        tiny_model,
        methods=["zero-shot", "fedavg"],
        algorithms={},
        evaluate={"every": 1},
        train={"rounds": 2},
        engine={"cache": False},  # in which other tests may have left the features
    )

    def breaks(line: Mapping[str, Any]) -> None:
        raise KeyError("mine")

    progress = Progress(printed)
    run_experiment(value, folder, progress, followers=[breaks, lines.append])
    progress.close()
    return folder, lines, printed.getvalue()


def test_a_follower_gets_every_line_and_a_broken_one_ends_nothing(followed: Any) -> None:
    folder, lines, printed = followed
    written = list(RunLog(folder / "record.jsonl"))
    assert [line["kind"] for line in lines] == [line["kind"] for line in written]
    assert printed.count("is called no more: internal error: KeyError: 'mine'") == 1


def test_every_phase_has_a_stage(followed: Any) -> None:
    _, _, printed = followed
    for stage in (
        "loading data and model",
        "features of images",
        "zero-shot",
        "fedavg",
        "fedavg, evaluation",
    ):
        assert re.search(rf"^{stage}: begins, [1-9]\d* step", printed, re.MULTILINE), stage
        assert re.search(rf"^{stage}: done", printed, re.MULTILINE), stage


def test_clients_own_models_are_evaluated_in_a_stage_of_their_own(tiny_model: Path, tmp_path: Path) -> None:
    printed = io.StringIO()
    value = experiment(tiny_model, methods=["local"], algorithms={}, train={"rounds": 1})
    run_experiment(value, tmp_path, Progress(printed))
    assert re.search(r"^local, evaluation: begins, [1-9]\d* step", printed.getvalue(), re.MULTILINE)


def test_the_state_of_a_run_is_that_of_its_log(followed: Any) -> None:
    folder, lines, _ = followed
    state = progress_of(folder)
    rounds = [line for line in lines if line["kind"] == "round"]
    assert state["finished"] and state["rounds"] == 2
    assert state["methods"]["fedavg"]["loss"] == [[line["round"] + 1, line["loss"]] for line in rounds]
    assert state["methods"]["fedavg"]["up"] == sum(line["bytes_up"] for line in rounds)
    text = "\n".join(status_lines(state))
    assert "run e2e: finished" in text and "fedavg: round 2 of 2, loss" in text


def test_a_line_that_is_still_being_written_is_not_read(followed: Any, tmp_path: Path) -> None:
    folder, lines, _ = followed
    content = (folder / "record.jsonl").read_bytes()
    ends = [match.end() for match in re.finditer(rb"\n", content)]
    (tmp_path / "experiment.json").write_bytes((folder / "experiment.json").read_bytes())
    for whole, end in enumerate(ends):
        begin = ends[whole - 1] if whole else 0
        (tmp_path / "record.jsonl").write_bytes(content[: (begin + end) // 2])
        state = progress_of(tmp_path)
        done = [line["round"] + 1 for line in lines[:whole] if line["kind"] == "round"]
        assert state["methods"].get("fedavg", {"done": 0})["done"] == max(done, default=0)
        assert not state["finished"]


def test_a_sweep_and_a_site_have_a_state(followed: Any, tmp_path: Path) -> None:
    folder, _, _ = followed
    cells = [
        {"name": "a", "state": "done", "folder": "cells/a"},
        {"name": "b", "state": "failed", "folder": "cells/b", "error": "no memory"},
        {"name": "c", "state": "begun", "folder": str(folder)},
        {"name": "d", "state": "waiting", "folder": "cells/d"},
    ]
    (tmp_path / "sweep.json").write_text(json.dumps({"name": "many", "cells": cells}))
    state = progress_of(tmp_path)
    assert state["run"]["name"] == "e2e" and not state["finished"]
    assert state["notes"] == ["b: no memory"]
    assert "2 of 4 cells ended" in "\n".join(status_lines(state))
    site = tmp_path / "north"
    site.mkdir()
    (site / "left-this-site.jsonl").write_text('{"bytes": 5}\n{"bytes": 7}\n')
    assert (progress_of(site)["messages"], progress_of(site)["bytes"]) == (2, 12)


def test_a_run_that_still_loads_its_model_is_shown(tmp_path: Path) -> None:
    with open_run_folder(tmp_path / "mine"):
        state = progress_of(tmp_path / "mine")
    assert not state["finished"] and state["methods"] == {}
    assert list(status_lines(state)) == ["run mine: not finished"]


def test_watch_prints_and_ends_with_the_run(followed: Any, tmp_path: Path) -> None:
    folder, _, _ = followed
    shown = CliRunner().invoke(app, ["watch", str(folder)])
    assert shown.exit_code == 0
    assert "fedavg: round 2 of 2" in shown.stdout
    state = json.loads(CliRunner().invoke(app, ["watch", str(folder), "--once", "--json"]).stdout)
    assert state == progress_of(folder)
    assert CliRunner().invoke(app, ["watch", str(tmp_path)]).exit_code == 2
    assert CliRunner().invoke(app, ["live", str(tmp_path)]).exit_code == 2


@pytest.fixture
def served(followed: Any) -> Iterator[tuple[str, str]]:
    server, address = live_server(0, lambda: progress_of(followed[0]))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    parts = urlsplit(address)
    yield parts.netloc, parts.query
    server.shutdown()
    thread.join()
    server.server_close()


def ask(
    place: str, path: str, method: str = "GET", host: str | None = None
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(place, timeout=120)
    connection.request(method, path, headers={"Host": host or place})
    answer = connection.getresponse()
    return answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read()


def test_the_page_follows_the_run(followed: Any, served: tuple[str, str]) -> None:
    place, token = served
    assert place.startswith("127.0.0.1:")
    code, headers, page = ask(place, f"/?{token}")
    assert code == 200
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy
    nonce = re.search(r"script-src 'nonce-([^']+)'", policy)
    assert nonce is not None and f'<script nonce="{nonce[1]}">'.encode() in page
    outside = set(re.findall(rb"https?://[^\"'\s]+", page))
    assert outside == {b"http://www.w3.org/2000/svg"}, "a name, which is not requested"
    code, _, state = ask(place, f"/state?{token}")
    assert code == 200 and json.loads(state) == json.loads(json.dumps(progress_of(followed[0])))


@pytest.mark.parametrize("path", ["/", "/state", "/?token=", "/state?token=wrong", "/?token=%C3%A9"])
def test_without_the_token_there_is_nothing(served: tuple[str, str], path: str) -> None:
    code, _, body = ask(served[0], path)
    assert code == 403 and b"fedavg" not in body


def test_other_hosts_methods_and_paths_are_refused(served: tuple[str, str]) -> None:
    place, token = served
    assert ask(place, f"/state?{token}", host="evil.example")[0] == 403
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert ask(place, f"/state?{token}", method)[0] == 501, method
    assert ask(place, f"/../record.jsonl?{token}")[0] == 404
    assert ask(place, f"/?{token}", "HEAD")[2] == b""


def test_a_port_in_use_is_a_mistake(served: tuple[str, str]) -> None:
    with pytest.raises(UserError, match="--port"):
        live_server(int(served[0].partition(":")[2]), dict)


def test_figures_of_lines() -> None:
    """The values are those of the line, under names that say whose they are."""
    line = {"kind": "round", "method": "local", "client": 2, "round": 4, "loss": 0.5, "missing": [1]}
    assert figures_of(line) == (5, {"local/client-2/loss": 0.5, "local/client-2/missing": 1.0})
    scores = {"accuracy": 0.25, "auc": None, "tasks": {"choice": {}}}
    test = {
        "kind": "evaluation",
        "method": "fedavg",
        "client": None,
        "round": 3,
        "slice": "both",
        "scores": scores,
    }
    assert figures_of(test) == (3, {"fedavg/test/both/accuracy": 0.25})
    assert figures_of({"kind": "start"}) == (0, {})


def test_followers_are_called_in_order() -> None:
    called: list[str] = []
    follow = follow_with([lambda _: called.append("a"), lambda _: called.append("b")], called.append)
    follow({"kind": "start"})
    assert called == ["a", "b"]


def test_unknown_and_missing_trackers_are_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="there are tensorboard, wandb, mlflow"):
        open_trackers(["tensorbord"], tmp_path / "run", {}).__enter__()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in TRACKERS:
        with pytest.raises(UserError, match=rf"install fedloom\[{name}\]"):
            open_trackers([name], tmp_path / "run", {}).__enter__()


LINE = {"kind": "round", "method": "fedavg", "client": None, "round": 0, "loss": 0.5}


def tensorboard_value(folder: Path) -> float:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "run"))
    events.Reload()
    (event,) = events.Scalars("fedavg/loss")
    assert event.step == 1
    return event.value


def mlflow_value(folder: Path) -> float:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(folder.as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("fedloom").experiment_id])
    assert run.info.status == "FINISHED" and run.data.params == {"seed": "0"}
    (metric,) = client.get_metric_history(run.info.run_id, "fedavg/loss")
    assert metric.step == 1
    return metric.value


def wandb_value(folder: Path) -> float:
    """Its file holds the key and the value as JSON, a few bytes apart."""
    (file,) = folder.rglob("*.wandb")
    found = re.search(rb"fedavg/loss.{1,4}?(0\.\d+)", file.read_bytes(), re.DOTALL)
    assert found is not None
    return float(found[1])


READ = {"tensorboard": tensorboard_value, "wandb": wandb_value, "mlflow": mlflow_value}


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_keeps_what_the_line_says(name: str, tmp_path: Path) -> None:
    """Read back with the library itself."""
    pytest.importorskip(TRACKERS[name].module)
    with open_trackers([name], tmp_path / "run", {"seed": 0}) as (follow,):
        follow(LINE)
        follow({"kind": "start"})
    assert READ[name](tmp_path / "tracking" / name) == 0.5
