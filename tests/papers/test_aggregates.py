"""Aggregates and wrappers of aggregates: values worked by hand, and those of independent implementations."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import minimize
from torch import Tensor

from fedloom.algorithms.aggregate import mean
from fedloom.algorithms.algorithm import Aggregate, ServerState
from fedloom.algorithms.bucketing import bucket_means
from fedloom.algorithms.compose import Given, make
from fedloom.algorithms.krum import scores
from fedloom.algorithms.nearest_mixing import mix
from fedloom.algorithms.robust_helpers import squared_distances
from fedloom.params import Layout, Params
from fedloom.seeds import torch_stream
from fedloom.wire.messages import Update

X = [[1.0, 0.0], [1.2, 0.1], [0.9, -0.1], [1.1, 0.05], [-5.0, -5.0]]
"""Four clients that agree, and one that is faulty."""


def updates_of(rows: Sequence[Sequence[float]] | Tensor) -> list[Update]:
    """Return an update for each row; they differ in their numbers of examples."""
    values = torch.as_tensor(rows, dtype=torch.float32)
    layout = Layout.of({"x": (values.shape[1],)})
    return [Update(k, Params(layout, row), 1.0 + 2 * k) for k, row in enumerate(values)]


def state_of(updates: Sequence[Update], round: int = 0) -> ServerState:
    return ServerState(Params.zeros(updates[0].delta.layout), round)


def result(aggregate: Aggregate, rows: Sequence[Sequence[float]] | Tensor = X) -> Tensor:
    updates = updates_of(rows)
    return aggregate(updates, state_of(updates))[0]


def near(actual: Tensor, expected: Sequence[float] | np.ndarray, atol: float = 1e-6) -> None:
    torch.testing.assert_close(
        actual, torch.tensor(np.asarray(expected), dtype=torch.float32), rtol=0, atol=atol
    )


def random(clients: int, values: int = 7) -> Tensor:
    return torch.randn(clients, values, generator=torch_stream(clients, "rows"))


def by_name(name: str, cohort: int = 5, **arguments: float) -> Aggregate:
    return make(name, Given(cohort), arguments)


def changed(name: str, inner: Aggregate, cohort: int = 5, **arguments: float) -> Aggregate:
    return make(name, Given(cohort), arguments)(inner)


# Worked by hand ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("aggregate", "expected"),
    [
        (mean(uniform=True), (-0.16, -0.99)),
        (by_name("median"), (1.0, 0.0)),
        (by_name("trimmed-mean"), (1.0, -0.05 / 3)),
        (by_name("krum"), (1.1, 0.05)),
        (by_name("multi-krum"), (1.05, 0.0125)),
        (by_name("krum", keep=4), (1.05, 0.0125)),
        (by_name("multi-krum", keep=3), (1.1, 0.05)),
        (by_name("geometric-median", steps=1), (0.687536, -0.286347)),
        (by_name("geometric-median", steps=3), (0.94344, -0.065418)),
        (by_name("geometric-median", steps=8), (1.001796, -0.003511)),
        (by_name("centered-clipping", steps=1), (0.637682, -0.135731)),
        (by_name("centered-clipping", steps=3), (0.849648, -0.147681)),
        (changed("nearest-mixing", by_name("median")), (1.05, 0.0125)),
        (changed("nearest-mixing", mean()), (0.74, -0.2425)),
        (changed("bucketing", mean()), (-0.16, -0.99)),
    ],
)
def test_five_clients_of_which_one_is_faulty(aggregate: Aggregate, expected: tuple[float, float]) -> None:
    near(result(aggregate), expected)


def test_krum_scores_and_the_client_it_names() -> None:
    updates = updates_of(X)
    near(scores(squared_distances(updates), f=1).float(), (0.0325, 0.0625, 0.0825, 0.025, 119.82), atol=2e-5)
    _, figures = by_name("krum")(updates, state_of(updates))
    assert figures["krum_client"] == 3
    assert figures["krum_score"] == pytest.approx(0.025, abs=1e-6)


def test_rows_after_nearest_neighbor_mixing() -> None:
    results = list(mix(updates_of(X), f=1))
    for one in results[:4]:
        near(one.delta.flat, (1.05, 0.0125))
    near(results[4].delta.flat, (-0.5, -1.2625))
    assert [one.client for one in results] == [0, 1, 2, 3, 4]


def test_buckets_of_two_in_the_given_order_and_their_median() -> None:
    actual = list(bucket_means(updates_of(X), range(5), 2))
    for one, expected in zip(actual, [(1.1, 0.05), (1.0, -0.025), (-5.0, -5.0)], strict=True):
        near(one.delta.flat, expected)
    assert [one.weight for one in actual] == [2, 2, 1]
    near(by_name("median", cohort=3)(actual, state_of(actual))[0], (1.0, -0.025))


def test_clipping_keeps_directions_and_weights() -> None:
    """(3, 4) becomes (0.6, 0.8) at 1 and counts three times as much as (0.3, 0), which is short enough."""
    updates = updates_of([[0.3, 0.0], [3.0, 4.0]])
    delta, figures = changed("clip", mean())(updates, state_of(updates))
    near(delta, ((0.3 + 3 * 0.6) / 4, 3 * 0.8 / 4))
    assert figures["clipped"] == 0.5


def test_dp_clips_counts_alike_and_says_how_much_noise_it_adds() -> None:
    updates = updates_of([[0.3, 0.0], [3.0, 4.0]])
    quiet, figures = changed("dp", mean(), noise=0.0)(updates, state_of(updates))
    near(quiet, ((0.3 + 0.6) / 2, 0.4))
    assert figures == {"clipped": 0.5, "noise_deviation": 0.0}
    _, figures = changed("dp", mean(), noise=3.0, bound=0.5)(updates, state_of(updates))
    assert figures["noise_deviation"] == 3.0 * 0.5 / 2


def test_the_noise_of_dp_is_normal_with_deviation_z_c_over_m() -> None:
    """Of 4 clients with zero deltas the aggregate is the noise alone."""
    rows, count = torch.zeros(4, 40_000), 40_000
    actual = result(changed("dp", mean(), noise=1.5, bound=2.0), rows).double().numpy()
    deviation = 1.5 * 2.0 / 4
    assert abs(actual.mean()) < 5 * deviation / sqrt(count)
    assert abs(actual.std() - deviation) < 5 * deviation / sqrt(2 * count)
    assert stats.kstest(actual / deviation, "norm").pvalue > 1e-4


def test_the_noise_of_dp_is_named_by_seed_stage_and_round() -> None:
    updates = updates_of(torch.zeros(3, 8))

    def drawn(seed: int = 0, stage: int = 0, round: int = 0) -> tuple[float, ...]:
        aggregate = make("dp", Given(3, seed=seed, stage=stage))(mean())
        return tuple(aggregate(updates, state_of(updates, round))[0].tolist())

    assert drawn() == drawn()
    assert len({drawn(), drawn(seed=1), drawn(stage=1), drawn(round=1)}) == 4


def test_buckets_are_drawn_anew_by_seed_stage_and_round() -> None:
    """The mean of the bucket that Krum chooses tells which two clients it holds."""
    updates = updates_of([[float(2**k)] for k in range(24)])

    def drawn(seed: int = 0, stage: int = 0, round: int = 0) -> float:
        aggregate = make("bucketing", Given(24, seed=seed, stage=stage))(by_name("krum", cohort=12))
        return float(aggregate(updates, state_of(updates, round))[0])

    rounds = [drawn(round=k) for k in range(20)]
    assert rounds == [drawn(round=k) for k in range(20)]
    assert len(set(rounds)) > 1
    assert [drawn(seed=1, round=k) for k in range(20)] != rounds
    assert [drawn(stage=1, round=k) for k in range(20)] != rounds


def test_ties_go_to_the_lower_client() -> None:
    """On a line all inner clients have the same score."""
    updates = updates_of([[float(k)] for k in range(6)])
    delta, figures = by_name("krum", cohort=6)(updates, state_of(updates))
    assert scores(squared_distances(updates), f=1).tolist() == [14.0, 6.0, 6.0, 6.0, 6.0, 14.0]
    assert (figures["krum_client"], float(delta)) == (1, 1.0)


# Independent implementations --------------------------------------------------------------------------


def test_multi_krum_as_torchjd_documents_it() -> None:
    """The example of torchjd.aggregation.Krum(n_byzantine=1, n_selected=4)."""
    rows = [[1.0, 1, 1], [1, 0, 1], [75, -666, 23], [1, 2, 3], [2, 0, 1]]
    near(result(by_name("krum", f=1, keep=4), rows), (1.25, 0.75, 1.5))


def test_nearest_neighbor_mixing_as_byzfl_documents_it() -> None:
    """The example of byzfl.NNM(f=1), whose middle row lies as near to the first as to the last."""
    results = [one.delta.flat for one in mix(updates_of([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]]), f=1)]
    near(torch.stack(results), [[2.5, 3.5, 4.5], [2.5, 3.5, 4.5], [5.5, 6.5, 7.5]])


@pytest.mark.parametrize("clients", [3, 4, 9, 10])
def test_the_median_is_numpys(clients: int) -> None:
    rows = random(clients)
    near(result(by_name("median", clients), rows), np.median(rows.numpy(), axis=0))


@pytest.mark.parametrize(("clients", "f"), [(3, 1), (7, 2), (10, 4), (5, 0)])
def test_the_trimmed_mean_is_scipys(clients: int, f: int) -> None:
    rows = random(clients)
    share = (f + 0.5) / clients  # scipy drops as many as this makes, rounded down
    near(
        result(by_name("trimmed-mean", clients, f=f), rows),
        stats.trim_mean(rows.double().numpy(), share, axis=0),
    )


@pytest.mark.parametrize(("clients", "f"), [(5, 1), (9, 3), (12, 2)])
def test_krum_is_what_its_definition_says_in_loops(clients: int, f: int) -> None:
    rows = random(clients).double().numpy()

    def score(i: int) -> float:
        away = sorted(float(((rows[i] - rows[j]) ** 2).sum()) for j in range(clients) if j != i)
        return sum(away[: clients - f - 2])

    ranked = sorted(range(clients), key=score)
    actual = result(by_name("krum", clients, f=f), torch.tensor(rows))
    near(actual, rows[ranked[0]])
    actual = result(by_name("krum", clients, f=f, keep=clients - f), torch.tensor(rows))
    near(actual, rows[ranked[: clients - f]].mean(axis=0))


@pytest.mark.parametrize("clients", [3, 6, 11])
def test_the_geometric_median_is_where_a_general_minimizer_ends(clients: int) -> None:
    rows = random(clients).double().numpy()

    def total(point: np.ndarray) -> float:
        return float(np.linalg.norm(rows - point, axis=1).sum())

    best = minimize(total, rows.mean(axis=0), method="BFGS", options={"gtol": 1e-9})
    actual = result(by_name("geometric-median", clients, steps=1000), torch.tensor(rows))
    near(actual, best.x, atol=1e-3)
    assert total(actual.double().numpy()) <= float(best.fun) * (1 + 1e-6)


def test_centered_clipping_to_the_end_is_the_point_where_clipped_distances_cancel() -> None:
    rows = random(9).double()
    center = result(by_name("centered-clipping", 9, steps=2000, bound=1.5), rows).double()
    away = rows - center
    clipped = away * (1.5 / away.norm(dim=1, keepdim=True)).clamp(max=1)
    near(clipped.mean(dim=0).float(), torch.zeros(7).numpy(), atol=1e-5)


def test_distances_between_long_vectors_that_lie_close_keep_their_digits() -> None:
    """In float32, ‖a‖² + ‖b‖² − 2ab would be off by more than the distance."""
    base = 1e4 * random(1, 200_000)[0]
    rows = torch.stack([base, base + 0.25, base - 0.5])
    expected = torch.tensor([[0, 12500.0, 50000], [12500, 0, 112500], [50000, 112500, 0]])
    torch.testing.assert_close(squared_distances(updates_of(rows)).float(), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", ["median", "trimmed-mean"])
def test_sums_of_huge_values_stay_finite(name: str) -> None:
    """In float32 the sum of two of them is not."""
    actual = result(by_name(name, 4), [[3e38], [3e38], [3e38], [-3e38]])
    assert float(actual) == pytest.approx(3e38)


# Factors and products ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["median", "trimmed-mean", "krum", "multi-krum", "geometric-median", "centered-clipping"]
)
def test_a_rule_on_factors_is_no_rule_on_products(name: str) -> None:
    """A client with c·A and B / c has the same product, and another place among the others."""
    factors = random(5, 6)  # A of shape [1, 3], then B of shape [3, 1]
    scaled = factors.clone()
    scaled[3, :3] *= 8.0
    scaled[3, 3:] /= 8.0

    def products(rows: Tensor) -> Tensor:
        return (rows[:, 3:, None] * rows[:, None, :3]).flatten(1)

    torch.testing.assert_close(products(scaled), products(factors))
    aggregate = by_name(name)
    on_products = result(aggregate, products(factors))
    torch.testing.assert_close(result(aggregate, products(scaled)), on_products)
    by_factors = products(result(aggregate, factors)[None])[0]
    assert not torch.allclose(by_factors, on_products, atol=1e-3)
    changed_by = products(result(aggregate, scaled)[None])[0]
    assert name == "krum" or not torch.allclose(changed_by, by_factors, atol=1e-3)
