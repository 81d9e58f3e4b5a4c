"""Prompts and verdicts of judges: a scripted judge, arbitrary texts, and a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedloom.models.judge_model import load_judge
from fedloom.runs.modality_slices import add_verdicts
from fedloom.system.errors import UserError
from fedloom.tasks import UNPARSED
from fedloom.tasks.llm_judge import judge_prompt, judged_scores, parse_verdict
from fedloom.tasks.score_answers import Answers, score
from fedloom.types import Example


def asked(answer: str, kind: str | None = None, task: str = "vqa") -> Example:
    return Example("e", "Which organ?", answer, task=task, kind=kind)


def lenient(prompts):
    """Judge a reply as right if the reference is one of its words, with an unreadable verdict for "unsure"."""
    said = []
    for prompt in prompts:
        lines = dict(line.split(": ", 1) for line in prompt.split("\n") if ": " in line)
        right = lines["Reference"] in lines["Reply"].split()
        said.append("hm" if lines["Reply"] == "unsure" else f"{int(right)}")
    return said


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ("1", True),
        ("0", False),
        ("The verdict is 1.", True),
        ("1, it is 1", True),
        ("0 1", None),
        ("", None),
        ("2", None),
        ("0.5", None),
        ("-1-0-", None),
        ("11", None),
    ],
)
def test_a_verdict_is_one_digit(said, verdict):
    assert parse_verdict(said) is (UNPARSED if verdict is None else verdict)


@given(st.text())
def test_any_text_is_a_verdict_or_none(said):
    assert parse_verdict(said) in (True, False, UNPARSED)


@given(st.text(), st.text(), st.text())
def test_a_prompt_has_one_line_for_each_part_whatever_is_in_it(question, truth, reply):
    lines = judge_prompt(question, truth, reply).split("\n")
    assert len(lines) == 5
    assert [line.split(":")[0] for line in lines[1:4]] == ["Question", "Reference", "Reply"]


def test_verdicts_by_hand():
    examples = [
        asked("liver", "open"),
        asked("liver", "open"),
        asked("yes", "closed"),
        asked("yes", "closed"),
    ]
    scores = judged_scores(lenient, examples, ["the liver", "a lung", "unsure", ""])
    assert scores == {
        "accuracy_judged": 0.25,
        "accuracy_judged_closed": 0.0,
        "accuracy_judged_open": 0.5,
        "unjudged": pytest.approx(1 / 3),  # of three verdicts asked for
    }
    assert judged_scores(lenient, [], []) == {"accuracy_judged": None, "unjudged": None}


def test_the_judge_gets_free_answers_only():
    examples = [asked("liver"), asked("a liver", task="caption"), asked("lung")]
    judged = Answers(("liver", "a liver", "heart"), (None,) * 3, ("liver", "a liver", "heart"))
    prompts = []
    scores = add_verdicts(
        lambda some: prompts.extend(some) or lenient(some), examples, judged, score(examples, judged)
    )
    assert len(prompts) == 2
    assert scores["tasks"]["vqa"]["accuracy_judged"] == 0.5
    assert "accuracy_judged" not in scores and "accuracy_judged" not in scores["tasks"]["caption"]


@pytest.fixture(scope="module")
def tiny_judge(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A causal language model with random weights."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("judge")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_local_model_gives_the_same_verdicts_singly_and_in_a_batch(tiny_judge):
    judge = load_judge(str(tiny_judge))
    prompts = [judge_prompt("Which organ?", "liver", "lung " * count) for count in (1, 9, 3)]
    together = judge(prompts)
    assert any(together)
    assert together == [judge([prompt])[0] for prompt in prompts] == judge(prompts)
    assert judge([]) == []


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_judge_has_the_precision_that_is_asked_for(tiny_judge, precision, monkeypatch):
    import torch
    from transformers import LlamaForCausalLM

    used, generate = set(), LlamaForCausalLM.generate

    def spy(model, **given):
        used.update(value.dtype for value in model.parameters())
        return generate(model, **given)

    monkeypatch.setattr(LlamaForCausalLM, "generate", spy)
    assert len(load_judge(str(tiny_judge), precision=precision)(["Is a liver an organ?"])) == 1
    assert used == {getattr(torch, precision)}


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_a_judge_that_is_none_is_one_clear_message(tmp_path, name):
    with pytest.raises(UserError, match=r"evaluate\.judge.*safetensors"):
        load_judge(str(tmp_path / name))


def test_a_vision_model_is_no_judge(tiny_model):
    with pytest.raises(UserError, match=r"evaluate\.judge"):
        load_judge(str(tiny_model))
