"""What a run writes about its answers: complete, equal to its scores, and the same bytes each time."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest

from fedloom.runs.verify_files import verify
from fedloom.system.manifest import read_manifest
from fedloom.tasks.predictions import Prediction, read_predictions

from .conftest import ANSWERING


@pytest.fixture(scope="module")
def by_model(answered: Path) -> dict[tuple[str, int | None, str], list[Prediction]]:
    models = defaultdict[tuple[str, int | None, str], list[Prediction]](list)
    for row in read_predictions(answered / "predictions.jsonl"):
        models[row.method, row.client, row.slice].append(row)
    return models


def test_every_model_answers_every_test_example_in_order(
    by_model: dict[tuple[str, int | None, str], list[Prediction]],
) -> None:
    clients = {"local": [0, 1, 2], "fedavg+ditto": [0, 1, 2, None]}  # Ditto has a shared model, too
    wanted = [
        (method, client, part)
        for method in ANSWERING
        for client in clients.get(method, [None])
        for part in ("both", "image", "text")
    ]
    assert list(by_model) == wanted
    (ids,) = {tuple(row.example for row in rows) for rows in by_model.values()}
    assert len(ids) == len(set(ids)) > 20


def test_scores_are_the_means_of_predictions(
    answered: Path, by_model: dict[tuple[str, int | None, str], list[Prediction]]
) -> None:
    scores = json.loads((answered / "result.json").read_text())["scores"]
    for method in ("zero-shot", "linear", "fedavg"):
        for part, values in scores[method]["slices"].items():
            rows = by_model[method, None, part]
            assert sum(row.correct for row in rows) / len(rows) == pytest.approx(values["accuracy"])
            assert all(row.answer == row.options[row.label] for row in rows if row.label is not None)
            assert all(sum(row.scores or ()) == pytest.approx(1, abs=1e-4) for row in rows)
    for method in ("local", "fedavg+ditto"):
        each = [[row.correct for row in by_model[method, client, "both"]] for client in range(3)]
        means = [sum(rights) / len(rights) for rights in each]
        assert (max(means), min(means)) == pytest.approx((scores[method]["best"], scores[method]["worst"]))


def test_the_file_is_in_the_manifest_and_nothing_else_is_left(answered: Path) -> None:
    manifest = read_manifest(answered)
    assert manifest is not None and "predictions.jsonl" in manifest.files
    assert not list(answered.glob("methods/*/predictions"))
    file = answered / "predictions.jsonl"
    content = file.read_bytes()
    file.write_bytes(content.replace(b"true", b"null", 1))
    assert any("predictions.jsonl" in fault for fault in verify(answered)[1])
    file.write_bytes(content)
    assert verify(answered)[1] == []
