"""Named random streams."""

import itertools
import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedloom.seeds import seed_of_repeat, stream, torch_stream


def numpy_draw(seed, purpose, **place):
    return tuple(stream(seed, purpose, **place).integers(2**62, size=3).tolist())


def torch_draw(seed, purpose, **place):
    return tuple(torch.randint(2**62, (3,), generator=torch_stream(seed, purpose, **place)).tolist())


DRAWS = pytest.mark.parametrize("draw", [numpy_draw, torch_draw])
PLACES = st.tuples(
    st.integers(0, 5),
    st.sampled_from(["cohort", "batches", "batches/1", "1"]),
    st.integers(-1, 3),
    st.integers(-1, 3),
    st.integers(-1, 3),
)


@DRAWS
@given(st.lists(PLACES, min_size=2, max_size=12, unique=True))
def test_streams_differ_exactly_where_their_names_do(draw, places):
    def at(place):
        seed, purpose, round, client, step = place
        return draw(seed, purpose, round=round, client=client, step=step)

    assert len({at(place) for place in places}) == len(places)
    assert [at(place) for place in reversed(places)] == [at(place) for place in places][::-1]


@DRAWS
def test_every_part_of_the_name_counts(draw):
    names = itertools.product((0, 1), ("a", "b"), (0, 1), (0, 1), (0, 1))
    draws = [draw(seed, purpose, round=r, client=c, step=s) for seed, purpose, r, c, s in names]
    assert len(set(draws)) == len(draws) == 32


def test_drawing_from_one_stream_does_not_move_another():
    first, second = stream(0, "a"), stream(0, "b")
    first.random(1000)
    assert second.random() == stream(0, "b").random()


@DRAWS
def test_global_generators_neither_matter_nor_move(draw):
    expected = draw(3, "batches", round=1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    assert draw(3, "batches", round=1) == expected
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    assert after == before


def test_another_process_draws_the_same():
    draw = "stream(5, 'partition', client=2).integers(2**62, size=3).tolist()"
    code = f"import json; from fedloom.seeds import stream; print(json.dumps({draw}))"
    for salt in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": salt, "PYTHONPATH": os.pathsep.join(sys.path)}
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, check=True, env=environment
        )
        assert tuple(json.loads(result.stdout)) == numpy_draw(5, "partition", client=2)


def test_neighboring_streams_look_independent():
    draws = np.stack([stream(0, "x", client=client).standard_normal(2000) for client in range(10)])
    correlations = np.corrcoef(draws)[np.triu_indices(10, 1)]
    # 45 correlations of 2000 pairs each have a standard deviation of 0.022; 0.12 is beyond five of them.
    assert np.abs(correlations).max() < 0.12
    assert abs(draws.mean()) < 0.04 and abs(draws.std() - 1) < 0.04


def test_seeds_of_repeats_differ_by_seed_and_number():
    seeds = [seed_of_repeat(seed, number) for seed in range(20) for number in range(1, 6)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of_repeat(3, 1) == seed_of_repeat(3, 1)
