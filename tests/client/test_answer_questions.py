"""How far a model may go on with an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fedloom.client.answer_questions import answer_examples
from fedloom.config.schema import Evaluate
from fedloom.models.batches import encode
from fedloom.models.load_model import load_vlm
from fedloom.tasks import TASKS
from fedloom.types import Example, Presence


@pytest.mark.parametrize(("left", "rounds"), [(3, 3), (0, 1)])
def test_generation_ends_where_the_models_positions_do(
    tiny_model: Path, left: int, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The right answer is far longer than what is left of the positions, and the model would never stop."""
    vlm, presence = load_vlm(str(tiny_model)), [Presence(False, True)]
    example = Example("e", "Which?", "word " * 40, text="a text", task="caption")
    conversation = TASKS[example.task].render(example, presence[0], clause=None, answer_form="text")
    length = len(encode(vlm, conversation, []).prompt)
    vlm.model.config.get_text_config().max_position_embeddings = length + left
    monkeypatch.setattr("fedloom.models.batches._ends", lambda vlm: [-1])
    seen: list[int] = []

    def note(_: Any, arguments: tuple[Any, ...], given: dict[str, Any]) -> None:
        place = given.get("position_ids")
        seen.append(length - 1 if place is None else int(torch.as_tensor(place).max()))

    vlm.decoder.register_forward_pre_hook(note, with_kwargs=True)
    answer_examples(vlm, [example], presence, Evaluate(scoring="generate"))
    assert len(seen) == rounds
    assert max(seen) < length + max(left, 1)
