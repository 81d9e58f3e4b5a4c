"""Clients side by side give the updates that they give one after the other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.clients import EXCHANGING, Result, all_parts, job_of, results, tune

from fedloom.algorithms.compose import make
from fedloom.algorithms.fedprox import proximal
from fedloom.algorithms.local_rule import PLAIN, LocalRule, chain
from fedloom.client.answer_questions import answer_examples, answer_rows
from fedloom.client.client_memory import InMemory
from fedloom.client.local_job import Job
from fedloom.client.local_training import train
from fedloom.client.site import Profile, Site, SiteMethod, SiteStage
from fedloom.config.schema import Evaluate, Train
from fedloom.data.drawn_shapes import MAKERS
from fedloom.engine.in_process import InProcess, blocks
from fedloom.models.load_model import load_vlm, move_model
from fedloom.params import Part
from fedloom.seeds import stream
from fedloom.system.timing import Clock
from fedloom.tasks import TASKS
from fedloom.tuning.adapters import Tuned, prepare, side_by_side
from fedloom.tuning.strategies import STRATEGIES, LoRA, stage
from fedloom.types import Conversation, Presence
from fedloom.wire.messages import Update

SETTINGS = Train(
    rounds=4,
    epochs=2,
    batch_size=2,
    lr=1e-2,
    schedule="constant",
    local_schedule="constant",
    optimizer="sgd",
    beta2=0.999,
    weight_decay=0.01,
    batches="shuffled",
    clip=0.5,
)


def varied(**other: Any) -> Train:
    """Return the settings with the given values changed."""
    return SETTINGS.model_copy(update=other)


BOTH, IMAGE, TEXT = Presence(True, True), Presence(True, False), Presence(False, True)


def conversations(client: int, count: int, present: Presence) -> list[Conversation]:
    examples = [MAKERS["vqa"](stream(client, "t", step=k), str(k)) for k in range(count)]
    return [TASKS["vqa"].render(one, present, answer_form="text") for one in examples]


# client → (examples, what it sees): different numbers of steps, lengths and modalities
COHORT = {0: (5, BOTH), 1: (2, TEXT), 2: (6, IMAGE), 3: (1, TEXT), 4: (5, TEXT)}


def jobs_of(tuned: Tuned, settings: Train, rule: LocalRule = PLAIN, name: str = "fedavg") -> list[Job]:
    algorithm = make(name, len(COHORT))
    sent, both = algorithm.broadcast(algorithm.init(tuned.start)), chain(algorithm.local, rule)
    return [
        job_of(tuned, both, conversations(k, *holds), settings, seed=7, client=k, start=sent)
        for k, holds in COHORT.items()
    ]


def one_by_one(tuned: Tuned, todo: list[Job]) -> list[Result]:
    return [results(tuned, [job])[0] for job in todo]


def assert_alike(actual: list[Result], expected: list[Result], tolerance: float) -> None:
    for (mine, kept), (theirs, remembered) in zip(actual, expected, strict=True):
        assert (mine.client, mine.weight) == (theirs.client, theirs.weight)
        assert mine.metrics["steps"] == theirs.metrics["steps"]
        assert mine.metrics["loss"] == pytest.approx(theirs.metrics["loss"], rel=1e-5)
        size = float(theirs.delta.flat.norm())
        assert float((mine.delta.flat - theirs.delta.flat).norm()) <= tolerance * size
        assert kept.keys() == remembered.keys()
        for key, value in kept.items():
            torch.testing.assert_close(value, remembered[key], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("clip", [None, 0.5])
def test_every_strategy(strategy: str, clip: float | None, tiny_model: Path) -> None:
    tuned = tune(tiny_model, strategy)
    todo = jobs_of(tuned, varied(clip=clip))
    assert_alike(results(tuned, todo), one_by_one(tuned, todo), 1e-5)


def test_clients_with_different_parts(tiny_model: Path) -> None:
    """Side by side, one client trains everything, the next ones the connector or the adapters."""
    tuned = tune(tiny_model)
    connector = Part.of(tuned.layout.mask(lambda name: name.startswith("connector/")))
    parts = [None, connector, connector.complement, connector, None]
    todo = [replace(job, trained=part) for job, part in zip(jobs_of(tuned, SETTINGS), parts, strict=True)]
    assert_alike(results(tuned, todo), one_by_one(tuned, todo), 1e-5)


@pytest.mark.parametrize("name", EXCHANGING)
def test_every_local_rule(name: str, tiny_model: Path) -> None:
    tuned = tune(tiny_model)
    todo = jobs_of(tuned, SETTINGS, proximal(0.3), name)
    assert_alike(results(tuned, todo), one_by_one(tuned, todo), 1e-5)


SCALES = (1.0, 4.0, 0.3, 1.0, 2.0)


def test_clients_with_different_scales(tiny_model: Path) -> None:
    """Adapters of clients side by side have each client's scale, also when clients with fewer steps have left."""
    tuned = tune(tiny_model)
    todo = [replace(job, scale=scale) for job, scale in zip(jobs_of(tuned, SETTINGS), SCALES, strict=True)]
    alone = one_by_one(tuned, todo)
    assert_alike(results(tuned, todo), alone, 1e-5)
    plain = one_by_one(tuned, [replace(job, scale=1.0) for job in todo])  # so the model's scale is put back
    assert_alike(plain, one_by_one(tune(tiny_model), jobs_of(tuned, SETTINGS)), 0)
    for (mine, _), (other, _), scale in zip(alone, plain, SCALES, strict=True):
        assert torch.equal(mine.delta.flat, other.delta.flat) == (scale == 1)


