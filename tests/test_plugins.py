"""Plug-ins are values from files, from Python and from entry points; nothing of fedloom changes."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import fedloom
from fedloom.algorithms import ENTRIES
from fedloom.algorithms.algorithm import LocalWork, ServerState, server
from fedloom.algorithms.compose import Given, compose
from fedloom.algorithms.entry import Entry
from fedloom.algorithms.fedavg import averaging, fedavg
from fedloom.algorithms.local_rule import LocalRule, Second
from fedloom.cli.run_commands import app
from fedloom.data import DATASETS, load_data
from fedloom.experiment.experiment import Experiment
from fedloom.experiment.grid import load_grid
from fedloom.experiment.recipes import load_experiment
from fedloom.models.family_table import FAMILIES
from fedloom.params import Layout, Params
from fedloom.plugins.plugins import INSTALLED, Layered, Plugins, combine_plugins, read_plugin
from fedloom.runs.run_identity import code
from fedloom.system.errors import UserError
from fedloom.tasks.metrics import collect
from fedloom.tasks.score_answers import Answers, score
from fedloom.types import Broadcast, DataSet, Example, Tensors
from fedloom.wire.messages import Update

ALGORITHM = '''
from fedloom.algorithms.aggregate import mean
from fedloom.algorithms.algorithm import server
from fedloom.algorithms.entry import Entry
from fedloom.algorithms.fedavg import averaging


def slow(*, lr: float = 0.5):
    """Half a step of FedAvg.

    More.
    """
    return server(averaging(lr), mean())


ALGORITHMS = {
    "slow": slow,
    "slower": Entry(lambda *, lr=0.1: slow(lr=lr), "server", "Slower", "A tenth of a step."),
}
'''
DATA = '''
from fedloom.types import DataSet, Example


def letters(settings, seed):
    """Which letter is named?"""
    rows = [Example(str(n), "Which?", "ab"[n % 2], text=f"note {n}", label=n % 2, options=("a", "b")) for n in range(9)]
    return DataSet("", tuple(rows[:6]), tuple(rows[6:]))


DATASETS = {"letters": letters}
'''
METRIC = '''
def brevity(example, answer):
    """One for an answer of one character."""
    return float(len(str(answer)) == 1)


METRICS = {"brevity": brevity}
'''


def written(folder: Path, text: str, name: str = "mine.py") -> str:
    file = folder / name
    file.write_text(text)
    return str(file)


def example(number: int) -> Example:
    return Example(str(number), f"Which, {number}?", "ab"[number % 2], label=number % 2, options=("a", "b"))


EXAMPLES = [example(number) for number in range(8)]


def test_a_plugin_file_changes_nothing_of_fedloom(tmp_path: Path) -> None:
    before = [list(ENTRIES), dict(DATASETS), dict(FAMILIES), set(sys.modules)]
    plugin = read_plugin(Path(written(tmp_path, ALGORITHM + DATA + METRIC)))
    assert plugin.names == ["slow", "slower", "letters", "brevity"]
    assert plugin.algorithms["slow"].about == "Half a step of FedAvg."
    assert (plugin.algorithms["slow"].label, plugin.algorithms["slower"].label) == ("slow", "Slower")
    assert [list(ENTRIES), dict(DATASETS), dict(FAMILIES)] == before[:3]
    added = {name for name in set(sys.modules) - before[3] if "mine" in name}
    assert all(name.startswith("fedloom_plugin_") and name.endswith("_mine") for name in added), (
        "under its own name"
    )
    assert list(tmp_path.iterdir()) == [tmp_path / "mine.py"], "nothing is written beside it"


WRONG = {
    "syntax": ("x = 1\ndef (", "mine.py, line 2: it is not valid Python"),
    "exception": ("import os\n\n1 / 0\n", "mine.py, line 3: ZeroDivisionError"),
    "missing module": ("import nowhere_to_be_found", "mine.py, line 1: ModuleNotFoundError"),
    "exit": ("raise SystemExit(3)", "mine.py, line 1: SystemExit: 3"),
    "nothing": ("x = 1\n", "mine.py: it has none of the dicts ALGORITHMS, DATASETS, METRICS, FAMILIES"),
    "no dict": ("METRICS = [1]", "mine.py, line 1: METRICS must be a dict"),
    "empty": ("METRICS = {}", "mine.py, line 1: METRICS must be a dict .* and not empty"),
    "our algorithm": ('ALGORITHMS = {\n    "fedavg": print}', r"line 2: ALGORITHMS\['fedavg'\]: fedloom has"),
    "our part": ('ALGORITHMS = {"proximal": print}', "fedloom has a method 'proximal' itself"),
    "our baseline": ('ALGORITHMS = {"local": print}', "fedloom has a method 'local' itself"),
    "our data set": ('DATASETS = {"emoji": print}', "fedloom has a data set 'emoji' itself"),
    "our score": ('METRICS = {"accuracy": max}', "fedloom has a score 'accuracy' itself"),
    "beside scores": ('METRICS = {"tasks": max}', "fedloom has a score 'tasks' itself"),
    "our family": ('FAMILIES = {"llava": 1}', "fedloom has a model family 'llava' itself"),
    "plus": ('ALGORITHMS = {"a+b": print}', r"'a\+b' cannot be a name"),
    "number": ("ALGORITHMS = {1: print}", "1 cannot be a name"),
    "value": (
        'ALGORITHMS = {"a": 3}',
        r"line 1: ALGORITHMS\['a'\] must be an Entry or a function .* type int",
    ),
    "arguments": (
        'def f(x): ...\nALGORITHMS = {"a": f}',
        r"line 2: ALGORITHMS\['a'\] has the argument 'x' without a default",
    ),
    "kind": (
        'from fedloom.algorithms.entry import Entry\nALGORITHMS = {"a": Entry(print, "sever", "", "")}',
        "line 2: ValueError: there is no kind 'sever'",
    ),
    "no text": ("\0", "mine.py: it is not valid Python: source code string cannot contain null bytes"),
    "no loader": ('DATASETS = {"a": 3}', "must be a function .settings, seed."),
    "empty list": ('DATASETS = {"a": []}', "not an empty list"),
    "loader's arguments": ('DATASETS = {"a": lambda one: 1}', "must take two arguments"),
    "no metric": ('METRICS = {"a": 3}', "must be a function .example, answer."),
    "metric's arguments": ('METRICS = {"a": lambda one: 1}', "must take two arguments"),
    "metric's name": ('METRICS = {"a_published": max}', "must have another name"),
    "no family": ('FAMILIES = {"a": 3}', "must be a fedloom.models.family_interface.Family"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_cannot_be_used_is_reported_with_its_place(case: str, tmp_path: Path) -> None:
    text, message = WRONG[case]
    file = written(tmp_path, text)
    with pytest.raises(UserError, match=message) as caught:
        read_plugin(Path(file))
    assert file in str(caught.value)
    result = CliRunner().invoke(app, ["validate", "smoke", "--plugin", file])
    assert result.exit_code == 2 and "Traceback" not in result.output and str(caught.value) in result.output


@pytest.mark.parametrize("there", ["nothing", "folder"])
def test_a_file_that_is_missing_is_named(there: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    if there == "folder":
        file.mkdir()
    with pytest.raises(UserError, match=f"plugins.0.: {file} is (missing|a folder)"):
        load_experiment("smoke", (), [str(file)])


def test_helpers_beside_a_file_are_its_own(tmp_path: Path) -> None:
    rates: list[float] = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        written(folder, f"STEP = {number}.0\n", "helper_of_mine.py")
        file = written(folder, ALGORITHM.replace("lr: float = 0.5", "lr: float = STEP") + "\n", "mine.py")
        Path(file).write_text("from helper_of_mine import STEP\n" + Path(file).read_text())
        entry = read_plugin(Path(file)).algorithms["slow"]
        rates.append(inspect.signature(entry.make).parameters["lr"].default)
    assert rates == [1.0, 2.0] and "helper_of_mine" not in sys.modules
    assert str(tmp_path / "2") not in sys.path


def test_a_file_counts_by_its_content_and_that_of_its_helpers(tmp_path: Path) -> None:
    written(tmp_path, "X = 1\n", "helper_of_mine.py")
    file = written(tmp_path, "import helper_of_mine\n" + METRIC)
    digests: list[str] = []
    for helper, text in (("X = 1\n", METRIC), ("X = 2\n", METRIC), ("X = 2\n", METRIC + "\n")):
        written(tmp_path, helper, "helper_of_mine.py")
        written(tmp_path, "import helper_of_mine\n" + text)
        experiment = load_experiment("smoke", (), [file])
        assert code(experiment)["plug-in mine.py"] == experiment.added.digests["plug-in mine.py"]
        digests += [experiment.digest]
    assert len(set(digests)) == 3
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    written(elsewhere, "X = 2\n", "helper_of_mine.py")
    moved = written(elsewhere, Path(file).read_text())
    assert load_experiment("smoke", (), [moved]).digest == digests[-1], "where it lies does not count"
    assert load_experiment("smoke").digest == Experiment.from_json(load_experiment("smoke").to_json()).digest


def test_names_of_two_plugins_must_differ(tmp_path: Path) -> None:
    one, two = written(tmp_path, METRIC), written(tmp_path, METRIC + "\n", "other.py")
    with pytest.raises(UserError, match=f"{two}: another plug-in has a score 'brevity' too"):
        combine_plugins([one, two])
    same = [written(tmp_path, DATA), written(tmp_path, METRIC, "other.py")]
    assert combine_plugins(same).names == ["letters", "brevity"]


def test_an_experiment_has_absolute_paths_and_reads_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, ALGORITHM)
    written(tmp_path, METRIC, "metric.py")
    (tmp_path / "recipe.yaml").write_text("plugins: [mine.py]\nmethods: [fedavg, slow+proximal]\n")
    experiment = load_experiment("recipe.yaml", ["algorithms.slow.lr=2"], ["metric.py"])
    assert experiment.plugins == (str(tmp_path / "mine.py"), str(tmp_path / "metric.py"))
    monkeypatch.chdir("/")
    assert Experiment.from_json(experiment.to_json()) == experiment
    assert experiment.arguments("slow") == {"lr": 2} and list(experiment.metrics(None)) == ["brevity"]


def test_arguments_of_a_plugin_are_checked_as_fedloom_s_own(tmp_path: Path) -> None:
    file = written(tmp_path, ALGORITHM)
    for change, message in {
        "algorithms.slow.rate=2": '"rate" is not a known argument',
        "algorithms.slow.lr=fast": "slow.lr is 'fast'; it must be a number",
        "methods=[slowest]": '"slowest" is not a known method. Did you mean slower',
    }.items():
        with pytest.raises(UserError, match=message):
            load_experiment("smoke", [change], [file])
    with pytest.raises(UserError, match='"slow" is not a known method'):
        load_experiment("smoke", ["methods=[slow]"])


CRASHING = """
from fedloom.algorithms.algorithm import server
from fedloom.algorithms.fedavg import averaging


