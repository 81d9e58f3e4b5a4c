"""Repeated draws count skipped records, so that other records keep their places.

B. Xu et al., "FedMLLM: Federated Fine-tuning MLLM on Multimodal Heterogeneity Data", arXiv 2411.14717v2: its scripts
shuffle and cut all flashcards of the owners' file, and drop those without question or answer from the clients.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass

import pytest

from fedloom.data import load_data
from fedloom.scenarios import Plan, build_plan
from fedloom.types import Example

from .test_fedmllm_scenarios import MEMES, PUBLISHED

CARDS = 60
BLANK = (3, 17, 41)


@dataclass(frozen=True)
class Data:
    root: object
    name: str = "medical"
    test_share: float = 0.25
    validation: float | str = 0.0
    limit: int | None = None
    max_rejected: float = 0.5
    variant: str | None = "vqa-rad"
    task: str = "classification"


def held(plan: Plan, examples: list[Example]) -> list[list[str]]:
    return [[examples[index].id for index in share.indices] for share in plan.clients]


def test_blank_flashcards_take_part_in_the_shuffle(tmp_path, trees, encoded):
    """The parts of the text clients are worked out here from the published procedure, blank cards included."""
    trees.medical(tmp_path, encoded)
    cards = [
        {"input": f"What is {n}?", "output": f"It is {n}." if n not in BLANK else ""} for n in range(CARDS)
    ]
    (tmp_path / "medical_meadow_wikidoc_medical_flashcards.json").write_text(json.dumps(cards))
    data = load_data(Data(tmp_path), 0)
    assert len([one for one in data.rejected if "output is empty" in one.reason]) == len(BLANK)
    settings = PUBLISHED.model_copy(update={"partition": "by_source", "pattern": "cross", "clients": 4})
    plan = build_plan(data.train, settings, 0, data.drawn)
    draws = random.Random(41)
    images = draws.sample(range(4), 2)
    pictured = [n for n, one in enumerate(data.drawn) if one.image is not None]
    draws.shuffle(pictured)
    order = [f"flashcards-card-{n + 1}" for n in range(CARDS)]
    places = list(range(len(order)))
    draws.shuffle(places)
    texts = sorted(set(range(4)) - set(images))
    result = held(plan, list(data.train))
    for number, client in enumerate(texts):
        chunk = places[CARDS // 2 * number : CARDS // 2 * (number + 1)]
        assert result[client] == [order[place] for place in chunk if place not in BLANK]


@pytest.mark.parametrize("pattern", ["aligned", "missing", "cross", "hybrid"])
def test_a_skipped_record_moves_no_other(pattern):
    gone = {MEMES[place].id for place in (5, 100, 4000, 8499)}
    left = [one for one in MEMES if one.id not in gone]
    settings = PUBLISHED.model_copy(update={"pattern": pattern})
    whole, part = build_plan(MEMES, settings, 0), build_plan(left, settings, 0, MEMES)
    assert held(part, left) == [[name for name in names if name not in gone] for names in held(whole, MEMES)]
    flags = {
        MEMES[index].id: (bool(image), bool(text))
        for share in whole.clients
        for index, image, text in zip(share.indices, share.image, share.text, strict=True)
    }
    for share in part.clients:
        for index, image, text in zip(share.indices, share.image, share.text, strict=True):
            assert flags[left[index].id] == (bool(image), bool(text))


def test_in_corrected_mode_nothing_is_replayed():
    settings = PUBLISHED.model_copy(update={"mode": "corrected", "partition": "iid"})
    assert build_plan(MEMES[1:], settings, 0, MEMES).digest == build_plan(MEMES[1:], settings, 0).digest
