"""Sites that come, go, sleep, fail and repeat themselves: every answer counts once, and the round ends as agreed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from tests.clients import CLIENTS, LAYOUT, Plain, named, profiles, run_of, same, site_of

from fedloom.client.client_memory import InMemory
from fedloom.engine.federation import Federation
from fedloom.engine.flower_link import FlowerReply
from fedloom.engine.participation import WaitingTerms
from fedloom.engine.resident_site import OpenRun, ResidentSite
from fedloom.engine.rounds import Backend, TrainingState, run_rounds
from fedloom.engine.site_transport import TransportRestarted
from fedloom.system.errors import UserError
from fedloom.system.timing import Clock
from fedloom.wire.messages import Assignment, Missing
from fedloom.wire.site_messages import SiteMessage

HELD = {"north": (0, 2, 4), "south": (1, 3)}


@dataclass
class Mail:
    """Nodes in this process. Time passes only when the federation pauses.

    Attributes:
        nodes_there: Node → the site behind it.
        delay: Site → seconds after which its answers come.
        losing: Called with a site's name for every answer; an error in place of the answer, or None.
        lost: Number of the message that is lost on its way, counted from 1.
        lost_answer: Number of the message whose answer is.
    """

    nodes_there: dict[int, ResidentSite]
    delay: dict[str, float] = field(default_factory=dict)
    losing: Callable[[str], str | None] = lambda name: None
    registered: dict[int, str] = field(default_factory=dict)
    time: float = 0.0
    renew: int = -1
    lost: int = -1
    lost_answer: int = -1
    asked: list[tuple[str, str]] = field(default_factory=list)
    on_the_way: dict[str, tuple[float, int, FlowerReply]] = field(default_factory=dict)
    sends: int = 0

    def nodes(self) -> Mapping[int, str]:
        return {node: self.registered.get(node, "") for node in self.nodes_there}

    def send(self, node: int, content: bytes, group: str) -> str | None:
        self.sends += 1
        if self.sends == self.renew:
            self.on_the_way.clear()
            raise TransportRestarted
        name = f"message {self.sends}"
        if self.sends == self.lost:
            return name
        if node not in self.nodes_there:
            self.on_the_way[name] = (self.time, node, FlowerReply(name, b"", "the node is unavailable"))
            return name
        site = self.nodes_there[node]
        kind = SiteMessage.from_bytes(content).kind
        self.asked.append((site.name, kind))
        answer = site.answer(content)
        if self.sends == self.lost_answer:
            return name
        error = self.losing(site.name) if kind == "train" else None
        due = self.time + (self.delay.get(site.name, 0.0) if kind == "train" else 0.0)
        self.on_the_way[name] = (due, node, FlowerReply(name, b"" if error else answer, error))
        return name

    def collect(self, messages: Sequence[str]) -> Sequence[FlowerReply]:
        due = [name for name in messages if name in self.on_the_way and self.on_the_way[name][0] <= self.time]
        return [self.on_the_way.pop(name)[2] for name in due]

    def pause(self, seconds: float) -> None:
        self.time += seconds


def resident(
    name: str, backend: Backend, clients: Sequence[int] | None = None, **allowing: Any
) -> ResidentSite:
    held = HELD[name] if clients is None else clients
    told = {"fedavg": [list(profiles()[one]) for one in held]}
    joined = SiteMessage("joined", {"site": name, "clients": list(held), "profiles": told})

    @contextmanager
    def opened(begin: SiteMessage) -> Iterator[OpenRun]:
        yield OpenRun(backend, LAYOUT, joined, **allowing)

    return ResidentSite(name, opened, lambda request, answer, run: None, lambda text: None)


def backend_of(algorithm: str = "fedavg") -> Plain:
    return Plain(site_of(named(algorithm), memory=InMemory()))


def federation(
    mail: Mail, terms: WaitingTerms = WaitingTerms(), **fields: Any
) -> tuple[Federation, list[tuple[str, Any]]]:
    noted = list[tuple[str, Any]]()

    def note(kind: str, figures: Mapping[str, Any]) -> None:
        noted.append((kind, dict(figures)))

    found = Federation(
        mail, SiteMessage("begin", {"run": "r"}), CLIENTS, terms, note,
        now=lambda: mail.time, pause=mail.pause, **fields,
    )  # fmt: skip
    found.attach(backend_of(), LAYOUT)
    return found, noted


def two_sites(algorithm: str = "fedavg") -> Mail:
    return Mail({11: resident("north", backend_of(algorithm)), 12: resident("south", backend_of(algorithm))})


def ended(backend: Backend, algorithm: str = "fedavg") -> TrainingState:
    return run_rounds([run_of(algorithm)], backend)[0]


def assignments(round: int = 0) -> list[Assignment]:
    found = named("fedavg")
    sent = found.broadcast(found.init(backend_of().start("fedavg")))
    return [Assignment("fedavg", 0, round, client, sent.params, sent.extras) for client in range(CLIENTS)]


@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold"])
def test_sites_give_the_bytes_of_one_process(algorithm: str) -> None:
    mail = two_sites(algorithm)
    there, _ = federation(mail)
    there.enroll()
    assert there.describe("fedavg") == profiles()
    assert same(ended(there, algorithm), ended(backend_of(algorithm), algorithm))
    assert mail.asked.count(("north", "train")) == 3, "one message a round, however many clients a site has"


def test_a_client_that_no_site_holds_ends_the_wait() -> None:
    mail = Mail({11: resident("north", backend_of())})
    there, _ = federation(mail, WaitingTerms(join=30))
    with pytest.raises(UserError, match=r"client 1 joined within 30 seconds \(sites that did: north\)"):
        there.enroll()


def test_a_client_is_at_one_site_only() -> None:
    mail = two_sites()
    mail.nodes_there[13] = resident("east", backend_of(), (4,))
    there, noted = federation(mail)
    there.enroll()
    refused = [what for kind, what in noted if kind == "site refused"]
    assert refused == [{"site": "east", "reason": "client 4 is at site north"}]
    assert "east" not in there.sites


def test_a_site_has_the_name_that_its_key_is_registered_for() -> None:
    mail = two_sites()
    mail.registered = {11: "north", 12: "west"}
    there, noted = federation(mail, WaitingTerms(join=5))
    with pytest.raises(UserError, match="client 1 joined"):
        there.enroll()
    assert ("site refused", {"site": "south", "reason": "its key is that of site west"}) in noted


def test_all_sites_are_told_of_the_end_and_those_that_are_away_are_named() -> None:
    """A site that was refused waits, too; one that is away is told when the same command runs again."""
    mail = two_sites()
    mail.nodes_there[13] = resident("east", backend_of(), (4,))
    there, _ = federation(mail)
    there.enroll()
    del mail.nodes_there[12]
    assert there.leave() == ["south"]
    assert [name for name, kind in mail.asked if kind == "end"] == ["north", "east"]
    again, _ = federation(two_sites())
    again.enroll()
    assert again.leave() == []


def test_a_site_that_the_server_refuses_is_told_why() -> None:
    mail, shown = two_sites(), list[str]()
    mail.nodes_there[13] = resident("east", backend_of(), (4,))
    for site in mail.nodes_there.values():
        site.message = lambda text, name=site.name: shown.append(f"{name}: {text}")
    there, _ = federation(mail)
    there.enroll()
    assert "east: the server does not take this site: client 4 is at site north" in shown
    assert not [line for line in shown if "does not take" in line and not line.startswith("east")]


def test_a_wait_that_ends_names_why_sites_were_refused() -> None:
    mail = two_sites()
    mail.registered = {11: "north", 12: "west"}
    there, _ = federation(mail, WaitingTerms(join=5))
    with pytest.raises(
        UserError, match=r"sites that did: north; a site was refused: its key is that of site west\)"
    ):
        there.enroll()


def test_late_answers_are_recorded_and_not_counted() -> None:
    mail = two_sites()
    there, noted = federation(mail, WaitingTerms(deadline=10, quorum=2))
    there.enroll()
    mail.delay["south"] = 15.0
    first = {one.client: one for one in there.train(assignments(0), Clock())}
    assert [client for client, one in first.items() if isinstance(one, Missing)] == [1, 3]
    assert "site south did not answer within 10 seconds" in first[1].reason
    mail.delay["south"], mail.time = 0.0, mail.time + 20
    second = list(there.train(assignments(1), Clock()))
    assert sorted(one.client for one in second) == list(range(CLIENTS))
    assert not any(isinstance(one, Missing) for one in second)
    assert [what["clients"] for kind, what in noted if kind == "late"] == [[1, 3]]


@pytest.mark.parametrize("policy", ["wait", "proceed", "stop"])
def test_without_a_quorum_the_policy_decides(policy: str) -> None:
    mail = two_sites()
    there, _ = federation(mail, WaitingTerms(deadline=10, quorum=4, policy=policy))
    there.enroll()
    mail.delay["south"] = 60.0
    if policy == "stop":
        with pytest.raises(UserError, match="3 clients answered within 10 seconds, and 4 must"):
            list(there.train(assignments(), Clock()))
        return
    missing = [one.client for one in there.train(assignments(), Clock()) if isinstance(one, Missing)]
    assert missing == ([] if policy == "wait" else [1, 3])


def test_a_site_that_fails_is_asked_again_and_then_missing() -> None:
    mail = two_sites()
    there, noted = federation(mail)
    there.enroll()
    errors = iter(["it crashed", "it crashed"])
    mail.losing = lambda name: next(errors, None) if name == "south" else None
    found = list(there.train(assignments(), Clock()))
    assert not any(isinstance(one, Missing) for one in found), "the third try succeeded"
    assert [what["reason"] for kind, what in noted if kind == "failed"] == ["it crashed"] * 2
    mail.losing = lambda name: "it crashed" if name == "south" else None
    found = {one.client: one for one in there.train(assignments(1), Clock())}
    assert isinstance(found[1], Missing)
    assert found[1].reason == "site south failed: it crashed"
    assert mail.asked.count(("south", "train")) == 6


def test_a_site_that_comes_back_under_another_number_goes_on() -> None:
    """Its first node is silent for ever; the answer of the second counts, once."""
    mail = two_sites()
    there, _ = federation(mail)
    there.enroll()
    mail.delay["south"] = 1e9
    moved = list[bool]()

    def pause(seconds: float) -> None:
        mail.time += seconds
        if mail.time > 20 and not moved:
            moved.append(True)
            mail.delay["south"] = 0.0
            mail.nodes_there = {11: mail.nodes_there[11], 99: mail.nodes_there[12]}

    there.pause = pause
    found = list(there.train(assignments(), Clock()))
    assert sorted(one.client for one in found) == list(range(CLIENTS))
    assert not any(isinstance(one, Missing) for one in found)
    assert there.sites["south"].node == 99


def test_a_site_that_is_away_is_waited_for() -> None:
    """Its node is gone before the server has noticed: that is no failure, and the site answers when it is back."""
    mail = two_sites()
    there, noted = federation(mail)
    there.enroll()
    south = mail.nodes_there.pop(12)

    def pause(seconds: float) -> None:
        mail.time += seconds
        if mail.time > 20:
            mail.nodes_there[99] = south

    there.pause = pause
    found = list(there.train(assignments(), Clock()))
    assert not any(isinstance(one, Missing) for one in found)
    assert ("site away", {"site": "south"}) in noted
    assert "failed" not in [kind for kind, _ in noted]


def disturbed_at_each_send(what: str) -> Iterator[tuple[Mail, list[tuple[str, Any]]]]:
    """Run once with each message of a run disturbed, check that the bytes are those of one process, and yield the mail and notes."""
    expected = ended(backend_of("scaffold"), "scaffold")
    mail = two_sites("scaffold")
    there, _ = federation(mail)
    there.enroll()
    ended(there, "scaffold")
    for number in range(1, mail.sends + 1):
        mail = replace(two_sites("scaffold"), **{what: number})
        there, noted = federation(mail)
        there.enroll()
        assert same(ended(there, "scaffold"), expected), number
        yield mail, noted


def test_a_link_that_begins_anew_loses_nothing() -> None:
    """At each send of a run the link is lost, with all that is on its way: the bytes stay those of one process."""
    for _, noted in disturbed_at_each_send("renew"):
        assert ("link renewed", {}) in noted


@pytest.mark.parametrize("what", ["lost", "lost_answer"])
def test_a_message_that_is_lost_is_sent_again(what: str) -> None:
    """Whichever message of a run is lost, or its answer: nobody is missing, and the bytes stay those of one process."""
    for mail, noted in disturbed_at_each_send(what):
        assert mail.sends == 1 + len(mail.asked) - (what == "lost_answer")
        assert {kind for kind, _ in noted} == {"site joined"}


def test_a_slow_site_is_asked_again_ever_more_rarely_and_counts_once() -> None:
    mail = two_sites()
    there, noted = federation(mail)
    there.enroll()
    mail.delay["south"] = 3600.0
    found = list(there.train(assignments(0), Clock()))
    assert sorted(one.client for one in found) == list(range(CLIENTS))
    assert 2 < mail.asked.count(("south", "train")) < 6
    mail.delay["south"], mail.time = 0.0, mail.time + 3600
    assert len(list(there.train(assignments(1), Clock()))) == CLIENTS
    assert "late" not in [kind for kind, _ in noted], "further answers to the same request are no late ones"


def test_an_answer_whose_delivery_failed_is_not_worked_out_again() -> None:
    counted = list[int]()

    class Counting(Plain):
        def client(self, assignment: Assignment) -> Any:
            counted.append(assignment.client)
            return super().client(assignment)

    mail = Mail({11: resident("north", Counting(backend_of().site), tuple(range(CLIENTS)))})
    there, _ = federation(mail)
    there.enroll()
    errors = iter(["lost"])
    mail.losing = lambda name: next(errors, None)
    found = list(there.train(assignments(), Clock()))
    assert sorted(one.client for one in found) == sorted(counted) == list(range(CLIENTS))


def test_damaged_answers_are_failures_of_their_site() -> None:
    mail = two_sites()
    there, _ = federation(mail)
    there.enroll()
    whole = mail.nodes_there[12].answer

    def damaged(content: bytes) -> bytes:
        found = bytearray(whole(content))
        found[len(found) // 2] ^= 1
        return bytes(found)

    mail.nodes_there[12].answer = damaged  # type: ignore[method-assign]
    found = {one.client: one for one in there.train(assignments(), Clock())}
    assert isinstance(found[1], Missing)
    assert "damaged on its way" in found[1].reason
    assert not isinstance(found[0], Missing)


def test_a_site_refuses_with_a_reason_that_the_server_gets() -> None:
    mail = two_sites()
    there, noted = federation(mail, WaitingTerms(join=5))

    @contextmanager
    def refusing(begin: SiteMessage) -> Iterator[OpenRun]:
        raise UserError("another base model")
        yield

    mail.nodes_there[12].open = refusing
    with pytest.raises(UserError, match="client 1 joined"):
        there.enroll()
    assert ("site refused", {"site": "south", "reason": "another base model"}) in noted
    assert mail.nodes_there[12].refusal == "another base model"
    assert mail.nodes_there[11].refusal is None


def test_requests_of_another_version_are_refused() -> None:
    site = resident("north", backend_of())
    content = SiteMessage("train").to_bytes()
    answer = SiteMessage.from_bytes(site.answer(b"FLE0" + content[4:]))
    assert answer.kind == "refused"
    assert "another version" in answer.head["reason"]
    assert "joined" in SiteMessage.from_bytes(site.answer(content)).head["reason"]


def test_what_an_owner_refuses_is_recorded_with_the_reason() -> None:
    def forbidden(asked: Sequence[Assignment]) -> None:
        raise UserError("the owner of this site does not allow connector/w to be reported")

    mail = two_sites()
    mail.nodes_there[12] = resident("south", backend_of(), require_allowed=forbidden)
    there, _ = federation(mail)
    there.enroll()
    rows = list[Mapping[str, Any]]()
    run = run_of("fedavg", after_round=lambda now, log: rows.append(log))
    (training_state,) = run_rounds([run], there)
    assert training_state.state.round == 3
    reason = "site south refused: the owner of this site does not allow connector/w to be reported"
    assert [row["missing"] for row in rows] == [[{"client": one, "reason": reason} for one in (1, 3)]] * 3
    assert mail.asked.count(("south", "train")) == 3, "a refusal is an answer, and not asked for again"


def test_answers_to_single_examples_stay_unless_they_may_leave() -> None:
    site = resident("north", backend_of(), replies=False)
    site.answer(SiteMessage("begin").to_bytes())
    answer = SiteMessage.from_bytes(site.answer(SiteMessage("answer").to_bytes()))
    assert answer.kind == "refused"
    assert "do not leave this site" in answer.head["reason"]


def test_all_that_leaves_is_passed_by_the_list_even_refusals() -> None:
    listed = list[tuple[str, bytes]]()
    site = resident("north", backend_of())
    site.log_departure = lambda request, answer, run: listed.append((answer.kind, answer.to_bytes()))
    sent = [
        site.answer(content)
        for content in (
            SiteMessage("train").to_bytes(),
            SiteMessage("begin").to_bytes(),
            SiteMessage("train", {}, (assignments()[0].to_bytes(),)).to_bytes(),
            b"nothing of ours",
        )
    ]
    assert [kind for kind, _ in listed] == ["refused", "joined", "answered", "refused"]
    assert [content for _, content in listed] == sent


def test_sites_with_data_of_their_own_are_numbered_by_the_server() -> None:
    mail = Mail({})
    for node, name in enumerate(("b", "a", "c", "e", "d")):
        mail.nodes_there[node + 11] = own_site(name, 2 + node)
    there, noted = federation(mail, own_data=True)
    there.enroll()
    assert [one.counts["text"] for one in there.sites.values()] == [2, 3, 4, 5, 6]
    there.number_clients({"a": 3, "b": 0, "c": 1, "d": 4, "e": 2})
    assert not any(isinstance(one, Missing) for one in there.train(assignments(), Clock()))
    mail.nodes_there[99] = own_site("f", 2)
    del mail.nodes_there[12]
    mail.nodes_there[98] = own_site("a", 7)
    mail.time += 10
    there._update_nodes()
    there._collect()
    refused = {what["site"]: what["reason"] for kind, what in noted if kind == "site refused"}
    assert refused == {"f": "5 other sites take part already", "a": "it came back with other data"}
    mail.nodes_there[97] = own_site("a", 3)
    mail.time += 10
    there._update_nodes()
    there._collect()
    assert there.sites["a"].clients == (3,)
    assert there.sites["a"].node == 97


def own_site(name: str, count: int) -> ResidentSite:
    joined = {"site": name, "clients": [], "profiles": {"fedavg": [[count, False, True]]}}
    joined["counts"] = {"both": 0, "image": 0, "text": count}

    @contextmanager
    def opened(begin: SiteMessage) -> Iterator[OpenRun]:
        yield OpenRun(backend_of(), LAYOUT, SiteMessage("joined", joined))

    return ResidentSite(name, opened, lambda request, answer, run: None, lambda text: None)
