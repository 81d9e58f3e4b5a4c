"""A step in several passes is the step in one pass: `train.micro_batch`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.clients import EXCHANGING, Result, job_of, results, tune
from tests.shares import each_once

from fedloom.algorithms.compose import make
from fedloom.algorithms.fedprox import proximal
from fedloom.algorithms.local_rule import PLAIN, LocalRule, chain
from fedloom.client.backpropagation import micro_batches
from fedloom.client.client_measurements import gradient_norms
from fedloom.client.gradient_probe import BatchProbe
from fedloom.client.local_job import Job
from fedloom.config.schema import Train
from fedloom.data.drawn_shapes import MAKERS
from fedloom.engine.machine_choices import saved_bytes
from fedloom.models.gradient_checkpointing import gradient_checkpointing
from fedloom.models.load_model import load_vlm, move_model
from fedloom.seeds import stream
from fedloom.system.timing import Clock
from fedloom.tasks import TASKS
from fedloom.tuning.adapters import Tuned, prepare
from fedloom.tuning.strategies import STRATEGIES, LoRA, stage
from fedloom.types import Conversation, Presence

SETTINGS = Train(
    rounds=2,
    epochs=2,
    batch_size=4,
    lr=1e-2,
    schedule="constant",
    optimizer="sgd",
    weight_decay=0.01,
    clip=0.5,
)
BOTH, IMAGE, TEXT = Presence(True, True), Presence(True, False), Presence(False, True)
COHORT = {0: (6, BOTH), 1: (3, TEXT), 2: (9, IMAGE), 3: (1, TEXT)}
"""Client → number of examples, and what it sees; batches of one to four."""


def conversations(client: int, count: int, present: Presence) -> list[Conversation]:
    examples = [MAKERS["vqa"](stream(client, "t", step=k), str(k)) for k in range(count)]
    return [TASKS["vqa"].render(one, present, answer_form="text") for one in examples]


def jobs_of(tuned: Tuned, micro: int | None, name: str = "fedavg", rule: LocalRule = PLAIN) -> list[Job]:
    settings = SETTINGS.model_copy(update={"micro_batch": micro})
    algorithm = make(name, len(COHORT))
    sent = algorithm.broadcast(algorithm.init(tuned.start))
    return [
        job_of(tuned, chain(algorithm.local, rule), conversations(k, *holds), settings, seed=7, client=k, start=sent)
        for k, holds in COHORT.items()
    ]  # fmt: skip


def assert_alike(actual: Sequence[Result], expected: Sequence[Result]) -> None:
    for (mine, kept), (theirs, remembered) in zip(actual, expected, strict=True):
        assert mine.metrics["steps"] == theirs.metrics["steps"]
        assert mine.metrics["loss"] == pytest.approx(theirs.metrics["loss"], rel=1e-5)
        size = float(theirs.delta.flat.norm())
        assert size > 0
        assert float((mine.delta.flat - theirs.delta.flat).norm()) <= 1e-5 * size
        for key, value in kept.items():
            torch.testing.assert_close(value, remembered[key], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("name", "micro"), each_once(EXCHANGING, (1, 3)))
def test_every_algorithm_takes_the_steps_of_the_whole_batch(name: str, micro: int, tiny_model: Path) -> None:
    tuned = tune(tiny_model)
    whole = results(tuned, jobs_of(tuned, None, name, proximal(0.3)))
    assert_alike(results(tuned, jobs_of(tuned, micro, name, proximal(0.3))), whole)


@pytest.mark.parametrize(("strategy", "recompute"), each_once(STRATEGIES, (False, True)))
def test_every_strategy_with_dropout(strategy: str, recompute: bool, tiny_model: Path) -> None:
    """Each token has the mask that it has in the whole batch."""
    tuned = tune(tiny_model, strategy, dropout=0.3)
    with gradient_checkpointing(tuned.vlm, recompute):
        whole = results(tuned, jobs_of(tuned, None))
        assert_alike(results(tuned, jobs_of(tuned, 1)), whole)
    if strategy != "connector":
        plain = tune(tiny_model, strategy)
        other = results(plain, jobs_of(plain, None))
        assert any(not torch.equal(mine.delta.flat, theirs.delta.flat)
                   for (mine, _), (theirs, _) in zip(whole, other, strict=True))  # fmt: skip


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_rule_that_makes_its_own_gradient(dropout: float, tiny_model: Path) -> None:
    tuned = tune(tiny_model, dropout=dropout)
    params = tuned.start.flat + 0.01

    def probe(micro: int | None) -> BatchProbe:
        job = jobs_of(tuned, micro)[2]
        return BatchProbe(tuned, job, job.conversations[:4], 1, torch.ones(tuned.layout.size), Clock())

    for micro in (1, 3):
        torch.testing.assert_close(probe(micro).loss(params), probe(None).loss(params), rtol=1e-5, atol=0)
        for name in ("gradient", "per_example"):
            mine, theirs = (getattr(probe(size), name)(params) for size in (micro, None))
            torch.testing.assert_close(mine[0], theirs[0], rtol=1e-5, atol=0)
            assert mine[1].shape == theirs[1].shape
            assert float((mine[1] - theirs[1]).norm()) <= 1e-5 * float(theirs[1].norm())


def test_norms_of_gradients_that_a_server_asks_for(tiny_model: Path) -> None:
    tuned = tune(tiny_model)
    mine, theirs = (gradient_norms(tuned, jobs_of(tuned, micro)[0])["norms"] for micro in (1, None))
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-9)


def test_a_decoder_in_float16_scales_the_losses_of_all_passes(tiny_model: Path) -> None:
    tuned = prepare(
        move_model(load_vlm(str(tiny_model)), "cpu", "float16"), stage("both", LoRA(rank=2)), seed=0
    )
    whole, parts = (results(tuned, jobs_of(tuned, micro)) for micro in (None, 1))
    for (mine, _), (theirs, _) in zip(parts, whole, strict=True):
        assert torch.cosine_similarity(mine.delta.flat, theirs.delta.flat, dim=0) > 0.99


def test_a_batch_is_cut_in_order_and_no_example_is_left_out(tiny_model: Path) -> None:
    vlm = load_vlm(str(tiny_model))
    groups = [conversations(0, 5, TEXT), conversations(1, 2, TEXT)]
    batches = micro_batches(vlm, groups, 2)
    assert [batch.ids.shape[0] for batch in batches] == [4, 4, 2]
    for client in range(2):
        assert sum(
            float(batch.weight.split(batch.sizes)[client].sum()) for batch in batches
        ) == pytest.approx(1)
    assert len(micro_batches(vlm, groups, 5)) == len(micro_batches(vlm, groups, None)) == 1


def test_a_pass_keeps_as_much_memory_as_its_examples_need(tiny_model: Path) -> None:
    """Equal examples, so that a pass of one keeps a quarter of a pass of four."""
    tuned = tune(tiny_model)

    def kept(**other: Any) -> int:
        job = jobs_of(tuned, None)[1]
        same = [job.conversations[0]] * 4
        return saved_bytes(
            tuned, replace(job, conversations=same, settings=SETTINGS.model_copy(update=other))
        )

    assert kept(micro_batch=1) == kept(batch_size=1)
    assert 3.5 <= kept() / kept(micro_batch=1) <= 4.01