def aggregate(updates, state):
    list(updates)
    return {}["lost"], {}


ALGORITHMS = {
    "raises": lambda *, lr=1.0: 1 / 0,
    "nothing": lambda *, lr=1.0: None,
    "crashes": lambda *, lr=1.0: server(averaging(lr), aggregate),
    "misshapen": lambda *, lr=1.0: server(averaging(lr), lambda updates, state: (next(updates).delta.flat[:1], {})),
}
"""


def test_an_algorithm_that_cannot_be_made_is_reported_before_a_run(tmp_path: Path) -> None:
    file = written(tmp_path, CRASHING)
    for name, message in {
        "raises": r"methods.0.: raises cannot be made: ZeroDivisionError: division by zero, mine.py, line 12",
        "nothing": "nothing is a server, so it must make a FederatedAlgorithm, not a NoneType",
    }.items():
        with pytest.raises(UserError, match=message):
            load_experiment("smoke", [f"methods=[{name}]"], [file])


def test_an_aggregate_that_crashes_is_reported_with_its_place(tmp_path: Path) -> None:
    experiment = load_experiment("smoke", ["methods=[crashes]"], [written(tmp_path, CRASHING)])
    algorithm = experiment.entries["crashes"].make()
    state = algorithm.init(Params.zeros(Layout.of({"w": (2,)})))
    with pytest.raises(UserError, match=r"crashes fails: KeyError: 'lost', mine.py, line 8"):
        algorithm.apply(state, [Update(0, state.params, 1.0)])
    misshapen = experiment.entries["misshapen"].make()
    with pytest.raises(UserError, match=r"misshapen fails: .* a delta of shape \[1\]; it must be \[2\]"):
        misshapen.apply(state, [Update(0, state.params, 1.0)])


TWICE = """
from fedloom.algorithms.algorithm import server
from fedloom.algorithms.entry import Entry
from fedloom.algorithms.fedavg import averaging
from fedloom.params import Params


