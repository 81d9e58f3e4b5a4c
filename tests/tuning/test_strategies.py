"""Strategies as sequences of stages: what each trains, what clients keep, and how a stage follows another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.clients import site_of, start_of

from fedloom.algorithms.compose import make
from fedloom.client.client_memory import InMemory
from fedloom.client.site import PERSONAL
from fedloom.data.drawn_shapes import MAKERS
from fedloom.models.load_model import load_vlm
from fedloom.params import Layout, Params
from fedloom.seeds import stream
from fedloom.tasks import TASKS
from fedloom.tuning.adapters import Tuned, prepare
from fedloom.tuning.strategies import SEQUENCES, STRATEGIES, Full, LoRA, Stage, merged_stage, stage, strategy
from fedloom.tuning.strategy_parts import Parts, parts_of
from fedloom.types import Conversation, Presence
from fedloom.wire.messages import Assignment

SMALL = LoRA(rank=2, alpha=3.0)


def conversations() -> list[Conversation]:
    examples = [MAKERS["classification"](stream(1, "t", step=k), str(k)) for k in range(3)]
    render = TASKS["choice"].render
    return [render(one, Presence(True, True), clause=None, answer_form="text") for one in examples]


def moved(tuned: Tuned, seed: int) -> Params:
    noise = torch.randn(tuned.layout.size, generator=torch.Generator().manual_seed(seed))
    return tuned.start.with_flat(tuned.start.flat + 0.1 * noise)


def test_every_stage_is_a_strategy_of_its_own() -> None:
    for name in STRATEGIES:
        assert strategy(name, SMALL) == (stage(name, SMALL),)


def test_two_stages_train_connector_and_adapters_one_after_the_other() -> None:
    first, second = strategy("two-stage", SMALL)
    assert first.train == {"connector": Full()}
    assert second.train == {"llm": SMALL}


def begun(parts: Parts, layout: Layout, sent: Params, own: torch.Tensor | None = None) -> torch.Tensor:
    """Return what a client begins with when `sent` comes and it has kept `own`."""
    memory = InMemory()
    if own is not None:
        memory.write(("fedavg", 0, 0), {PERSONAL: parts.personal.take(own)}, ())
    site = site_of(make("fedavg", 1), memory=memory, parts=parts, layout=layout)
    since = -1 if own is None else 0
    return site.job(Assignment("fedavg", 0, 1, 0, sent, since=since, up=parts.up)).broadcast.params.flat


@pytest.mark.parametrize(("name", "kept"), [("share-connector", "llm"), ("share-lora", "connector")])
def test_personal_parts_are_stretches_of_the_layout(tiny_model: Path, name: str, kept: str) -> None:
    stages = strategy(name, SMALL)
    layout = prepare(load_vlm(str(tiny_model)), stages[0], seed=0).layout
    parts = parts_of(layout, stages, 0)
    for tensor in layout.names:
        assert bool((parts.personal.mask[layout.slice(tensor)] == tensor.startswith(kept)).all())
    assert parts.down == parts.up == parts.personal.complement
    assert parts.trained.is_whole
    sent, own = torch.full((layout.size,), 1.0), torch.full((layout.size,), 2.0)
    mine, begin = parts.personal.mask, start_of(layout).flat
    assert torch.equal(begun(parts, layout, Params(layout, sent), own), torch.where(mine, own, sent))
    # Before its first round a client has kept nothing, and nothing of what is personal is ever sent.
    assert torch.equal(begun(parts, layout, Params(layout, sent)), torch.where(mine, begin, sent))


@pytest.mark.parametrize("name", SEQUENCES)
def test_nothing_is_personal_to_a_client_that_trains_alone(tiny_model: Path, name: str) -> None:
    stages = strategy(name, SMALL)
    layout = prepare(load_vlm(str(tiny_model)), merged_stage(stages), seed=0).layout
    for number in range(len(stages)):
        shared, alone = (parts_of(layout, stages, number, alone=one) for one in (False, True))
        assert alone.personal.count == 0
        assert alone.up == alone.trained == shared.trained


def test_without_personal_parts_everything_is_exchanged(tiny_model: Path) -> None:
    for name in STRATEGIES:
        tuned = prepare(load_vlm(str(tiny_model)), stage(name, SMALL), seed=0)
        parts, sent = parts_of(tuned.layout, (tuned.stage,), 0), moved(tuned, 1)
        assert parts.down.is_whole and parts.up.is_whole and parts.trained.is_whole
        assert parts.personal.count == 0
        assert torch.equal(begun(parts, tuned.layout, sent), sent.flat)


def test_a_stage_that_exchanges_nothing_or_keeps_what_it_does_not_train_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing is exchanged"):
        Stage({"llm": SMALL}, ("llm",))
    with pytest.raises(ValueError, match="not trained: connector"):
        Stage({"llm": SMALL}, ("connector",))


@pytest.mark.parametrize("name", SEQUENCES)
def test_every_value_of_a_run_is_trained_in_some_stage(tiny_model: Path, name: str) -> None:
    stages = strategy(name, SMALL)
    tuned = prepare(load_vlm(str(tiny_model)), merged_stage(stages), seed=0)
    parts = [parts_of(tuned.layout, stages, number) for number in range(len(stages))]
    trained = torch.stack([one.trained.mask.int() for one in parts]).sum(0)
    assert bool((trained == 1).all())  # and in one stage only
    for number, one in enumerate(parts):
        assert (one.down & one.personal).count == 0
        assert one.up & one.down == one.up
        assert one.up | (one.trained & one.personal) == one.trained
        # What earlier stages have changed is sent too, for clients that were not asked then.
        for earlier in parts[:number]:
            assert earlier.up & one.down == earlier.up


def test_sequences_name_known_stages() -> None:
    assert {what for stages in SEQUENCES.values() for what, _ in stages} <= set(STRATEGIES)
