"""Laws of the validation set for every data set; small files replace those that are not bundled."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from fedloom.config.schema import Data, Scenario
from fedloom.data import DATASETS, Source, has_validation, load_data, tasks
from fedloom.data.duplicates import content_keys, near_duplicate_keys
from fedloom.data.fashion_mnist import SIDE
from fedloom.scenarios.plan import Plan, build_plan
from fedloom.scenarios.validation_part import hold_out, plan_and_validation
from fedloom.system.errors import UserError
from fedloom.types import DataSet, Example

SHARE = 0.4
FOLDERS = ("folder in two files", "folder with splits", "folder in three files")
NAMES = [
    *FOLDERS,
    *(name for name in DATASETS if name != "folder"),
    *(f"{name}/all" for name in DATASETS if "all" in tasks(name)),
]
Load = Callable[..., DataSet]


def records() -> Iterator[dict[str, object]]:
    """Yield records of which each fourth has the image of the one before it."""
    for number in range(24):
        shown = number - (number % 4 == 3)
        image = {"image": f"{shown}.png"} if number % 3 else {"text": f"evidence {number}"}
        yield {
            "id": str(number),
            "question": "Which?",
            "answer": "ab"[number % 2],
            "group": str(number % 2),
            **image,
        }


def write_folder(root: Path, form: str, encoded: Callable[[int], bytes]) -> None:
    root.mkdir()
    for number in range(24):
        (root / f"{number}.png").write_bytes(encoded(number))
    named = {FOLDERS[0]: ("validation",), FOLDERS[1]: (), FOLDERS[2]: ("train", "validation", "test")}
    parts = {0: "train", 1: "train", 2: "train", 3: "validation", 4: "test"}
    files: dict[str, list[dict[str, object]]] = {}
    for number, record in enumerate(records()):
        part = parts[number // 4 % 5]
        if form == "folder with splits":
            record["split"] = part
        files.setdefault(part if part in named[form] else "data", []).append(record)
    for name, lines in files.items():
        (root / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))


def write_fashion_mnist(root: Path) -> None:
    """Write 40 images to train and 10 to test on, in the format of http://yann.lecun.com/exdb/mnist."""
    root.mkdir()
    for name, count in (("train", 40), ("t10k", 10)):
        images = np.random.default_rng(count).integers(256, size=(count, SIDE, SIDE), dtype=np.uint8)
        for what, array in (("images", images), ("labels", np.arange(count, dtype=np.uint8) % 10)):
            head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            file = root / f"{name}-{what}-idx{array.ndim}-ubyte.gz"
            file.write_bytes(gzip.compress(head + array.tobytes()))


@pytest.fixture(scope="module", params=NAMES)
def load(request, tmp_path_factory, encoded, trees, settings) -> Load:
    """Return a function that loads a data set with a validation set of some kind."""
    name, _, task = request.param.partition("/")
    root: Path | None = tmp_path_factory.mktemp("data") / "root"
    if name in FOLDERS:
        write_folder(root, name, encoded)
    elif name == "fashion-mnist":
        write_fashion_mnist(root)
    elif isinstance(DATASETS[name], Source):
        root = trees.write(name, root, encoded)
    else:
        root = None
    changes = {"name": "folder" if name in FOLDERS else name, "root": root, "max_rejected": 1.0}
    changes |= {"task": task or tasks(changes["name"])[0], "limit": None if root else 150}

    @cache
    def loaded(validation: float | str = 0.0, seed: int = 0) -> DataSet:
        return load_data(settings(**changes, validation=validation), seed)

    return loaded


def scenarios(data: DataSet) -> list[Scenario]:
    """Return scenarios that a data set can have; by_group is one vendor or one task for each client."""
    scenarios = [Scenario(clients=1), Scenario(clients=2, pattern="missing", rate=0.4)]
    groups = {one.group for one in data.train}
    if None not in groups and len(groups) < 10:
        scenarios.append(Scenario(clients=len(groups), partition="by_group", pattern="hybrid"))
    return scenarios


def held(plan: Plan, examples) -> list[dict[str, tuple[bool, bool]]]:
    """Return the ids that each client of a plan holds, with the modalities that it sees."""
    return [
        {
            examples[index].id: (bool(image), bool(text))
            for index, image, text in zip(share.indices, share.image, share.text, strict=True)
        }
        for share in plan.clients
    ]


def ids(examples) -> set[str]:
    return {one.id for one in examples}


