"""Codecs lose nothing over time: what a client sends and what it keeps add up to its own changes, in every backend."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.clients import (
    CLIENTS,
    EXCHANGING,
    LAYOUT,
    TRAIN,
    Corrupted,
    Plain,
    named,
    run_of,
    same,
    site_of,
    start_of,
)

from fedloom.client.client_memory import Files, InMemory, Memory
from fedloom.client.error_feedback import encode_update
from fedloom.client.site import LOST, Site
from fedloom.config.schema import Limits, Train
from fedloom.engine.rounds import TrainingState, run_rounds
from fedloom.experiment.experiment import Experiment
from fedloom.params import Params, Part
from fedloom.runs.site_setup import codecs_of
from fedloom.system.errors import UserError
from fedloom.system.timing import Clock
from fedloom.wire.compression import CODECS, FP32, Codecs, decode, encode
from fedloom.wire.messages import Answer, Assignment, Update

LOSSY = tuple(name for name in CODECS if name != "fp32")
SIZE = 70
WHOLE = Part.whole(SIZE)
VALUES = st.lists(st.floats(-100, 100, width=32), min_size=SIZE, max_size=SIZE).map(torch.tensor)


def with_codecs(site: Site, codecs: Codecs) -> Site:
    """Return a site whose messages are written in codecs."""
    method = replace(site.method("any"), codecs=codecs)
    return replace(site, method=lambda name: method)


# What is sent and what is kept ------------------------------------------------------------------------


@pytest.mark.parametrize("codec", LOSSY)
@given(st.lists(VALUES, min_size=1, max_size=6))
def test_what_was_sent_and_what_is_kept_add_up_to_all_changes(
    codec: str, changes: list[torch.Tensor]
) -> None:
    lost, total = None, torch.zeros(SIZE, dtype=torch.float64)
    for delta in changes:
        sent = encode_update(delta, WHOLE, Codecs(codec), lost)
        assert sent.coded is not None
        assert torch.equal(sent.delta, decode(sent.coded))
        total += sent.delta.double()
        lost = sent.lost
    assert lost is not None
    expected = sum(delta.double() for delta in changes)
    # Each round adds twice in float32.
    largest = max(float(delta.abs().max()) for delta in changes) * (1 + CODECS[codec].loss) * len(changes)
    assert float((total + lost.double() - expected).abs().max()) <= 2 * len(changes) * largest * 2**-23


@pytest.mark.parametrize("codec", LOSSY)
@given(VALUES)
def test_a_codec_loses_no_larger_share_than_it_says(codec: str, values: torch.Tensor) -> None:
    lost = (values - decode(encode(values, codec))).double()
    tiny = SIZE * 2.0**-100  # blocks below this become zeros
    assert float(lost.norm()) <= CODECS[codec].loss * float(values.double().norm()) * (1 + 2**-20) + tiny


@pytest.mark.parametrize("feedback", [True, False])
@pytest.mark.parametrize("codec", LOSSY)
def test_no_honest_update_is_longer_than_the_gain_allows(codec: str, feedback: bool) -> None:
    """Equal values are the worst for a codec that sends few of them; what is lost then grows from round to round."""
    codecs, lost, most = Codecs(codec, feedback=feedback), None, 0.0
    for round in range(64):
        draws = torch.randn(SIZE, generator=torch.Generator().manual_seed(round))
        delta = torch.ones(SIZE) if round % 8 else draws
        sent = encode_update(delta / delta.norm(), WHOLE, codecs, lost)
        lost, most = sent.lost, max(most, float(sent.delta.norm()))
    assert most <= codecs.gain * (1 + 1e-5)
    assert codecs.gain < 64


def test_only_what_a_client_reports_is_written_and_lost() -> None:
    part, delta = Part(SIZE, ((3, 40),)), torch.linspace(-1, 1, SIZE)
    sent = encode_update(part.zero_outside(delta), part, Codecs("int4"), None)
    assert sent.lost is not None
    assert part.is_zero_outside(sent.delta) and part.is_zero_outside(sent.lost)
    assert sent.coded == encode(part.take(delta), "int4")


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, 2.0**125])
def test_changes_that_no_codec_takes_go_to_the_server_as_they_are(wrong: float) -> None:
    """It refuses them with the reason, and the client still has what was lost before."""
    delta, lost = torch.full((SIZE,), wrong), torch.ones(SIZE)
    sent = encode_update(delta, WHOLE, Codecs("int8"), lost)
    assert sent.coded is None
    assert torch.equal(sent.delta, delta) or wrong != wrong
    assert sent.lost is lost


def test_float32_leaves_everything_as_it_is() -> None:
    delta = torch.linspace(-1, 1, SIZE)
    sent = encode_update(delta, WHOLE, FP32, None)
    assert sent.delta is delta and sent.coded is None and sent.lost is None


# At a site --------------------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "files"])
def memory(request: pytest.FixtureRequest, tmp_path: Path) -> Memory:
    return InMemory() if request.param == "memory" else Files(tmp_path)


def asked(round: int, since: int) -> Assignment:
    return Assignment("m", 0, round, 1, start_of(), {}, since)


def answer(site: Site, assignment: Assignment) -> Update:
    found = Plain(site).client(assignment)
    assert isinstance(found, Update)
    return found


@pytest.mark.parametrize("codec", LOSSY)
def test_a_client_finds_what_was_lost(codec: str, memory: Memory) -> None:
    """Two rounds at a site: sums of what it sends and keeps are those of a site whose messages lose nothing."""
    here = with_codecs(site_of(named("fedavg"), memory=memory), Codecs(codec))
    plain = site_of(named("fedavg"))
    sent, changes = torch.zeros(LAYOUT.size), torch.zeros(LAYOUT.size)
    for round in range(3):
        update = answer(here, asked(round, round - 1))
        assert update.keeps
        sent += update.delta.flat
        changes += answer(plain, asked(round, -1)).delta.flat
    lost = memory.read(("m", 1, 2))[LOST]
    assert lost.any()
    assert torch.allclose(sent + lost, changes, rtol=0, atol=1e-6)


def test_a_refused_update_takes_back_what_was_lost(memory: Memory) -> None:
    """Round 1 is refused: round 2 goes on from round 0, and gives what it gives where round 1 never was."""
    tried, never = (
        with_codecs(site_of(named("fedavg"), memory=one), Codecs("top16")) for one in (memory, InMemory())
    )
    for here in (tried, never):
        answer(here, asked(0, -1))
    answer(tried, asked(1, 0))
    found, expected = (answer(here, asked(2, 0)) for here in (tried, never))
    assert torch.equal(found.delta.flat, expected.delta.flat)
    assert torch.equal(*(here.memory.read(("m", 1, 2))[LOST] for here in (tried, never)))


def test_a_new_stage_begins_without_what_was_lost() -> None:
    here = with_codecs(site_of(named("fedavg")), Codecs("top16"))
    method = replace(here.method("m"), stages=[*here.method("m").stages] * 2)
    here = replace(here, method=lambda name: method)
    answer(here, asked(0, -1))
    later = replace(asked(0, 0), stage=1)
    assert here.job(asked(1, 0)).lost is not None
    assert here.job(later).lost is None


def test_without_feedback_nothing_is_kept() -> None:
    here = with_codecs(site_of(named("fedavg")), Codecs("top16", feedback=False))
    assert not answer(here, asked(0, -1)).keeps


# Over rounds ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OverBytes(Plain):
    """A backend whose clients get only messages, which it counts."""

    sent: list[int] = field(default_factory=list)
    came: list[int] = field(default_factory=list)

    def train(self, assignments: Iterable[Assignment], clock: Clock) -> Iterator[Answer]:
        for assignment in assignments:
            message = assignment.to_bytes()
            self.sent.append(len(message))
            answer = self.client(Assignment.from_bytes(message, LAYOUT)).to_bytes()
            self.came.append(len(answer))
            yield Update.from_bytes(answer, LAYOUT)


def rounds(name: str, backend: Plain, codecs: Codecs, **fields: object) -> TrainingState:
    (found,) = run_rounds([run_of(name, codecs=codecs, **fields)], backend)
    return found


@pytest.mark.parametrize("name", EXCHANGING)
@pytest.mark.parametrize("codecs", [Codecs("int8", "int8"), Codecs("top16", "bf16"), Codecs("int4", "int4")])
def test_every_algorithm_has_equal_bits_over_bytes(name: str, codecs: Codecs) -> None:
    """And the record counts the bytes of the messages."""
    here = rounds(name, Plain(with_codecs(site_of(named(name)), codecs)), codecs)
    over = OverBytes(with_codecs(site_of(named(name)), codecs))
    there = rounds(name, over, codecs)
    assert same(here, there)
    assert (here.kept, here.norms, here.bytes_up, here.bytes_down) == (
        there.kept,
        there.norms,
        there.bytes_up,
        there.bytes_down,
    )
    assert (there.bytes_up, there.bytes_down) == (sum(over.came), sum(over.sent))


def test_fewer_bits_are_fewer_bytes() -> None:
    """12 values take 48 bytes in float32, and 24 in bf16 beside the codec's header of 32."""
    whole, short = (
        rounds("fedavg", Plain(with_codecs(site_of(named("fedavg")), one)), one) for one in (FP32, Codecs("bf16"))
    )  # fmt: skip
    updates = CLIENTS * TRAIN.rounds
    assert short.bytes_up - whole.bytes_up == updates * (24 + 32 - 48)  # "bf16" is as long as "fp32"
    assert short.bytes_down == whole.bytes_down


