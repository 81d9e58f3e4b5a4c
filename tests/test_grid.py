"""A grid consists of its cells, and its mistakes are reported once, with place, axis and value."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedloom.data import BUNDLED, load_data
from fedloom.experiment.experiment import Experiment
from fedloom.experiment.grid import MOST_FOLDER, load_grid, short_names, slug
from fedloom.experiment.recipes import load_experiment, recipes, sweep_keys
from fedloom.scenarios.plan import build_plan
from fedloom.system.errors import UserError
from fedloom.types import Example

BASE = "name: mine\ntrain: {rounds: 2}\n"
GRID = """\
grid:
  scenario:
    - {name: even, scenario.partition: iid}
    - {name: gaps, scenario: {pattern: missing, rate: 0.4}}
  algorithms.fedadam.lr: [0.1, 0.2]
  seed: [0, 1, 2]
quick:
  train.epochs: 3
  grid: {seed: [7], scenario: [gaps]}
"""
SWEEPS = [name for name in recipes() if sweep_keys(name)]
ROOT = ["data.root=somewhere"]  # recipes of data that do not come with fedloom leave the folder open
OUTSIDE = [name for name in SWEEPS if load_grid(name, ROOT).cells[0].experiment.data.name not in BUNDLED]


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def settings(experiment: Experiment) -> dict[str, object]:
    """Return all settings but the name, which decides a cell's folder."""
    return experiment.model_dump(exclude={"name"})


def test_every_cell_is_the_base_with_its_changes(tmp_path: Path) -> None:
    grid = load_grid(written(tmp_path, BASE + GRID))
    base = tmp_path / "base.yaml"
    base.write_text(BASE)
    scenarios = {
        "even": ["scenario.partition=iid"],
        "gaps": ["scenario.pattern=missing", "scenario.rate=0.4"],
    }
    wanted = list(itertools.product(scenarios, [0.1, 0.2], [0, 1, 2]))
    assert [tuple(cell.values.values()) for cell in grid.cells] == wanted  # the last axis turns fastest
    for cell, (scenario, lr, seed) in zip(grid.cells, wanted, strict=True):
        changes = [*scenarios[scenario], f"algorithms.fedadam.lr={lr}", f"seed={seed}"]
        assert settings(cell.experiment) == settings(load_experiment(str(base), changes))


def test_names_folders_and_digests_of_cells_differ(tmp_path: Path) -> None:
    grid = load_grid(written(tmp_path, BASE + GRID))
    for key in ("name", "folder"):
        assert len({getattr(cell, key) for cell in grid.cells}) == len(grid.cells)
    assert len({cell.experiment.name for cell in grid.cells}) == len(grid.cells)
    assert grid.name == "mine"
    assert load_grid(written(tmp_path, BASE + GRID)).digest == grid.digest
    assert load_grid(written(tmp_path, BASE + GRID), ["train.lr=1"]).digest != grid.digest


def test_quick_replaces_axes_and_keys_and_set_comes_after_it(tmp_path: Path) -> None:
    path = written(tmp_path, BASE + GRID)
    quick = load_grid(path, quick=True)
    assert quick.axes == {"scenario": ("gaps",), "algorithms.fedadam.lr": (0.1, 0.2), "seed": (7,)}
    assert {cell.experiment.train.epochs for cell in quick.cells} == {3}
    assert {cell.experiment.scenario.rate for cell in quick.cells} == {0.4}
    again = load_grid(path, ["train.epochs=5", "grid.seed=[8, 9]"], quick=True)
    assert {cell.experiment.train.epochs for cell in again.cells} == {5}
    assert again.axes["seed"] == (8, 9)


def test_any_recipe_becomes_a_grid_by_an_axis_of_its_own() -> None:
    grid = load_grid("smoke", ["grid.seed=[3, 4]"])
    assert [settings(cell.experiment) for cell in grid.cells] == [
        settings(load_experiment("smoke", [f"seed={seed}"])) for seed in (3, 4)
    ]


