"""Clients' own choice between options: which examples count, what stays as it is, and whose scores change."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from fedloom.algorithms.compose import make
from fedloom.experiment.experiment import Experiment
from fedloom.runs.modality_slices import client_scores
from fedloom.runs.own_answers import choose_answers, label_counts, require_options
from fedloom.runs.server_run import over_sites
from fedloom.runs.shared_trainings import trained_as
from fedloom.scenarios.plan import Plan
from fedloom.system.errors import UserError
from fedloom.tasks.score_answers import Answers, take
from fedloom.types import DataSet, Example


def example(answer: str, options: str = "ab", **changes: Any) -> Example:
    choices = {"options": tuple(options), "label": options.index(answer)} if options else {}
    return Example(**{"id": answer, "question": "?", "answer": answer, "text": "t", **choices, **changes})


TRAIN = [example(answer) for answer in "aab"] + [example("b") for _ in range(4)]
PLAN = Plan(np.arange(7), np.array([0, 3, 7]), np.zeros(7, bool), np.ones(7, bool), "")
"""Client 0 holds two a and one b, client 1 four b."""


def answers(*chances: tuple[float, ...]) -> Answers:
    rows = [np.array(row) for row in chances]
    return Answers(tuple(int(row.argmax()) for row in rows), tuple(rows))


def test_a_client_counts_the_answers_of_its_own_training_examples() -> None:
    assert label_counts(PLAN, TRAIN, 0) == {("choice", "a"): 2, ("choice", "b"): 1}
    assert label_counts(PLAN, TRAIN, 1) == {("choice", "b"): 4}
    free = [example("so", "", task="caption"), *TRAIN[1:]]
    assert label_counts(PLAN, free, 0) == {("choice", "a"): 1, ("choice", "b"): 1}


def test_options_are_compared_by_their_texts() -> None:
    """With the options in another order, and with further ones, the client still prefers b, of which it has four."""
    counts, test = label_counts(PLAN, TRAIN, 1), [example("b", "ba"), example("c", "cab"), example("x", "xy")]
    given = answers((0.5, 0.5), (0.4, 0.3, 0.3), (0.6, 0.4))
    changed = choose_answers([make("prior", 2, {"smoothing": 1.0})], counts, test, given)
    assert changed.answers == (0, 2, 0)
    first, second, third = changed.probabilities
    assert first is not None and second is not None and third is not None
    assert first.tolist() == pytest.approx([5 / 6, 1 / 6])
    assert second.tolist() == pytest.approx([0.4 / 2.2, 0.3 / 2.2, 1.5 / 2.2])
    assert third.tolist() == pytest.approx([0.6, 0.4])  # options that the client never saw are alike


def test_answers_without_probabilities_stay_as_they_are() -> None:
    given = Answers(("so", 1), (None, np.array([0.1, 0.9])), ("so!", None))
    changed = choose_answers(
        [make("prior", 2, {"smoothing": 1.0})],
        {("choice", "a"): 99},
        [example("so", "", task="caption"), example("b")],
        given,
    )
    assert changed.answers == ("so", 0)
    assert changed.probabilities[0] is None
    assert changed.replies == given.replies


def test_parts_apply_in_their_order_and_those_without_a_local_model_are_left_out() -> None:
    prior, average = make("prior", 2, {"smoothing": 1.0}), make("average-alone", 2)
    counts, test, alone = {("choice", "a"): 2}, [example("a")], answers((0.25, 0.75))
    given = answers((0.75, 0.25))

    def first(*parts: Any, local: Answers | None = alone) -> float:
        (row,) = choose_answers(parts, counts, test, given, local).probabilities
        assert row is not None
        return float(row[0])

    assert first(average, prior) == pytest.approx(0.75)  # ½ and ½, then 3 : 1
    assert first(prior, average) == pytest.approx((0.9 + 0.25) / 2)  # .75 · 3 : .25, then the average
    assert first(average, prior, local=None) == pytest.approx(0.9)
    assert first() == 0.75


def test_only_the_client_that_chooses_has_other_scores() -> None:
    test = [example("a"), example("b")]
    given = {"text": answers((0.6, 0.4), (0.6, 0.4))}  # always a
    plain = client_scores(TRAIN, test, PLAN, given)
    assert plain["clients"] == [pytest.approx(2 / 3), 0.0]
    own = {
        1: {
            "text": choose_answers(
                [make("prior", 2, {"smoothing": 1.0})], label_counts(PLAN, TRAIN, 1), test, given["text"]
            )
        }
    }
    chosen = client_scores(TRAIN, test, PLAN, given, own)
    assert chosen["clients"] == [plain["clients"][0], 1.0]
    assert chosen["client_tasks"] == [plain["client_tasks"][0], {"choice": 1.0}]


def test_a_slice_of_answers() -> None:
    given = Answers(("x", "y", "z"), (None, None, None), ("1", "2", "3"), "letter")
    assert take(given, slice(1, 3)) == Answers(("y", "z"), (None, None), ("2", "3"), "letter")
    assert take(answers((1.0, 0.0), (0.0, 1.0)), slice(1, 2)).replies == ()


# Methods --------------------------------------------------------------------------------------------


def experiment(*methods: str, **changes: Any) -> Experiment:
    return Experiment.from_json(json.dumps({"methods": methods, **changes}))


@pytest.mark.parametrize(
    "methods, owner",
    [
        (("fedavg", "fedavg+prior"), "fedavg"),
        (("fedavg+prior", "fedavg"), "fedavg"),
        (("fedavg+prior",), "fedavg+prior"),
        (("local", "fedavg+average-alone", "fedavg+prior"), "fedavg+average-alone"),
        (("fedprox", "fedavg+finetune", "fedavg+prior"), "fedavg+prior"),
    ],
)
def test_equal_trainings_run_once(methods: tuple[str, ...], owner: str) -> None:
    assert trained_as(experiment(*methods), "fedavg+prior") == owner


def test_every_method_trains_itself_where_its_validation_scores_choose_the_round() -> None:
    value = experiment("fedavg", "fedavg+prior", data={"validation": 0.2}, evaluate={"round": "best"})
    assert trained_as(value, "fedavg+prior") == "fedavg+prior"


@pytest.mark.parametrize(
    "methods, changes, message",
    [
        (["fedavg+prior"], {"evaluate": {"scoring": "generate"}}, "scoring is generate"),
        (["fedavg+average-alone"], {}, "add local to methods"),
        (["fedavg+finetune+interpolate"], {}, "data.validation is 0"),
        (["fedavg+interpolate"], {"data": {"validation": 0.2}}, "fedavg[+]finetune[+]interpolate"),
        (["fedavg+plora+interpolate"], {"data": {"validation": 0.2}}, "finetune"),
        (["fedavg+plora+finetune"], {}, "do not go together"),
        (["fedavg+fedsa-lora"], {"strategy": {"name": "share-lora"}}, "already keeps parts"),
        (["local", "local+average-alone"], {}, "own"),
        (["local+interpolate"], {}, "alone"),
        (["zero-shot+prior"], {}, "zero-shot trains no adapter"),
    ],
)
def test_methods_that_lack_what_they_use_are_refused(
    methods: list[str], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        experiment(*methods, **changes)


def test_a_prior_needs_questions_with_options() -> None:
    value, said = experiment("fedavg+prior"), list[str]()
    free = example("so", "", task="caption")
    for test in ((free,), (free, example("a"))):
        data = DataSet("mine", (), test)
        if len(test) == 1:
            with pytest.raises(UserError, match="no test question of mine has options"):
                require_options(value, data, said.append)
        else:
            require_options(value, data, said.append)
    assert said == ["prior: 1 of 2 test questions have no options; their answers stay as they are"]
    without = cast("Experiment", SimpleNamespace(entries={}, methods=(), method=None))
    require_options(without, DataSet("mine", (), (free,)), said.append)
    assert len(said) == 1


def test_sites_with_data_of_their_own_are_not_asked_for_their_clients_choice() -> None:
    assert over_sites(experiment("fedavg"), 2, "sites").scenario.clients == 2
    with pytest.raises(UserError, match=r"with fedavg\+prior clients choose their own answers"):
        over_sites(experiment("fedavg+prior"), 2, "sites")
