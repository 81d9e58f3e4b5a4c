"""The encoder-free stage: it starts from the decoder's weights, can be cut short, and writes a stock model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.answer_loss import answer_loss

from fedloom.data.drawn_shapes import MAKERS
from fedloom.models.batches import encode, generate, option_scores
from fedloom.models.load_model import BUNDLED, load_vlm
from fedloom.seeds import stream
from fedloom.tasks import TASKS
from fedloom.types import Presence
from pretrain import align, free, language
from pretrain.fit import Budget, Exercise, fit
from pretrain.teacher import WIDTH


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stages before leave behind, untrained."""
    from transformers import AutoTokenizer

    work = tmp_path_factory.mktemp("aligned")
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED["bundled"])
    tokenizer.add_tokens([f"word{k}" for k in range(language.CONFIG["vocab_size"] - len(tokenizer))])
    tokenizer.save_pretrained(work / "tokenizer")
    save_file(
        {f"model.language_model.{key}": value for key, value in language.build().model.state_dict().items()},
        work / "align.safetensors",
    )
    return work


@pytest.fixture
def work(aligned: Path, tmp_path: Path) -> Path:
    for source in aligned.rglob("*"):
        if source.is_file():
            target = tmp_path / source.relative_to(aligned)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    return tmp_path


def questions(step: int) -> list[Exercise]:
    """Four questions about drawn scenes, one of them without its image, with a direction for two of them."""
    exercises = []
    for number in range(4):
        example = MAKERS["classification"](stream(0, "free", step=step, client=number), str(number))
        shown = Presence(number > 0, True)
        one = TASKS["choice"].render(example, shown, clause=None, answer_form="text")
        exercises.append(Exercise(one, None if number % 2 else np.eye(WIDTH, dtype=np.float32)[number]))
    return exercises


def train(
    work: Path, batch: Callable[[int], list[Exercise]], steps: int, every: int = 100
) -> dict[str, torch.Tensor]:
    vlm = free.assemble(work)
    fit(vlm, free.groups(vlm), batch, (work, "free"), Budget(60, steps, every=every))
    return {name: value.clone() for name, value in vlm.model.state_dict().items()}


def test_the_decoder_starts_with_the_weights_of_the_alignment(work: Path) -> None:
    state, known = free.assemble(work).model.state_dict(), align.decoder(work)
    for name, value in known.items():
        assert torch.equal(state[f"model.language_model.{name}"][: len(value)], value)


def test_an_interrupted_training_resumes_to_the_same_result(work: Path) -> None:
    class Cut(Exception):
        pass

    def broken(step: int) -> list[Exercise]:
        if step == 3:
            raise Cut
        return questions(step)

    whole = train(work, questions, 4)
    (work / "free.checkpoint").unlink()
    with pytest.raises(Cut):
        train(work, broken, 4, every=2)
    again = train(work, questions, 4, every=2)
    assert all(torch.equal(again[name], value) for name, value in whole.items())


def test_training_changes_all_of_it_and_the_folder_is_a_stock_model(work: Path) -> None:
    from transformers import AutoModelForImageTextToText

    before = free.assemble(work).model.state_dict()
    after = train(work, questions, 2)
    assert all(not torch.equal(after[name], value) for name, value in before.items())
    free.export(work, work / "free")
    vlm = load_vlm(str(work / "free"))
    assert not vlm.family.parts.encoder
    stock = AutoModelForImageTextToText.from_pretrained(work / "free", dtype=torch.float32)
    batch = [one.conversation for one in questions(9)]
    pictured = batch[1]
    prompt = encode(vlm, pictured, []).prompt
    assert prompt.count(vlm.model.config.image_token_id) == 16
    assert prompt.count(vlm.tokenizer.bos_token_id) == 1
    ids, (answer,) = torch.tensor([prompt]), encode(vlm, pictured, [pictured.answer]).answers
    ids = torch.tensor([[*prompt, *answer]])
    labels = torch.tensor([[*[-100] * len(prompt), *answer]])
    patches = torch.stack(vlm.image_features([pictured.picture])).flatten(1, 2)
    with torch.no_grad():
        loss = stock(input_ids=ids, pixel_values=patches, labels=labels).loss
    torch.testing.assert_close(answer_loss(vlm, [pictured]), loss, rtol=1e-5, atol=1e-5)
    assert option_scores(vlm, batch).shape[0] == len(generate(vlm, batch, max_tokens=2)) == 4
