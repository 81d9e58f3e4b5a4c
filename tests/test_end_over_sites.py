"""The end of a run over sites: they are needed until it is finished, and each learns that it is."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from tests.federated import federation_of, run_in_one_process
from tests.test_models_at_sites import experiment_of, sites_in

from fedloom.engine.federation import Federation
from fedloom.engine.flower_processes import Security
from fedloom.engine.participation import WaitingTerms
from fedloom.runs import server_run
from fedloom.runs.run_folder import FLOWER, folder_state
from fedloom.runs.server_run import ListenAddress, over_sites, serve_experiment
from fedloom.runs.site_run import resident_site
from fedloom.system.progress import Progress

ADDRESS = ListenAddress("127.0.0.1", 1, Security())


def test_sites_are_told_of_the_end_when_nothing_is_left_to_do(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, out = experiment_of(tiny_model, tmp_path / "nowhere", ("fedavg",)), tmp_path / "there"
    states = list[str]()
    over = over_sites(experiment, 3, "sites")
    monkeypatch.setattr(Federation, "leave", lambda self: states.append(folder_state(out, over)))
    run_in_one_process(experiment, sites_in(tmp_path), out, "sites")
    assert states == ["finished"]


@pytest.mark.parametrize("gone", [0, 1, 3])
def test_a_server_that_was_killed_before_it_told_its_sites_tells_those_that_come(
    gone: int, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, out = experiment_of(tiny_model, tmp_path / "nowhere", ("fedavg",)), tmp_path / "there"
    (out / FLOWER).mkdir(parents=True)
    sites = sites_in(tmp_path)
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(Federation, "leave", Mock(side_effect=KeyboardInterrupt))
        run_in_one_process(experiment, sites, out, "sites")
    monkeypatch.setattr(server_run, "require_flower", lambda: None)

    told, opened = list[str](), []

    @contextmanager
    def open_federation(
        experiment: Any, folder: Path, address: Any, terms: Any, note: Any, *_: Any, **__: Any
    ):
        opened.append(terms)
        there = {number: resident_site(one, told.append) for number, one in enumerate(sites[gone:], 1)}
        yield federation_of(experiment, there, note)

    monkeypatch.setattr(server_run, "open_federation", open_federation)
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    results = [
        serve_experiment(experiment, out, Progress(None), ADDRESS, WaitingTerms(), 3, "sites")
        for _ in range(2)
    ]
    assert results[0] == results[1]
    assert told.count("the run is over") == 3 - gone
    assert len(opened) == 1
    assert {file: file.read_bytes() for file in before} == before
