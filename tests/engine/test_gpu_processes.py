"""Processes of GPUs give the updates and answers of one process, whichever of them dies; CPUs take the place of GPUs."""

from __future__ import annotations

import os
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from tests.clients import assigned, real_site, tune
from tests.engine.gpu_site import QUESTIONS, answering
from tests.engine.ray_site import CLIENTS
from tests.engine.test_ray_actors import NOBODY, asked, by_client, expected
from tests.engine.test_worker_processes import assert_same_bits, kept

from fedloom.client.client_memory import Files
from fedloom.client.site import Question
from fedloom.engine.gpu_processes import TRIES, GpuProcesses, SeveralGpus
from fedloom.engine.in_process import InProcess
from fedloom.system.errors import UserError
from fedloom.system.timing import Clock
from fedloom.wire.messages import Missing
from fedloom.wire.site_messages import SiteMessage

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "tests.engine.gpu_site"]
ENVIRONMENT = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}


def processes(count: int, command: list[str] = COMMAND, /, **head: object) -> GpuProcesses:
    return GpuProcesses(command, [ENVIRONMENT] * count, SiteMessage("begin", head))


def backend(
    model: Path, name: str, folder: Path, count: int = 1, rows: int = 1, killing: int = NOBODY, times: int = 0
) -> SeveralGpus:
    """Return a backend of this process and some others, whose clients keep what they keep in a folder."""
    folder.mkdir(exist_ok=True)
    site = answering(real_site(tune(model), name, memory=Files(folder), clients=CLIENTS))
    head = {"model": str(model), "name": name, "folder": str(folder), "killing": killing, "times": times}
    return SeveralGpus(InProcess(site, rows), processes(count, **head))


def opened(folder: Path) -> list[int]:
    """Return the processes that opened a site, each once."""
    return [int(one.name.removeprefix("opened-")) for one in folder.glob("opened-*")]


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_updates_memories_and_answers_are_those_of_one_process(tiny_model: Path, tmp_path: Path) -> None:
    """Two rounds of clients that keep control variates; each process opens its site, and so loads its model, once."""
    here = expected(tiny_model, "scaffold", tmp_path / "here", rounds=2)
    there = backend(tiny_model, "scaffold", tmp_path / "there", count=2)
    site = there.inner.site
    with closing(there.processes):
        for mine, one in zip(here, asked(site.tuned, "scaffold", 2), strict=True):
            assert_same_bits(by_client(list(there.train(one, Clock()))), mine)
        questions = [Question("scaffold", 0, site.tuned.start), Question("scaffold", 0, last(here[1]))]
        for some in (questions, questions[1:]):
            for one, other in zip(there.inner.answer(some), there.answer(some), strict=True):
                assert len(one.answers) == QUESTIONS
                assert one.answers == other.answers and one.replies == other.replies
                for left, right in zip(one.probabilities, other.probabilities, strict=True):
                    assert (left is None and right is None) or (left == right).all()
        with pytest.raises(
            UserError, match=r"GPU 1: .*no request 'else'"
        ):  # an error there that is not of one client
            there.processes.ask(0, SiteMessage("else")).result()
        pids = opened(tmp_path / "there")
        assert len(pids) == 2 and os.getpid() not in pids
    assert kept(tmp_path / "there") == kept(tmp_path / "here")
    assert kept(tmp_path / "here")
    assert not any(map(running, pids))


def last(updates: list) -> object:
    """Return parameters that differ from the start."""
    return updates[0].delta


def test_clients_side_by_side_have_the_bits_that_they_have_in_one_process(
    tiny_model: Path, tmp_path: Path
) -> None:
    (here,) = expected(tiny_model, "fedavg", tmp_path / "here", rows=2)
    there = backend(tiny_model, "fedavg", tmp_path / "there", rows=2)
    with closing(there.processes):
        found = list(there.train(assigned(there.inner.site.tuned, "fedavg", CLIENTS), Clock()))
    assert_same_bits(by_client(found), here)


FIRST = 5
"""The client that goes to another process first: this one takes client 2, and both have most examples."""


