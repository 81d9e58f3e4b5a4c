import json
from dataclasses import dataclass

import numpy as np
import pytest
from typer.testing import CliRunner

from fedloom import data as data_module
from fedloom.cli.run_commands import app
from fedloom.scenarios import PATTERNS
from fedloom.types import DataSet, Example

OPTIONS = ("not-hateful", "hateful")


@dataclass(frozen=True)
class Blank:
    key: str = "blank"

    def pixels(self) -> np.ndarray:
        return np.zeros((4, 4, 3), np.uint8)


def memes(settings, seed):
    """Hateful-Memes as far as counts go: 5,450 rows with label 0 and 3,050 with label 1, 0 first."""
    del settings, seed
    labels = [number % 2 if number < 6100 else 0 for number in range(8500)]
    rows = tuple(
        Example(
            f"{number:05d}", "Is it hateful?", OPTIONS[label], image=Blank(), text="one two three",
            label=label, options=OPTIONS,
        )
        for number, label in enumerate(labels)
    )  # fmt: skip
    return DataSet("hateful-memes", rows, rows[:2])


@pytest.fixture(autouse=True)
def _memes(monkeypatch):
    monkeypatch.setitem(data_module.DATASETS, "hateful-memes", memes)


def call(*arguments: str):
    return CliRunner().invoke(app, ["split", *arguments], env={"COLUMNS": "80"})


