"""Following a run: functions that are called with its log, trackers, and the state that `watch` and `live` show."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import time
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.test_runs import experiment, watched
from tests.local_pages import request, serving
from typer.testing import CliRunner

import fedloom
from fedloom.cli.run_commands import app
from fedloom.run_log import RunLog
from fedloom.runs.follow import progress_of, status_lines
from fedloom.runs.followers import (
    TRACKERS,
    Tracker,
    figures_of,
    follow_with,
    open_trackers,
    tracked_settings,
)
from fedloom.runs.run_lock import open_run_folder
from fedloom.runs.single_run import run_experiment
from fedloom.system.errors import UserError
from fedloom.system.json_files import read_json
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
    value = watched(tiny_model, methods=["zero-shot", "linear", "fedavg", "local"], train={"rounds": 2})

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
        "local, evaluation",  # clients' own models have a stage of their own
    ):
        assert re.search(rf"^{stage}: begins, [1-9]\d* step", printed, re.MULTILINE), stage
        assert re.search(rf"^{stage}: done", printed, re.MULTILINE), stage


def test_the_state_of_a_run_is_that_of_its_log(followed: Any) -> None:
    folder, lines, _ = followed
    state = progress_of(folder)
    rounds = [line for line in lines if line["kind"] == "round" and line["method"] == "fedavg"]
    assert state["finished"] and state["rounds"] == 2
    assert state["methods"]["fedavg"]["loss"] == [[line["round"] + 1, line["loss"]] for line in rounds]
    assert state["methods"]["fedavg"]["up"] == sum(line["bytes_up"] for line in rounds)
    text = "\n".join(status_lines(state))
    assert "run e2e: finished" in text and "fedavg: round 2 of 2, loss" in text


def test_every_method_of_a_finished_run_has_its_score_in_the_log(followed: Any) -> None:
    folder, lines, _ = followed
    state, result = progress_of(folder), read_json(folder / "result.json")
    assert "waiting" not in "\n".join(status_lines(state))
    assert state["methods"].keys() == result["scores"].keys()
    for name, scores in result["scores"].items():
        ends = [line for line in lines if line["kind"] == "evaluation" and line["method"] == name]
        shown = state["methods"][name]["scores"][-1][1]
        if name != "local":  # whose scores are means over clients
            last = {line["slice"]: line["scores"]["accuracy"] for line in ends}
            assert last == {part: own["accuracy"] for part, own in scores["slices"].items()}
            assert shown == next(iter(last.values()))


def test_a_line_that_is_still_being_written_is_not_read(followed: Any, tmp_path: Path) -> None:
    folder, lines, _ = followed
    content = (folder / "record.jsonl").read_bytes()
    ends = [match.end() for match in re.finditer(rb"\n", content)]
    (tmp_path / "experiment.json").write_bytes((folder / "experiment.json").read_bytes())
    for whole, end in enumerate(ends):
        begin = ends[whole - 1] if whole else 0
        (tmp_path / "record.jsonl").write_bytes(content[: (begin + end) // 2])
        state = progress_of(tmp_path)
        done = [
            line["round"] + 1
            for line in lines[:whole]
            if line.get("method") == "fedavg" and line["kind"] == "round"
        ]
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
    with serving(*live_server(0, lambda: progress_of(followed[0]))) as served:
        yield served


def test_the_page_follows_the_run(followed: Any, served: tuple[str, str]) -> None:
    place, token = served
    assert place.startswith("127.0.0.1:")
    code, headers, page = request(place, f"/?{token}")
    assert code == 200
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy
    nonce = re.search(r"script-src 'nonce-([^']+)'", policy)
    assert nonce is not None and f'<script nonce="{nonce[1]}">'.encode() in page
    outside = set(re.findall(rb"https?://[^\"'\s]+", page))
    assert outside == {b"http://www.w3.org/2000/svg"}, "a name, which is not requested"
    code, _, state = request(place, f"/state?{token}")
    assert code == 200 and json.loads(state) == json.loads(json.dumps(progress_of(followed[0])))


@pytest.mark.parametrize("path", ["/", "/state", "/?token=", "/state?token=wrong", "/?token=%C3%A9"])
def test_without_the_token_there_is_nothing(served: tuple[str, str], path: str) -> None:
    code, _, body = request(served[0], path)
    assert code == 403 and b"fedavg" not in body


def test_other_hosts_methods_and_paths_are_refused(served: tuple[str, str]) -> None:
    place, token = served
    assert request(place, f"/state?{token}", Host="evil.example")[0] == 403
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert request(place, f"/state?{token}", method)[0] == 501, method
    assert request(place, f"/../record.jsonl?{token}")[0] == 404
    assert request(place, f"/?{token}", "HEAD")[2] == b""


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
    with pytest.raises(UserError, match="Allowed: tensorboard, wandb, mlflow"):
        open_trackers(["tensorbord"], tmp_path / "run", {}).__enter__()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in TRACKERS:
        with pytest.raises(UserError, match=rf"install fedloom\[{name}\]"):
            open_trackers([name], tmp_path / "run", {}).__enter__()


LINE = {"kind": "round", "method": "fedavg", "client": None, "round": 0, "loss": 0.5}
Kept = tuple[dict[tuple[str, int], float], dict[str, str], bool | None]
"""(name and step → value, settings, whether the run came to its end, or None where that is not kept)."""


def kept_by_tensorboard(folder: Path) -> Kept:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "run"))
    events.Reload()
    figures = {
        (name, event.step): event.value for name in events.Tags()["scalars"] for event in events.Scalars(name)
    }
    (text,) = events.Tensors("settings/text_summary")
    lines = text.tensor_proto.string_val[0].decode().splitlines()
    return figures, dict(line.strip().split(": ", 1) for line in lines), None


def kept_by_mlflow(folder: Path) -> Kept:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(folder.as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("fedloom").experiment_id])
    figures = {
        (name, metric.step): metric.value
        for name in run.data.metrics
        for metric in client.get_metric_history(run.info.run_id, name)
    }
    return figures, run.data.params, run.info.status == "FINISHED"


def records_of(file: Path) -> Iterator[bytes]:
    """Yield the records of a file of Weights & Biases: pieces with heads of 7 bytes, in blocks of 32,768 bytes."""
    content, place, record = file.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            yield record
            record = b""


def kept_by_wandb(folder: Path) -> Kept:
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.rglob("*.wandb")
    records = list[Any]()
    # Its process still writes when the run has ended.
    for _ in range(6000):
        records = [Record.FromString(content) for content in records_of(file)]
        if records and records[-1].HasField("exit"):
            break
        time.sleep(0.1)
    figures, settings, code = {}, {}, None
    for record in records:
        assert record.run.host in ("", "localhost")
        for one in (*record.run.config.update, *record.config.update):
            if one.key != "_wandb":
                settings[one.key] = json.loads(one.value_json)
        row = {
            "/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item
        }
        figures |= {(name, row["round"]): row[name] for name in row if "/" in name}
        code = record.exit.exit_code if record.HasField("exit") else code
    assert code is not None
    return figures, settings, code == 0


KEPT_BY = {"tensorboard": kept_by_tensorboard, "wandb": kept_by_wandb, "mlflow": kept_by_mlflow}


def or_skip(name: str) -> None:
    if importlib.util.find_spec(TRACKERS[name].module) is None:
        pytest.skip(f"{TRACKERS[name].title} is not installed; `pip install 'fedloom[{name}]'`")


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_keeps_what_the_line_says(name: str, tmp_path: Path) -> None:
    """Read back with the library itself."""
    or_skip(name)
    with open_trackers([name], tmp_path / "run", {"seed": "0"}) as (follow,):
        follow(LINE)
        follow({"kind": "start"})
    figures, settings, ended = KEPT_BY[name](tmp_path / "tracking" / name)
    assert figures == {("fedavg/loss", 1): 0.5}
    assert settings == {"seed": "0"}
    assert ended in (True, None)


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_keeps_that_a_run_failed(name: str, tmp_path: Path) -> None:
    or_skip(name)
    with pytest.raises(KeyboardInterrupt), open_trackers([name], tmp_path / "run", {}) as (follow,):
        follow(LINE)
        raise KeyboardInterrupt
    figures, _, ended = KEPT_BY[name](tmp_path / "tracking" / name)
    assert figures == {("fedavg/loss", 1): 0.5} and ended in (False, None)


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_keeps_the_figures_of_a_whole_run(name: str, tiny_model: Path, tmp_path: Path) -> None:
    """What the library reads back is the losses and scores of the finished run, and nothing names a place of this machine."""
    or_skip(name)
    value = watched(tiny_model, train={"rounds": 2})
    run = fedloom.run(value, tmp_path / "run", quiet=True, track=[name])
    figures, settings, ended = KEPT_BY[name](tmp_path / "tracking" / name)
    for row in run.rounds:
        assert figures["fedavg/loss", row.round + 1] == pytest.approx(row.loss)
        assert figures["fedavg/bytes_up", row.round + 1] == row.bytes_up
    for method, rounds in (("zero-shot", 0), ("fedavg", 2)):
        assert figures[f"{method}/test/both/accuracy", rounds] == pytest.approx(
            run["scores"][method]["accuracy"]
        )
    assert settings["train.rounds"] == "2" and settings["data.name"] == "emoji"
    assert not any(str(tmp_path.parent) in one for one in (*settings.values(), *map(str, figures)))
    assert ended in (True, None)
    before = sorted(tmp_path.rglob("*"))
    fedloom.run(value, tmp_path / "run", quiet=True, track=[name])
    assert sorted(tmp_path.rglob("*")) == before, "nothing is kept of a finished run that is only read"


def test_trackers_are_closed_though_one_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []

    def opens(name: str) -> Tracker:
        def close(ended: bool) -> None:
            closed.append(f"{name} {ended}")
            raise OSError(name)

        return Tracker(name, "json", lambda *_: (lambda figures, step: None, close))

    monkeypatch.setattr("fedloom.runs.followers.TRACKERS", {name: opens(name) for name in "ab"})
    with pytest.raises(OSError, match="a"), open_trackers(["a", "b"], tmp_path / "run", {}):
        pass
    assert closed == ["b True", "a True"]


def test_settings_of_trackers_have_dotted_keys_and_no_places(tiny_model: Path) -> None:
    settings = tracked_settings(experiment(tiny_model, seed=3))
    assert settings["seed"] == "3" and settings["train.batch_size"] == "4"
    assert settings["methods"] == "scaffold, fedadam+prompt+adaptive"
    assert settings["algorithms.adaptive.skip"] == "1"
    assert str(tiny_model) not in "".join(settings.values())


def test_a_grid_is_not_tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown = CliRunner().invoke(app, ["run", "smoke", "--set", "grid.seed=[0, 1]", "--track", "mlflow"])
    assert shown.exit_code == 2 and "metrics are logged of single runs" in shown.output


def _round(number: int, **values: Any) -> dict[str, Any]:
    both = [{"client": 0}, {"client": 1}]
    return {"kind": "round", "method": "fedavg", "client": None, "round": number, "clients": both} | values


def _record(folder: Path, *lines: Any) -> Path:
    (folder / "experiment.json").write_text('{"train": {"rounds": 2}, "methods": ["fedavg"]}')
    (folder / "record.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_clients_that_train_alone_send_nothing_and_are_averaged(tmp_path: Path) -> None:
    """As in a report; a federated method with the same lines has sent them."""
    lines = list[dict[str, Any]]()
    for method in ("local", "fedavg"):
        for client, loss, score in ((0, 1.0, 0.25), (1, 3.0, 0.75)):
            place = {"method": method, "client": client, "round": 0}
            sent = {"bytes_up": 10, "bytes_down": 20, "seconds": 1.0, "clients": [{"client": client}]}
            lines.append({"kind": "round", **place, "loss": loss, **sent})
            for part, value in (("both", score), ("image", 0.0)):
                lines.append(
                    {"kind": "evaluation", **place, "round": 1, "slice": part, "scores": {"accuracy": value}}
                )
    (tmp_path / "record.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    methods = progress_of(tmp_path)["methods"]
    assert methods["local"]["loss"] == [[1, 2.0]] and methods["local"]["scores"] == [[1, 0.5]]
    assert (methods["local"]["up"], methods["local"]["down"]) == (0, 0)
    assert (methods["fedavg"]["up"], methods["fedavg"]["down"]) == (20, 40)


def test_a_round_that_is_run_again_counts_once(tmp_path: Path) -> None:
    lost = _round(0, clients=[{"client": 0}], missing=[{"client": 1, "reason": "no answer"}])
    state = progress_of(_record(tmp_path, lost, lost, _round(1, seconds=4)))
    method = state["methods"]["fedavg"]
    assert (method["missing"], method["round_seconds"], len(state["notes"])) == (1, 2, 1)
    assert method["clients"] == [
        {"client": 0, "rounds": 2, "missing": 0, "refused": 0},
        {"client": 1, "rounds": 1, "missing": 1, "refused": 0},
    ]


def test_rounds_of_a_later_stage_are_not_more_than_all(tmp_path: Path) -> None:
    state = progress_of(_record(tmp_path, *(_round(number) for number in range(3))))
    assert "fedavg: round 3 of 3" in "\n".join(status_lines(state))


@pytest.mark.parametrize(
    "line", [_round(0, round="x"), _round(0, clients=[3]), _round(0, missing=7), {"kind": "evaluation"}]
)
def test_a_line_of_another_form_is_named(tmp_path: Path, line: dict[str, Any]) -> None:
    line = {"method": "fedavg", **line}
    with pytest.raises(UserError, match=r"record.jsonl, line 1, is not as it was written"):
        progress_of(_record(tmp_path, line))


@pytest.mark.parametrize(
    ("log", "line"),
    [
        *product(["record.jsonl", "left-this-site.jsonl"], ["no JSON", "[1]", "[" * 100_000]),
        ("left-this-site.jsonl", '{"bytes": "many"}'),
        ("left-this-site.jsonl", '{"bytes": 1e999}'),
    ],
)
def test_a_line_that_is_no_line_of_a_log_is_named(log: str, line: str, tmp_path: Path) -> None:
    (tmp_path / log).write_text(f'{{"kind": "start", "bytes": 1}}\n{line}\n{{"kind": "rou')
    result = CliRunner().invoke(app, ["watch", str(tmp_path), "--once"])
    assert result.exit_code == 2 and f"{tmp_path / log}, line 2" in result.stderr
