"""Laws of every partition, every pattern, and their product."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from itertools import chain, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedloom.config.schema import Scenario
from fedloom.scenarios import PARTITIONS, PATTERNS, Plan, build_plan, pooled
from fedloom.scenarios.modality_pattern import uniform_draws
from fedloom.scenarios.partition import Pool
from fedloom.scenarios.plan import ARRAYS, digest_of, offsets_of
from fedloom.scenarios.plan_file import plan_to_json
from fedloom.system.errors import UserError
from fedloom.types import Example

FREE = [name for name in PARTITIONS if name != "by_source"]  # those that any examples can be divided by
GRID = list(product(FREE, PATTERNS))


def scenario(**changes: object) -> Scenario:
    """Return a scenario in which clients differ in labels and modalities."""
    values: dict[str, object] = {"clients": 4, "partition": "dirichlet", "pattern": "missing"}
    return Scenario.model_validate({**values, **changes})


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


def read_plan(value: dict) -> Plan:
    """Read what `plan_to_json` wrote."""
    clients = value["clients"]
    if "arrays" in value:
        arrays = value["arrays"]
        sizes, indices = (np.array(arrays[key].split(), np.int64) for key in ("sizes", "indices"))
        image, text = (np.array([*arrays[key]]) == "1" for key in ("image", "text"))
    else:
        sizes = np.array([row["size"] for row in clients], np.int64)
        indices, image, text = (
            np.array([*chain.from_iterable(row[key] for row in clients)], kind) for key, kind in ARRAYS
        )
    return Plan(indices, offsets_of(sizes), image, text, value["digest"], value["scenario"])


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
    seen = np.zeros((len(union), 2), bool)
    seen[union.indices] = np.stack([union.image, union.text], axis=1)
    return seen


@st.composite
def cases(draw):
    rows = draw(
        st.lists(st.tuples(st.booleans(), st.booleans(), st.sampled_from([None, 0, 1, 2])), min_size=1)
    )
    examples = [example(number, *row) for number, row in enumerate(rows)]
    clients = draw(st.integers(1, len(examples)))
    settings = scenario(
        clients=clients,
        alpha=draw(st.sampled_from([0.01, 0.5, 100.0])),
        rate=draw(st.sampled_from([0.0, 0.5, 0.99, 1.0])),
        image_clients=draw(st.none() | st.integers(0, clients)),
        p=draw(st.sampled_from([0.0, 0.01, 0.5, 1.0])),
    )
    return examples, settings, draw(st.integers(0, 2**32))


@pytest.mark.parametrize("partition", FREE)
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
    pool = Pool(np.array(labels), groups, np.ones(len(labels), bool), np.ones((clients, 2), bool))
    client_of = PARTITIONS[partition](pool, np.random.default_rng(seed), alpha)
    assert client_of.shape == (len(labels),)
    assert sorted(set(client_of.tolist())) == list(range(clients))


@given(
    pictured=st.lists(st.booleans(), min_size=1, max_size=60),
    holds=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=12),
    seed=st.integers(0, 1000),
)
def test_by_source_gives_each_source_to_those_that_hold_its_modality_in_equal_parts(pictured, holds, seed):
    pool = Pool(np.zeros(len(pictured), int), [None] * len(pictured), np.array(pictured), np.array(holds))
    try:
        client_of = PARTITIONS["by_source"](pool, np.random.default_rng(seed), 1.0)
    except UserError:
        needed = [sum(a and not b for a, b in holds), sum(b and not a for a, b in holds)]
        available = [sum(pictured), len(pictured) - sum(pictured)]
        enough = all(have >= len(holds) for have in available)
        nobody = not all(any(row[side] for row in holds) for side in (0, 1))
        assert not enough or nobody, (needed, available)
        return
    for side, members in enumerate((pool.has_image, ~pool.has_image)):
        counts = np.bincount(client_of[members], minlength=len(holds))
        takers = [
            client for client, row in enumerate(holds) if row[side] or (not any(row) and counts[client])
        ]
        assert not np.delete(counts, takers).any()
        assert np.ptp(counts[takers]) <= 1 if takers else not members.any()
    assert set(client_of.tolist()) == set(range(len(holds)))


def test_by_source_says_which_source_is_missing():
    with pytest.raises(UserError, match="12 training examples have an image while 0 have none, but client"):
        build_plan(many(12), scenario(partition="by_source", pattern="cross"), 0)
    mixed = [example(number, image=number < 6, text=number >= 6) for number in range(12)]
    with pytest.raises(UserError, match="one of the two would have no client"):
        build_plan(mixed, scenario(partition="by_source", pattern="cross", image_clients=4), 0)


@pytest.mark.parametrize("pattern", ["cross", "hybrid"])
def test_by_source_shows_every_example_as_it_is(pattern):
    mixed = [example(number, image=number % 4 == 0, text=number % 4 != 0) for number in range(80)]
    settings = scenario(partition="by_source", pattern=pattern, clients=6, image_clients=2)
    plan = build_plan(mixed, settings, 1)
    assert flags(plan).tolist() == [[number % 4 == 0, number % 4 != 0] for number in range(80)]
    if pattern == "cross":
        assert sorted(len(share) for share in plan.clients if share.image.any()) == [10, 10]


@pytest.mark.parametrize("partition", PARTITIONS)
def test_more_clients_than_examples_is_a_user_error(partition):
    with pytest.raises(UserError, match="clients is 4, but there are 3"):
        build_plan(many(3), scenario(clients=4, partition=partition), 0)


def test_iid_sizes_differ_by_at_most_one():
    sizes = [len(share) for share in build_plan(many(23), scenario(partition="iid", clients=5), 0).clients]
    assert max(sizes) - min(sizes) <= 1


def test_dirichlet_with_a_large_alpha_gives_equal_shares_of_every_label():
    examples = many(300)
    plan = build_plan(examples, scenario(alpha=1e8, clients=4), 0)
    for share in plan.clients:
        counts = Counter(examples[index].label for index in share.indices)
        assert all(abs(counts[label] - 25) <= 1 for label in range(len(OPTIONS)))


@pytest.mark.parametrize("mode", ["corrected", "published"])
def test_an_alpha_beyond_the_range_of_the_draw_is_refused(mode):
    """All sums are infinite then, and all shares 0: one client would get nearly everything, the opposite of equal shares."""
    examples = [example(n, label=n % 2) for n in range(80)]
    with pytest.raises(UserError, match=r"scenario\.alpha is 1\.7e\+308, too large for a draw; take 1e6"):
        build_plan(examples, scenario(alpha=1.7e308, clients=4, mode=mode), 0)


def test_dirichlet_with_a_small_alpha_gives_nearly_every_label_to_one_client():
    examples = many(300)
    plan = build_plan(examples, scenario(alpha=1e-3, clients=3), 0)
    for label in range(len(OPTIONS)):
        counts = [sum(examples[index].label == label for index in share.indices) for share in plan.clients]
        assert max(counts) >= 95


def test_dirichlet_uses_groups_if_there_are_no_labels():
    examples = [example(number, label=None) for number in range(300)]
    plan = build_plan(examples, scenario(alpha=1e-3, clients=3), 0)
    for group in {one.group for one in examples}:
        counts = [sum(examples[index].group == group for index in share.indices) for share in plan.clients]
        assert max(counts) >= 55


@pytest.mark.parametrize("clients", [2, 5])
def test_by_group_keeps_groups_whole_where_there_are_enough(clients):
    examples = many(40)
    plan = build_plan(examples, scenario(partition="by_group", clients=clients), 0)
    holders = [{examples[index].group for index in share.indices} for share in plan.clients]
    assert sum(map(len, holders)) == len(set().union(*holders)) == 5


def test_by_group_needs_groups():
    examples = [Example(str(number), "Which?", "cat", options=OPTIONS) for number in range(4)]
    with pytest.raises(UserError, match="no example of this data set has a group"):
        build_plan(examples, scenario(partition="by_group"), 0)


@pytest.mark.parametrize("pattern", PATTERNS)
@given(case=cases())
def test_no_example_gains_a_modality_or_loses_all(pattern, case):
    examples, settings, seed = case
    present = flags(build_plan(examples, scenario(**{**vars(settings), "pattern": pattern}), seed))
    # A question without image and text is itself a text.
    held = np.array([(one.image is not None, one.text is not None or one.image is None) for one in examples])
    assert not (present & ~held).any()
    assert (present.any(axis=1) == held.any(axis=1)).all()


@pytest.mark.parametrize(("partition", "pattern"), GRID)
@given(case=cases(), shuffle=st.randoms(use_true_random=False))
def test_a_plan_depends_on_settings_and_seed_but_not_on_listing_order(partition, pattern, case, shuffle):
    examples, settings, seed = case
    settings = scenario(**{**vars(settings), "partition": partition, "pattern": pattern})
    shuffled = list(examples)
    shuffle.shuffle(shuffled)
    first, second = build_plan(examples, settings, seed), build_plan(shuffled, settings, seed)
    assert content(first, examples) == content(second, shuffled)
    assert first.digest == second.digest


@pytest.mark.parametrize(("partition", "pattern"), GRID)
def test_digests_differ_for_different_seeds_and_settings(partition, pattern):
    examples = many(60)
    settings = scenario(partition=partition, pattern=pattern)
    digests = {build_plan(examples, settings, seed).digest for seed in range(5)}
    digests.add(build_plan(examples, scenario(partition=partition, pattern=pattern, clients=6), 0).digest)
    assert len(digests) == 6


def test_the_digest_covers_presence():
    examples, settings = many(20), {"partition": "iid"}
    kinds = {build_plan(examples, scenario(**settings, pattern=pattern), 0).digest for pattern in PATTERNS}
    assert len(kinds) == len(PATTERNS)


def test_missing_nothing_is_aligned():
    examples = many(50)
    aligned = build_plan(examples, scenario(pattern="aligned"), 3)
    assert build_plan(examples, scenario(pattern="missing", rate=0.0), 3).digest == aligned.digest
    assert build_plan(examples, scenario(pattern="hybrid", p=1.0), 3).digest == aligned.digest
    assert flags(aligned).all()


def within(count: int, trials: int, chance: float) -> bool:
    """Return whether a count is within five standard deviations of its binomial mean."""
    return abs(count - trials * chance) <= 5 * np.sqrt(trials * chance * (1 - chance))


@pytest.mark.parametrize("rate", [0.3, 0.5])
@pytest.mark.parametrize("seed", [0, 1])
def test_missing_meets_its_rate_within_binomial_bounds(rate, seed):
    count = 4000
    present = flags(build_plan(many(count), scenario(pattern="missing", rate=rate), seed))
    lost = ~present
    for modality in (0, 1):
        assert within(int(lost[:, modality].sum()), count, rate - rate**2 / 2)
    assert within(int(present.all(axis=1).sum()), count, (1 - rate) ** 2)


@pytest.mark.parametrize("image_clients", [None, 0, 3, 7, 10])
def test_cross_gives_each_client_one_modality(image_clients):
    settings = scenario(pattern="cross", clients=10, partition="iid", image_clients=image_clients)
    plan = build_plan(many(100), settings, 0)
    kinds = [(share.image.all(), share.text.all()) for share in plan.clients]
    assert all((share.image ^ share.text).all() for share in plan.clients)
    assert kinds.count((True, False)) == (5 if image_clients is None else image_clients)
    assert kinds.count((False, True)) == 10 - kinds.count((True, False))


def test_cross_refuses_more_image_clients_than_clients():
    with pytest.raises(UserError, match="image_clients is 5"):
        build_plan(many(10), scenario(pattern="cross", clients=4, image_clients=5), 0)


def test_cross_adds_image_clients_without_changing_others():
    def image_clients(count: int) -> set[int]:
        settings = scenario(pattern="cross", clients=10, partition="iid", image_clients=count)
        plan = build_plan(many(50), settings, 7)
        return {number for number, share in enumerate(plan.clients) if share.image.all()}

    assert image_clients(3) < image_clients(5) < image_clients(7)


def test_hybrid_draws_clients_within_binomial_bounds_and_tosses_a_coin_where_both_are_absent():
    clients, p = 1000, 0.6
    settings = scenario(clients=clients, partition="iid", pattern="hybrid", p=p)
    plan = build_plan(many(20 * clients), settings, 0)
    both = sum((share.image & share.text).all() for share in plan.clients)
    mixed = [share for share in plan.clients if share.image.any() and not share.image.all()]
    assert within(both, clients, p * p)
    assert within(len(mixed), clients, (1 - p) ** 2)  # 20 equal coins at one client: once in 500,000
    assert all((share.image ^ share.text).all() for share in mixed)
    assert within(sum(int(share.image.sum()) for share in mixed), 20 * len(mixed), 0.5)


def test_an_examples_draws_do_not_depend_on_other_examples():
    assert np.array_equal(uniform_draws(["a", "b", "c"], 1)[2], uniform_draws(["c"], 1)[0])
    assert not np.array_equal(uniform_draws(["c"], 1), uniform_draws(["c"], 2))


def test_repeated_ids_are_refused():
    with pytest.raises(UserError, match="'e1'"):
        build_plan([*many(4), example(1)], scenario(clients=2), 0)


@pytest.mark.parametrize(("partition", "pattern"), GRID)
def test_a_plan_survives_json_and_its_counts_add_up(partition, pattern):
    examples = many(40)
    plan = build_plan(examples, scenario(partition=partition, pattern=pattern), 0)
    value = json.loads(json.dumps(plan_to_json(plan, examples)))
    again = read_plan(value)
    assert content(again, examples) == content(plan, examples)
    assert plan_to_json(again, examples) == value
    for row in value["clients"]:
        assert row["size"] == len(row["indices"]) == sum(row["labels"].values())
        assert row["size"] == row["both"] + row["image_only"] + row["text_only"] + row["none"]
        assert row["both"] + row["image_only"] == sum(row["image"])
    total = Counter()
    for row in value["clients"]:
        total.update(row["labels"])
    assert total == Counter(one.answer for one in examples)


def test_the_digest_shows_that_a_plan_was_made_for_other_data():
    examples = many(20)
    plan = build_plan(examples, scenario(), 0)
    assert digest_of(plan, examples) == plan.digest != digest_of(plan, examples[::-1])


def test_pooled_keeps_what_is_seen():
    examples = many(30)
    plan = build_plan(examples, scenario(), 0)
    rows = content(plan, examples)
    assert sorted(content(pooled(plan), examples)[0]) == sorted(row for share in rows for row in share)
    assert plan.digest != pooled(plan).digest


def test_a_share_cannot_be_changed():
    share = build_plan(many(10), scenario(), 0).clients[0]
    with pytest.raises(ValueError, match="read-only"):
        share.image[0] = False


def test_examples_may_lose_everything_if_the_settings_allow_it():
    count, rate = 4000, 0.4
    settings = scenario(pattern="missing", rate=rate, lose_all=True)
    lost = ~flags(build_plan(many(count), settings, 0))
    for modality in (0, 1):
        assert within(int(lost[:, modality].sum()), count, rate)
    assert within(int(lost.all(axis=1).sum()), count, rate**2)


def test_losing_everything_takes_nothing_from_those_who_keep_something():
    examples = many(200)
    kept = flags(build_plan(examples, scenario(), 0))
    lost = flags(build_plan(examples, scenario(lose_all=True), 0))
    gone = ~lost.any(axis=1)
    assert gone.any() and (kept[gone].sum(axis=1) == 1).all()
    assert (kept[~gone] == lost[~gone]).all()


@pytest.mark.parametrize(("partition", "pattern"), GRID)
@given(case=cases())
def test_shares_are_views_of_the_plans_arrays(partition, pattern, case):
    examples, settings, seed = case
    plan = build_plan(
        examples, scenario(**{**vars(settings), "partition": partition, "pattern": pattern}), seed
    )
    assert len(plan.clients) == settings.clients == len(plan.offsets) - 1
    for name in ("indices", "image", "text"):
        parts = [getattr(share, name) for share in plan.clients]
        assert np.array_equal(np.concatenate(parts), getattr(plan, name))
        assert all(np.shares_memory(part, getattr(plan, name)) for part in parts)
    assert plan.clients[-1].indices.tolist() == plan.clients[settings.clients - 1].indices.tolist()
    assert [share.indices.tolist() for share in plan.clients[1:3]] == [
        share.indices.tolist() for share in list(plan.clients)[1:3]
    ]
    with pytest.raises(IndexError):
        plan.clients[settings.clients]


def test_a_plan_of_very_many_clients_is_written_as_arrays_and_read_back():
    examples = many(10_050)
    plan = build_plan(examples, scenario(clients=10_001, partition="iid", pattern="hybrid"), 0)
    value = json.loads(json.dumps(plan_to_json(plan, examples)))
    assert value["count"] == 10_001 and len(value["clients"]) == 100
    again = read_plan(value)
    assert plan_to_json(again, examples) == value
    for name in ("indices", "offsets", "image", "text"):
        assert np.array_equal(getattr(again, name), getattr(plan, name))


def test_the_digest_is_that_of_compact_json():
    examples = [example(number, text=number % 2 == 0) for number in range(9)] + [
        Example('é"\n', "Which?", "cat", text="words", options=OPTIONS)
    ]
    plan = build_plan(examples, scenario(clients=3), 0)
    rows = [[[id, int(image), int(text)] for id, image, text in share] for share in content(plan, examples)]
    text = json.dumps(rows, separators=(",", ":"))
    assert plan.digest == hashlib.sha256(text.encode()).hexdigest()


def test_a_question_without_image_and_text_counts_as_a_text():
    examples = [Example(str(number), "Why?", "so", task="vqa") for number in range(4)]
    plan = build_plan(examples, scenario(clients=2, partition="iid", pattern="aligned"), 0)
    assert [row["text_only"] for row in plan_to_json(plan, examples)["clients"]] == [2, 2]