@pytest.mark.parametrize("seed", [0, 1])
def test_with_and_without_a_share_the_same_is_divided_and_tested_on(load: Load, seed: int) -> None:
    plain, data = load(seed=seed), load(SHARE, seed)
    assert (data.train, data.test, data.validation) == (plain.train, plain.test, ())
    for scenario in scenarios(data):
        before, nothing = plan_and_validation(plain, Data(validation=0.0), scenario, seed)
        assert nothing is None
        trained, kept = hold_out(before, data.train, SHARE, seed)
        whole, own, out = (held(plan, data.train) for plan in (before, trained, kept))
        for all_of, trains, validates_on in zip(whole, own, out, strict=True):
            assert trains | validates_on == all_of
            assert not trains.keys() & validates_on.keys()
            assert trains or not all_of
        assert not set().union(*out) & ids(data.test)
        again = hold_out(before, data.train, SHARE, seed)
        assert [plan.digest for plan in again] == [trained.digest, kept.digest]
        if scenario.clients == 1:
            plan, validation = plan_and_validation(data, Data(validation=SHARE), scenario, seed)
            assert 0 < len(validation.plan.indices) <= max(round(SHARE * len(data.train)), 1)
            assert [plan.digest, validation.plan.digest] == [trained.digest, kept.digest]


def test_near_duplicates_stay_in_one_part_over_all_clients(load: Load) -> None:
    data = load()
    keys = near_duplicate_keys(data.train)
    for scenario in scenarios(data):
        sides = [
            {mark for index in plan.indices for mark in keys[index]}
            for plan in hold_out(build_plan(data.train, scenario, 0), data.train, SHARE, 0)
        ]
        assert not sides[0] & sides[1]


def test_the_owners_part_is_neither_trained_nor_tested_on(load: Load) -> None:
    plain = load()
    if not has_validation(plain.name):
        assert plain.validation == ()  # an experiment that asks for it is refused
        return
    data = load("published")
    assert data.test == plain.test
    assert data.validation
    parts = [ids(part) for part in (data.train, data.validation, data.test)]
    assert len(set().union(*parts)) == sum(map(len, parts))
    if plain.name == "fgvc-aircraft":  # trains on its owners' part otherwise
        assert ids(data.train) | ids(data.validation) == ids(plain.train)
    else:
        assert data.train == plain.train
    if plain.name == "folder":  # of others, owners may have divided images otherwise
        own, others = (
            {mark for one in content_keys(part) for mark in one if mark[0] == "image"}
            for part in (data.validation, [*data.train, *data.test])
        )
        assert own
        assert not own & others
    plan, validation = plan_and_validation(data, Data(validation="published"), Scenario(clients=2), 0)
    assert validation.common
    assert len(plan.indices) == len(data.train)
    assert {data.validation[index].id for index in validation.share(1).indices} == parts[1]


def test_each_vendor_keeps_out_its_own_drawings_and_one_emoji_is_on_one_side_for_all(settings) -> None:
    data = load_data(settings(name="emoji-styles"), 0)
    plan, validation = plan_and_validation(
        data, Data(validation=SHARE), Scenario(clients=5, partition="by_group"), 0
    )
    vendors = []
    for trained, kept in zip(plan.clients, validation.plan.clients, strict=True):
        (vendor,) = {data.train[index].group for index in [*trained.indices, *kept.indices]}
        vendors.append(vendor)
        assert len(kept) / (len(kept) + len(trained)) == pytest.approx(SHARE, abs=0.05)
    assert len(set(vendors)) == 5
    bases = [{data.train[index].base for index in one.indices} for one in (plan, validation.plan)]
    bases.append({one.base for one in data.test})
    assert None not in set().union(*bases)
    assert len(set().union(*bases)) == sum(map(len, bases))


def example(number: int, answer: str = "a") -> Example:
    return Example(f"{number:03}", "?", answer, text=f"text {number}", options=("a", "b"), label=0)


def test_a_share_of_each_answer_is_kept_out() -> None:
    examples = [example(number, "ab"[number % 2]) for number in range(40)]
    _, kept = hold_out(build_plan(examples, Scenario(clients=1), 0), examples, 0.25, 0)
    answers = [examples[index].answer for index in kept.indices]
    assert (answers.count("a"), answers.count("b")) == (5, 5)


def test_a_small_client_keeps_all_and_draws_do_not_depend_on_other_clients() -> None:
    examples = [example(number) for number in range(23)]
    one = build_plan(examples[:20], Scenario(clients=1), 0)
    whole = np.ones(23, bool)
    joined = Plan(np.concatenate([one.indices, [20, 21, 22]]), np.array([0, 20, 23]), whole, whole, "")
    alone, both = (hold_out(plan, examples, 0.1, 0)[1] for plan in (one, joined))
    assert both.clients[0].indices.tolist() == alone.clients[0].indices.tolist()
    assert [len(share) for share in both.clients] == [2, 0]


def test_it_is_refused_if_all_clients_are_too_small() -> None:
    examples = tuple(example(number) for number in range(6))
    with pytest.raises(UserError, match=r"data\.validation is 0\.1, but no client"):
        plan_and_validation(
            DataSet("folder", examples, examples), Data(validation=0.1), Scenario(clients=2), 0
        )


def test_a_part_that_the_owners_ship_but_is_not_there_is_named(tmp_path, encoded, trees, settings) -> None:
    root = trees.hateful_memes(tmp_path, encoded)
    (root / "dev_seen.jsonl").unlink()
    with pytest.raises(UserError, match=r"data\.validation is published, but .* holds no dev\.jsonl"):
        load_data(settings(name="hateful-memes", root=root, validation="published"), 0)