def aggregate(updates, state):
    total = sum(update.weight for update in updates)
    mean = Params.zeros(state.params.layout).flat
    for update in updates:
        mean += update.weight / total * update.delta.flat
    return mean, {}


ALGORITHMS = {
    "twice": lambda *, lr=1.0: server(averaging(lr), aggregate),
    "added": Entry(lambda: aggregate, "aggregate", about="."),
    "around": Entry(lambda: lambda inner: lambda updates, state: inner(map(lambda one: one, updates), state), "wrapper", about="."),
}
"""


@pytest.mark.parametrize("method", ["twice", "fedavg+added", "twice+around", "fedavg+added+around"])
def test_an_aggregate_that_reads_the_stream_twice_is_told_so(method: str, tmp_path: Path) -> None:
    """The second pass would find no updates, and a sum over them would be zero."""
    experiment = load_experiment("smoke", [], [written(tmp_path, TWICE)])
    parameters = Params.zeros(Layout.of({"w": (2,)}))
    algorithm = compose(method.split("+"), Given(2), entries=experiment.entries)
    updates = [Update(client, parameters, 1.0) for client in range(2)]
    with pytest.raises(UserError, match=r"updates = list\(updates\)., mine.py, line 11"):
        algorithm.apply(algorithm.init(parameters), updates)


BROKEN = """
import torch
from fedloom.algorithms.aggregate import mean
from fedloom.algorithms.algorithm import server
from fedloom.algorithms.entry import Entry
from fedloom.algorithms.fedavg import averaging
from fedloom.algorithms.local_rule import PLAIN, Final, Second


