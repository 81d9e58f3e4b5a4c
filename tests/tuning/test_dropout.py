"""Dropout in front of adapters: what PEFT does, with masks that have names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora.layer import Linear
from tests.clients import job_of
from torch import Tensor, nn

from fedloom.algorithms.local_rule import PLAIN
from fedloom.client.local_job import Job
from fedloom.config.schema import Train
from fedloom.data.drawn_shapes import MAKERS
from fedloom.models.batches import Batch, answer_losses, collate
from fedloom.models.load_model import load_vlm
from fedloom.seeds import stream, torch_stream
from fedloom.system.errors import UserError
from fedloom.tasks import TASKS
from fedloom.tuning.adapters import Tuned, prepare
from fedloom.tuning.dropout import adapter_dropout
from fedloom.tuning.export_adapter import adapter_config
from fedloom.tuning.lora import LoRALinear
from fedloom.tuning.strategies import LoRA, stage
from fedloom.types import Conversation, Presence

SHARE = 0.25


@pytest.fixture
def tuned(tiny_model: Path) -> Tuned:
    result = prepare(load_vlm(str(tiny_model)), stage("lora", LoRA(rank=2, dropout=SHARE)), seed=0)
    result.write(
        result.start.with_flat(torch.linspace(-0.3, 0.3, result.layout.size))
    )  # B is zero at the start
    return result


def conversations(count: int) -> list[Conversation]:
    examples = [MAKERS["vqa"](stream(2, "t", step=k), str(k)) for k in range(count)]
    return [TASKS["vqa"].render(one, Presence(False, True), answer_form="text") for one in examples]


def job(tuned: Tuned, client: int = 4, round: int = 2, stage: int = 0) -> Job:
    return job_of(tuned, PLAIN, conversations(3), Train(), seed=7, round=round, client=client, stage=stage)


def seen(tuned: Tuned, batch: Batch, masks: Job, step: int = 0) -> Tensor:
    """What the first adapter of each layer is given for inputs of ones, [B, L, I]."""
    layer = next(iter(tuned.adapters.values()))
    with adapter_dropout(tuned, batch, [masks.dropout_masks(step)]):
        assert layer.drop is not None
        return layer.drop(torch.ones(*batch.mask.shape, layer.base.in_features))


def test_a_layer_by_hand(tuned: Tuned) -> None:
    """Two inputs, rank one: A = (1, 2), B = (3, 5) and scale 10, the first input lost, the other doubled."""
    base = nn.Linear(2, 2, bias=False)
    base.weight.data = torch.eye(2)
    layer = LoRALinear(
        base, nn.Parameter(torch.tensor([[1.0, 2.0]])), nn.Parameter(torch.tensor([[3.0], [5.0]])), 10
    )
    layer.drop = lambda x: x * torch.tensor([0.0, 2.0])
    # A sees (0, 2): 1 · 0 + 2 · 2 = 4; the frozen layer sees (1, 1).
    assert layer(torch.ones(1, 1, 2)).tolist() == [[[1 + 10 * 3 * 4, 1 + 10 * 5 * 4]]]


def test_dropout_equals_pefts_with_the_same_mask() -> None:
    generator = torch.Generator().manual_seed(0)
    base, x = nn.Linear(6, 5), torch.randn(2, 50, 6, generator=generator)
    config = LoraConfig(r=2, lora_alpha=4, lora_dropout=SHARE)
    stock = Linear(base, "default", config, r=2, lora_alpha=4, lora_dropout=SHARE)
    stock.lora_B["default"].weight.data = torch.randn(5, 2, generator=generator)
    ours = LoRALinear(base, stock.lora_A["default"].weight, stock.lora_B["default"].weight, scale=2.0)
    drawn: list[Tensor] = []
    stock.lora_dropout["default"].register_forward_hook(
        lambda _, given, made: drawn.append(torch.where(given[0] == 0, 0.0, made / given[0]))
    )
    stock.train()
    expected = stock(x)
    kept = drawn[0][drawn[0] > 0]
    assert 0 < len(kept) < drawn[0].numel()
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - SHARE)))
    ours.drop = lambda given: given * drawn[0]
    torch.testing.assert_close(ours(x), expected)


def test_masks_are_the_named_draws_of_real_tokens_in_their_order(tuned: Tuned) -> None:
    batch = collate(tuned.vlm, [conversations(3)])
    assert not batch.mask.all()  # some rows are padded
    name = next(iter(tuned.adapters))
    width = tuned.adapters[name].base.in_features
    drawn = torch.rand(
        int(batch.mask.sum()), width, generator=torch_stream(7, f"dropout/{name}", round=2, client=4, step=5)
    )
    actual = seen(tuned, batch, job(tuned), step=5)
    expected = (drawn >= SHARE).float() / (1 - SHARE)
    torch.testing.assert_close(actual[batch.mask.bool()], expected)


def test_dropout_keeps_the_mean(tuned: Tuned) -> None:
    batch = collate(tuned.vlm, [conversations(3)])
    result = torch.stack([seen(tuned, batch, job(tuned), step)[batch.mask.bool()] for step in range(40)])
    # Of n draws the mean is 1, with variance p / (1 - p) / n; five standard deviations.
    bound = 5 * (SHARE / (1 - SHARE) / result.numel()) ** 0.5
    assert abs(float(result.mean()) - 1) < bound < 0.05


@pytest.mark.parametrize(
    "other", [{"client": 5}, {"round": 3}, {"stage": 1}, {"step": 1}], ids=lambda other: next(iter(other))
)
def test_every_client_round_stage_and_step_has_its_own_mask(tuned: Tuned, other: dict[str, int]) -> None:
    batch = collate(tuned.vlm, [conversations(3)])
    step = other.pop("step", 0)
    assert not torch.equal(seen(tuned, batch, job(tuned)), seen(tuned, batch, job(tuned, **other), step))


def test_every_layer_has_its_own_mask(tuned: Tuned) -> None:
    batch = collate(tuned.vlm, [conversations(1)])
    with adapter_dropout(tuned, batch, [job(tuned).dropout_masks(0)]):
        results = [
            layer.drop(torch.ones(*batch.mask.shape, layer.base.in_features))
            for layer in tuned.adapters.values()
            if layer.drop is not None
        ]
    assert len(results) == len(tuned.adapters)
    alike = [one for one in results[1:] if one.shape == results[0].shape and torch.equal(one, results[0])]
    assert not alike


def losses(tuned: Tuned, batch: Batch) -> Tensor:
    return answer_losses(tuned.vlm, batch).detach()


def test_there_is_no_dropout_outside_of_training(tuned: Tuned, tiny_model: Path) -> None:
    batch = collate(tuned.vlm, [conversations(3)])
    before = losses(tuned, batch)
    with adapter_dropout(tuned, batch, [job(tuned).dropout_masks(0)]):
        assert not torch.equal(losses(tuned, batch), before)
    assert torch.equal(losses(tuned, batch), before)
    plain = prepare(load_vlm(str(tiny_model)), stage("lora", LoRA(rank=2)), seed=0)
    plain.write(tuned.read())
    with adapter_dropout(plain, batch, [job(plain).dropout_masks(0)]):
        assert torch.equal(losses(plain, batch), before)


def test_an_error_inside_the_block_ends_dropout(tuned: Tuned) -> None:
    batch = collate(tuned.vlm, [conversations(1)])
    with pytest.raises(ZeroDivisionError), adapter_dropout(tuned, batch, [job(tuned).dropout_masks(0)]):
        raise ZeroDivisionError
    assert all(layer.drop is None for layer in tuned.adapters.values())


@pytest.mark.parametrize("cut", [lambda x: x[0], lambda x: x[:, 1:], lambda x: x.flatten(0, 1)[1:]])
def test_other_rows_than_the_batchs_tokens_are_refused(tuned: Tuned, cut: Callable[[Tensor], Tensor]) -> None:
    batch = collate(tuned.vlm, [conversations(2)])
    name, layer = next(iter(tuned.adapters.items()))
    with adapter_dropout(tuned, batch, [job(tuned).dropout_masks(0)]), pytest.raises(UserError) as caught:
        layer(cut(torch.ones(*batch.mask.shape, layer.base.in_features)))
    assert name in str(caught.value)
    assert "Set strategy.dropout to 0" in str(caught.value)


def test_tokens_in_one_row_get_the_mask_that_they_get_in_a_batch(tuned: Tuned) -> None:
    """A shared expert is given the tokens of all conversations one after the other."""
    tuned.write(tuned.start.with_flat(torch.ones_like(tuned.start.flat)))
    batch = collate(tuned.vlm, [conversations(2)])
    layer = next(iter(tuned.adapters.values()))
    x = torch.rand(*batch.mask.shape, layer.base.in_features)
    results = []
    for given in (x, x.flatten(0, 1)):
        with adapter_dropout(tuned, batch, [job(tuned).dropout_masks(0)]):
            results.append(layer(given))
    assert torch.equal(results[0].flatten(0, 1), results[1])
    assert not torch.equal(results[0], layer(x))


def test_the_exported_adapter_names_its_dropout(tuned: Tuned, tiny_model: Path) -> None:
    assert adapter_config(tuned)["lora_dropout"] == SHARE
    plain = prepare(load_vlm(str(tiny_model)), stage("both", LoRA(rank=2)), seed=0)
    assert adapter_config(plain)["lora_dropout"] == 0.0
