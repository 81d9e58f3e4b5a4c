"""Strategies as sequences of stages: what each trains, what clients keep, and how a stage follows another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedloom.data.shapes import MAKERS
from fedloom.models.batch import answer_loss
from fedloom.models.load import load_vlm
from fedloom.params import Params
from fedloom.seeds import stream
from fedloom.tasks import TASKS
from fedloom.tuning.adapters import Tuned, export_adapter, import_adapter, prepare, settle
from fedloom.tuning.strategy import (
    SEQUENCES,
    STRATEGIES,
    Full,
    LoRA,
    Stage,
    own_start,
    shared_mask,
    stage,
    strategy,
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
    server, own = (Params(layout, torch.full((layout.size,), value)) for value in (1.0, 2.0))
    start = own_start(server, own, mask)
    assert torch.equal(start.flat, 2.0 - mask)


def test_without_personal_parts_everything_is_exchanged(tiny_model: Path) -> None:
    for name in STRATEGIES:
        tuned = prepare(load_vlm(str(tiny_model)), stage(name, SMALL), seed=0)
        mask = shared_mask(tuned.layout, tuned.stage)
        assert bool(mask.all())
        assert torch.equal(own_start(moved(tuned, 1), moved(tuned, 2), mask).flat, moved(tuned, 1).flat)


def test_a_stage_that_exchanges_nothing_or_keeps_what_it_does_not_train_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing is exchanged"):
        Stage({"llm": SMALL}, ("llm",))
    with pytest.raises(ValueError, match="not trained: connector"):
        Stage({"llm": SMALL}, ("connector",))


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_settled_stage_is_part_of_the_model(tiny_model: Path, name: str) -> None:
    vlm, batch = load_vlm(str(tiny_model)), conversations()
    names = [key for key, _ in vlm.model.named_parameters()]
    tuned = prepare(vlm, stage(name, SMALL), seed=0)
    params = moved(tuned, 1)
    tuned.write(params)
    expected = answer_loss(vlm, batch).detach()
    settle(tuned, params)
    assert [key for key, _ in vlm.model.named_parameters()] == names
    assert not any(parameter.requires_grad for parameter in vlm.model.parameters())
    torch.testing.assert_close(answer_loss(vlm, batch), expected, rtol=1e-5, atol=1e-6)
    after = prepare(vlm, stage("both", SMALL), seed=0)
    torch.testing.assert_close(answer_loss(vlm, batch).detach(), expected, rtol=1e-5, atol=1e-6)
    assert bool(torch.isfinite(after.start.flat).all())


def test_both_stages_together_are_an_adapter_of_both_parts(tiny_model: Path, tmp_path: Path) -> None:
    """What two stages train is written as what one stage over both parts would have."""
    vlm, batch, found = load_vlm(str(tiny_model)), conversations(), {}
    for number, one in enumerate(strategy("two-stage", SMALL)):
        tuned = prepare(vlm, one, seed=0)
        params = moved(tuned, number)
        found.update(params.items())
        tuned.write(params)
        loss = answer_loss(vlm, batch).detach()
        settle(tuned, params)
    both = prepare(load_vlm(str(tiny_model)), stage("both", SMALL), seed=0)
    together = Params.of(found)
    assert together.layout == both.layout
    export_adapter(both, together, tmp_path)
    both.write(import_adapter(both, tmp_path))
    torch.testing.assert_close(answer_loss(both.vlm, batch).detach(), loss, rtol=1e-5, atol=1e-6)


def test_sequences_name_known_stages() -> None:
    assert {what for stages in SEQUENCES.values() for what, _ in stages} <= set(STRATEGIES)