def test_a_scale_among_others_gives_the_bits_that_it_gives_to_all(tiny_model: Path) -> None:
    """A row's bits are those in a stack of which every row has its scale."""
    tuned = tune(tiny_model)
    todo = jobs_of(tuned, SETTINGS)
    mixed = results(tuned, [replace(job, scale=scale) for job, scale in zip(todo, SCALES, strict=True)])
    for k, scale in enumerate(SCALES):
        same = results(tuned, [replace(job, scale=scale) for job in todo])
        assert torch.equal(mixed[k][0].delta.flat, same[k][0].delta.flat)


@pytest.mark.parametrize("schedule", ["cosine", "published"])
def test_clients_with_different_learning_rates(schedule: str, tiny_model: Path) -> None:
    """Clients with different numbers of steps are at different places of their schedules."""
    tuned = tune(tiny_model)
    todo = jobs_of(tuned, varied(local_schedule=schedule))
    alone = one_by_one(tuned, todo)
    assert_alike(results(tuned, todo), alone, 1e-5)
    constant = one_by_one(tuned, jobs_of(tuned, SETTINGS))
    assert all(
        not torch.equal(mine.delta.flat, other.delta.flat)
        for (mine, _), (other, _) in zip(alone, constant, strict=True)
    )


@pytest.mark.parametrize("strategy", ["lora", "both"])
def test_clients_with_different_dropout_masks(strategy: str, tiny_model: Path) -> None:
    """Dropout drops the same values of a client, whoever trains beside it and however long its neighbors' texts are."""
    tuned = tune(tiny_model, strategy, dropout=0.3)
    todo = jobs_of(tuned, SETTINGS)
    alone = one_by_one(tuned, todo)
    assert_alike(results(tuned, todo), alone, 1e-5)
    assert_alike(results(tuned, todo[::-1])[::-1], alone, 1e-5)
    plain = tune(tiny_model, strategy)
    without = one_by_one(plain, jobs_of(plain, SETTINGS))
    for (mine, _), (other, _) in zip(alone, without, strict=True):
        assert float((mine.delta.flat - other.delta.flat).norm()) > 0.01 * float(other.delta.flat.norm())


def test_adamw(tiny_model: Path) -> None:
    """Adam turns a gradient that is only rounding error into a full step, so the bound is wider."""
    tuned = tune(tiny_model)
    todo = jobs_of(tuned, varied(optimizer="adamw"))
    assert_alike(results(tuned, todo), one_by_one(tuned, todo), 1e-2)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_equal_lengths_give_equal_bits(optimizer: str, dropout: float, tiny_model: Path) -> None:
    tuned = tune(tiny_model, dropout=dropout)
    settings = varied(optimizer=optimizer, epochs=1)
    (one,) = conversations(0, 1, BOTH)
    todo = [job_of(tuned, PLAIN, [one] * 4, settings, seed=7)] * 3
    for (mine, _), (theirs, _) in zip(results(tuned, todo), one_by_one(tuned, todo), strict=True):
        torch.testing.assert_close(mine.delta.flat, theirs.delta.flat, rtol=0, atol=1e-6)


def test_rows_do_not_touch_each_other(tiny_model: Path) -> None:
    """A neighbor with other data changes only the last bits."""
    tuned = tune(tiny_model)
    todo = jobs_of(tuned, SETTINGS)
    changed = [*todo[:-1], replace(todo[-1], conversations=conversations(99, 5, BOTH))]
    assert_alike(results(tuned, todo)[:-1], results(tuned, changed)[:-1], 1e-5)


