"""The connector of real-laptop: how it is trained, and what comes with fedloom."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tests.models.tiny import save, tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from fedloom.config.schema import Model
from fedloom.data.emoji import pool
from fedloom.models.assemble_model import load_model
from fedloom.models.batches import encode
from fedloom.models.connectors import BUNDLED_CONNECTORS, new_connector
from fedloom.models.load_model import Vlm, load_vlm
from fedloom.types import Conversation
from pretrain import corpus, real_laptop

CHAT = (
    "{% for m in messages %}{% if loop.first %}<s>always the same{% endif %}<end>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<end>{% endif %}"
)


@pytest.fixture
def vlm(tmp_path: Path) -> Vlm:
    """A tiny FastVLM of the parts' kinds; an image is sixteen tokens in it too."""
    words = tokenizer("<other>", [], {}, CHAT)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=len(words), num_key_value_heads=1)).save_pretrained(
            tmp_path / "llm"
        )
    words.save_pretrained(tmp_path / "llm")
    encoder = str(save("fast_vlm", tmp_path / "encoder"))
    return load_model(Model(encoder=encoder, llm=str(tmp_path / "llm"), connector="mlp2", queries=16), 0)


def test_the_loss_with_cached_keys_is_that_of_the_stock_model(vlm: Vlm) -> None:
    """Conversation by conversation, whole, without padding and without anything kept."""
    reader, connector = real_laptop.Reader(vlm), vlm.model.model.multi_modal_projector
    assert reader.start > 5
    asked = [real_laptop.rendered(one, "") for one in ("Which?", "What is its name, and why?", "No?")]
    answers, features = ["a cat", "b", "something long"], torch.randn(3, 16, 16)
    losses = reader.losses(connector, features, asked, answers)
    for row, (one, answer) in enumerate(zip(asked, answers, strict=True)):
        ids = encode(vlm, one, (answer,))
        whole = torch.tensor([[*ids.prompt, *ids.answers[0]]])
        place = (whole == vlm.model.config.image_token_id)[..., None].expand(-1, -1, 16)
        embeddings = vlm.model.get_input_embeddings()(whole).masked_scatter(place, connector(features[row]))
        logits = vlm.model.lm_head(vlm.model.model.language_model(inputs_embeds=embeddings).last_hidden_state)
        count = len(ids.answers[0])
        by_hand = torch.nn.functional.cross_entropy(logits[0, -count - 1 : -1], whole[0, -count:])
        torch.testing.assert_close(losses[row], by_hand, rtol=1e-5, atol=1e-6)


def test_variants_of_a_name_are_on_one_side_and_one_in_sixteen_is_held_out() -> None:
    for name in ("waving hand", "person: bald", "Flag: Chad"):
        sides = {
            real_laptop.held_out(f"{name.split(':')[0]}{end}") for end in ("", ": light skin tone", ": x: y")
        }
        assert len(sides) == 1
        assert real_laptop.held_out(name) == real_laptop.held_out(name.upper())
    names = {record["name"].split(":")[0] for record in pool("pretrain")}
    assert 1 / 32 < np.mean([real_laptop.held_out(name) for name in names]) < 1 / 8


def test_batches_are_drawn_from_what_is_not_held_out() -> None:
    names = ["cat", "dog", "red apple", "car", "house"]
    about = corpus.Pictured(torch.zeros(5, 1), ["k"] * 5, [[name] for name in names], names, names, [""] * 5)
    rows = torch.arange(5.0)[:, None]
    sources = [real_laptop.Source(rows, about, [0, 2, 4], [1, 3]) for _ in real_laptop.SHARES]
    meanings = corpus.Meanings([])
    for step in range(20):
        features, asked = real_laptop.drawn(sources, meanings, step)
        assert len(features) == len(asked) == real_laptop.BATCH
        for row, one in zip(features[:, 0].tolist(), asked, strict=True):
            assert isinstance(one, Conversation)
            assert row in (0, 2, 4) and one.answer == names[int(row)]
    again = real_laptop.drawn(sources, meanings, 3)[0]
    assert torch.equal(again, real_laptop.drawn(sources, meanings, 3)[0])


def test_training_resumes_from_a_checkpoint_without_a_difference(tmp_path: Path) -> None:
    def stepped(connector: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        for step in range(steps):
            optimizer.zero_grad()
            connector(torch.full((2, 6), step + 1.0)).square().mean().backward()
            optimizer.step()

    def made() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        connector = new_connector("mlp2", 6, 4, 0).requires_grad_(True)
        return connector, torch.optim.AdamW(connector.parameters(), lr=1e-2)

    (one, optimizer), (other, resumed) = made(), made()
    stepped(one, optimizer, 3)
    real_laptop.keep(one, optimizer, tmp_path / "checkpoint", 3, 1.5)
    assert real_laptop.resume(other, resumed, tmp_path / "checkpoint") == (3, 1.5)
    stepped(one, optimizer, 2)
    stepped(other, resumed, 2)
    for mine, value in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, value, rtol=0, atol=0)


def test_the_bundled_connector_fits_its_parts() -> None:
    """From EfficientNet-Lite0 (1,280) to SmolLM2 (576), and trained with the encoder that comes with fedloom."""
    file = BUNDLED_CONNECTORS["real-laptop"]
    assert file.stat().st_size < 3e6
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
        held = {key: opened.get_tensor(key) for key in opened.keys()}
    wanted = new_connector("mlp2", 1280, 576, 0).state_dict()
    assert {key: value.shape for key, value in held.items()} == {
        key: value.shape for key, value in wanted.items()
    }
    assert all(value.isfinite().all() and value.float().std() > 0 for value in held.values())
    bundled = load_vlm("bundled")
    assert real_laptop.encoder_digest(bundled) == metadata["encoder"]
    card = (file.parent / "README.md").read_text(encoding="utf-8")
    assert metadata["encoder"] in card and metadata["llm"].split()[-1] in card
