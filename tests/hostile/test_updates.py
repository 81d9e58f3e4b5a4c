"""Every bad update is refused with its reason, and the round is the same as without its client."""

from __future__ import annotations

import pytest
import torch
from tests.clients import EXCHANGING
from tests.hostile.updates import BAD, BAD_EXTRAS, run, scaled
from tests.shares import each_once

from fedloom.algorithms import SERVERS

BAD_CLIENT = 2
OTHERS = (0, 1, 3, 4)
NAMES = ("fedavg", "scaffold", "fednova", "fedadam")
EXTRAS = {
    (f"extras: {said}", name): corrupt for name, some in BAD_EXTRAS.items() for said, corrupt in some.items()
}


@pytest.mark.parametrize(("said", "name"), [*each_once(BAD, NAMES), *EXTRAS])
def test_a_bad_update_changes_no_bit(said: str, name: str) -> None:
    """From the first round on, before there is a history."""
    corrupt = EXTRAS[said, name] if (said, name) in EXTRAS else BAD[said]
    training_state, logs = run(name, {BAD_CLIENT: corrupt})
    without, _ = run(name, clients=OTHERS)
    assert torch.equal(training_state.state.params.flat, without.state.params.flat)
    assert training_state.state.slots.keys() == without.state.slots.keys()
    assert all(
        torch.equal(value, without.state.slots[key]) for key, value in training_state.state.slots.items()
    )
    assert training_state.kept == without.kept
    for log in logs:
        (refused,) = log["refused"]
        assert len(refused["reason"]) > 10
        if refused["client"] != BAD_CLIENT:  # it came in another name: then its own client did not answer
            assert [row["client"] for row in log["missing"]] == [BAD_CLIENT]


@pytest.mark.parametrize("name", SERVERS)
def test_honest_updates_pass(name: str) -> None:
    _, logs = run(name)
    assert [log["refused"] for log in logs] == [[], [], []]


@pytest.mark.parametrize("name", EXCHANGING)
@pytest.mark.parametrize("said", ["a million times", "a million times, turned round", "all 1e30"])
def test_neither_one_of_two_nor_two_of_three_bad_updates_are_accepted(name: str, said: str) -> None:
    """Bad updates would decide a median over the norms of their own round."""
    for clients, bad in (((0, 1), (1,)), ((0, 1, 2), (1, 2))):
        training_state, logs = run(name, dict.fromkeys(bad, BAD[said]), clients)
        without, _ = run(name, clients=(0,))
        assert torch.equal(training_state.state.params.flat, without.state.params.flat)
        assert [[row["client"] for row in log["refused"]] for log in logs] == [list(bad)] * 3


def test_an_update_among_zeros_is_bounded() -> None:
    bad = {**dict.fromkeys(OTHERS, scaled(0.0)), BAD_CLIENT: BAD["a million times"]}
    _, logs = run("fedavg", bad)
    assert all([row["client"] for row in log["refused"]] == [BAD_CLIENT] for log in logs)


def test_tiny_updates_do_not_have_honest_ones_refused() -> None:
    """If most updates are nearly zero, the median of their norms is nearly zero."""
    tiny = {client: scaled(1e-12) for client in (0, 1, 3)}
    _, logs = run("fedavg", tiny)
    assert [log["refused"] for log in logs] == [[], [], []]
