"""Laws of every partition, every pattern, and their product."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom.scenarios import PARTITIONS, PATTERNS, Plan, build_plan, only, pooled
from fedloom.scenarios.pattern import coins
from fedloom.types import Example, UserError

LAW = settings(max_examples=25, deadline=None)
GRID = list(product(PARTITIONS, PATTERNS))


@dataclass(frozen=True)
class Settings:
    clients: int = 4
    partition: str = "dirichlet"
    alpha: float = 0.5
    pattern: str = "missing"
    rate: float = 0.3
    image_clients: int | None = None
    p: float = 0.7


@dataclass(frozen=True)
class Blank:
    key: str = "blank"

    def pixels(self) -> np.ndarray:
        return np.zeros((4, 4, 3), np.uint8)


OPTIONS = ("cat", "dog", "fox")


def example(number: int, image: bool = True, text: bool = True, label: int | None = 0) -> Example:
    return Example(
        id=f"e{number}",
        question="Which?",
        answer=OPTIONS[label or 0],
        image=Blank() if image else None,
        text="some words" if text else None,
        label=label,
        group=f"g{number % 5}",
        options=OPTIONS,
    )


def many(count: int) -> list[Example]:
    return [example(number, label=number % len(OPTIONS)) for number in range(count)]


def content(plan: Plan, examples: list[Example]) -> list[list[tuple[str, bool, bool]]]:
    return [
        [(examples[i].id, bool(a), bool(b)) for i, a, b in zip(s.indices, s.image, s.text, strict=True)]
        for s in plan.clients
    ]


def flags(plan: Plan) -> np.ndarray:
    """Presence of every example in list order, [N, 2]."""
    union = pooled(plan).clients[0]
    found = np.zeros((len(union), 2), bool)
    found[union.indices] = np.stack([union.image, union.text], axis=1)
    return found


@st.composite
def cases(draw):
    rows = draw(
        st.lists(st.tuples(st.booleans(), st.booleans(), st.sampled_from([None, 0, 1, 2])), min_size=1)
    )
    examples = [example(number, *row) for number, row in enumerate(rows)]
    clients = draw(st.integers(1, len(examples)))
    settings = Settings(
        clients=clients,
        alpha=draw(st.sampled_from([0.01, 0.5, 100.0])),
        rate=draw(st.sampled_from([0.0, 0.5, 0.99])),
        image_clients=draw(st.none() | st.integers(0, clients)),
        p=draw(st.sampled_from([0.01, 0.5, 1.0])),
    )
    return examples, settings, draw(st.integers(0, 2**32))


@pytest.mark.parametrize("partition", PARTITIONS)
@LAW
@given(
    labels=st.lists(st.integers(-1, 3), min_size=1, max_size=60),
    share=st.floats(0, 1),
    alpha=st.sampled_from([0.001, 0.1, 1.0, 1000.0]),
    seed=st.integers(0, 1000),
)
def test_partitions_are_disjoint_and_covering_and_leave_no_client_empty(
    partition, labels, share, alpha, seed
):
    clients = 1 + int(share * (len(labels) - 1))
    groups = [f"g{label}" for label in labels]
    parts = PARTITIONS[partition](np.array(labels), groups, clients, np.random.default_rng(seed), alpha)
    assert len(parts) == clients
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    assert all(len(part) for part in parts)


@pytest.mark.parametrize("partition", PARTITIONS)
def test_more_clients_than_examples_is_a_users_mistake(partition):
    with pytest.raises(UserError, match="clients is 4, but there are 3"):
        build_plan(many(3), Settings(clients=4, partition=partition), 0)


def test_iid_sizes_differ_by_at_most_one():
    sizes = [len(share) for share in build_plan(many(23), Settings(partition="iid", clients=5), 0).clients]
    assert max(sizes) - min(sizes) <= 1


def test_dirichlet_with_a_large_alpha_gives_equal_shares_of_every_label():
    examples = many(300)
    plan = build_plan(examples, Settings(alpha=1e8, clients=4), 0)
    for share in plan.clients:
        counts = Counter(examples[index].label for index in share.indices)
        assert all(abs(counts[label] - 25) <= 1 for label in range(len(OPTIONS)))


def test_dirichlet_with_a_small_alpha_gives_nearly_every_label_to_one_client():
    examples = many(300)
    plan = build_plan(examples, Settings(alpha=1e-3, clients=3), 0)
    for label in range(len(OPTIONS)):
        counts = [sum(examples[index].label == label for index in share.indices) for share in plan.clients]
        assert max(counts) >= 95


def test_dirichlet_goes_by_group_where_there_is_no_label():
    examples = [example(number, label=None) for number in range(300)]
    plan = build_plan(examples, Settings(alpha=1e-3, clients=3), 0)
    for group in {one.group for one in examples}:
        counts = [sum(examples[index].group == group for index in share.indices) for share in plan.clients]
        assert max(counts) >= 55


@pytest.mark.parametrize("clients", [2, 5])
def test_by_group_keeps_groups_whole_where_there_are_enough(clients):
    examples = many(40)
    plan = build_plan(examples, Settings(partition="by_group", clients=clients), 0)
    holders = [{examples[index].group for index in share.indices} for share in plan.clients]
    assert sum(map(len, holders)) == len(set().union(*holders)) == 5


def test_by_group_needs_groups():
    examples = [Example(str(number), "Which?", "cat", options=OPTIONS) for number in range(4)]
    with pytest.raises(UserError, match="no example of this data set has a group"):
        build_plan(examples, Settings(partition="by_group"), 0)


@pytest.mark.parametrize("pattern", PATTERNS)
@LAW
@given(case=cases())
def test_nobody_gains_a_modality_and_nobody_loses_all(pattern, case):
    examples, settings, seed = case
    present = flags(build_plan(examples, Settings(**{**vars(settings), "pattern": pattern}), seed))
    held = np.array([(one.image is not None, one.text is not None) for one in examples])
    assert not (present & ~held).any()
    assert (present.any(axis=1) == held.any(axis=1)).all()


@pytest.mark.parametrize(("partition", "pattern"), GRID)
@LAW
@given(case=cases(), shuffle=st.randoms(use_true_random=False))
def test_a_plan_depends_on_settings_and_seed_but_not_on_listing_order(partition, pattern, case, shuffle):
    examples, settings, seed = case
    settings = Settings(**{**vars(settings), "partition": partition, "pattern": pattern})
    shuffled = list(examples)
    shuffle.shuffle(shuffled)
    first, second = build_plan(examples, settings, seed), build_plan(shuffled, settings, seed)
    assert content(first, examples) == content(second, shuffled)
    assert first.digest == second.digest


@pytest.mark.parametrize(("partition", "pattern"), GRID)
def test_digests_differ_for_different_seeds_and_settings(partition, pattern):
    examples = many(60)
    settings = Settings(partition=partition, pattern=pattern)
    digests = {build_plan(examples, settings, seed).digest for seed in range(5)}
    digests.add(build_plan(examples, Settings(partition=partition, pattern=pattern, clients=6), 0).digest)
    assert len(digests) == 6


def test_the_digest_covers_presence():
    examples, settings = many(20), {"partition": "iid"}
    kinds = {build_plan(examples, Settings(**settings, pattern=pattern), 0).digest for pattern in PATTERNS}
    assert len(kinds) == len(PATTERNS)


def test_missing_nothing_is_aligned():
    examples = many(50)
    aligned = build_plan(examples, Settings(pattern="aligned"), 3)
    assert build_plan(examples, Settings(pattern="missing", rate=0.0), 3).digest == aligned.digest
    assert build_plan(examples, Settings(pattern="hybrid", p=1.0), 3).digest == aligned.digest
    assert flags(aligned).all()


def within(count: int, trials: int, chance: float) -> bool:
    """Whether a count is within five standard deviations of its binomial mean."""
    return abs(count - trials * chance) <= 5 * np.sqrt(trials * chance * (1 - chance))


@pytest.mark.parametrize("rate", [0.3, 0.5])
@pytest.mark.parametrize("seed", [0, 1])
def test_missing_meets_its_rate_within_binomial_bounds(rate, seed):
    count = 4000
    present = flags(build_plan(many(count), Settings(pattern="missing", rate=rate), seed))
    lost = ~present
    for modality in (0, 1):
        assert within(int(lost[:, modality].sum()), count, rate - rate**2 / 2)
    assert within(int(present.all(axis=1).sum()), count, (1 - rate) ** 2)


@pytest.mark.parametrize("image_clients", [None, 0, 3, 7, 10])
def test_cross_gives_each_client_one_modality(image_clients):
    settings = Settings(pattern="cross", clients=10, partition="iid", image_clients=image_clients)
    plan = build_plan(many(100), settings, 0)
    kinds = [(share.image.all(), share.text.all()) for share in plan.clients]
    assert all((share.image ^ share.text).all() for share in plan.clients)
    assert kinds.count((True, False)) == (5 if image_clients is None else image_clients)
    assert kinds.count((False, True)) == 10 - kinds.count((True, False))


def test_cross_refuses_more_image_clients_than_clients():
    with pytest.raises(UserError, match="image_clients is 5"):
        build_plan(many(10), Settings(pattern="cross", clients=4, image_clients=5), 0)


def test_cross_adds_image_clients_without_changing_others():
    def image_clients(count: int) -> set[int]:
        settings = Settings(pattern="cross", clients=10, partition="iid", image_clients=count)
        plan = build_plan(many(50), settings, 7)
        return {number for number, share in enumerate(plan.clients) if share.image.all()}

    assert image_clients(3) < image_clients(5) < image_clients(7)


def test_hybrid_draws_clients_within_binomial_bounds_and_tosses_a_coin_where_both_are_absent():
    clients, p = 1000, 0.6
    settings = Settings(clients=clients, partition="iid", pattern="hybrid", p=p)
    plan = build_plan(many(20 * clients), settings, 0)
    both = sum((share.image & share.text).all() for share in plan.clients)
    mixed = [share for share in plan.clients if share.image.any() and not share.image.all()]
    assert within(both, clients, p * p)
    assert within(len(mixed), clients, (1 - p) ** 2)  # 20 equal coins at one client: once in 500,000
    assert all((share.image ^ share.text).all() for share in mixed)
    assert within(sum(int(share.image.sum()) for share in mixed), 20 * len(mixed), 0.5)


def test_an_examples_draws_do_not_depend_on_other_examples():
    assert np.array_equal(coins(["a", "b", "c"], 1)[2], coins(["c"], 1)[0])
    assert not np.array_equal(coins(["c"], 1), coins(["c"], 2))


def test_repeated_ids_are_refused():
    with pytest.raises(UserError, match="'e1'"):
        build_plan([*many(4), example(1)], Settings(clients=2), 0)


@pytest.mark.parametrize(("partition", "pattern"), GRID)
def test_a_plan_survives_json_and_its_counts_add_up(partition, pattern):
    examples = many(40)
    plan = build_plan(examples, Settings(partition=partition, pattern=pattern), 0)
    value = json.loads(json.dumps(plan.to_json(examples)))
    again = Plan.from_json(value, examples)
    assert content(again, examples) == content(plan, examples)
    assert again.to_json(examples) == value
    for row in value["clients"]:
        assert row["size"] == len(row["indices"]) == sum(row["labels"].values())
        assert row["size"] == row["both"] + row["image_only"] + row["text_only"] + row["none"]
        assert row["both"] + row["image_only"] == sum(row["image"])
    total = Counter()
    for row in value["clients"]:
        total.update(row["labels"])
    assert total == Counter(one.answer for one in examples)


def test_a_plan_read_for_other_data_is_refused():
    examples = many(20)
    value = build_plan(examples, Settings(), 0).to_json(examples)
    for others in (many(19), examples[::-1]):
        with pytest.raises(UserError, match="other data"):
            Plan.from_json(value, others)


def test_pooled_and_only_keep_what_is_seen():
    examples = many(30)
    plan = build_plan(examples, Settings(), 0)
    rows = content(plan, examples)
    assert sorted(content(pooled(plan), examples)[0]) == sorted(row for share in rows for row in share)
    assert [content(only(plan, client), examples)[0] for client in range(4)] == rows
    assert len({plan.digest, pooled(plan).digest, *(only(plan, client).digest for client in range(4))}) == 6


def test_a_share_cannot_be_changed():
    share = build_plan(many(10), Settings(), 0).clients[0]
    with pytest.raises(ValueError, match="read-only"):
        share.image[0] = False