def test_a_refused_round_is_as_if_it_had_not_been() -> None:
    """A client whose update is damaged in the first round sends in the second what it sends where it began there."""
    codecs = Codecs("top16")

    def damaged(update: Update) -> Update:
        return replace(update, delta=Params(LAYOUT, torch.full((LAYOUT.size,), torch.nan)))

    memories = [InMemory(), InMemory()]
    for memory, change in zip(memories, (damaged, lambda update: None), strict=True):
        site = with_codecs(site_of(named("fedavg"), memory=memory), codecs)
        rounds("fedavg", Corrupted(site, {1: change}, (0,)), codecs)
    for client in range(CLIENTS):
        key = ("fedavg", client, TRAIN.rounds - 1)
        assert torch.equal(*(memory.read(key)[LOST] for memory in memories))


@pytest.mark.parametrize("schedule", ["constant", "cosine", "published"])
@pytest.mark.parametrize("codec", LOSSY)
def test_no_honest_client_is_refused_under_the_derived_bounds(codec: str, schedule: str) -> None:
    """Plain steps of one clipped length, in the same direction: as far as honest work goes."""
    train = Train(
        rounds=12, batch_size=1, lr=0.1, schedule=schedule, optimizer="sgd", clip=0.01, weight_decay=0.1
    )  # fmt: skip
    seen: list[object] = []
    codecs = Codecs(codec, "int4")
    site = with_codecs(site_of(named("fedavg"), train), codecs)
    run = run_of(
        "fedavg",
        train=train,
        limits=Limits(max_ratio=1e300),
        codecs=codecs,
        after_round=lambda now, log: seen.extend(log["refused"]),
    )
    run_rounds([run], Plain(site))
    assert seen == []


# In an experiment -------------------------------------------------------------------------------------


def test_baselines_lose_nothing() -> None:
    value = Experiment(communication={"up": "int8", "down": "bf16", "feedback": False})
    found = {name: codecs_of(value, value.method(name)) for name in ("fedavg", "local", "centralized")}
    assert found == {"fedavg": Codecs("int8", "bf16", False), "local": FP32, "centralized": FP32}


def test_codecs_are_part_of_what_a_run_is() -> None:
    plain, coded = Experiment(), Experiment(communication={"up": "int8"})
    assert plain.digest == Experiment(communication={"up": "fp32"}).digest
    assert coded.digest != plain.digest


def test_parameters_are_never_sent_as_the_largest_of_16() -> None:
    with pytest.raises(UserError, match=r"communication\.down"):
        Experiment.from_json('{"communication": {"down": "top16"}}')