def plain():
    return server(averaging(1.0), mean())


def leaves():
    raise SystemExit(3)


def step(change):
    return lambda state, updates, aggregate: change(*plain().combine(state, updates, aggregate))


def stale(after, figures):
    return after.__class__(after.params, after.round - 1, {}), figures


AGGREGATES = {
    "short": lambda updates, state: (torch.zeros(3), {}),
    "single": lambda updates, state: 5,
    "figured": lambda updates, state: (torch.zeros(2), {"a": torch.zeros(2)}),
    "listed": lambda updates, state: (torch.zeros(2), [1.0]),
    "left": lambda updates, state: leaves(),
}
SERVERS = {
    "init": {"init": lambda params: {}["lost"]},
    "start": {"init": lambda params: 5},
    "sends": {"broadcast": lambda state: 5},
    "announces": {"extras": lambda work: [1]},
    "once": {"combine": lambda state, updates, aggregate: 7},
    "stale": {"combine": step(stale)},
    "drawn": {"combine": step(lambda after, figures: (after, {"a": torch.ones(1)}))},
}
ALGORITHMS = {
    **{name: Entry(lambda one=one: one, "aggregate", name, "") for name, one in AGGREGATES.items()},
    "wrapped": Entry(lambda: lambda inner: AGGREGATES["short"], "wrapper", "wrapped", ""),
    "unwrapped": Entry(lambda: lambda inner: 5, "wrapper", "unwrapped", ""),
    **{name: lambda one=one: plain()._replace(**one) for name, one in SERVERS.items()},
    "never": Entry(lambda: Final(0), "stage", "never", ""),
    "unrated": Entry(lambda: Final(1, None), "stage", "unrated", ""),
    "backward": Entry(lambda: Second("own", PLAIN, rate=-1.0), "pass", "backward", ""),
    "unworded": Entry(lambda: "shouting", "prompt", "unworded", ""),
    "leaves": leaves,
}
"""


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("fedavg+short", r"short: it must return a delta of torch.float32 of shape \[2\], not .* \[3\]"),
        ("fedavg+single", "single: it must return two values"),
        ("fedavg+figured", "figured: it returns tensor.* as the figure 'a', which must be a number"),
        ("fedavg+listed", "listed: it must return figures as a dict"),
        ("fedavg+left", "left fails: SystemExit"),
        ("fedavg+wrapped", "wrapped: it must return a delta"),
        ("init", "init fails: KeyError: 'lost', mine.py"),
        ("start", "start: its init must return a ServerState, not a int"),
        ("sends", "sends: its broadcast must return a Broadcast"),
        ("announces", "announces: its extras must return a dict"),
        ("once", "once: its combine must return two values"),
        ("stale", "stale: its combine returns a state whose round is 0; after round 0 it must be 1"),
        ("drawn", "drawn: its combine returns tensor.* as the figure 'a'"),
    ],
)
def test_wrong_results_of_an_algorithm_are_reported_in_one_message(
    method: str, message: str, tmp_path: Path
) -> None:
    experiment = load_experiment("smoke", [], [written(tmp_path, BROKEN)])
    parameters = Params.zeros(Layout.of({"w": (2,)}))
    with pytest.raises(UserError, match=message):
        algorithm = compose(method.split("+"), Given(1), entries=experiment.entries)
        state = algorithm.init(parameters)
        algorithm.broadcast(state)
        algorithm.extras(LocalWork(2, 1, 1.0))
        algorithm.apply(state, [Update(0, parameters, 1.0)])


def in_place(sent: Broadcast, memory: Tensors) -> Tensors:
    sent.params.flat.mul_(0.5)
    return {}


def remembering(sent: Broadcast, memory: Tensors) -> Tensors:
    return {name: value.add_(1.0) for name, value in memory.items()}


RULES = {
    "begin must return a dict from names to tensors, not int": {"begin": lambda *_: 5},
    "begin must return .*, not {'a': int}": {"begin": lambda *_: {"a": 1}},
    "begin changes a tensor that it is given in place": {"begin": in_place},
    "begin changes .* in place": {"begin": remembering},
    "correct must return a tensor and a dict .*, not Tensor": {"correct": lambda grads, *_: grads},
    "correct changes .* in place": {"correct": lambda grads, params, carry: (grads, {"w": params.mul_(0.9)})},
    "penalize must return a tensor and a dict": {"penalize": lambda grads, params, carry: (1.0, carry)},
    "finish must return a dict .* and a dict .*, not None": {"finish": lambda *_: None},
    "finish must return .*, not .{}, {'a': list}": {"finish": lambda *_: ({}, {"a": [1.0]})},
    "start must return a tensor, not None": {"start": lambda *_: None},
    "own must return a tensor, not .Tensor, {}": {"own": lambda params, carry: (params, carry)},
}


@pytest.mark.parametrize("where", ["rule", "server", "second"])
@pytest.mark.parametrize("message", RULES)
def test_wrong_results_of_a_local_rule_are_named(message: str, where: str) -> None:
    """A client is missing with the reason; what was sent to it belongs to other clients too, and must stay as it is."""
    rule = LocalRule(**RULES[message])  # type: ignore[arg-type]
    made = {
        "rule": Entry(lambda: rule, "rule", about="."),
        "server": lambda: fedavg()._replace(local=rule),
        "second": lambda: fedavg()._replace(second=Second("own", rule)),
    }[where]
    entries = Layered(ENTRIES, Plugins.of(algorithms={"mine": made}).algorithms)
    algorithm = compose(["fedavg", "mine"] if where == "rule" else ["mine"], Given(1), entries=entries)
    used = algorithm.second.rule if algorithm.second else algorithm.local
    sent, flat = Broadcast(Params.zeros(Layout.of({"w": (2,)}))), torch.ones(2)
    memory = {"1.a": torch.ones(2)}  # as a chain names it
    with pytest.raises(UserError, match=f"mine: its {message}"):
        carry = used.begin(sent, memory)
        for change in (used.penalize, used.correct):
            _, carry = change(torch.ones(2), flat, carry)
        used.finish(carry, 1)
        for choose, given in ((used.start, sent), (used.own, flat)):
            assert choose is None or choose(given, {}) is None  # type: ignore[arg-type]


def test_a_server_that_changes_its_state_in_place_is_told_so() -> None:
    def aggregate(updates: Iterable[Update], state: ServerState) -> tuple[torch.Tensor, dict[str, float]]:
        state.params.flat.add_(1.0)
        return next(iter(updates)).delta.flat, {}

    mine = (
        Plugins.of(algorithms={"mine": lambda: server(averaging(1.0), aggregate)}).algorithms["mine"].make()
    )
    state = mine.init(Params.zeros(Layout.of({"w": (2,)})))
    with pytest.raises(UserError, match=r"mine: .* changes a tensor that it is given in place"):
        mine.apply(state, [Update(0, state.params, 1.0)])


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("fedavg+never", "never is a stage, so that its epochs must be a whole number of at least 1, not 0"),
        ("fedavg+unrated", "unrated is a stage, so that its rate must be a positive number, not None"),
        ("fedavg+backward", "backward is a pass, so that its rate must be a positive number, not -1.0"),
        ("fedavg+unwrapped", "unwrapped must return an aggregate, not a int"),
        ("fedavg+unworded", "unworded is a prompt, so that it must make one of .*, not 'shouting'"),
        ("leaves", "leaves cannot be made: SystemExit: 3, mine.py"),
    ],
)
def test_a_part_that_cannot_be_used_is_refused_before_a_run(
    method: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        load_experiment("smoke", [f"methods=[{method}]"], [written(tmp_path, BROKEN)])


def test_a_grid_takes_plugins_too(tmp_path: Path) -> None:
    recipe = tmp_path / "grid.yaml"
    recipe.write_text("methods: [slow]\ngrid:\n  algorithms.slow.lr: [0.1, 0.2]\n")
    file = written(tmp_path, ALGORITHM)
    cells = load_grid(str(recipe), (), [file]).cells
    assert [cell.experiment.arguments("slow")["lr"] for cell in cells] == [0.1, 0.2]
    with pytest.raises(UserError, match='"slow" is not a known method'):
        load_grid(str(recipe))


def test_the_commands_know_what_a_file_adds(tmp_path: Path) -> None:
    file = ["--plugin", written(tmp_path, ALGORITHM + DATA)]

    def said(*words: str) -> str:
        result = CliRunner().invoke(app, [*words, *file])
        assert result.exit_code == 0, result.output
        return result.output

    assert json.loads(said("list", "algorithms", "--json"))["slow"] == "Half a step of FedAvg."
    assert json.loads(said("list", "datasets", "--json"))["letters"] == "Which letter is named?"
    assert "letters" in said("split", "letters", "--set", "clients=2")
    assert json.loads(said("data", "check", "letters", "--json"))["usable"]
    assert CliRunner().invoke(app, ["split", "letters"]).exit_code == 2


# From Python ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["list", "data set", "loader"])
def test_examples_from_python_are_loaded_like_a_data_set(given: str) -> None:
    whole = DataSet("", tuple(EXAMPLES[:6]), tuple(EXAMPLES[6:]))
    values = {"list": EXAMPLES, "data set": whole, "loader": lambda settings, seed: whole}
    experiment = Experiment(
        plugins=[Plugins.of(datasets={"mine": values[given]})], data={"name": "mine", "test_share": 0.25}
    )
    data = load_data(experiment.data, 0, experiment.datasets)
    assert data.name == "mine" and len(data.test) == 2
    assert sorted(data.examples, key=lambda one: one.id) == EXAMPLES


BAD_DATA = {
    "twice": (
        lambda settings, seed: DataSet("", (EXAMPLES[0],), (EXAMPLES[0],)),
        "two examples with the id '0'",
    ),
    "task": (
        lambda settings, seed: DataSet("", (Example("1", "?", "a", task="poem"),), ()),
        "the task 'poem'",
    ),
    "label": (
        lambda settings, seed: DataSet("", (Example("1", "?", "a"),), ()),
        "needs options and the index",
    ),
    "no data": (lambda settings, seed: EXAMPLES, "must return a DataSet, not a list"),
    "no example": (lambda settings, seed: DataSet("", ("text",), ()), "holds a str where an Example belongs"),
    "question": (
        lambda settings, seed: DataSet("", (replace(EXAMPLES[0], question=5),), ()),
        "example '0' of mine has the question 5; it must be text",
    ),
    "text": (
        lambda settings, seed: DataSet("", (replace(EXAMPLES[0], text=3),), ()),
        "example '0' of mine has the text 3; it must be text or None",
    ),
    "image": (
        lambda settings, seed: DataSet("", (replace(EXAMPLES[0], image="a.png"),), ()),
        "example '0' of mine has an image of type str; .*python_image makes",
    ),
    "array": ([replace(EXAMPLES[0], image=np.zeros((8, 8, 3), np.uint8))], "an image of type ndarray"),
    "label of text": ([replace(EXAMPLES[0], label="0")], "has the label '0'; it must be the index"),
    "label of another": ([replace(EXAMPLES[0], label=1)], "has the answer 'a', but its label is that of 'b'"),
    "options of text": ([replace(EXAMPLES[0], options="ab")], "has options 'ab'; they must be a tuple"),
    "options of numbers": ([replace(EXAMPLES[0], options=(0, 1))], "has options that are no texts"),
    "same options": ([replace(EXAMPLES[0], options=("a", "A "))], "differ only in case and space"),
    "group": ([replace(EXAMPLES[0], group=0.5)], "has the group 0.5; it must be text"),
    "leaves": (lambda settings, seed: sys.exit(0), "the loader of mine fails: SystemExit"),
    "raises": (lambda settings, seed: [][1], "the loader of mine fails: IndexError.*test_plugins.py, line"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_mistakes_of_a_loader_are_reported_in_one_message(case: str) -> None:
    load, message = BAD_DATA[case]
    experiment = Experiment(plugins=[Plugins.of(datasets={"mine": load})], data={"name": "mine"})
    with pytest.raises(UserError, match=message):
        load_data(experiment.data, 0, experiment.datasets)


def test_values_of_numpy_and_lists_in_examples_are_plain_ones() -> None:
    def loaded(examples: list[Example]) -> DataSet:
        experiment = Experiment(plugins=[Plugins.of(datasets={"mine": examples})], data={"name": "mine"})
        return load_data(experiment.data, 0, experiment.datasets)

    plain = [replace(one, group=str(one.label)) for one in EXAMPLES]
    given = [
        replace(one, label=np.int64(one.label), options=[*one.options], group=np.int64(one.label))  # type: ignore[arg-type]
        for one in EXAMPLES
    ]
    assert repr(loaded(given)) == repr(loaded(plain))


@pytest.mark.parametrize(
    ("form", "value", "message"),
    [
        (
            "row",
            lambda example, answer, scores: {}[answer],
            "it fails for example '0': KeyError: 0, test_plugins.py",
        ),
        (
            "result",
            lambda rows: {"mine": sum(rows) / len(rows)},
            "a result of no answers .* ZeroDivisionError",
        ),
        ("result", lambda rows: 0.5, "must have a score named 'mine' in its result"),
    ],
)
def test_mistakes_of_a_metric_of_all_answers_are_reported_in_one_message(
    form: str, value: Any, message: str
) -> None:
    functions = {
        "row": lambda example, answer, scores: 1.0,
        "result": lambda rows: {"mine": None},
        "each": lambda rows: {"mine": [*rows]},
    }
    with pytest.raises(UserError, match=message):
        metrics = Plugins.of(metrics={"mine": collect(**{**functions, form: value}, headline="mine")}).metrics
        score(EXAMPLES[:1], Answers((0,), (None,)), metrics)


def test_a_metric_is_the_mean_over_answers_and_unparsed_ones_get_zero() -> None:
    from fedloom.tasks import UNPARSED

    metrics = Plugins.of(metrics={"half": lambda example, answer: 0.5}).metrics
    judged = Answers((0, UNPARSED, 1, 1), (None,) * 4)
    scores = score(EXAMPLES[:4], judged, metrics)
    assert scores["half"] == scores["tasks"]["choice"]["half"] == 3 * 0.5 / 4
    assert {**scores, "tasks": None} == {**score(EXAMPLES[:4], judged), "half": 0.375, "tasks": None}


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (
            lambda example, answer: 2.0,
            "metric mine: for example '0' it is 2.0; it must be a number from 0 to 1",
        ),
        (lambda example, answer: float("nan"), "it is nan"),
        (lambda example, answer: None, "it is None"),
        (lambda example, answer: sys.exit(0), "metric mine: it fails for example '0': SystemExit"),
        (lambda example, answer: answer.lower(), "metric mine: it fails for example '0': AttributeError"),
    ],
)
def test_mistakes_of_a_metric_are_reported_in_one_message(metric: object, message: str) -> None:
    metrics = Plugins.of(metrics={"mine": metric}).metrics
    with pytest.raises(UserError, match=message):
        score(EXAMPLES[:1], Answers((0,), (None,)), metrics)


def test_a_python_value_is_refused_as_a_file_is() -> None:
    with pytest.raises(UserError, match=r"Plugins: algorithms\['fedavg'\]: fedloom has a method"):
        Plugins.of(algorithms={"fedavg": print})
    assert fedloom.Plugins is Plugins


# Installed packages ---------------------------------------------------------------------------------


def installed(folder: Path, points: dict[str, str], text: str) -> None:
    """Write a package and its metadata, as pip does."""
    (folder / "letters_for_fedloom.py").write_text(text)
    metadata = folder / "letters_for_fedloom-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: letters-for-fedloom\nVersion: 1.0\n")
    rows = [f"[fedloom.{kind}]\n{name} = letters_for_fedloom:{name}\n" for name, kind in points.items()]
    (metadata / "entry_points.txt").write_text("\n".join(rows))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "letters_for_fedloom", raising=False)
    points = {"slow": "algorithms", "letters": "datasets", "brevity": "metrics"}
    installed(tmp_path, points, ALGORITHM + DATA + METRIC)
    return tmp_path


def test_what_an_installed_package_adds_is_found_by_name(package: Path) -> None:
    assert [list(one) for one in (INSTALLED.algorithms, INSTALLED.datasets, INSTALLED.metrics)] == [
        ["slow"], ["letters"], ["brevity"]
    ]  # fmt: skip
    assert "letters_for_fedloom" not in sys.modules, "only what is asked for is imported"
    experiment = load_experiment("smoke", ["methods=[slow+proximal]", "data.name=letters"])
    assert load_data(experiment.data, 0, experiment.datasets).name == "letters"
    assert experiment.entries["slow"].about == "Half a step of FedAvg."
    assert dict(experiment.metrics(None)) == {}, "no metric is computed that the experiment does not name"
    named = load_experiment("smoke", ["methods=[slow]", "evaluate.metrics=[brevity]"])
    assert list(named.metrics(named.evaluate.metrics)) == ["brevity"]
    before = code(named)
    assert before.keys() == {"code", "code of slow", "code of brevity"}
    (package / "letters_for_fedloom.py").write_text(ALGORITHM + DATA + METRIC + "\n")
    assert code(named)["code of slow"] != before["code of slow"]
    assert "slow" in CliRunner().invoke(app, ["list", "methods"]).output


def test_a_package_that_is_broken_is_named_where_it_is_used(package: Path) -> None:
    (package / "letters_for_fedloom.py").write_text("1 / 0")
    assert load_experiment("smoke").methods
    with pytest.raises(UserError, match=r"the installed package letters-for-fedloom: .* ZeroDivisionError"):
        load_experiment("smoke", ["methods=[slow]"])
    listed = CliRunner().invoke(app, ["list", "algorithms"])
    assert listed.exit_code == 0 and "cannot be used: the installed package" in listed.output
