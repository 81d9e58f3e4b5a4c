"""Kill each side of a real federation at work: the same commands go on, and the bytes stay those of one process."""

from __future__ import annotations

import importlib.util
import os
import signal
from pathlib import Path

import pytest
from tests.federated import FederatedRun, flower_process, require_equal, undisturbed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("flwr") is None,
        reason="Flower is not installed; `pip install 'fedloom[flower]'`",
    ),
    pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="processes are looked up in /proc"),
]

ROUNDS = 6


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return undisturbed(tmp_path_factory.mktemp("kills"), tiny_model, ROUNDS)


def test_a_killed_site_comes_back(tmp_path: Path, experiment: Path) -> None:
    with FederatedRun(tmp_path, experiment, {"north": "0", "south": "1"}) as run:
        run.after_round(2)
        run.kill("south", signal.SIGKILL)
        run.start_site("south")
        assert run.wait() == [0, 0, 0], run.told()
        require_equal(run, experiment)


def test_a_killed_superlink_is_started_again(tmp_path: Path, experiment: Path) -> None:
    with FederatedRun(tmp_path, experiment, {"north": "0", "south": "1"}) as run:
        run.after_round(2)
        os.kill(flower_process(run, "server", "flower-superlink"), signal.SIGKILL)
        assert run.wait() == [0, 0, 0], run.told()
        require_equal(run, experiment)
        assert "it is started again" in run.told("server")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_goes_on_by_the_same_command(tmp_path: Path, experiment: Path, how: signal.Signals) -> None:
    with FederatedRun(tmp_path, experiment, {"north": "0", "south": "1"}) as run:
        run.after_round(2)
        assert run.kill("server", how) == (-9 if how == signal.SIGKILL else 143)
        assert how == signal.SIGKILL or "the same command continues" in run.told("server")
        run.start_server()
        assert run.wait() == [0, 0, 0], run.told()
        require_equal(run, experiment)
        assert run.told("north").count("the model is loaded") == 1, "a site that stayed loads nothing again"


def test_sigterm_ends_a_site_cleanly(tmp_path: Path, experiment: Path) -> None:
    with FederatedRun(tmp_path, experiment, {"north": "0", "south": "1"}) as run:
        run.after_round(1)
        assert run.kill("north", signal.SIGTERM) == 143
        assert "the same command takes part again" in run.told("north")
        run.start_site("north")
        assert run.wait() == [0, 0, 0], run.told()
        require_equal(run, experiment)
