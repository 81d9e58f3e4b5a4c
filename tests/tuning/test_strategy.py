"""Strategies as sequences of stages: what each trains, what clients keep, and how a stage follows another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedloom.data.shapes import MAKERS
from fedloom.models.load import load_vlm
from fedloom.params import Params
from fedloom.seeds import stream
from fedloom.tasks import TASKS
from fedloom.tuning.adapters import Tuned, prepare
from fedloom.tuning.masks import own_start, shared_mask, trained_mask
from fedloom.tuning.strategy import (
    SEQUENCES,
    STRATEGIES,
    Full,
    LoRA,
    Stage,
    stage,
    strategy,
    whole,
)
from fedloom.types import Conversation, Presence

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


@pytest.mark.parametrize(("name", "kept"), [("share-connector", "llm"), ("share-lora", "connector")])
def test_personal_parts_are_a_mask_on_the_layout(tiny_model: Path, name: str, kept: str) -> None:
    (only,) = strategy(name, SMALL)
    layout = prepare(load_vlm(str(tiny_model)), only, seed=0).layout
    mask = shared_mask(layout, only)
    for tensor in layout.names:
        assert bool((mask[layout.slice(tensor)] == (0.0 if tensor.startswith(kept) else 1.0)).all())
    server, own = torch.full((layout.size,), 1.0), torch.full((layout.size,), 2.0)
    assert torch.equal(own_start(Params(layout, server), own, mask).flat, 2.0 - mask)
    assert torch.equal(own_start(Params(layout, server), None, mask).flat, server)


def test_without_personal_parts_everything_is_exchanged(tiny_model: Path) -> None:
    for name in STRATEGIES:
        tuned = prepare(load_vlm(str(tiny_model)), stage(name, SMALL), seed=0)
        assert shared_mask(tuned.layout, tuned.stage) is None
        assert own_start(moved(tuned, 1), moved(tuned, 2).flat, None).flat.equal(moved(tuned, 1).flat)


def test_a_stage_that_exchanges_nothing_or_keeps_what_it_does_not_train_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing is exchanged"):
        Stage({"llm": SMALL}, ("llm",))
    with pytest.raises(ValueError, match="not trained: connector"):
        Stage({"llm": SMALL}, ("connector",))


@pytest.mark.parametrize("name", SEQUENCES)
def test_every_value_of_a_run_is_trained_in_some_stage(tiny_model: Path, name: str) -> None:
    stages = strategy(name, SMALL)
    tuned = prepare(load_vlm(str(tiny_model)), whole(stages), seed=0)
    masks = [trained_mask(tuned.layout, one) for one in stages]
    full = torch.ones(tuned.layout.size)
    trained = torch.stack([full if mask is None else mask for mask in masks]).sum(0)
    assert torch.equal(trained, full)  # and in one stage only


def test_sequences_name_known_stages() -> None:
    assert {what for stages in SEQUENCES.values() for what, _ in stages} <= set(STRATEGIES)