def test_the_model_has_one_row_again_afterwards(tiny_model: Path) -> None:
    tuned = tune(tiny_model)
    alone = one_by_one(tuned, jobs_of(tuned, SETTINGS))
    results(tuned, jobs_of(tuned, SETTINGS))
    again = one_by_one(tuned, jobs_of(tuned, SETTINGS))
    for (mine, _), (theirs, _) in zip(again, alone, strict=True):
        assert torch.equal(mine.delta.flat, theirs.delta.flat)


def local(tuned: Tuned, todo: list[Job]) -> SiteMethod:
    profiles = [Profile(count, present.image, present.text) for count, present in COHORT.values()]
    stages = [SiteStage(SETTINGS, all_parts(tuned.layout.size))]
    return SiteMethod(todo[0].rule, tuned.start, stages, profiles, lambda client: todo[client].conversations)


@pytest.mark.parametrize("rows", [1, 2, 3, 8])
def test_the_backend_keeps_the_order(rows: int, tiny_model: Path) -> None:
    tuned = tune(tiny_model)
    todo, memory = jobs_of(tuned, SETTINGS, name="scaffold"), InMemory()
    site = Site(tuned, 7, lambda method: local(tuned, todo), memory)
    answers = list(InProcess(site, rows).train((job.assignment for job in todo), Clock()))
    assert all(isinstance(one, Update) for one in answers)
    kept = [memory.read(("method", client, 0)) for client in COHORT]
    assert_alike(list(zip(answers, kept, strict=True)), one_by_one(tuned, todo), 1e-5)


@pytest.mark.parametrize("rows", [1, 2, 3, 8])
def test_blocks_hold_every_job_once(rows: int, tiny_model: Path) -> None:
    tuned = tune(tiny_model)
    todo = jobs_of(tuned, SETTINGS) + jobs_of(tuned, varied(lr=1.0))
    result = blocks(dict(enumerate(todo)), rows)
    assert sorted(k for block in result for k in block) == list(range(len(todo)))
    for block in result:
        assert len(block) <= rows
        assert len({todo[k].settings for k in block}) == 1


def test_jobs_that_cannot_step_together_are_refused(tiny_model: Path) -> None:
    tuned = tune(tiny_model)
    one, two, *_ = jobs_of(tuned, SETTINGS)
    with pytest.raises(ValueError, match="same settings and round"):
        train(tuned, [one, replace(two, settings=varied(lr=1.0))])


@pytest.mark.parametrize("scoring", ["likelihood", "generate", "teacher-forced"])
def test_personal_models_answer_side_by_side_as_they_do_alone(scoring: str, tiny_model: Path) -> None:
    tuned = tune(tiny_model)
    asked = ("vqa", "classification", "vqa", "classification", "classification")
    examples = [MAKERS[task](stream(1, "t", step=k), str(k)) for k, task in enumerate(asked)]
    presence = [BOTH, TEXT, IMAGE, BOTH, TEXT]
    settings = Evaluate(scoring=scoring)
    models = [
        tuned.start.with_flat(torch.randn(tuned.layout.size, generator=torch.Generator().manual_seed(k)) / 9)
        for k in range(3)
    ]
    alone = []
    for model in models:
        tuned.write(model)
        alone.append(answer_examples(tuned.vlm, examples, presence, settings))
    with side_by_side(tuned, 3) as stack:
        for row, model in enumerate(models):
            stack.write(model, row)
        together = answer_rows(stack.vlm, stack.connectors(3), examples, presence, settings)
    for mine, theirs in zip(together, alone, strict=True):
        assert (mine.answers, mine.replies) == (theirs.answers, theirs.replies)
        compared = [task == "classification" and scoring == "likelihood" for task in asked]
        for options, left, right in zip(compared, mine.probabilities, theirs.probabilities, strict=True):
            assert [chances is not None for chances in (left, right)] == [options, options]
            if options:
                np.testing.assert_allclose(left, right, atol=1e-4)


def test_lower_precision_gives_similar_updates(tiny_model: Path) -> None:
    """Half the bits in the frozen model: updates point the same way."""
    settings = varied(epochs=1)
    full, half = tune(tiny_model), move_model(load_vlm(str(tiny_model)), "cpu", "bfloat16")
    tuned = prepare(half, stage("both", LoRA(rank=2)), seed=0)
    for (mine, _), (theirs, _) in zip(
        results(tuned, jobs_of(tuned, settings)), results(full, jobs_of(full, settings)), strict=True
    ):
        assert mine.delta.flat.dtype == torch.float32
        assert torch.cosine_similarity(mine.delta.flat, theirs.delta.flat, dim=0) > 0.98