def test_lists_can_be_values(tmp_path: Path) -> None:
    grid = load_grid(written(tmp_path, "grid:\n  methods: [[fedavg], [fedavg, fedprox]]\n"))
    assert [cell.experiment.methods for cell in grid.cells] == [("fedavg",), ("fedavg", "fedprox")]


MISTAKES = {
    "in the base": (
        "train: {lrr: 1}\ngrid: {seed: [0, 1]}\n",
        ":1:9: train.lrr is not a known key",
    ),
    "a value": (
        "grid:\n  seed: [0, -1]\n  train.lr: [1, 2]\n",
        ":2:13: seed is -1, but must be a whole number ≥ 0 (in the grid with seed: -1)",
    ),
    "a key of an axis": (
        "grid: {train.lrr: [1, 2]}\n",
        "train.lrr is not a known key. Did you mean train.lr?",
    ),
    "a point": (
        "grid:\n  how:\n    - {name: fine, train.lr: 1}\n    - {name: bad, train.lr: 0}\n",
        ":4:29: train.lr is 0, but must be a number > 0 (in the grid with how: bad)",
    ),
    "a conflict of base and value": (
        "train: {cohort: 4}\ngrid:\n  scenario.clients: [3, 4]\n  seed: [0, 1]\n",
        "a round cannot have more clients than there are (in the grid with scenario.clients: 3)",
    ),
    "a conflict of two axes": (
        "grid:\n  scenario.clients: [3, 4]\n  train.cohort: [2, 4]\n",
        "(in the grid with scenario.clients: 3; train.cohort: 4)",
    ),
    "grid that is none": ("grid: [1]\n", ":1:7: grid must be a mapping from axes to lists of values"),
    "empty grid": ("grid: {}\n", "grid must be a mapping"),
    "axis that is none": ("grid: {seed: 3}\n", ":1:14: grid.seed must be a list of values, and not empty"),
    "empty axis": ("grid: {seed: []}\n", "grid.seed must be a list of values, and not empty"),
    "value twice": ("grid: {seed: [1, 1]}\n", ":1:18: grid.seed[1] repeats 1"),
    "point without a name": ("grid: {x: [{train.lr: 1}]}\n", "grid.x[0] needs a name"),
    "point among values": ("grid: {x: [{name: a, seed: 1}, 3]}\n", "grid.x[1]: expected a mapping"),
    "key set twice": (
        "grid: {x: [{name: a, seed: 1}], seed: [0]}\n",
        "seed is set by grid.seed and by grid.x",
    ),
    "section and key": (
        "grid: {algorithms.fedadam.lr: [1], x: [{name: a, algorithms: {fedadam: {lr: 2}}}]}\n",
        "algorithms.fedadam.lr is set by grid.x and by grid.algorithms.fedadam.lr",
    ),
    "name as an axis": ("grid: {name: [a, b]}\n", "name cannot be an axis"),
    "grid inside a point": ("grid: {x: [{name: a, quick.seed: 1}]}\n", "may set keys of an experiment only"),
    "source of figures": (
        "grid: {seed: [0]}\npublished: {scores: {}}\n",
        ":2:12: published.source is missing; it must be text",
    ),
    "label of figures": (
        "grid: {x: [{name: gaps, seed: 1}]}\npublished: {source: a, scores: {gasp: {fedavg: 1}}}\n",
        ':2:33: published.scores: "gasp" is not the label of one point of the grid. Did you mean gaps?',
    ),
    "method of figures": (
        "grid: {x: [{name: gaps, seed: 1}]}\npublished: {source: a, scores: {gaps: {fedagv: 1}}}\n",
        ':2:40: published.scores.gaps: "fedagv" is not a known method',
    ),
    "figure that is none": (
        "grid: {x: [{name: gaps, seed: 1}]}\npublished: {source: a, scores: {gaps: {fedavg: x}}}\n",
        "published.scores.gaps.fedavg is",
    ),
    "no YAML": ("grid: {seed: [0]\n", ":2:1:"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_reported_once_with_its_place(case: str, tmp_path: Path) -> None:
    text, wanted = MISTAKES[case]
    with pytest.raises(UserError) as caught:
        load_grid(written(tmp_path, text))
    head, *lines = str(caught.value).split("\n  ")
    assert head.startswith("one mistake in "), lines
    assert len(lines) == 1
    assert wanted in lines[0]
    assert lines[0].startswith(f"{tmp_path / 'mine.yaml'}:")


@pytest.mark.parametrize(
    ("changes", "quick", "wanted"),
    [
        (["seed=3"], False, "--set seed: every cell gets its seed from the grid; set grid.seed instead"),
        (["grid.scenario=[gasp]"], False, '"gasp" is not a known point of scenario. Did you mean gaps?'),
        (["grid.seed=[0,"], False, "--set grid.seed: "),
        (["grid.seed=0"], False, "--set grid.seed: grid.seed must be a list"),
        (["train.lr=0"], True, "--set train.lr: train.lr is 0, but must be a number > 0"),
        (["scenario.rate=0.1"], False, None),  # only one of the two points sets it
    ],
)
def test_overrides_are_never_lost_silently(
    changes: list[str], quick: bool, wanted: str | None, tmp_path: Path
) -> None:
    path = written(tmp_path, BASE + GRID)
    if wanted is None:
        values = {
            cell.values["scenario"]: cell.experiment.scenario.rate for cell in load_grid(path, changes).cells
        }
        assert values == {"even": 0.1, "gaps": 0.4}
    else:
        with pytest.raises(UserError, match=re.escape(wanted)):
            load_grid(path, changes, quick=quick)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("quick: 3\n", "quick must be a mapping"),
        ("quick: {grid: [1]}\n", "quick.grid must be a mapping"),
        ("quick: {train.rounds: 0}\n", "train.rounds is 0"),
        ("quick: {grid: {seed: [-1]}}\n", "seed is -1"),
        ("", "--quick needs a section `quick`"),
    ],
)
def test_the_quick_form_is_checked_too(text: str, wanted: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(wanted)):
        load_grid(written(tmp_path, f"grid: {{seed: [0, 1]}}\n{text}"), quick=True)