def test_clients_of_a_process_that_is_killed_are_trained_again(tiny_model: Path, tmp_path: Path) -> None:
    (here,) = expected(tiny_model, "scaffold", tmp_path / "here")
    there = backend(tiny_model, "scaffold", tmp_path / "there", killing=FIRST, times=1)
    with closing(there.processes):
        found = list(there.train(assigned(there.inner.site.tuned, "scaffold", CLIENTS), Clock()))
    assert_same_bits(by_client(found), here)
    assert kept(tmp_path / "there") == kept(tmp_path / "here")
    assert len([*(tmp_path / "there").glob("killed-*")]) == 1
    assert len(opened(tmp_path / "there")) == 2


@pytest.mark.slow
def test_a_client_that_kills_every_process_is_missing_and_no_other(tiny_model: Path, tmp_path: Path) -> None:
    (here,) = expected(tiny_model, "fedavg", tmp_path / "here")
    there = backend(tiny_model, "fedavg", tmp_path / "there", killing=FIRST, times=99)
    with closing(there.processes):
        found = by_client(list(there.train(assigned(there.inner.site.tuned, "fedavg", CLIENTS), Clock())))
    lost = found.pop(FIRST)
    assert isinstance(lost, Missing)
    assert f"{TRIES} processes died over it; the last one was killed (SIGKILL)" in lost.reason
    assert_same_bits(found, [one for one in here if one.client != FIRST])


DYING = [sys.executable, "-c", "import sys; print('no driver', file=sys.stderr); sys.exit(3)"]
MUTE = """
import sys, os
from fedloom.wire.site_messages import SiteMessage, receive_bytes, send_bytes
receive_bytes(sys.stdin.buffer)
send_bytes(sys.stdout.buffer, SiteMessage("joined").to_bytes())
receive_bytes(sys.stdin.buffer)
"""


@pytest.mark.parametrize(
    ("command", "head", "message"),
    [
        (COMMAND, {"reason": "the data are not there"}, "the process of GPU 1: the data are not there"),
        (DYING, {}, r"GPU 1: it ended by itself with exit code 3 \(no driver\) before it had opened"),
        (["/bin/false"], {}, "GPU 1: it ended by itself with exit code 1 before"),
    ],
    ids=["refuses", "dies with a line", "dies without one"],
)
def test_a_process_that_cannot_open_its_site_ends_the_run_with_the_reason(
    command: list[str], head: dict[str, str], message: str, tiny_model: Path, tmp_path: Path
) -> None:
    site = answering(real_site(tune(tiny_model), memory=Files(tmp_path)))
    with closing(processes(1, command, **head)) as others:
        there = SeveralGpus(InProcess(site), others)
        with pytest.raises(UserError, match=message):
            list(there.train(assigned(site.tuned), Clock()))
        with pytest.raises(UserError, match=message):
            there.answer([Question("fedavg", 0, site.tuned.start)])


def test_questions_over_which_processes_die_end_the_run(tiny_model: Path, tmp_path: Path) -> None:
    site = answering(real_site(tune(tiny_model), memory=Files(tmp_path)))
    with closing(processes(1, [sys.executable, "-c", MUTE])) as others:
        there = SeveralGpus(InProcess(site), others)
        with pytest.raises(UserError, match=r"fedavg: 3 processes died over it.*engine\.workers=1"):
            there.answer([Question("fedavg", 0, site.tuned.start)])


def test_processes_end_in_the_middle_of_a_request(tiny_model: Path, tmp_path: Path) -> None:
    """And none starts again, although its request is not answered."""
    waiting = "import time, sys; open(sys.argv[1], 'w').close(); time.sleep(600)"
    others = processes(1, [sys.executable, "-c", waiting, str(tmp_path / "begun")])
    reply = others.ask(0, SiteMessage("train"))
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    others.close()
    with pytest.raises(UserError):
        reply.result()
    with pytest.raises(RuntimeError):
        others.ask(0, SiteMessage("train"))


def test_what_another_process_cannot_keep_is_refused(tiny_model: Path) -> None:
    site = real_site(tune(tiny_model), "scaffold")
    with closing(processes(1)) as others, pytest.raises(ValueError, match="keep clients' memories in files"):
        list(SeveralGpus(InProcess(site), others).train([], Clock()))
