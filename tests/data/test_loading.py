"""Divisions contain every example once, keep near-duplicates together, and have similar answers in both parts."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from fedloom.data.loading import divide, subsample
from fedloom.types import Example

SHARES = st.floats(0.05, 0.95)
SEEDS = st.integers(0, 1000)


def examples_of(answers):
    return [Example(str(i), "?", answer, options=("a", "b", "c")) for i, answer in enumerate(answers)]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.lists(st.integers(0, 12), max_size=2))), SHARES, SEEDS)
def test_divide_keeps_every_example_once_and_near_duplicates_together(rows, share, seed):
    examples = examples_of([answer for answer, _ in rows])
    twins = [tuple(keys) for _, keys in rows]
    train, test = divide(examples, twins, share, seed)
    assert sorted((*train, *test), key=lambda example: int(example.id)) == examples
    for part in (train, test):
        assert [int(example.id) for example in part] == sorted(int(example.id) for example in part)
    keys = [{key for example in part for key in twins[int(example.id)]} for part in (train, test)]
    assert not keys[0] & keys[1]
    assert len(test) <= max(1, round(share * len(examples)))


@given(st.lists(st.sampled_from("abc"), min_size=2), SHARES, SEEDS)
def test_without_near_duplicates_every_answer_is_divided_in_proportion(answers, share, seed):
    _, test = divide(examples_of(answers), [()] * len(answers), share, seed)
    count = min(max(round(share * len(answers)), 1), len(answers) - 1)
    assert len(test) == count
    held, total = Counter(example.answer for example in test), Counter(answers)
    for answer, size in total.items():
        # Two running totals are rounded, by half an example each.
        assert abs(held[answer] - size * count / len(answers)) <= 1


@given(st.lists(st.sampled_from("abc")), st.integers(1, 40), SEEDS)
def test_thin_keeps_exactly_the_limit_in_order_and_in_proportion(answers, limit, seed):
    examples = examples_of(answers)
    kept = subsample(examples, limit, seed)
    assert len(kept) == min(limit, len(examples))
    assert list(kept) == [example for example in examples if example in kept]
    total, left = Counter(answers), Counter(example.answer for example in kept)
    assert all(abs(left[a] - n * len(kept) / len(answers)) <= 1 for a, n in total.items())


def test_draws_depend_on_the_seed_only():
    examples, twins = examples_of("abc" * 20), [()] * 60
    assert divide(examples, twins, 0.3, 1) == divide(examples, twins, 0.3, 1)
    assert divide(examples, twins, 0.3, 1) != divide(examples, twins, 0.3, 2)
    assert subsample(examples, 20, 1) != subsample(examples, 20, 2)
