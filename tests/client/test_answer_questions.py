"""How far a model may go on with an answer, and how many questions share a pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fedloom.client import answer_passes
from fedloom.client.answer_passes import passes
from fedloom.client.answer_questions import answer_examples, answer_rows
from fedloom.config.schema import Evaluate
from fedloom.models import logits
from fedloom.models.batches import encode, option_scores
from fedloom.models.load_model import load_vlm
from fedloom.models.teacher_forcing import teacher_forced
from fedloom.tasks import TASKS, UNPARSED
from fedloom.tasks.score_answers import Answers, score
from fedloom.types import Conversation, Example, Presence


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


@pytest.mark.parametrize("clients", [1, 2])
def test_a_question_with_a_long_prompt_does_not_cut_the_replies_to_others(
    clients: int, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm, presence = load_vlm(str(tiny_model)), Presence(False, True)
    answers = ("word " * 20, "word", "word " * 9)
    asked = [
        Example(f"{k}", "Which? " * (1 + 9 * (k == 1)), answer, text="a text", task="caption")
        for k, answer in enumerate(answers)
    ]
    talks = [TASKS["caption"].render(one, presence, answer_form="text") for one in asked]
    prompts = [len(encode(vlm, talk, []).prompt) for talk in talks]
    vlm.model.config.get_text_config().max_position_embeddings = max(prompts) + 3
    monkeypatch.setattr("fedloom.models.batches._ends", lambda vlm: [-1])
    settings, connects = Evaluate(scoring="generate"), [vlm.connect] * clients
    first, *others = answer_rows(vlm, connects, asked, [presence] * 3, settings)
    assert [one.replies for one in others] == [first.replies] * (clients - 1)
    # The longest answer of a batch decides on the length of all replies.
    without, *_ = answer_rows(vlm, connects, [asked[0], asked[2]], [presence] * 2, settings)
    assert (first.replies[0], first.replies[2]) == without.replies
    assert len(first.replies[1] or "") < len(first.replies[0] or "")


def questions(count: int) -> list[Example]:
    """Return questions of different lengths; the longest answer is the last one's."""
    options = ("word", "other words")
    return [
        Example(f"{k}", "Which? " * (1 + k), "word " * (1 + k), text="a text", options=options, task="vqa")
        for k in range(count)
    ]


@pytest.mark.parametrize("clients", [1, 2])
@pytest.mark.parametrize("scoring", ["likelihood", "generate", "teacher-forced"])
def test_passes_that_stay_within_a_bound_of_memory_change_no_answer(
    scoring: str, clients: int, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm, examples = load_vlm(str(tiny_model)), questions(7)
    rows: list[tuple[int, int]] = []

    def note(_: Any, arguments: tuple[Any, ...], given: dict[str, Any]) -> None:
        rows.append(tuple(given["inputs_embeds"].shape[:2]))

    def answers() -> list[Answers]:
        rows.clear()
        presence = [Presence(False, True)] * len(examples)
        return answer_rows(
            vlm, [vlm.connect] * clients, examples, presence, Evaluate.model_validate({"scoring": scoring})
        )

    vlm.decoder.register_forward_pre_hook(note, with_kwargs=True)
    whole = answers()
    (count, width) = rows[0]
    assert count == clients * len(examples)
    each = answer_passes.token_bytes(vlm) + answer_passes.MASK_BYTES * (width + 40)
    bound = 3 * clients * (width + 40) * each
    monkeypatch.setattr(answer_passes, "ANSWER_BYTES", bound)
    assert [(one.answers, one.replies) for one in answers()] == [(one.answers, one.replies) for one in whole]
    first = [row for row in rows if row[1] > 1]  # those after it generate one token each
    assert len(first) > 1 and sum(count for count, _ in first) == clients * len(examples)
    for count, width in first:
        size = answer_passes.token_bytes(vlm) + answer_passes.MASK_BYTES * width
        assert count == clients or count * width * size <= bound


@pytest.mark.parametrize("scoring", ["likelihood", "generate", "teacher-forced"])
def test_output_that_is_not_finite_is_no_answer(scoring: str, tiny_model: Path) -> None:
    """An answer that is not a number would look like the first option, or like the first token of the vocabulary."""
    vlm, options = load_vlm(str(tiny_model)), ("yes", "no")
    examples = [
        Example(f"{k}", "Which?", options[k], text="a text", label=k, options=options) for k in range(2)
    ]
    vlm.decoder.register_forward_hook(lambda module, inputs, output: (output[0] * float("nan"),))
    presence, settings = [Presence(False, True)] * 2, Evaluate.model_validate({"scoring": scoring})
    answers = answer_examples(vlm, examples, presence, settings)
    assert answers.answers == (UNPARSED, UNPARSED) and answers.probabilities == (None, None)
    assert set(answers.replies) == ({None} if scoring == "likelihood" else {""})
    scores = score(examples, answers)
    assert scores["accuracy"] == 0 and scores["unparsed"] == 1


def test_a_question_that_is_larger_than_the_bound_has_a_pass_of_its_own(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = load_vlm(str(tiny_model))
    monkeypatch.setattr(answer_passes, "ANSWER_BYTES", 1)
    assert list(passes(vlm, [5, 1, 9], 2)) == [slice(0, 1), slice(1, 2), slice(2, 3)]
    assert list(passes(vlm, [], 2)) == []


def test_the_default_bound_leaves_batches_of_the_bundled_model_as_they_are() -> None:
    """32 conversations of 2,500 tokens: a prompt, and options up to `PACKED`."""
    assert list(passes(load_vlm("bundled"), [2500] * 32, 1)) == [slice(0, 32)]


def test_keys_and_values_of_a_known_model_are_counted(tiny_model: Path) -> None:
    """A token has at least a key and a value in every layer, 4 bytes each in float32."""
    vlm = load_vlm(str(tiny_model))
    config = vlm.model.config.get_text_config()
    kept = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    assert answer_passes.token_bytes(vlm) >= 4 * kept


def test_likelihoods_of_options_need_few_logits_at_a_time(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many options there are; the same holds for the tokens of teacher forcing."""
    vlm = load_vlm(str(tiny_model))
    options = tuple(f"the answer {k}" for k in range(30))
    talk = Conversation("Which?", options[3] * 4, None, options)
    whole, text = option_scores(vlm, [talk]), teacher_forced(vlm, [talk])
    vocabulary = vlm.model.get_input_embeddings().num_embeddings
    monkeypatch.setattr(logits, "MAX_LOGITS", 5 * vocabulary)
    sizes: list[int] = []
    vlm.model.get_output_embeddings().register_forward_hook(lambda _, __, made: sizes.append(made.numel()))
    torch.testing.assert_close(option_scores(vlm, [talk]), whole, rtol=1e-5, atol=1e-5)
    assert teacher_forced(vlm, [talk]) == text
    assert len(sizes) > 30 and max(sizes) <= 5 * vocabulary