def test_a_single_experiment_is_no_grid() -> None:
    with pytest.raises(UserError, match=r"no grid in it.*--set grid\.seed"):
        load_grid("smoke")


def test_a_grid_is_no_single_experiment(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run them all with `fedloom sweep"):
        load_experiment(written(tmp_path, BASE + GRID))


def test_a_grid_that_no_one_could_run_is_refused() -> None:
    lists = [f"grid.{key}={list(range(1, 101))}" for key in ("seed", "train.rounds", "train.epochs")]
    with pytest.raises(UserError, match="1,000,000 cells"):
        load_grid("smoke", lists)


@given(st.lists(st.from_regex(r"[a-c]{1,2}(\.[a-c]{1,2}){0,2}", fullmatch=True), min_size=1, unique=True))
def test_short_names_of_axes_differ(names: list[str]) -> None:
    shortened = short_names(names)
    assert len(set(shortened)) == len(names)
    assert all(name.endswith(short) for name, short in zip(names, shortened, strict=True))


@given(st.text())
def test_a_folder_can_be_called_by_any_slug(name: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", slug(name))
    assert len(slug(name)) <= MOST_FOLDER


@pytest.mark.parametrize("name", SWEEPS)
def test_every_bundled_grid_is_valid_in_both_forms(name: str) -> None:
    full, quick = load_grid(name, ROOT), load_grid(name, ROOT, quick=True)
    assert len(quick.cells) < len(full.cells)
    assert full.name == quick.name == name.replace("/", "-")
    seeds = full.axes["seed"]  # settings are chosen on other seeds
    assert len(seeds) >= 3
    assert seeds == tuple(range(len(seeds)))
    assert len(quick.axes["seed"]) == 1
    first = recipes()[name].read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    assert first.endswith(".")


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_grid_on_data_from_outside_asks_for_their_folder(name: str) -> None:
    with pytest.raises(UserError, match=r"mistakes? in .*\n.* data\.root is missing; data\.name"):
        load_grid(name)


@pytest.mark.parametrize("name", [name for name in SWEEPS if name not in OUTSIDE])
def test_every_cell_of_a_bundled_grid_can_divide_its_data(name: str) -> None:
    known: dict[str, tuple[Example, ...]] = {}
    divided: set[str] = set()
    for cell in load_grid(name).cells:
        data, scenario, seed = cell.experiment.data, cell.experiment.scenario, cell.experiment.seed
        if data.name not in BUNDLED:
            continue
        key = f"{data.model_dump_json()} {seed}"
        if (split := f"{key} {scenario.model_dump_json()}") in divided:
            continue
        divided.add(split)
        if key not in known:
            known[key] = load_data(data, seed).train
        plan = build_plan(known[key], scenario, seed)
        assert sum(map(len, plan.clients)) == len(known[key])
        assert min(map(len, plan.clients)) > 0


TWELVE = ["emoji", "hateful-memes", "crisis-mmd", "one-shot", "one-shot-crisis"]


@pytest.mark.parametrize("name", TWELVE)
def test_grids_hold_the_twelve_published_types(name: str) -> None:
    grid = load_grid(f"fedmllm/{name}", ROOT)
    cells = {cell.values["scenario"]: cell.experiment.scenario for cell in grid.cells}
    assert len(grid.cells) == 12 * len(grid.axes["seed"])
    assert len(cells) == 12
    assert {one.clients for one in cells.values()} == {10}
    assert {one.partition for one in cells.values()} == {"dirichlet"}
    aligned = [one.alpha for one in cells.values() if one.pattern == "aligned"]
    assert aligned == [5.0, 1.0, 0.5]
    assert {one.alpha for one in cells.values() if one.pattern != "aligned"} == {0.5}
    assert [one.rate for one in cells.values() if one.pattern == "missing"] == [0.3, 0.4, 0.5]
    assert [one.image_clients for one in cells.values() if one.pattern == "cross"] == [3, 5, 7]
    assert [one.p for one in cells.values() if one.pattern == "hybrid"] == [0.8, 0.7, 0.6]
    quick = load_grid(f"fedmllm/{name}", ROOT, quick=True)
    assert [cell.experiment.scenario.pattern for cell in quick.cells] == [
        "aligned",
        "missing",
        "cross",
        "hybrid",
    ]


@pytest.mark.parametrize("name", [name for name in OUTSIDE if name.startswith("fedmllm/")])
def test_grids_beside_published_tables_are_run_as_published(name: str) -> None:
    grid = load_grid(name, ROOT)
    assert grid.published is not None
    for cell in grid.cells:
        experiment = cell.experiment
        assert (experiment.mode, experiment.scenario.mode) == ("published", "published")
        assert (experiment.train.sampler, experiment.train.local_schedule) == ("published", "published")
        assert (experiment.train.beta2, experiment.strategy.dropout) == (0.95, 0.05)
        assert not experiment.model.network
    # Every figure stands beside one of ours, and every point has one.
    assert {method for row in grid.published.scores.values() for method in row} <= set(
        grid.cells[0].experiment.methods
    )
    (points,) = (labels for axis, labels in grid.axes.items() if axis != "seed")
    assert set(grid.published.scores) == set(points)


def test_the_recipe_of_the_guide_is_a_grid(tmp_path: Path) -> None:
    guide = (Path(__file__).parent.parent / "docs/sweeps.md").read_text(encoding="utf-8")
    block, choosing = re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)
    assert load_grid(written(tmp_path, f"name: mine\n{choosing}")).choose == ("train.lr",)
    path = written(tmp_path, block)
    assert len(load_grid(path).cells) == 18
    assert len(load_grid(path, quick=True).cells) == 2


CHOICE = """\
data: {validation: 0.1}
grid:
  train.lr: [0.1, 0.2]
  seed: [0, 1]
"""


def test_choose_names_the_axes_of_chosen_values(tmp_path: Path) -> None:
    path = written(tmp_path, BASE + CHOICE)
    plain, asked = load_grid(path), load_grid(path, ["choose=[train.lr]"])
    assert (plain.choose, asked.choose) == ((), ("train.lr",))
    assert asked.digest == plain.digest  # the same cells, so what was run is kept
    assert load_grid(written(tmp_path, f"{BASE}{CHOICE}choose: [train.lr]\n")).choose == ("train.lr",)


@pytest.mark.parametrize(
    ("choose", "told"),
    [
        ("[train.rate]", "is not a known axis to choose a value of"),
        ("[seed]", "choose[0] is seed, which is averaged over"),
        ("[train.lr, train.lr]", 'choose[1] repeats "train.lr"'),
        ("[]", "choose must be a list of axes"),
        ("train.lr", "choose must be a list of axes"),
        ("[{train.lr: 1}]", "is not a known axis to choose a value of"),
    ],
)
def test_an_axis_that_cannot_be_chosen_is_refused_once(choose: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        load_grid(written(tmp_path, f"{BASE}{CHOICE}choose: {choose}\n"))
    assert told in str(refused.value)
    assert str(refused.value).startswith("one mistake in")


AXES = {
    "data.task": ("data: {name: shapes, validation: 0.1}", "data.task: [vqa, captioning]"),
    "data.name": ("data: {validation: 0.1}", "data.name: [emoji, digits]"),
    "data.validation": ("data: {}", "data.validation: [0.1, 0.2]"),
    "data.limit": ("data: {validation: 0.1}", "data.limit: [100, 200]"),
    "scenario.clients": ("data: {validation: 0.1}", "scenario.clients: [2, 5]"),
    "scenario.pattern": (
        "data: {validation: 0.1}",
        "setup: [{name: a, train.lr: 0.1}, {name: b, train.lr: 0.2, scenario.pattern: missing}]",
    ),
    "evaluate.scoring": ("data: {validation: 0.1}", "evaluate.scoring: [likelihood, generate]"),
    "seed": ("data: {validation: 0.1}", "draw: [{name: a, seed: 0}, {name: b, seed: 1}]"),
}


@pytest.mark.parametrize("key", AXES)
def test_an_axis_that_changes_validation_cannot_be_chosen(key: str, tmp_path: Path) -> None:
    data, axis = AXES[key]
    name = axis.partition(":")[0]
    text = f"{BASE}{data}\ngrid:\n  {axis}\n  train.epochs: [1, 2]\n"
    assert load_grid(written(tmp_path, text + ("choose: [train.epochs]\n" if data != "data: {}" else "")))
    for choose, at in ((f"[{name}]", 0), (f"[train.epochs, {name}]", 1)):
        with pytest.raises(UserError) as refused:
            load_grid(written(tmp_path, f"{text}choose: {choose}\n"))
        message = f"choose[{at}] is {name}, but validation scores with different {key} cannot be compared"
        assert message in str(refused.value)
        assert str(refused.value).startswith("one mistake in")


def test_an_axis_that_does_not_change_validation_can_be_chosen(tmp_path: Path) -> None:
    points = "[{name: a, data.name: emoji, train.lr: 0.1}, {name: b, data.name: emoji, train.lr: 0.2}]"
    same = f"{BASE}data: {{validation: 0.1}}\ngrid:\n  setup: {points}\nchoose: [setup]\n"
    assert load_grid(written(tmp_path, same)).choose == ("setup",)
    owners = "data: {name: hateful-memes, root: here, validation: published}\n"
    for axis in ("data.limit: [100, 200]", "scenario.clients: [2, 5]"):
        text = f"{BASE}{owners}grid:\n  {axis}\nchoose: [{axis.partition(':')[0]}]\n"
        assert load_grid(written(tmp_path, text)).choose == (axis.partition(":")[0],)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (CHOICE.replace("0.1}", "0}"), "data.validation is 0, so"),
        (
            CHOICE.replace("  seed", "  data.validation: [0.1, 0]\n  seed").replace(
                "data: {validation: 0.1}\n", ""
            ),
            "0 in",
        ),
    ],
)
def test_nothing_is_chosen_without_a_validation_part(text: str, where: str, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"choose needs a validation set, but data\.validation is 0"
    ) as refused:
        load_grid(written(tmp_path, f"{BASE}{text}choose: [train.lr]\n"))
    assert where in str(refused.value)
    assert str(refused.value).startswith("one mistake in")
