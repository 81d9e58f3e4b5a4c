"""Messages about grids and keys say what is wrong, and never that a key is unknown that fedloom knows."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedloom.experiment.grid import load_grid
from fedloom.experiment.recipes import SWEEP_KEYS, is_grid, load_experiment
from fedloom.system.errors import UserError

BASE = "name: mine\ndata: {validation: 0.1}\n"
GRID = "grid: {train.lr: [1, 2]}\n"
PARTS = {
    "grid": GRID,
    "quick": "quick: {train.epochs: 1}\n",
    "choose": "choose: [train.lr]\n",
    "published": "published: {source: a, scores: {}}\n",
}


def refusal(load, *arguments) -> str:
    with pytest.raises(UserError) as refused:
        load(*arguments)
    return str(refused.value)


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("key", SWEEP_KEYS)
def test_a_mistake_of_yaml_in_a_grid_is_the_only_one(key: str, tmp_path: Path) -> None:
    text = BASE + GRID + (PARTS[key] if key != "grid" else "") + "seed: 1\nseed: 2\n"
    told = refusal(load_grid, written(tmp_path, text))
    assert told.startswith("one mistake in ")
    assert "seed is given twice" in told


@pytest.mark.parametrize("key", [key for key in SWEEP_KEYS if key != "grid"])
def test_a_key_of_grids_without_a_grid_says_that_there_is_none(key: str, tmp_path: Path) -> None:
    assert "there is no grid in it" in refusal(load_grid, written(tmp_path, BASE + PARTS[key]))


@pytest.mark.parametrize("key", SWEEP_KEYS)
@pytest.mark.parametrize("file", [BASE, BASE + GRID], ids=["single", "grid"])
def test_a_change_of_a_key_of_grids_is_not_called_unknown(key: str, file: str, tmp_path: Path) -> None:
    path = written(tmp_path, file)
    load = load_grid if is_grid(path) else load_experiment
    if key == "choose" and load is load_grid:
        assert load(path, ["choose=[train.lr]"]).choose == ("train.lr",)
        return
    told = refusal(load, path, [f"{key}={{}}"])
    assert told.startswith(f"--set {key}: ") and "for example --set grid." in told


def test_blanks_around_the_key_of_an_axis_do_not_matter(tmp_path: Path) -> None:
    path = written(tmp_path, BASE)
    assert is_grid(path, [" grid.seed = [0, 1]"])
    assert len(load_grid(path, [" grid.seed = [0, 1]"]).cells) == 2


def test_cells_with_one_name_are_refused(tmp_path: Path) -> None:
    points = (
        "  x: [{name: 'a, b', train.lr: 1}, {name: a, train.lr: 2}]\n"
        "  y: [{name: c, train.epochs: 1}, {name: 'b, c', train.epochs: 2}]\n"
    )
    told = refusal(load_grid, written(tmp_path, f"{BASE}grid:\n{points}"))
    assert told.startswith("one mistake in ")
    assert 'several cells are called "a, b, c"' in told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("'': 1\n", '"" is not a known key'),
        ("train: {'': 1}\n", 'train."" is not a known key'),
        ("\u00a0lr: 1\n", '"\\u00a0lr" is not a known key. Did you mean train.lr?'),
        ("'lr ': 1\n", '"lr " is not a known key. Did you mean train.lr?'),
        ("train.lr: 1\n", "train.lr is not a known key. Did you mean train: {lr: …}?"),
        ("algorithms.fedprox.mu: 1\n", "Did you mean algorithms: {fedprox: {mu: …}}?"),
        ("train.rate: 1\n", "train.rate is not a known key"),
    ],
)
def test_an_unknown_key_is_shown_as_it_is_written(text: str, told: str, tmp_path: Path) -> None:
    lines = refusal(load_experiment, written(tmp_path, text)).split("\n  ")
    assert len(lines) == 2
    assert f":1:{1 + text.find(chr(39)) if text.startswith('train:') else 1}: " in lines[1]
    assert told in lines[1]