def split(*arguments: str):
    result = call("hateful-memes", "--root", "anywhere", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_published_split_of_hateful_memes():
    value = split("--scenario", "aligned", "--mode", "published", "--set", "alpha=0.5")
    assert [client["size"] for client in value["clients"]] == [
        524,
        1425,
        173,
        30,
        1013,
        3,
        4293,
        124,
        509,
        406,
    ]
    assert [client["id"] for client in value["clients"]] == list(range(10))
    assert value["clients"][0]["labels"] == {"not-hateful": 291, "hateful": 233}
    assert len(value["digest"]) == 64


@pytest.mark.parametrize(
    ("scenario", "change", "sees"),
    [
        ("cross", "image_clients=5", "I I T T I T I T T I"),
        ("hybrid", "p=0.7", "I T IT I I I T IT IT IT"),
        ("missing", "rate=0", " ".join(["IT"] * 10)),
    ],
)
def test_what_clients_see_in_published_mode(scenario, change, sees):
    value = split("--scenario", scenario, "--mode", "published", "--set", change)
    assert [client["modalities"] for client in value["clients"]] == sees.split()


@pytest.mark.parametrize("mode", ["published", "corrected"])
@pytest.mark.parametrize("scenario", PATTERNS)
def test_counts_of_clients_add_up(scenario, mode):
    value = split("--scenario", scenario, "--mode", mode)
    for client in value["clients"]:
        kinds = [client[kind] for kind in ("both", "image_only", "text_only", "none")]
        assert sum(kinds) == client["size"] == sum(client["labels"].values())
    assert sum(client["size"] for client in value["clients"]) == value["card"]["examples"] == 8500
    none = sum(client["none"] for client in value["clients"])
    assert bool(none) == (scenario == "missing" and mode == "published")


def test_examples_lose_everything_in_corrected_mode_only_if_set():
    value = split("--scenario", "missing", "--set", "rate=0.5", "--set", "lose_all=true")
    assert value["card"]["modalities"]["examples"]["none"] > 0


def test_the_seed_changes_a_corrected_split_and_not_a_published_one():
    digests = {
        mode: {split("--mode", mode, "--set", f"seed={n}")["digest"] for n in (1, 2)} for mode in MODES
    }
    assert [len(digests[mode]) for mode in MODES] == [1, 2]


MODES = ("published", "corrected")


def test_the_published_sampler():
    value = json.loads(call("--sampler", "published", "--rounds", "3", "--json").stdout)
    assert value == {
        "rounds": [
            {"round": 0, "clients": [6, 9]},
            {"round": 1, "clients": [1, 2]},
            {"round": 2, "clients": [0, 1]},
        ]
    }
    lines = call("--sampler", "published", "--rounds", "3").stdout.splitlines()
    assert [line.split() for line in lines[2:]] == [["0", "6", "9"], ["1", "1", "2"], ["2", "0", "1"]]


def test_the_sampler_takes_clients_cohort_and_seed():
    words = ("--sampler", "corrected", "--set", "clients=5", "--set", "cohort=3", "--json")
    rounds = [json.loads(call(*words, "--set", f"seed={seed}").stdout)["rounds"] for seed in (0, 1)]
    assert rounds[0] != rounds[1]
    assert all(len(set(row["clients"])) == 3 and max(row["clients"]) < 5 for row in rounds[0])


@pytest.mark.parametrize("scenario", PATTERNS)
@pytest.mark.parametrize("name", ["emoji", "hateful-memes"])
def test_the_table_fits_a_terminal_and_names_the_mode(scenario, name):
    result = call(name, "--root", "anywhere", "--scenario", scenario, "--mode", "published")
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "published mode" in result.stdout
    assert "Jensen-Shannon" in result.stdout


def test_a_split_of_many_clients_shows_the_first():
    shown = call("hateful-memes", "--root", "x", "--set", "clients=60", "--set", "partition=iid").stdout
    assert "And 20 more clients" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["hateful-meme"], "Did you mean hateful-memes?"),
        (["emoji", "--scenario", "alligned"], "Did you mean aligned?"),
        (["emoji", "--mode", "publish"], "Did you mean published?"),
        (["emoji", "--scenario", "missing", "--set", "rate=1.5"], "scenario.rate is 1.5, but must be a number ≥ 0 and ≤ 1"),
        (["emoji", "--scenario", "missing", "--set", "rate=-0.1"], "scenario.rate is -0.1, but must be"),
        (["emoji", "--scenario", "hybrid", "--set", "p=2"], "scenario.p is 2, but must be"),
        (["emoji", "--scenario", "cross", "--set", "image_clients=11"], "image_clients is 11, but scenario.clients is 10"),
        (["emoji", "--scenario", "missing", "--set", "rat=0.3"], "Did you mean scenario.rate?"),
        (["emoji", "--set", "alfa=1"], "Did you mean scenario.alpha?"),
        (["emoji", "--scenario", "cross", "--set", "rate=0.3"], "Did you mean image_clients, or --scenario missing?"),
        (["emoji", "--set", f"clients={10**12}"], "scenario.clients is 1000000000000, but there are"),
        (["emoji", "--set", "alpha=0"], "scenario.alpha is 0, but must be a number > 0"),
        (["emoji", "--set", "alpha"], "must look like key=value"),
        (["emoji", "--set", "clients=5000"], "there are 788 training examples"),
        (["emoji", "--mode", "published", "--set", "partition=iid"], "there is no published procedure"),
        (["--sampler", "publish"], "Did you mean published?"),
        (["--sampler", "published", "--set", "cohort=11"], "train.cohort is 11, but scenario.clients is 10"),
        (["emoji", "--sampler", "published"], "needs either a data set"),
        ([], "needs either a data set"),
    ],
)  # fmt: skip
def test_a_mistake_has_one_message_and_no_traceback(words, told):
    result = call(*words)
    assert result.exit_code == 2
    assert told in result.stderr
    assert "Traceback" not in result.stderr
    assert not result.stdout
    assert len(result.stderr.strip().splitlines()) <= 2


def test_medical_data_are_divided_by_source(monkeypatch):
    def medical(settings, seed):
        rows = [
            Example(f"p{n}", "What?", "this", image=Blank(), group="vqa-rad", task="vqa") for n in range(30)
        ]
        rows += [Example(f"w{n}", "Why?", "so", group="flashcards", task="vqa") for n in range(70)]
        return DataSet("medical", tuple(rows), tuple(rows[:2]))

    monkeypatch.setitem(data_module.DATASETS, "medical", medical)
    words = ("--scenario", "cross", "--mode", "published", "--set", "image_clients=3", "--json")
    clients = json.loads(call("medical", "--root", "anywhere", *words).stdout)["clients"]
    assert [client["id"] for client in clients if client["modalities"] == "I"] == [3, 5, 6]
    assert all(client["size"] == 10 for client in clients)
