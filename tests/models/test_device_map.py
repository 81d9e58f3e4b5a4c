"""Layers on further GPUs and in the host's memory compute what they compute on one device."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.simulated_accelerator import simulated_accelerator

from fedloom.client.backpropagation import backpropagate
from fedloom.experiment.experiment import Experiment
from fedloom.models.batches import answer_losses, collate, generate, option_scores
from fedloom.models.device_map import (
    FIRST_SHARE,
    OTHER_SHARE,
    Place,
    place_layers,
    places_of,
    shares_keys,
    spread_decoder,
)
from fedloom.models.family_table import FAMILIES
from fedloom.models.gradient_checkpointing import gradient_checkpointing
from fedloom.models.last_layer import layers_of
from fedloom.models.load_model import Vlm, load_vlm
from fedloom.system.errors import UserError
from fedloom.system.timing import Clock
from fedloom.tuning.adapters import prepare, side_by_side
from fedloom.tuning.export_adapter import merge_adapters
from fedloom.tuning.strategies import LoRA, stage
from fedloom.tuning.svd_start import svd_start

from .conversations import TARGETS, talks
from .test_accelerator import families, masks
from .tiny import calm

CPU = torch.device("cpu")
FAST = ("llava", "qwen2_5_vl")


def with_places(path: Path, where: Iterable[Place], first: torch.device = CPU) -> Vlm:
    """Load a model whose layers, all but the last, are at some places in turn."""
    vlm, turn = calm(load_vlm(str(path))), list(where)
    layers = layers_of(vlm)
    assert len(layers) > 1
    place_layers(vlm, [*(turn[k % len(turn)] for k in range(len(layers) - 1)), first], first)
    return vlm


def numbers(vlm: Vlm, *, recompute: bool = False, dropout: float = 0.3) -> list[torch.Tensor]:
    """Return scores, and gradients of one client, and losses and gradients of two side by side."""
    results = [option_scores(vlm, talks(vlm))]
    name = "both" if vlm.family.parts.connector else "lora"
    tuned = prepare(vlm, stage(name, LoRA(rank=2, targets=TARGETS, dropout=dropout)), seed=0)
    tuned.flat.add_(0.01)  # otherwise no gradient would reach A
    with gradient_checkpointing(vlm, recompute):
        backpropagate(tuned, [collate(vlm, [talks(vlm)])], [masks(0)], Clock())
        results.append(tuned.grads.cpu().clone())
        with side_by_side(tuned, 2) as stack:
            for row in range(2):
                stack.write(tuned.start, row)
            losses = answer_losses(vlm, collate(vlm, [talks(vlm), talks(vlm)[:1]]), stack.connectors(2))
            losses.sum().backward()
            results += [losses.detach().cpu(), stack.grads.cpu()]
    assert all(one.any() for one in results)
    return results


def assert_close(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    """Adapters over offloaded layers take another path, which rounds differently."""
    for mine, other in zip(found, expected, strict=True):
        assert float((mine - other).norm()) <= 1e-5 * float(other.norm())


def every() -> list[Any]:
    return [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in sorted(FAMILIES)]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", every())
def test_layers_in_the_memory_of_the_host_compute_as_before(
    name: str, recompute: bool, saved: Callable[[str], Path]
) -> None:
    expected = numbers(calm(load_vlm(str(saved(name)))), recompute=recompute)
    vlm = with_places(saved(name), [None])
    for layer in layers_of(vlm)[:-1]:
        assert {value.device.type for value in layer.parameters()} == {"meta"}
    assert_close(numbers(vlm, recompute=recompute), expected)


def test_replies_and_generation_are_those_of_one_device(saved: Callable[[str], Path]) -> None:
    vlm, other = load_vlm(str(saved("llava"))), with_places(saved("llava"), [None])
    assert generate(other, talks(other), max_tokens=6) == generate(vlm, talks(vlm), max_tokens=6)


GPUS = [torch.device("cuda", number) for number in range(2)]


@pytest.mark.parametrize("name", families())
def test_layers_on_a_second_gpu_and_in_the_host_compute_as_before(
    name: str, saved: Callable[[str], Path]
) -> None:
    """The simulation refuses operations over two devices, so all that a layer gets has come to its GPU."""
    plain = calm(load_vlm(str(saved(name))))
    others, expected = [] if shares_keys(plain) else [([GPUS[1]], True), (GPUS, True)], numbers(plain)
    for where, recompute in [([None], False), ([None], True), *others]:
        with simulated_accelerator(devices=2) as state:
            vlm = with_places(saved(name), where, GPUS[0])
            for layer, place in zip(layers_of(vlm)[:-1], [*where, *where], strict=False):
                if place is not None:
                    assert {state.device(value) for value in layer.parameters()} == {place}
            assert vlm.device == GPUS[0]
            found = numbers(vlm, recompute=recompute)
        assert_close(found, expected)


@pytest.mark.parametrize(("name", "second"), [("llava", GPUS[1]), ("gemma4", None)])
def test_a_model_is_spread_by_the_memory_of_the_gpus(
    name: str, second: Place, saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = load_vlm(str(saved(name)))
    layers = layers_of(vlm)
    size = sum(value.nbytes for value in layers[0].parameters())
    expected = [option_scores(vlm, talks(vlm))]
    with simulated_accelerator(devices=2) as state, monkeypatch.context() as patched:
        for limit, places in ((size / 2, [None]), (1.2 * size, [second]), (1e12, [GPUS[0]])):
            about = type("About", (), {"total_memory": int(limit)})()
            patched.setattr(torch.cuda, "get_device_properties", lambda gpu=None, about=about: about)
            spread = load_vlm(str(saved(name)))
            spread_decoder(spread)
            first = layers_of(spread)[0]
            found = {
                None if value.device.type == "meta" else state.device(value) for value in first.parameters()
            }
            assert found == set(places)
            assert torch.equal(option_scores(spread, talks(spread)), expected[0])


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=20),
    st.integers(0, 100),
    st.lists(st.integers(1, 400), min_size=1, max_size=4),
)
def test_no_gpu_gets_more_than_its_share(sizes: list[int], rest: int, memory: list[int]) -> None:
    places = places_of(sizes, rest, memory)
    assert len(places) == len(sizes) and places[-1] == 0
    held = [
        sum(size for size, place in zip(sizes[:-1], places, strict=False) if place == gpu)
        for gpu in range(len(memory))
    ]
    assert not held[0] or held[0] + rest + sizes[-1] <= FIRST_SHARE * memory[0]
    assert all(one <= OTHER_SHARE * room for one, room in zip(held[1:], memory[1:], strict=True))
    order = [len(memory) if place is None else place for place in places[:-1]]
    assert order == sorted(order)  # neighbors share a GPU, and the host comes last
    if FIRST_SHARE * memory[0] >= rest + sum(sizes):
        assert set(places) == {0}


def test_what_needs_the_values_of_a_layer_is_refused(saved: Callable[[str], Path]) -> None:
    tuned = prepare(with_places(saved("llava"), [None]), stage("lora", LoRA(rank=2, targets=TARGETS)), seed=0)
    with pytest.raises(UserError, match=r"yoco starts .*in the host's memory"):
        svd_start(tuned)
    with pytest.raises(UserError, match=r"cannot be merged .*model\.device_map"):
        merge_adapters(tuned, tuned.start)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ('"engine": {"compile": true}', "engine.compile is true, but model.device_map is auto"),
        ('"engine": {"workers": 2}', "engine.workers is 2, but model.device_map is auto"),
        ('"engine": {"backend": "ray"}', "engine.backend is ray, but model.device_map is auto"),
        (
            '"model": {"quantize": "nf4", "device_map": "auto"}',
            "model.quantize is nf4, but model.device_map is auto",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes: str, message: str) -> None:
    model = "" if '"model"' in changes else '"model": {"device_map": "auto"}, '
    with pytest.raises(UserError, match=message):
        Experiment.from_json(f"{{{model}{changes}}}")


def test_experiments_without_the_key_keep_their_digest() -> None:
    assert Experiment(model={"device_map": None}).digest == Experiment().digest
