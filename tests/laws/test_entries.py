"""What every entry says of itself is what the program does with it."""

import subprocess
import sys
from inspect import signature

import pytest

from fedloom.algorithms import COMPARED, ENTRIES, PLACES, SERVERS
from fedloom.algorithms.algorithm import Budget, FederatedAlgorithm
from fedloom.algorithms.baselines import BASELINES
from fedloom.algorithms.compose import CONFLICTS, Given, conflicts, make
from fedloom.algorithms.entry import KINDS, TRAITS
from fedloom.algorithms.local_rule import Final, LocalRule, Second
from fedloom.algorithms.own_answers import Interpolation, OwnAnswers
from fedloom.algorithms.personal_values import PersonalValues
from fedloom.experiment.experiment import Experiment
from fedloom.experiment.methods import default_methods, parse_method
from fedloom.system.errors import UserError

RESULTS = {
    "server": FederatedAlgorithm,
    "rule": LocalRule,
    "pass": Second,
    "stage": Final,
    "part": Budget,
    "personal": PersonalValues,
    "mix": Interpolation,
    "answers": OwnAnswers,
}
GIVEN = Given(7)
NEEDED = {"layers": {"budgets": [1] * 7}, "ranks": {"ranks": [1] * 7}}


@pytest.mark.parametrize("name", PLACES)
def test_the_table_agrees_with_the_entries(name: str) -> None:
    entry, place = ENTRIES[name], PLACES[name]
    assert (place.kind, place.label) == (entry.kind, entry.label)
    assert entry.about.endswith(".")
    made = make(name, GIVEN, NEEDED.get(name, {}))
    assert isinstance(made, RESULTS.get(entry.kind, object))
    assert callable(made) or entry.kind not in ("aggregate", "wrapper")


@pytest.mark.parametrize("name", PLACES)
def test_published_arguments_are_arguments(name: str) -> None:
    assert set(ENTRIES[name].published) <= set(signature(ENTRIES[name].make).parameters)


@pytest.mark.parametrize("name", [name for name, place in PLACES.items() if place.kind in RESULTS])
def test_traits_are_those_of_what_is_made(name: str) -> None:
    traits, made = ENTRIES[name].traits, make(name, GIVEN, NEEDED.get(name, {}))
    rule = made.local if isinstance(made, FederatedAlgorithm) else made
    if isinstance(rule, LocalRule):
        assert (rule.gradient is not None) == ("gradient" in traits)
        assert (rule.own is not None) == ("own model" in traits)
    if isinstance(made, Second | Final | PersonalValues):
        assert "own model" in traits
    assert (isinstance(made, OwnAnswers) and made.alone) == ("local model" in traits)
    if isinstance(made, FederatedAlgorithm):
        assert made.exchanges == ("no values" not in traits)


def test_traits_and_kinds_of_conflicts_are_known() -> None:
    known = {*TRAITS, *(f"kind {kind}" for kind in KINDS)}
    assert {side for left, right, _ in CONFLICTS for side in (left, right)} <= known
    assert {trait for name in ENTRIES for trait in ENTRIES[name].traits} <= set(TRAITS)


@pytest.mark.parametrize("name", [name for name in PLACES if name not in SERVERS])
def test_whether_two_can_be_combined_does_not_depend_on_their_order(name: str) -> None:
    for other in PLACES:
        if other != name:
            one, two = (bool(list(conflicts(pair))) for pair in ([name, other], [other, name]))
            assert one == two, other


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("part", [name for name in PLACES if name not in SERVERS])
def test_a_part_can_be_combined_with_an_algorithm_or_is_refused_with_the_reason(
    server: str, part: str
) -> None:
    try:
        method = parse_method(f"{server}+{part}")
    except UserError as error:
        assert "do not go together, since" in str(error)
    else:
        assert method.composed == (server, part)
        if server == COMPARED:
            return
    assert parse_method(f"{COMPARED}+{part}").parts == (part,)  # plain averaging takes every part


@pytest.mark.parametrize("part", [name for name in PLACES if name not in SERVERS])
@pytest.mark.parametrize("reference", BASELINES)
def test_baselines_take_parts_that_leave_no_other_model(reference: str, part: str) -> None:
    """Only training alone can go on in a further stage, and it is no news to it what a model trained alone answers."""
    entry = ENTRIES[part]
    kinds = {"local": ("rule", "prompt", "answers"), "centralized": ("rule", "prompt", "answers")}
    takes = entry.kind in kinds.get(reference, ()) and "own model" not in entry.traits
    takes = takes and not (reference == "local" and "local model" in entry.traits)
    if takes or (reference == "local" and entry.kind == "stage"):
        assert parse_method(f"{reference}+{part}").composed == (COMPARED, part)
    else:
        with pytest.raises(UserError, match=part):
            parse_method(f"{reference}+{part}")


def test_the_methods_by_default_go_with_all_settings() -> None:
    """Validation passes over them, since reading their entries would import torch."""
    assert Experiment().methods == default_methods()
    for name in default_methods():
        assert not {trait for part in parse_method(name).composed for trait in ENTRIES[part].traits}


def test_the_table_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "from fedloom.algorithms import ENTRIES, PLACES, SERVERS\n"
        "from fedloom.experiment.methods import default_methods, parse_method\n"
        "assert [parse_method(name) for name in (*default_methods(), *SERVERS)]\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
