"""Ray's actors give the updates of one process, whichever of them dies."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
import torch
from tests.clients import assigned, real_site, start_of, tune
from tests.engine.ray_site import CLIENTS, failing, opened
from tests.engine.test_worker_processes import assert_same_bits, kept

from fedloom.client.client_memory import Files
from fedloom.engine import ray_actors as module
from fedloom.engine.in_process import WINDOW, InProcess, blocks
from fedloom.engine.ray_actors import TRIES, Actors, RayActors
from fedloom.engine.ray_cluster import ActorRequest, connect, import_ray
from fedloom.experiment.experiment import Experiment
from fedloom.system.errors import UserError
from fedloom.system.timing import Clock
from fedloom.wire.messages import Answer, Assignment, Missing

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
NOBODY = -1


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with connect(ActorRequest(2)) as ray:
        yield ray


def backend(
    model: Path, name: str, folder: Path, rows: int = 1, killing: int = NOBODY, times: int = 0
) -> tuple[RayActors, Actors]:
    """Return a backend of two actors whose clients keep what they keep in a folder."""
    folder.mkdir(exist_ok=True)
    actors = Actors(ActorRequest(2), opened, (str(model), name, str(folder), killing, times))
    site = real_site(tune(model), name, memory=Files(folder), clients=CLIENTS)
    return RayActors(InProcess(site, rows), actors), actors


def by_client(answers: list[Answer]) -> list[Answer]:
    return sorted(answers, key=lambda one: one.client)


def expected(model: Path, name: str, folder: Path, rounds: int = 1, rows: int = 1) -> list[list[Answer]]:
    """Return the updates of one process."""
    folder.mkdir()
    site = real_site(tune(model), name, memory=Files(folder), clients=CLIENTS)
    return [list(InProcess(site, rows).train(one, Clock())) for one in asked(site.tuned, name, rounds)]


def asked(tuned: Any, name: str, rounds: int) -> list[list[Any]]:
    """Return the assignments of some rounds; each goes on from what clients kept of the one before."""
    found = [assigned(tuned, name, CLIENTS, round) for round in range(rounds)]
    return [[replace(one, since=round - 1) for one in some] for round, some in enumerate(found)]


@needs_ray
def test_actors_give_the_updates_of_one_process(cluster: Any, tiny_model: Path, tmp_path: Path) -> None:
    """Two rounds of clients that keep control variates, and what they keep."""
    here = expected(tiny_model, "scaffold", tmp_path / "here", rounds=2)
    there, actors = backend(tiny_model, "scaffold", tmp_path / "there")
    with closing(actors):
        for mine, one in zip(here, asked(there.inner.site.tuned, "scaffold", 2), strict=True):
            assert_same_bits(by_client(list(there.train(one, Clock()))), mine)
    assert kept(tmp_path / "there") == kept(tmp_path / "here")
    assert kept(tmp_path / "here")


@needs_ray
@pytest.mark.slow
def test_clients_side_by_side_have_the_bits_that_they_have_in_one_process(
    cluster: Any, tiny_model: Path, tmp_path: Path
) -> None:
    (here,) = expected(tiny_model, "fedavg", tmp_path / "here", rows=2)
    there, actors = backend(tiny_model, "fedavg", tmp_path / "there", rows=2)
    with closing(actors):
        found = list(there.train(assigned(there.inner.site.tuned, "fedavg", CLIENTS), Clock()))
    assert_same_bits(by_client(found), here)


@needs_ray
@pytest.mark.slow
def test_clients_of_an_actor_that_is_killed_are_trained_again(
    cluster: Any, tiny_model: Path, tmp_path: Path
) -> None:
    (here,) = expected(tiny_model, "scaffold", tmp_path / "here")
    there, actors = backend(tiny_model, "scaffold", tmp_path / "there", killing=3, times=1)
    with closing(actors):
        found = list(there.train(assigned(there.inner.site.tuned, "scaffold", CLIENTS), Clock()))
    assert len([*(tmp_path / "there").glob("killed-*")]) == 1
    assert_same_bits(by_client(found), here)
    assert kept(tmp_path / "there") == kept(tmp_path / "here")


@needs_ray
@pytest.mark.slow
def test_a_client_that_kills_every_actor_is_missing_and_no_other(
    cluster: Any, tiny_model: Path, tmp_path: Path
) -> None:
    (here,) = expected(tiny_model, "fedavg", tmp_path / "here")
    there, actors = backend(tiny_model, "fedavg", tmp_path / "there", killing=3, times=99)
    with closing(actors):
        found = by_client(list(there.train(assigned(there.inner.site.tuned, "fedavg", CLIENTS), Clock())))
    lost = found.pop(3)
    assert isinstance(lost, Missing)
    assert f"{TRIES} Ray actors died" in lost.reason
    assert_same_bits(found, [one for one in here if one.client != 3])


@needs_ray
def test_an_actor_that_cannot_open_its_site_ends_the_run_with_the_reason(
    cluster: Any, tiny_model: Path
) -> None:
    site = real_site(tune(tiny_model), memory=Files(Path("unused")))
    actors = Actors(ActorRequest(1), failing, ("the data are not there",))
    with closing(actors), pytest.raises(UserError, match=r"an actor on .*: the data are not there"):
        list(RayActors(InProcess(site), actors).train(assigned(site.tuned), Clock()))


@needs_ray
def test_a_cluster_without_room_for_an_actor_is_refused(cluster: Any) -> None:
    with (
        closing(Actors(ActorRequest(None, 1, 0.5), failing, ("",))) as actors,
        pytest.raises(UserError, match=r"needs 1 CPU, 0\.5 GPU, but the Ray cluster has 2 CPU, 0 GPU"),
    ):
        actors.start()


@needs_ray
def test_what_an_actor_cannot_keep_is_refused(tiny_model: Path) -> None:
    site = real_site(tune(tiny_model), "scaffold")
    with pytest.raises(ValueError, match="keep clients' memories in files"):
        list(RayActors(InProcess(site), Actors(ActorRequest(1), failing, ())).train([], Clock()))


# Without Ray ------------------------------------------------------------------------------------------


class Fake:
    """Stands in for Ray and for its actors: each call ends as the next of some ends says, after some seconds."""

    class exceptions:
        RayError = RuntimeError

    def __init__(self, ends: list[Any], seconds: float = 0.0) -> None:
        self.ends, self.seconds, self.calls, self.killed = iter(ends), seconds, list[list[int]](), 0
        self.train = self

    def remote(self, shared: Any, own: Any, rows: int, recompute: bool) -> Fake:
        self.calls.append([client for _, client, _, _ in own])
        return self

    def future(self) -> Future[Any]:
        found: Future[Any] = Future()
        end = next(self.ends)
        done = found.set_exception if isinstance(end, Exception) else found.set_result
        Timer(self.seconds, done, (end,)).start()
        return found

    def put(self, content: bytes) -> bytes:
        return content

    def kill(self, handle: Any) -> None:
        self.killed += 1


def faked(monkeypatch: pytest.MonkeyPatch, ray: Fake, **fields: Any) -> Actors:
    actors = Actors(ActorRequest(1), failing, (), **fields)
    monkeypatch.setattr(actors, "_ray", ray)
    monkeypatch.setattr(actors, "_actor", lambda: ray)
    actors.handles.append(ray)
    return actors


def sent(clients: int) -> Iterator[list[Assignment]]:
    return iter([[one] for one in (Assignment("m", 0, 0, k, start_of()) for k in range(clients))])


def test_a_piece_whose_actors_die_is_tried_again_and_then_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    dead, fine = RuntimeError("it was killed\nmore"), ("", [b"answer"])
    ray = Fake([dead, fine, dead, dead, dead, fine])
    found = list(faked(monkeypatch, ray).results(sent(3), 1, False))
    assert ray.calls == [[0], [0], [1], [1], [1], [2]]
    assert ray.killed == 4
    assert [answers for _, answers in found] == [
        [b"answer"], "3 Ray actors died over it, the last one so: it was killed", [b"answer"]
    ]  # fmt: skip


def test_a_mistake_at_an_actor_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no data"):
        list(faked(monkeypatch, Fake([("no data", [])])).results(sent(2), 1, False))


def test_a_long_wait_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(module, "QUIET_SECONDS", 0.0)
    ray = Fake([("", [])] * 3, seconds=0.05)
    list(faked(monkeypatch, ray, message=seen.append).results(sent(3), 1, False))
    assert seen == [module.STILL_WAITING]


def test_without_the_library_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'fedloom\[ray\]'"):
        import_ray()


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ('{"backend": "ray", "compile": true}', "actors do not compile"),
        ('{"address": "head:6379"}', "only ray has address"),
        ('{"backend": "workers", "gpus": 0.5}', "only ray has gpus"),
        ('{"backend": "workers", "workers": 1}', "needs at least 2"),
        ('{"backend": "in-process", "workers": 3}', "in-process, which has 1"),
        ('{"backend": "spark"}', "engine.backend"),
        ('{"backend": "ray", "gpus": -1}', "engine.gpus"),
    ],
)
def test_settings_that_a_backend_does_not_have_are_refused(engine: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Experiment.from_json(f'{{"engine": {engine}}}')


def test_where_clients_train_changes_no_digest() -> None:
    values = [{}, {"backend": "ray", "gpus": 0.5, "address": "head:6379"}, {"backend": "in-process"}]
    assert len({Experiment(engine=one).digest for one in values}) == 1


def test_blocks_of_clients_side_by_side_are_those_of_one_process(tiny_model: Path, tmp_path: Path) -> None:
    """And one after the other, those with most examples begin first."""
    there, _ = backend(tiny_model, "fedavg", tmp_path / "there")
    coming = assigned(there.inner.site.tuned, "fedavg", CLIENTS)
    alone = [[one.client for one in piece] for piece in there._pieces(coming, 2)]
    assert alone == [[2], [5], [1], [4], [0], [3]]
    beside = replace(there, inner=replace(there.inner, rows=2))._pieces([*coming, *coming], 2)
    windows = [[*coming, *coming][start : start + 2 * WINDOW] for start in (0, 2 * WINDOW)]
    jobs = [{k: there.inner.site.job(one) for k, one in enumerate(window)} for window in windows]
    assert [[one.client for one in piece] for piece in beside] == [
        [window[k].client for k in block]
        for window, own in zip(windows, jobs, strict=True)
        for block in blocks(own, 2)
    ]
    assert torch.get_num_threads() == 1
