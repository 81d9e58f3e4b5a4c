"""Server and site in processes of their own: wherever either is killed, both go on to the same bytes.

A site that is killed is started again, and the server goes on from its last checkpoint; a server that is killed finds a site
that may have kept more than was ever accepted.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.clients import CLIENTS, LAYOUT, TRAIN, Plain, run_of, site_of
from tests.shares import share

from campaign.kills import kill_at, patched
from fedloom.algorithms.compose import make
from fedloom.client.client_memory import Files
from fedloom.engine.checkpoints import last_checkpoint, write_checkpoint
from fedloom.engine.remote_site import Remote, reply_to, serve
from fedloom.engine.rounds import run_rounds
from fedloom.params import Part
from fedloom.system.processes import can_fork
from fedloom.system.timing import Clock
from fedloom.tuning.strategy_parts import Parts
from fedloom.wire.messages import Answer, Assignment, Missing

pytestmark = pytest.mark.skipif(not can_fork(), reason="this system cannot copy a process")

METHODS = {"fedavg": "fedavg", "scaffold": "scaffold", "fedadam": "fedadam", "share-connector": "fedavg"}
"""Case → algorithm: without state, with client state, with server state, and with personal parts."""

OWN = Part(LAYOUT.size, ((6, 12),))
PERSONAL = Parts(OWN.complement, OWN.complement, OWN, Part.whole(LAYOUT.size))
Fault = Callable[[], Callable[[], None]]


@dataclass(frozen=True)
class Stopping(Remote):
    """A backend that ends the process when its site is gone, as a user would before starting both again."""

    def train(self, assignments: Iterable[Assignment], clock: Clock) -> Iterator[Answer]:
        for answer in super().train(assignments, clock):
            if isinstance(answer, Missing):
                os._exit(3)
            yield answer


def at_site(kind: str, folder: Path, requests: int, replies: int) -> None:
    algorithm = make(METHODS[kind], CLIENTS)
    parts = PERSONAL if kind == "share-connector" else None
    site = site_of(algorithm, TRAIN, Files(folder), parts)
    with os.fdopen(requests, "rb") as coming, os.fdopen(replies, "wb") as going:
        serve(partial(reply_to, Plain(site), LAYOUT), coming, going)


def at_server(kind: str, folder: Path, requests: int, replies: int) -> None:
    parts = PERSONAL if kind == "share-connector" else None
    fields: dict[str, Any] = {"down": lambda _: parts.down, "up": lambda _: parts.up} if parts else {}
    with os.fdopen(requests, "wb") as going, os.fdopen(replies, "rb") as coming:
        run = run_of(
            METHODS[kind],
            after_round=lambda now, log: write_checkpoint(folder, now),
            training_state=last_checkpoint(folder, LAYOUT),
            cohort=3,
            **fields,
        )
        run_rounds([run], Stopping(going, coming, LAYOUT))


def together(
    kind: str, folder: Path, site: Fault | None = None, server: Fault | None = None
) -> tuple[int, int]:
    """Run a site and a server, each in a process of its own; return how they ended."""
    to_site, to_server = os.pipe(), os.pipe()

    def process(work: Callable[..., None], place: str, fault: Fault | None, ends: tuple[int, int]) -> int:
        if pid := os.fork():
            return pid
        code = 1
        try:
            for end in {*to_site, *to_server} - set(ends):
                os.close(end)
            if fault is not None:
                patched(fault())
            work(kind, folder / place, *ends)
            code = 0
        finally:
            os._exit(code)

    for place in ("site", "server"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    pids = [
        process(at_site, "site", site, (to_site[0], to_server[1])),
        process(at_server, "server", server, (to_site[1], to_server[0])),
    ]
    for end in {*to_site, *to_server}:
        os.close(end)
    ends = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    return ends[0], ends[1]


def counting(write: int) -> Fault:
    def fault() -> Callable[[], None]:
        return lambda: os.write(write, b"x") and None

    return fault


def ended(kind: str, folder: Path) -> tuple[bytes, dict[str, bytes]]:
    """Return the bytes of the last checkpoint's tensors, and of the memories that it has accepted."""
    training_state = last_checkpoint(folder / "server", LAYOUT)
    assert training_state is not None
    assert training_state.state.round == TRAIN.rounds
    memory = Files(folder / "site")
    kept = {
        f"{client} {round}": memory.file((METHODS[kind], client, round)).read_bytes()
        for client, rounds in training_state.kept.items()
        for round in rounds
    }
    return (folder / "server" / f"round-{TRAIN.rounds:04}.safetensors").read_bytes(), kept


@pytest.mark.parametrize("points", share([4, 25], every=2))
@pytest.mark.parametrize("side", ["site", "server"])
@pytest.mark.parametrize("kind", METHODS)
def test_a_kill_at_any_point_on_either_side_changes_no_byte(
    kind: str, side: str, points: int, tmp_path: Path
) -> None:
    read, write = os.pipe()
    assert together(kind, tmp_path / "whole", **{side: counting(write)}) == (0, 0)
    os.close(write)
    with open(read, "rb") as pipe:
        calls = len(pipe.read())
    whole = ended(kind, tmp_path / "whole")
    assert bool(whole[1]) is (kind in ("scaffold", "share-connector"))
    if side == "site" and not whole[1]:
        assert calls == 0  # it writes no file, so it is killed between two requests instead
        faults = [dying(int(at)) for at in np.linspace(0, 8, points)]
    else:
        faults = [kill_at(int(at)) for at in np.linspace(1, calls, points)]
    killed = 0
    for number, fault in enumerate(faults):
        folder = tmp_path / str(number)
        ends = together(kind, folder, **{side: fault})
        killed += -signal.SIGKILL in ends
        assert together(kind, folder) == (0, 0)
        assert ended(kind, folder) == whole
    assert killed == points


def dying(requests: int) -> Fault:
    """Kill a site that writes no file, after some requests and before it replies to the next one."""

    def fault() -> Callable[[], None]:
        left, real = [requests], Plain.client

        def client(self: Plain, assignment: Assignment) -> Answer:
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return real(self, assignment)

        Plain.client = client  # type: ignore[method-assign]
        return lambda: None

    return fault
