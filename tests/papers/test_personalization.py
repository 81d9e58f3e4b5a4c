"""Priors, averages of answers, interpolation and personal factors: worked by hand, and the cases in which they are something else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.clients import all_parts, site_of

from fedloom.algorithms.algorithm import FederatedAlgorithm
from fedloom.algorithms.compose import make
from fedloom.algorithms.own_answers import Interpolation, Known, OwnAnswers
from fedloom.algorithms.personal_values import PersonalValues
from fedloom.client.local_training import Trained
from fedloom.client.site import OWN, Question
from fedloom.params import Layout, Params
from fedloom.system.errors import UserError
from fedloom.tuning.strategies import LoRA, strategy
from fedloom.tuning.strategy_parts import Parts, parts_of
from fedloom.wire.messages import Assignment, Update

# Own answers ----------------------------------------------------------------------------------------


def chosen(
    part: OwnAnswers, chances: Sequence[float], counts: Sequence[int], alone: Sequence[float] | None = None
) -> list[float]:
    local = None if alone is None else np.array(alone)
    return part.choose(np.array(chances), Known(np.array(counts, np.int64), local)).tolist()


def prior(**arguments: float) -> OwnAnswers:
    return make("prior", 2, {"smoothing": 1.0, **arguments})


def test_the_prior_of_three_options() -> None:
    """Counts 0, 3, 1 and a = 1 give π = 1/7, 4/7, 2/7; times .5, .3, .2 that is .5 : 1.2 : .4, of 2.1 in all."""
    assert chosen(prior(), [0.5, 0.3, 0.2], [0, 3, 1]) == pytest.approx([5 / 21, 12 / 21, 4 / 21])


def test_half_the_strength_takes_the_root_of_the_prior() -> None:
    """π^½ is as 1 : 2 : √2, so .5 : .6 : .2 · √2."""
    terms = np.array([0.5, 0.6, 0.2 * 2**0.5])
    assert chosen(prior(strength=0.5), [0.5, 0.3, 0.2], [0, 3, 1]) == pytest.approx(terms / terms.sum())


def test_smoothing_is_added_to_every_count() -> None:
    """(0 + 4) : (4 + 4) = 1 : 2, so ½ · 1 : ½ · 2."""
    assert chosen(prior(smoothing=4.0), [0.5, 0.5], [0, 4]) == pytest.approx([1 / 3, 2 / 3])


@st.composite
def questions(draw: st.DrawFn) -> tuple[list[float], list[int]]:
    count = draw(st.integers(2, 6))
    weights = draw(st.lists(st.integers(0, 50), min_size=count, max_size=count).filter(any))
    counts = draw(st.lists(st.integers(0, 40), min_size=count, max_size=count))
    return [weight / sum(weights) for weight in weights], counts


@given(questions(), st.floats(0, 4), st.floats(0.01, 10))
def test_a_prior_gives_probabilities_and_favors_the_frequent(
    question: tuple[list[float], list[int]], strength: float, smoothing: float
) -> None:
    chances, counts = question
    part = prior(strength=strength, smoothing=smoothing)
    changed = chosen(part, chances, counts)
    assert sum(changed) == pytest.approx(1)
    assert [value == 0 for value in changed] == [value == 0 for value in chances]  # what cannot be stays so
    for one in range(len(counts)):
        for other in range(len(counts)):
            if counts[one] > counts[other]:
                assert changed[one] * chances[other] >= changed[other] * chances[one] * (1 - 1e-9)
    turned = chosen(part, chances[::-1], counts[::-1])
    assert turned[::-1] == pytest.approx(changed)


@given(questions(), st.integers(0, 9))
def test_without_strength_and_with_equal_counts_nothing_changes(
    question: tuple[list[float], list[int]], count: int
) -> None:
    chances, counts = question
    assert chosen(prior(strength=0.0), chances, counts) == pytest.approx(chances)
    assert chosen(prior(), chances, [count] * len(chances)) == pytest.approx(chances)


def test_answers_are_averaged_with_those_of_the_local_model() -> None:
    assert chosen(make("average-alone", 2), [0.9, 0.1], [0, 0], [0.3, 0.7]) == pytest.approx([0.6, 0.4])
    quarter = make("average-alone", 2, {"weight": 0.25})
    assert chosen(quarter, [0.9, 0.1], [0, 0], [0.3, 0.7]) == pytest.approx([0.75, 0.25])
    for weight, expected in ((0.0, [0.9, 0.1]), (1.0, [0.3, 0.7])):
        part = make("average-alone", 2, {"weight": weight})
        assert chosen(part, [0.9, 0.1], [0, 0], [0.3, 0.7]) == pytest.approx(expected)


def test_answers_are_pooled_with_those_of_the_local_model() -> None:
    # √(.9 · .1) = .3 and √(.1 · .9) = .3; and .8² · .5 : .2² · .5 to the power of a third
    half = make("pool-alone", 2, {"weight": 0.5})
    assert chosen(half, [0.9, 0.1], [0, 0], [0.1, 0.9]) == pytest.approx([0.5, 0.5])
    third = make("pool-alone", 2, {"weight": 1 / 3})
    odds = (0.8 / 0.2) ** (2 / 3)
    assert chosen(third, [0.8, 0.2], [0, 0], [0.5, 0.5]) == pytest.approx([odds / (1 + odds), 1 / (1 + odds)])
    for weight, expected in ((0.0, [0.9, 0.1]), (1.0, [0.3, 0.7])):
        part = make("pool-alone", 2, {"weight": weight})
        assert chosen(part, [0.9, 0.1], [0, 0], [0.3, 0.7]) == pytest.approx(expected)


@given(questions(), st.floats(0, 1), st.floats(0, 4))
def test_a_pool_of_equal_models_changes_nothing_and_its_order_with_the_prior_is_a_matter_of_strength(
    question: tuple[list[float], list[int]], weight: float, strength: float
) -> None:
    chances, counts = question
    pool = make("pool-alone", 2, {"weight": weight})
    assert chosen(pool, chances, counts, chances) == pytest.approx(chances)
    # The prior before the pool counts with the weight of the model to which it is applied.
    before = chosen(pool, chosen(prior(strength=strength), chances, counts), counts, chances[::-1])
    after = chosen(
        prior(strength=strength * (1 - weight)), chosen(pool, chances, counts, chances[::-1]), counts
    )
    assert before == pytest.approx(after, abs=1e-6)


def test_an_option_that_one_model_finds_impossible_stays_so_and_one_is_always_chosen() -> None:
    half = make("pool-alone", 2, {"weight": 0.5})
    assert chosen(half, [0.0, 0.5, 0.5], [0] * 3, [0.9, 0.1, 0.0]) == pytest.approx([0, 1, 0], abs=1e-9)
    assert sum(chosen(half, [1.0, 0.0], [0, 0], [0.0, 1.0])) == pytest.approx(1)


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("prior", {"smoothing": 0.0}),
        ("pool-alone", {"weight": -0.1}),
        ("prior", {"strength": -1.0}),
        ("average-alone", {"weight": 1.5}),
        ("interpolate", {"shares": []}),
        ("interpolate", {"shares": [0.5, 2.0]}),
        ("interpolate", {"default": -0.5}),
        ("personal-layers", {"names": []}),
    ],
)
def test_arguments_out_of_range_are_refused(name: str, arguments: Mapping[str, object]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(arguments))} "):
        make(name, 2, arguments)


# Interpolation --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scores, best",
    [
        ([0.1, 0.2, 0.3], 1.0),
        ([0.3, 0.2, 0.1], 0.0),
        ([0.3, 0.3, 0.1], 0.5),  # the nearest to the default
        ([0.3, 0.2, 0.3], 0.0),  # as near as 1, and smaller
    ],
)
def test_the_share_with_the_best_score_is_taken(scores: list[float], best: float) -> None:
    assert Interpolation((0.0, 0.5, 1.0), 0.5).best(scores) == best


@pytest.mark.parametrize("share, expected", [(0.0, 4.0), (0.25, 3.0), (0.5, 2.0), (1.0, 0.0)])
def test_a_model_between_the_own_and_the_shared_one(share: float, expected: float) -> None:
    """Own 0 and shared 4: ¼ · 0 + ¾ · 4 = 3."""
    layout = Layout.of({"connector/w": (2,)})
    site = site_of(make("fedavg", 2), layout=layout)
    site.memory.write(("m", 1, 0), {OWN: torch.zeros(2)}, ())
    shared = Params(layout, torch.full((2,), 4.0))
    question = Question("m", 0, shared, 1, 0, own_share=share)
    assert site.model(question).flat.tolist() == [expected] * 2
    untrained = Question("m", 0, shared, 1, -1, own_share=share)
    assert site.model(untrained).flat.tolist() == [4.0] * 2  # it has only the shared one


# Personal factors -----------------------------------------------------------------------------------

FACTORS = Layout.of({"connector/w": (1,), "llm/q:lora_a": (1, 3), "llm/q:lora_b": (2, 1)})
A = ([[1.0, 0, 2]], [[0.0, 1, -1]])
B = ([[1.0], [2]], [[2.0], [-1]])


def round_of(
    name: str, algorithm: FederatedAlgorithm
) -> tuple[Params, list[Params], list[Update], list[Params]]:
    """Let two clients, with shares ¼ and ¾ of the examples, train from zero to A and B above.

    Returns:
        The shared parameters; each client's model, update, and start of its next round.
    """
    whole = all_parts(FACTORS.size)
    kept: PersonalValues = make(name, 2)
    part = kept.part(FACTORS)
    parts = Parts(part.complement, part.complement, part, whole.trained)
    site, zero = site_of(algorithm, layout=FACTORS, parts=parts, clients=2), Params.zeros(FACTORS)
    site.method("m").start.flat.zero_()
    updates = list[Update]()
    for client, weight in enumerate((1.0, 3.0)):
        sent = Assignment("m", 0, 0, client, zero, down=parts.down, up=parts.up)
        end = Params.zeros(FACTORS)
        end["llm/q:lora_a"].copy_(torch.tensor(A[client]))
        end["llm/q:lora_b"].copy_(torch.tensor(B[client]))
        end["connector/w"].fill_(client)
        update = site.update(site.job(sent), Trained(end.flat, {}, 0.0, 0.0))
        updates.append(update.__class__(**{**vars(update), "weight": weight}))
    state, _ = algorithm.apply(algorithm.init(zero), updates)
    models = [site.model(Question("m", 0, state.params, client, 0)) for client in range(2)]
    later = [
        site.job(
            Assignment("m", 0, 1, client, state.params, since=0, down=parts.down, up=parts.up)
        ).broadcast.params
        for client in range(2)
    ]
    return state.params, models, updates, later


@pytest.mark.parametrize(
    "name, personal, products",
    [
        (
            "fedsa-lora",
            "llm/q:lora_b",
            ([[0.25, 0.75, -0.25], [0.5, 1.5, -0.5]], [[0.5, 1.5, -0.5], [-0.25, -0.75, 0.25]]),
        ),
        (
            "plora",
            "llm/q:lora_a",
            ([[1.75, 0, 3.5], [-0.25, 0, -0.5]], [[0, 1.75, -1.75], [0, -0.25, 0.25]]),
        ),
    ],
)
def test_one_factor_is_shared_and_the_other_is_each_clients_own(
    name: str, personal: str, products: Sequence[list[list[float]]]
) -> None:
    """Ā = ¼ [1 0 2] + ¾ [0 1 −1] = [.25 .75 −.25] and B̄ = ¼ [1; 2] + ¾ [2; −1] = [1.75; −.25]."""
    shared, models, updates, later = round_of(name, make("fedavg", 2))
    assert not shared[personal].any()  # the shared model has what all began with
    assert shared["connector/w"].tolist() == [0.75]
    for client, model in enumerate(models):
        assert (model["llm/q:lora_b"] @ model["llm/q:lora_a"]).tolist() == products[client]
        assert model["connector/w"].tolist() == [0.75]
        assert not updates[client].delta[personal].any()
        assert torch.equal(later[client].flat, model.flat)  # it goes on from there


@pytest.mark.parametrize(
    "name, pattern",
    [("share-lora", "connector/*"), ("share-connector", "llm/*"), ("share-connector", "*:lora_?")],
)
def test_personal_layers_are_those_of_the_strategies(name: str, pattern: str) -> None:
    chosen = PersonalValues((pattern,)).part(FACTORS)
    both = strategy("both", LoRA())
    assert parts_of(FACTORS, both, 0, personal=chosen) == parts_of(FACTORS, strategy(name, LoRA()), 0)


def test_values_are_personal_from_the_stage_that_trains_them() -> None:
    stages, chosen = strategy("two-stage", LoRA()), PersonalValues(("*:lora_b",)).part(FACTORS)
    first, second = (parts_of(FACTORS, stages, number, personal=chosen) for number in (0, 1))
    assert first == parts_of(FACTORS, stages, 0)
    assert second.personal == chosen
    assert (second.up | chosen) == second.trained
    with pytest.raises(UserError, match="stage 1"):
        parts_of(FACTORS, stages, 0, personal=PersonalValues(("connector/*",)).part(FACTORS))


@pytest.mark.parametrize(
    "patterns, message", [(("connector/w", "vision/*"), "vision/"), (("*",), "nothing is shared")]
)
def test_patterns_that_fit_nothing_or_everything_are_refused(patterns: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PersonalValues(patterns).part(FACTORS)
