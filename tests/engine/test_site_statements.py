"""A site that states nonsense is refused with a reason, and the others go on."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.clients import LAYOUT, profiles, run_of, start_of
from tests.engine.test_federation import HELD, assignments, backend_of, federation, own_site, resident
from tests.engine.test_federation import Mail as Mails
from tests.hostile.updates import BAD, Corrupt

from fedloom.client.site import Question
from fedloom.config.schema import Limits
from fedloom.engine.participation import WaitingTerms
from fedloom.engine.rounds import run_rounds
from fedloom.engine.site_statements import read_scores
from fedloom.system.errors import UserError
from fedloom.system.timing import Clock
from fedloom.wire.messages import Missing, Update, answer_from_bytes
from fedloom.wire.site_messages import LENGTH, MAGIC, START, SiteMessage

GOOD = {
    "site": "south",
    "clients": [1, 3],
    "profiles": {"fedavg": [list(profiles()[one]) for one in HELD["south"]]},
    "counts": {"both": 1, "image": 0, "text": 2},
}
HUGE = 10**400

WRONG: dict[str, Mapping[str, Any]] = {
    "no name": {"site": None},
    "an empty name": {"site": ""},
    "clients that are no list": {"clients": 3},
    "clients that are texts": {"clients": ["1", "3"]},
    "a client twice": {"clients": [1, 1]},
    "a negative client": {"clients": [-1, 3]},
    "a client that is true": {"clients": [True, 3]},
    "no profiles": {"profiles": None},
    "no profiles of the method": {"profiles": {}},
    "too few profiles": {"profiles": {"fedavg": [[1, True, True]]}},
    "profiles of two values": {"profiles": {"fedavg": [[1, True], [1, True]]}},
    "no example": {"profiles": {"fedavg": [[0, True, True], [1, True, True]]}},
    "more examples than there can be": {"profiles": {"fedavg": [[HUGE, True, True], [1, True, True]]}},
    "half an example": {"profiles": {"fedavg": [[0.5, True, True], [1, True, True]]}},
}
WRONG_COUNTS: dict[str, Any] = {
    "no counts": None,
    "negative counts": {"both": -1, "image": 0, "text": 2},
    "counts of other kinds": {"both": 1, "audio": 0, "text": 2},
    "no example at all": {"both": 0, "image": 0, "text": 0},
    "counts that fill the memory": {"both": 10**12, "image": 0, "text": 0},
    "counts that are texts": {"both": "1", "image": 0, "text": 0},
}


def stating(head: Mapping[str, Any], kind: str = "joined") -> bytes:
    return SiteMessage(kind, head).to_bytes()


def liar(mail: Mails, head: Mapping[str, Any]) -> None:
    """Add a site that joins with a head."""
    site = resident("south", backend_of())
    site.answer = lambda content: stating(head)  # type: ignore[method-assign]
    mail.nodes_there[13] = site


@pytest.mark.parametrize("wrong", WRONG)
def test_a_site_that_states_nonsense_is_refused_and_another_takes_its_place(wrong: str) -> None:
    mail = Mails({11: resident("north", backend_of())})
    liar(mail, {**GOOD, **WRONG[wrong]})
    there, noted = federation(mail, WaitingTerms(join=10), methods=("fedavg",))
    with pytest.raises(UserError, match="no site that holds client 1"):
        there.enroll()
    (refused,) = [what for kind, what in noted if kind == "site refused"]
    assert "what it states cannot be used: " in refused["reason"]
    mail.nodes_there[12] = resident("south", backend_of())
    there.enroll()
    assert not any(isinstance(one, Missing) for one in there.train(assignments(), Clock()))


@pytest.mark.parametrize("wrong", WRONG_COUNTS)
def test_a_site_with_data_of_its_own_must_state_how_many(wrong: str) -> None:
    mail = Mails({11: own_site("a", 2)})
    liar(
        mail,
        {**GOOD, "clients": [], "profiles": {"fedavg": [[3, True, True]]}, "counts": WRONG_COUNTS[wrong]},
    )
    there, noted = federation(mail, WaitingTerms(join=10), own_data=True, methods=("fedavg",))
    with pytest.raises(UserError, match="fewer than 5 sites"):
        there.enroll()
    (refused,) = [what for kind, what in noted if kind == "site refused"]
    assert refused == {
        "site": "south",
        "reason": "what it states cannot be used: its numbers of examples are malformed",
    }


WRONG_SCORES: dict[str, Mapping[str, Any]] = {
    "nothing": {},
    "no number of examples": {"scores": {"accuracy": 1.0, "tasks": {}}},
    "negative examples": {"examples": -4, "scores": {"tasks": {}}},
    "scores in a list": {"examples": 4, "scores": [1.0]},
    "a score that is a text": {"examples": 4, "scores": {"accuracy": "1"}},
    "a score that is infinite": {"examples": 4, "scores": {"accuracy": float("inf")}},
    "a score that is not a number": {"examples": 4, "scores": {"accuracy": float("nan")}},
    "a score without end": {"examples": 4, "scores": {"accuracy": HUGE}},
    "tasks in a list": {"examples": 4, "scores": {"tasks": []}},
    "an unknown task": {"examples": 4, "scores": {"tasks": {"divination": {"accuracy": 1.0}}}},
    "a task without scores": {"examples": 4, "scores": {"tasks": {"choice": 1.0}}},
    "two tasks without counts": {"examples": 4, "scores": {"tasks": {"choice": {}, "vqa": {}}}},
    "counts of other tasks": {"examples": 4, "counts": {"vqa": 4}, "scores": {"tasks": {"choice": {}}}},
    "counts of more examples": {"examples": 4, "counts": {"choice": 5}, "scores": {"tasks": {"choice": {}}}},
    "counts below nothing": {
        "examples": 4,
        "counts": {"choice": 5, "vqa": -1},
        "scores": {"tasks": {"choice": {}, "vqa": {}}},
    },
}


@pytest.mark.parametrize("wrong", WRONG_SCORES)
def test_scores_that_are_nonsense_are_those_of_no_site(wrong: str) -> None:
    mail = Mails({11: resident("north", backend_of()), 12: resident("south", backend_of())})
    there, _ = federation(mail, methods=("fedavg",))
    there.enroll()
    good = {"examples": 4, "scores": {"accuracy": 0.5, "f1": None, "tasks": {"choice": {"accuracy": 0.5}}}}
    for node, head in ((11, good), (12, WRONG_SCORES[wrong])):
        answer = stating({"site": "x", **head}, "answered")
        mail.nodes_there[node].answer = lambda content, answer=answer: answer  # type: ignore[method-assign]
    found = there.evaluate({None: Question("fedavg", 0, start_of())})
    assert found["north"] == good == read_scores(good)
    assert "what it states cannot be used: " in found["south"]["reason"]


@pytest.mark.parametrize(
    "judged", [None, [], [3], [[[], [], [], "text"]] * 2, [["no", 3, None, "text"]]], ids=str
)
def test_answers_about_models_that_are_nonsense_end_the_run_with_the_name_of_the_site(judged: Any) -> None:
    mail = Mails({11: resident("north", backend_of()), 12: resident("south", backend_of())})
    there, _ = federation(mail)
    there.enroll()
    mail.nodes_there[12].answer = lambda content: stating({"judged": judged}, "answered")  # type: ignore[method-assign]
    with pytest.raises(
        UserError, match="site south did not answer about its clients' models: what it states"
    ):
        there.answer([Question("fedavg", 0, start_of(), client=1)])


@pytest.mark.parametrize("said", BAD)
def test_bad_updates_of_a_site_leave_the_round_as_if_it_had_not_come(said: str) -> None:
    """Admission stands in front of sites, too: the state is that of a run without the client."""

    def end(corrupt: Corrupt | None) -> Any:
        mail = Mails({11: resident("north", backend_of()), 12: resident("south", backend_of())})
        there, _ = federation(mail, WaitingTerms(deadline=5))
        there.enroll()
        if corrupt is not None:
            honest = mail.nodes_there[12].answer
            mail.nodes_there[12].answer = lambda content: corrupted(honest(content), corrupt)  # type: ignore[method-assign]
        logs = list[Any]()
        clients = (0, 1, 2, 4) if corrupt is None else (0, 1, 2, 3, 4)
        run = run_of("fedavg", clients, limits=Limits(), after_round=lambda now, log: logs.append(log))
        state = run_rounds([run], there)[0]
        return state, logs

    (without, _), (found, logs) = end(None), end(BAD[said])
    assert torch.equal(found.state.params.flat, without.state.params.flat)
    assert all(log["refused"] or log["missing"] for log in logs)


def corrupted(content: bytes, corrupt: Corrupt) -> bytes:
    """Corrupt the update of client 3 in a site's answer."""
    answer = SiteMessage.from_bytes(content)
    parts = list[bytes]()
    for part in answer.parts:
        update = answer_from_bytes(part, LAYOUT)
        if isinstance(update, Update) and update.client == 3:
            try:
                part = corrupt(update).to_bytes()
            except (TypeError, ValueError):  # no message can hold it; a hostile site sends what is none
                part = b"not an update"
        parts.append(part)
    return SiteMessage(answer.kind, answer.head, tuple(parts)).to_bytes()


def framed(*parts: bytes) -> bytes:
    content = b"".join(LENGTH.pack(len(one)) + one for one in parts)
    return START.pack(MAGIC, zlib.crc32(content)) + content


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_a_message_or_a_value_error(content: bytes, checked: bool) -> None:
    """With a right checksum, too."""
    try:
        SiteMessage.from_bytes(START.pack(MAGIC, zlib.crc32(content)) + content if checked else content)
    except ValueError:
        pass


@pytest.mark.parametrize(
    "content",
    [
        framed(),
        framed(b""),
        framed(b"[]"),
        framed(b"{}"),
        framed(b'{"kind": 3}'),
        framed(b"\xff"),
        framed(b"[" * 200_000),
        framed(b'{"kind": ' + b"9" * 10_000 + b"}"),
        START.pack(MAGIC, zlib.crc32(LENGTH.pack(2**63))) + LENGTH.pack(2**63),
        START.pack(MAGIC, zlib.crc32(struct.pack("<B", 1))) + b"\x01",
    ],
    ids=lambda content: str(content[:24]),
)
def test_heads_that_are_nonsense_are_value_errors(content: bytes) -> None:
    with pytest.raises(ValueError):
        SiteMessage.from_bytes(content)
