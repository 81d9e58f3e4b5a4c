"""Sentence embeddings: the mean of a text's own tokens, however it is batched; and the reference that uses them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from fedloom.experiment.experiment import Experiment
from fedloom.models.added_models import added_folder
from fedloom.models.sentence_embeddings import LONGEST, embed_sentences
from fedloom.runs.single_run import run_experiment
from fedloom.system.errors import UserError
from fedloom.system.json_files import write_json
from fedloom.system.progress import Progress
from fedloom.tasks.linear_baseline import linear_baseline
from fedloom.types import Example

SIZES = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
TEXTS = ["cat", "a cat and a dog", "", "dog " * 400, "unknown words", "dog"]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BertModel:
    """A tiny BERT where the added one is looked for."""
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "and", "cat", "dog"]
    tokenizer = Tokenizer(
        models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", eos_token="[SEP]")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        bert = BertModel(BertConfig(**SIZES, vocab_size=len(words), num_hidden_layers=2)).eval()
    bert.save_pretrained(added_folder("minilm"))
    fast.save_pretrained(added_folder("minilm"))
    write_json(added_folder("minilm") / "added.json", {"package": "x", "sha256": "x", "files": {}})
    return bert


def test_an_embedding_is_the_scaled_mean_over_the_texts_own_tokens(model: BertModel) -> None:
    """By the formula of the model's card, one text at a time and without padding."""
    ids = {
        "cat": [2, 6, 3],
        "a cat and a dog": [2, 4, 6, 5, 4, 7, 3],
        "": [2, 3],
        "unknown words": [2, 1, 1, 3],
    }
    ids |= {"dog": [2, 7, 3], TEXTS[3]: [2, *[7] * (LONGEST - 2), 3]}
    embeddings = embed_sentences(TEXTS)
    for text, row in zip(TEXTS, embeddings, strict=True):
        with torch.no_grad():
            mean = model(torch.tensor([ids[text]])).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(row, (mean / mean.norm()).numpy(), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)


def test_the_linear_baseline_uses_the_embedding_that_it_gets() -> None:
    """Texts that share no word with the training texts, but whose features tell them apart."""

    def example(text: str, label: int) -> Example:
        return Example(text, "Which?", "ab"[label], None, text, label, None, ("a", "b"))

    train = [
        example(f"{'cat' if label else 'dog'} {number}", label) for number in range(8) for label in (0, 1)
    ]
    test = [example("kitten", 1), example("puppy", 0)]

    def embed(texts: list[str]) -> np.ndarray:
        return np.array([[1.0, 0.0] if text.startswith(("cat", "kitten")) else [0.0, 1.0] for text in texts])

    assert linear_baseline(train, test, embed)["text"].argmax(1).tolist() == [1, 0]
    assert linear_baseline(train, test)["text"].argmax(1).tolist() != [1, 0]


def small(**evaluate: str) -> Experiment:
    data, train = {"limit": 40}, {"rounds": 1}
    return Experiment(methods=("linear",), data=data, train=train, evaluate=evaluate, scenario={"clients": 2})


def test_a_run_refuses_before_it_begins_where_the_model_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"evaluate.linear_text: the model 'minilm' is not on this machine"):
        run_experiment(small(linear_text="minilm"), tmp_path / "run", Progress(None))
    assert not (tmp_path / "run" / "record.jsonl").exists()


def test_a_run_with_embeddings_has_other_scores_and_says_so(model: BertModel, tmp_path: Path) -> None:
    del model
    words = run_experiment(small(), tmp_path / "words", Progress(None))["scores"]["linear"]
    embedded = run_experiment(small(linear_text="minilm"), tmp_path / "minilm", Progress(None))["scores"][
        "linear"
    ]
    assert words["slices"]["image"] == embedded["slices"]["image"]
    assert words["slices"]["text"] != embedded["slices"]["text"]
    page = (tmp_path / "minilm" / "report.html").read_text(encoding="utf-8")
    assert "sentence embeddings of the text" in page and "word counts" not in page
