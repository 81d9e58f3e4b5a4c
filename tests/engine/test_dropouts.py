"""Three in ten clients drop out of every round, messages are cut at a size, and clocks jump: the run goes on as it should."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from tests.clients import CLIENTS, LAYOUT, TRAIN, Plain, profiles, run_of, same
from tests.engine.test_federation import assignments, backend_of, ended, federation, two_sites

from fedloom.engine import site_transport
from fedloom.engine.federation import Federation
from fedloom.engine.participation import WaitingTerms
from fedloom.engine.rounds import TrainingState, run_rounds
from fedloom.engine.site_transport import site_requests
from fedloom.seeds import stream
from fedloom.system.timing import Clock
from fedloom.wire.messages import Answer, Assignment, Missing
from fedloom.wire.site_messages import SiteMessage

ROUNDS = 50
SHARE = 0.3


@dataclass(frozen=True)
class DroppingOut(Plain):
    """A backend of which a share of the clients is silent in each round, drawn by round and client."""

    drop: int = 0

    def train(self, assignments: Iterable[Assignment], clock: Clock) -> Iterator[Answer]:
        wanted = list(assignments)
        for one, answer in zip(wanted, super().train(wanted, clock), strict=True):
            away = stream(self.drop, "drop", round=one.round, client=one.client).random() < SHARE
            yield Missing(one.client, "away") if away else answer


def run(drop: int) -> tuple[TrainingState, list[dict[str, Any]]]:
    """Train with dropouts; return the end and the figures of the rounds."""
    logs = list[dict[str, Any]]()
    train = TRAIN.model_copy(update={"rounds": ROUNDS})
    training = run_of("scaffold", train=train, after_round=lambda now, log: logs.append(log))
    backend = backend_of("scaffold")
    return run_rounds([training], DroppingOut(backend.site, drop))[0], logs


def test_a_run_of_which_three_in_ten_clients_drop_out_is_whole_and_repeatable() -> None:
    (one, logs), (again, _), (other, _) = run(1), run(1), run(2)
    assert same(one, again)
    assert not same(one, other)
    assert [log["round"] for log in logs] == list(range(ROUNDS))
    dropped = 0
    for log in logs:
        answered = {client["client"] for client in log["clients"]}
        missing = {client["client"] for client in log["missing"]}
        assert answered | missing == set(range(CLIENTS))
        assert not answered & missing
        dropped += len(missing)
    # 250 draws of 0.3: fewer than 40 or more than 110 has a probability below 1e-6.
    assert 40 <= dropped <= 110


@pytest.mark.parametrize("most", [1, 300, 700, 10**9])
def test_messages_beyond_a_size_are_cut_between_clients(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many messages there are, each client is in one, in its order, and the bytes are those of one process."""
    monkeypatch.setattr(site_transport, "MESSAGE_BYTES", most)
    holder = {client: "north" if client % 2 == 0 else "south" for client in range(CLIENTS)}
    found, _ = site_requests("train", {}, assignments(), holder)
    assert sorted(client for one in found for client in one.clients) == list(range(CLIENTS))
    for one in found:
        parts = SiteMessage.from_bytes(one.content).parts
        assert len(parts) == len(one.clients)
        assert len(parts) == 1 or sum(map(len, parts)) <= most
        read = [Assignment.from_bytes(part, LAYOUT).client for part in parts]
        assert tuple(read) == one.clients
    mail = two_sites("scaffold")
    there, _ = federation(mail)
    there.enroll()
    assert same(ended(there, "scaffold"), ended(backend_of("scaffold"), "scaffold"))


def test_jumps_of_the_clock_end_no_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of day goes a day back and two days ahead, in turns; deadlines do not depend on it."""
    jumps = itertools.accumulate(itertools.cycle([-86400.0, 172800.0]), initial=time.time())
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    mail = two_sites()
    there = Federation(
        mail, SiteMessage("begin"), CLIENTS, WaitingTerms(join=3600, deadline=3600),
        lambda kind, figures: None, pause=mail.pause,
    )  # fmt: skip
    there.attach(backend_of(), LAYOUT)
    there.enroll()
    assert there.describe("fedavg") == profiles()
    assert same(ended(there), ended(backend_of()))
