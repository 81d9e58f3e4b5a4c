"""Connectors: published sizes, fresh values by name, and their place in models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.adapter_files import import_adapter
from tests.answer_loss import answer_loss
from tests.shares import each_once
from torch import nn

from fedloom.models.assemble_model import replace_connector
from fedloom.models.batches import encode, image_tokens
from fedloom.models.connectors import CONNECTORS, Resampler, mlp, new_connector, sinusoidal_positions
from fedloom.models.family_table import FAMILIES
from fedloom.models.load_model import load_vlm
from fedloom.system.errors import UserError
from fedloom.tuning.adapters import prepare
from fedloom.tuning.export_adapter import export_adapter
from fedloom.tuning.strategies import LoRA, stage
from fedloom.types import Conversation

from .tiny import Drawn

ONE = Conversation("Which?", "yes", Drawn("a"))


@pytest.mark.parametrize(
    ("name", "count"), [("linear", 2_362_368), ("mlp2", 11_802_624), ("mlp6", 49_563_648)]
)
def test_sizes_are_the_published_ones(name: str, count: int) -> None:
    """CLIP ViT-B/32 (768) to LLaMA-3.2-3B (3,072), FedVLMBench."""
    with torch.device("meta"):
        connector = CONNECTORS[name](768, 3072, 16)
    assert sum(parameter.numel() for parameter in connector.parameters()) == count


@pytest.mark.parametrize("name", CONNECTORS)
def test_fresh_values_depend_on_the_seed_only(name: str) -> None:
    one, again, other = (new_connector(name, 6, 8, seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    tokens = one(torch.randn(3, 5, 6))
    assert tokens.shape == (3, 16 if name == "resampler" else 5, 8)
    assert bool(torch.isfinite(tokens).all())


def test_an_mlp_is_matrices_with_gelus_between() -> None:
    connector, x = mlp(4, 3, 0, layers=2), torch.randn(2, 5, 4)
    first, _, second = connector
    by_hand = nn.functional.gelu(x @ first.weight.T + first.bias) @ second.weight.T + second.bias
    torch.testing.assert_close(connector(x), by_hand)


def test_a_resampler_attends_as_torch_does() -> None:
    connector, x = new_connector("resampler", 6, 8, 0, queries=3), torch.randn(2, 5, 6)
    assert isinstance(connector, Resampler)
    stock = nn.MultiheadAttention(8, connector.heads, batch_first=True)
    layers = (connector.query, connector.key, connector.value)
    with torch.no_grad():
        stock.in_proj_weight.copy_(torch.cat([layer.weight for layer in layers]))
        stock.in_proj_bias.copy_(torch.cat([layer.bias for layer in layers]))
        stock.out_proj.weight.copy_(torch.eye(8))
        stock.out_proj.bias.zero_()
    seen = connector.norm_features(connector.features(x))
    asked = connector.norm_queries(connector.queries).expand(2, -1, -1)
    attended, _ = stock(asked, seen + sinusoidal_positions(5, 8), seen)
    torch.testing.assert_close(connector(x), connector.out(connector.norm(attended)))


def test_the_order_of_features_matters_to_a_resampler() -> None:
    connector, x = new_connector("resampler", 6, 8, 0), torch.randn(1, 5, 6)
    assert not torch.allclose(connector(x), connector(x.flip(1)))


@pytest.mark.parametrize(
    ("family", "connector"),
    each_once(sorted(name for name, row in FAMILIES.items() if row.swap), tuple(CONNECTORS)),
)
def test_a_fresh_connector_trains_and_travels(
    saved: Callable[[str], Path], tmp_path: Path, family: str, connector: str
) -> None:
    from peft import PeftModel

    folder = saved(family)
    own = load_vlm(str(folder))
    vlm = replace_connector(load_vlm(str(folder)), connector, seed=3, queries=5)
    assert vlm.digest != own.digest
    assert vlm.digest == replace_connector(load_vlm(str(folder)), connector, seed=3, queries=5).digest
    tuned = prepare(vlm, stage("both", LoRA(rank=2, targets=("q_proj", "query_key_value"))), seed=0)
    answer_loss(vlm, [ONE]).backward()
    touched = [
        name
        for name, grad in tuned.start.with_flat(tuned.grads).items()
        if name.startswith("connector/") and grad.any()
    ]
    assert len(touched) == sum(name.startswith("connector/") for name in tuned.layout.names)
    params = tuned.start.with_flat(tuned.start.flat + 0.1)
    export_adapter(tuned, params, tmp_path)
    assert torch.equal(import_adapter(tuned, tmp_path).flat, params.flat)
    tuned.write(params)
    base = replace_connector(load_vlm(str(folder)), connector, seed=3, queries=5)
    stock = PeftModel.from_pretrained(base.model, tmp_path)
    result = stock.load_adapter(str(tmp_path), "again")
    assert not result.missing_keys
    assert not result.unexpected_keys


def test_a_resampler_sets_the_number_of_image_tokens(tiny_model: Path) -> None:
    vlm = replace_connector(load_vlm(str(tiny_model)), "resampler", seed=0, queries=5)
    assert encode(vlm, ONE, []).prompt.count(vlm.model.config.image_token_id) == 5


def test_models_that_differ_in_the_connector_share_what_does_not_depend_on_it(tiny_model: Path) -> None:
    own = load_vlm(str(tiny_model))
    (features,), before = own.image_features([Drawn("a")]), encode(own, ONE, ["yes"])
    image, plain = own.model.config.image_token_id, image_tokens(own, own.grids([Drawn("a")])[0])
    other = replace_connector(own, "resampler", seed=0, queries=5)
    assert other.image_features([Drawn("a")])[0] is features
    assert encode(other, ONE, ["yes"]).prompt.count(image) == 5 != before.prompt.count(image)
    assert plain - image_tokens(other, own.grids([Drawn("a")])[0]) == before.prompt.count(image) - 5
    again = replace_connector(own, "linear", seed=1)
    assert encode(again, ONE, ["yes"]) is before


def test_a_connector_of_the_same_form_keeps_its_names(tiny_model: Path) -> None:
    """So that what is trained fits the stock model."""
    own = load_vlm(str(tiny_model)).model.state_dict()
    vlm = replace_connector(load_vlm(str(tiny_model)), "mlp2", seed=0)
    assert list(vlm.model.state_dict()) == list(own)
    name = "model.multi_modal_projector.linear_1.weight"
    assert not torch.equal(vlm.model.state_dict()[name], own[name])


def test_a_family_with_a_connector_of_its_own_form_says_so(saved: Callable[[str], Path]) -> None:
    with pytest.raises(UserError, match=r"model\.connector.*llava, "):
        replace_connector(load_vlm(str(saved("qwen2_vl"))), "linear", seed=0)
