"""The splits of FedMLLM's published code: figures worked out from its procedure, and laws of its draws.

B. Xu et al., "FedMLLM: Federated Fine-tuning MLLM on Multimodal Heterogeneity Data", arXiv 2411.14717v2.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest

from fedloom.config.schema import Scenario
from fedloom.engine.client_sampling import Schedule, draw_cohort
from fedloom.experiment.recipes import load_experiment
from fedloom.scenarios import Plan, build_plan, published_cohort
from fedloom.system.errors import UserError
from fedloom.types import Example

HATEFUL = (5450, 3050)  # rows of Hateful-Memes' training file with label 0 and 1; the first row has label 0


PUBLISHED = Scenario(mode="published", clients=10, partition="dirichlet", repair="each", pattern="aligned")


@dataclass(frozen=True)
class Blank:
    key: str = "blank"

    def pixels(self) -> np.ndarray:
        return np.zeros((4, 4, 3), np.uint8)


OPTIONS = ("not-hateful", "hateful", "neither")


def example(number: int, label: int = 0, image: bool = True, text: bool = True) -> Example:
    return Example(
        f"{number * 7919 % 100_003:05d}", "Is it hateful?", OPTIONS[label],
        image=Blank() if image else None, text="a caption" if text else None, label=label, options=OPTIONS,
    )  # fmt: skip


def listed(*counts: int) -> list[Example]:
    """Examples with these numbers of labels, mixed, but labels first seen in their order."""
    labels = [label for label, count in enumerate(counts) for _ in range(count - 1)]
    random.Random(0).shuffle(labels)
    return [example(number, label) for number, label in enumerate([*range(len(counts)), *labels])]


MEMES = listed(*HATEFUL)


def plan_of(examples: list[Example] = MEMES, **changes: object) -> Plan:
    return build_plan(examples, PUBLISHED.model_copy(update=changes), seed=0)


def seen(plan: Plan) -> list[str]:
    """What each client sees: I, T, IT, or I/T where it differs by example."""
    patterns = []
    for share in plan.clients:
        kinds = {(bool(image), bool(text)) for image, text in zip(share.image, share.text, strict=True)}
        patterns.append(
            "/".join(sorted(("I" if image else "") + ("T" if text else "") for image, text in kinds))
        )
    return patterns


def test_hateful_memes_is_divided_as_published():
    plan = plan_of()
    assert [len(share) for share in plan.clients] == [524, 1425, 173, 30, 1013, 3, 4293, 124, 509, 406]
    by_label = [
        [sum(MEMES[i].label == label for i in share.indices) for share in plan.clients] for label in (0, 1)
    ]
    assert by_label == [
        [291, 1375, 50, 7, 784, 1, 2286, 69, 193, 394],
        [233, 50, 123, 23, 229, 2, 2007, 55, 316, 12],
    ]
    assert sorted(plan.indices.tolist()) == list(range(8500))


def test_a_label_is_cut_in_file_order_and_each_client_is_shuffled():
    plan = plan_of()
    held = [
        sorted(index for index in share.indices.tolist() if MEMES[index].label == 0) for share in plan.clients
    ]
    zeros = [index for index, one in enumerate(MEMES) if one.label == 0]
    assert [index for part in held for index in part] == zeros
    first = zeros[:291] + [index for index, one in enumerate(MEMES) if one.label == 1][:233]
    random.Random(42).shuffle(first)
    assert plan.clients[0].indices.tolist() == first


def test_sizes_follow_the_order_in_which_labels_are_first_seen():
    swapped = [replace(one, label=1 - (one.label or 0)) for one in MEMES]
    assert [len(share) for share in plan_of(swapped).clients] == [len(share) for share in plan_of().clients]
    later = sorted(MEMES, key=lambda one: -(one.label or 0))
    assert [len(share) for share in plan_of(later).clients] != [len(share) for share in plan_of().clients]


def test_a_published_split_is_the_same_for_every_seed():
    for pattern in ("aligned", "missing", "cross", "hybrid"):
        settings = PUBLISHED.model_copy(update={"pattern": pattern})
        assert build_plan(MEMES[:500], settings, 1).digest == build_plan(MEMES[:500], settings, 2).digest


def test_only_the_first_label_is_repaired_for_crisis_mmd():
    examples = listed(600, 600, 600)

    def least(repair: str) -> list[int]:
        plan = plan_of(examples, repair=repair, alpha=0.2)
        rows = [Counter(examples[i].label for i in share.indices) for share in plan.clients]
        return [min(row[label] for row in rows) for label in range(3)]

    assert least("each") == [1, 1, 1]
    assert least("first")[0] == 1 and 0 in least("first")


@pytest.mark.parametrize("repair", ["each", "first"])
def test_the_repair_ends_for_a_label_with_too_few_examples_and_no_client_is_empty(repair):
    examples = listed(6, 5, 3)
    plan = plan_of(examples, repair=repair)
    assert sorted(plan.indices.tolist()) == list(range(14))
    assert all(len(share) for share in plan.clients)


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 1.0])
def test_missing_draws_the_text_before_the_image_over_clients_in_order(rate):
    plan, draws = plan_of(pattern="missing", rate=rate), random.Random(42)
    for image, text in zip(plan.image, plan.text, strict=True):
        assert text == (draws.random() < 1 - rate)
        assert image == (draws.random() < 1 - rate)
    both_gone = int((~plan.image & ~plan.text).sum())
    spread = 5 * np.sqrt(8500 * rate**2 * (1 - rate**2))
    assert abs(both_gone - 8500 * rate**2) <= spread


@pytest.mark.parametrize(("k", "chosen"), [(5, {0, 1, 4, 6, 9})])
def test_cross_has_the_published_image_clients(k, chosen):
    plan = plan_of(pattern="cross", image_clients=k)
    assert seen(plan) == ["I" if client in chosen else "T" for client in range(10)]
    assert [len(share) for share in plan.clients] == [len(share) for share in plan_of().clients]


@pytest.mark.parametrize("k", [3, 7])
def test_cross_draws_a_sample_of_a_generator_seeded_with_42(k):
    images = {
        client for client, kind in enumerate(seen(plan_of(pattern="cross", image_clients=k))) if kind == "I"
    }
    assert images == set(random.Random(42).sample(list(range(10)), k))


def test_hybrid_has_the_published_clients():
    assert seen(plan_of(pattern="hybrid", p=0.7)) == ["I", "T", "IT", "I", "I", "I", "T", "IT", "IT", "IT"]


def test_hybrid_tosses_a_coin_for_each_example_of_a_client_without_either():
    plan, draws = plan_of(pattern="hybrid", p=0.0), random.Random(42)
    assert plan.image.tolist() == [draws.random() < 0.5 for _ in range(8500)]
    assert (plan.text == ~plan.image).all()


def test_no_draw_adds_a_modality():
    words = [replace(one, image=None) for one in MEMES[:400]]
    for pattern in ("aligned", "missing", "cross", "hybrid"):
        assert not plan_of(words, pattern=pattern).image.any()


def sources(images: int, texts: int) -> list[Example]:
    """Return questions about images, then questions without images."""
    pictures = [Example(f"p{number}", "What?", "this", image=Blank(), task="vqa") for number in range(images)]
    return pictures + [Example(f"w{number}", "Why?", "so", task="vqa") for number in range(texts)]


def test_medical_cross_has_the_published_image_clients_and_equal_chunks():
    examples = sources(1797, 3400)
    plan = plan_of(examples, partition="by_source", pattern="cross", image_clients=3)
    assert {client for client, kind in enumerate(seen(plan)) if kind == "I"} == {3, 5, 6}
    sizes = [len(share) for share in plan.clients]
    assert [sizes[client] for client in (3, 5, 6)] == [599, 599, 599]
    assert [sizes[client] for client in (0, 1, 2, 4, 7, 8, 9)] == [485] * 6 + [490]
    assert sorted(plan.indices.tolist()) == list(range(len(examples)))


def test_medical_cross_hands_out_chunks_in_the_order_of_the_draw():
    plan, draws = (
        plan_of(sources(31, 70), partition="by_source", pattern="cross", image_clients=3),
        random.Random(41),
    )
    drawn = draws.sample(range(10), 3)
    shuffled = list(range(31))
    draws.shuffle(shuffled)
    for client, chunk in zip(drawn, (shuffled[:10], shuffled[10:20], shuffled[20:]), strict=True):
        assert plan.clients[client].indices.tolist() == chunk


@pytest.mark.parametrize("p", [0.8, 0.7, 0.6])
def test_medical_hybrid_gives_image_and_text_clients_a_chunk_of_each_source(p):
    examples = sources(300, 700)
    plan = plan_of(examples, partition="by_source", pattern="hybrid", p=p)
    assert sorted(plan.indices.tolist()) == list(range(1000))
    pictures = [int((share.indices < 300).sum()) for share in plan.clients]
    words = [int((share.indices >= 300).sum()) for share in plan.clients]
    for counts, total in ((pictures, 300), (words, 700)):
        takers = [count for count in counts if count]
        assert takers[:-1] == [total // len(takers)] * (len(takers) - 1)
    assert all(share.image.tolist() == (share.indices < 300).tolist() for share in plan.clients)
    assert all((share.image ^ share.text).all() for share in plan.clients)


@pytest.mark.parametrize(
    "changes",
    [{"partition": "iid"}, {"partition": "by_group"}, {"partition": "by_source", "pattern": "missing"}],
)
def test_scenarios_that_were_not_published_are_refused(changes):
    with pytest.raises(UserError, match="there is no published procedure"):
        plan_of(**changes)
    words = [f"scenario.{key}={value}" for key, value in ({"mode": "published"} | changes).items()]
    with pytest.raises(UserError, match="there is no published procedure"):
        load_experiment("smoke", words)


def test_a_source_without_a_client_is_refused():
    with pytest.raises(UserError, match="one of the two would have no client"):
        plan_of(sources(20, 20), partition="by_source", pattern="cross", image_clients=10)


def test_an_experiment_in_published_mode_divides_by_label_and_repairs_as_published():
    scenario = load_experiment("smoke", ["scenario.mode=published"]).scenario
    assert (scenario.partition, scenario.repair) == ("dirichlet", "each")
    assert load_experiment("smoke").scenario.mode == "corrected"


def test_the_published_sampler_has_the_published_rounds():
    assert [published_cohort(round, 10, 2) for round in range(3)] == [(6, 9), (1, 2), (0, 1)]


def test_the_published_sampler_is_the_same_for_every_seed_and_the_corrected_one_is_not():
    def cohorts(seed: int, sampler: str) -> list[tuple[int, ...]]:
        return [draw_cohort(Schedule(20, tuple(range(10)), 2, seed, sampler), round) for round in range(20)]

    assert (
        cohorts(0, "published") == cohorts(1, "published") == [published_cohort(n, 10, 2) for n in range(20)]
    )
    assert cohorts(0, "corrected") != cohorts(1, "corrected")
