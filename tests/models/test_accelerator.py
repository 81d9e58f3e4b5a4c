"""Every family on a simulated accelerator: nothing mixes devices, and all numbers are the processor's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.shares import fast_if
from tests.simulated_accelerator import Accelerator, MixedDevices, NoFloat64, simulated_accelerator

from fedloom.client.backpropagation import backpropagate
from fedloom.client.optimizers import OPTIMIZERS, clip
from fedloom.models.batches import answer_losses, collate, generate, option_scores
from fedloom.models.family_table import FAMILIES
from fedloom.models.load_model import Vlm, load_vlm, move_model, rest_encoder
from fedloom.models.precision import deterministic_kernels
from fedloom.models.teacher_forcing import teacher_forced
from fedloom.seeds import torch_stream
from fedloom.system.timing import Clock
from fedloom.tuning.adapters import Tuned, prepare, release, side_by_side
from fedloom.tuning.dropout import Masks, adapter_dropout
from fedloom.tuning.export_adapter import merge_adapters
from fedloom.tuning.strategies import LoRA, stage

from .conversations import TARGETS, talks
from .tiny import Drawn

FAST = ("llava", "qwen2_5_vl", "gemma3")
FAMILIES_THAT_SEE = [name for name, family in FAMILIES.items() if family.images]


def families(names: Iterable[str] = FAMILIES) -> list[Any]:
    return fast_if(sorted(names), lambda _, name: name in FAST)


def masks(client: int) -> Masks:
    return Masks(lambda layer: torch_stream(0, layer, client=client))


def tuned_of(vlm: Vlm, dropout: float) -> Tuned:
    name = "both" if vlm.family.parts.connector else "lora"
    return prepare(vlm, stage(name, LoRA(rank=2, targets=TARGETS, dropout=dropout)), seed=0)


def trained(vlm: Vlm) -> list[torch.Tensor]:
    """Return losses and gradients of two clients side by side, with dropout."""
    tuned, every = tuned_of(vlm, 0.3), talks(vlm)
    with side_by_side(tuned, 2) as stack:
        for row in range(2):
            noise = torch.randn(tuned.layout.size, generator=torch_stream(row, "noise"))
            stack.write(tuned.start.with_flat(tuned.start.flat + 0.1 * noise), row)
        batch = collate(vlm, [every, every[:1]])
        with adapter_dropout(stack, batch, [masks(0), masks(1)]):
            losses = answer_losses(vlm, batch, stack.connectors(2))
            losses.sum().backward()
        return [losses.detach().cpu(), stack.grads.cpu()]


USES: dict[str, Callable[[Vlm], Any]] = {
    "train": trained,
    "score": lambda vlm: [option_scores(vlm, talks(vlm))],
    "generate": lambda vlm: generate(vlm, talks(vlm), max_tokens=4),
    "teacher-forced": lambda vlm: teacher_forced(vlm, talks(vlm)),
}


FAST_USES = [("llava", use) for use in USES] + [("qwen2_5_vl", "train"), ("gemma3", "score")]


@pytest.mark.parametrize(
    ("name", "use"), fast_if(product(sorted(FAMILIES), USES), lambda _, case: case in FAST_USES)
)
def test_an_accelerator_computes_what_the_processor_does(
    name: str, use: str, saved: Callable[[str], Path]
) -> None:
    expected = USES[use](load_vlm(str(saved(name))))
    vlm = load_vlm(str(saved(name)))
    with simulated_accelerator():
        move_model(vlm, "cuda", "float32")
        assert vlm.device.type == "cuda"
        results = USES[use](vlm)
    for result, other in zip(results, expected, strict=True):
        assert torch.equal(result, other) if isinstance(result, torch.Tensor) else result == other


@pytest.mark.parametrize("name", families())
def test_a_device_without_float64_trains_and_scores(name: str, saved: Callable[[str], Path]) -> None:
    expected = [option_scores(vlm := load_vlm(str(saved(name))), talks(vlm)), *trained(vlm)]
    vlm = load_vlm(str(saved(name)))
    with simulated_accelerator(float64=False):
        move_model(vlm, "cuda", "float32")
        results = [option_scores(vlm, talks(vlm)), *trained(vlm)]
    for result, other in zip(results, expected, strict=True):
        assert torch.equal(result, other)


def test_adapters_are_merged_on_a_device_without_float64(saved: Callable[[str], Path]) -> None:
    scores = list[torch.Tensor]()
    for where in (nullcontext(), simulated_accelerator(float64=False)):
        vlm = load_vlm(str(saved("llava")))
        with where as device:
            if device is not None:
                move_model(vlm, "cuda", "float32")
            tuned = tuned_of(vlm, 0.0)
            merge_adapters(tuned, tuned.start.with_flat(tuned.start.flat.cpu() + 0.1))
            scores.append(option_scores(vlm, talks(vlm)))
    assert torch.equal(*scores)


@pytest.mark.parametrize("name", families())
def test_a_training_step_waits_at_most_four_times(name: str, saved: Callable[[str], Path]) -> None:
    """Whatever the family, with two clients side by side, images of several sizes and dropout in every adapter."""
    vlm = load_vlm(str(saved(name)))
    vlm.image_features([image for talk in talks(vlm) for image in talk.pictures])
    with simulated_accelerator() as device:
        tuned = tuned_of(move_model(vlm, "cuda", "float32"), 0.3)
        with side_by_side(tuned, 2) as stack:
            slots = stack.zero_slots(OPTIMIZERS["adamw"].slots)
            device.syncs.clear()
            batch = collate(vlm, [talks(vlm), talks(vlm)[:1]])
            backpropagate(stack, [batch], [masks(0), masks(1)], Clock("cuda"))
            clip(stack.grads, 1.0)
            OPTIMIZERS["adamw"].step(stack.flat, stack.grads, slots, 1, 0.01, 0.0, 0.999)
    assert device.syncs.total() <= 4, device.syncs


def test_deeper_models_and_more_adapters_add_no_waiting_and_no_conversion(
    saved: Callable[[str], Path],
) -> None:
    """Adapters are converted to the decoder's precision once for all layers, and so are their gradients."""
    counts = []
    for targets in (("layers.0.self_attn.q_proj",), ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj")):
        vlm = load_vlm(str(saved("llava")))
        vlm.image_features([image for talk in talks(vlm) for image in talk.pictures])
        with simulated_accelerator() as device:
            move_model(vlm, "cuda", "bfloat16")
            tuned = prepare(vlm, stage("lora", LoRA(rank=2, targets=targets, dropout=0.3)), seed=0)
            batch = collate(vlm, [talks(vlm)])
            device.syncs.clear()
            device.operations.clear()
            backpropagate(tuned, [batch], [masks(0)], Clock("cuda"))
            counts.append((device.syncs.total(), device.operations["aten::_to_copy"]))
            assert tuned.grads.any()
    assert counts[0] == counts[1]


def test_a_model_is_the_same_after_adapters_were_taken_out_on_an_accelerator(
    saved: Callable[[str], Path],
) -> None:
    vlm, expected = (load_vlm(str(saved("llava"))) for _ in range(2))
    with simulated_accelerator():
        move_model(vlm, "cuda", "float32")
        for _ in range(2):
            tuned = tuned_of(vlm, 0.0)
            tuned.flat.add_(1.0)
            release(tuned)
            assert {value.device for value in vlm.model.parameters()} == {torch.device("cuda", 0)}
        result = [option_scores(vlm, talks(vlm)), *trained(vlm)]
    for mine, other in zip(
        result, [option_scores(expected, talks(expected)), *trained(expected)], strict=True
    ):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("name", families(FAMILIES_THAT_SEE))
def test_an_encoder_leaves_the_device_after_features_are_made_and_comes_back_for_another_image(
    name: str, saved: Callable[[str], Path]
) -> None:
    plain, vlm = load_vlm(str(saved(name))), load_vlm(str(saved(name)))
    images, late = [image for talk in talks(vlm) for image in talk.pictures], [Drawn("late", 24, 24)]

    def places(device: Accelerator) -> set[str]:
        names = vlm.family.parts.split(name for name, _ in vlm.model.named_parameters())["encoder"]
        return {str(device.device(vlm.model.get_parameter(name))) for name in names}

    with simulated_accelerator() as device:
        move_model(vlm, "cuda", "float32")
        vlm.image_features(images)
        rest_encoder(vlm)
        assert places(device) <= {"cpu"} and vlm.device.type == "cuda"
        assert torch.equal(option_scores(vlm, talks(vlm)), option_scores(plain, talks(plain)))
        assert [tensor.tolist() for tensor in trained(vlm)] == [tensor.tolist() for tensor in trained(plain)]
        assert places(device) <= {"cpu"}
        assert torch.equal(*(one.image_features(late)[0] for one in (vlm, plain)))
        assert places(device) <= {"cuda:0"}
        option_scores(vlm, talks(vlm))
        assert places(device) <= {"cuda:0"}  # copying it for each batch would be slow


def test_deterministic_kernels_are_asked_for_on_an_accelerator_only() -> None:
    def asked() -> tuple[bool, ...]:
        cuda = torch.backends.cuda
        return (
            torch.are_deterministic_algorithms_enabled(), cuda.math_sdp_enabled(), cuda.flash_sdp_enabled(),
            cuda.mem_efficient_sdp_enabled(), cuda.cudnn_sdp_enabled(),
        )  # fmt: skip

    before = asked()
    for enabled, setting in ((True, "cpu"), (False, "cuda")):
        with deterministic_kernels(enabled, setting):
            assert asked() == before
    with simulated_accelerator():
        with deterministic_kernels(True, "auto"):
            assert asked() == (True, True, False, False, False)
        with pytest.raises(ZeroDivisionError), deterministic_kernels(True, "cuda"):
            raise ZeroDivisionError
    assert asked() == before


def test_laps_on_an_accelerator_are_marks_that_are_read_once() -> None:
    with simulated_accelerator() as device:
        clock = Clock("cuda")
        for name in ("forward", "backward", "forward"):
            time.sleep(0.01)
            clock.lap(name)
        assert not device.syncs
        seconds = clock.take()
        assert device.syncs.total() == 1
        assert (
            set(seconds) == {"forward", "backward"}
            and seconds["forward"] >= 0.02 > 0.01 <= seconds["backward"]
        )
        assert clock.take() == {}


def test_the_simulation_refuses_tensors_of_two_devices() -> None:
    with simulated_accelerator(devices=2):
        here, there = torch.ones(2), torch.ones(2).to("cuda")
        for other in (here, torch.ones(2, device="cuda:1")):
            with pytest.raises(MixedDevices, match="add got tensors of several devices"):
                there + other
        assert (there + torch.tensor(1.0)).device == torch.device("cuda", 0)  # a number mixes with everything


def test_the_simulation_refuses_float64_where_a_device_has_none() -> None:
    with simulated_accelerator(float64=False):
        there = torch.ones(2).to("cuda")
        for make in (
            lambda: torch.zeros(2, dtype=torch.float64, device="cuda"),
            lambda: torch.tensor([1.0], dtype=torch.float64, device="cuda"),
            lambda: torch.ones(2).double().to("cuda"),
            there.double,
            lambda: there.sum(dtype=torch.float64),
        ):
            with pytest.raises(NoFloat64):
                make()
        assert there.cpu().double().dtype == torch.float64


def test_the_simulation_counts_what_makes_the_processor_wait() -> None:
    with simulated_accelerator() as device:
        value = torch.arange(4.0).pin_memory().to("cuda", non_blocking=True)
        product = (value @ value).requires_grad_()
        (2 * product).backward()
        value.index_fill(0, torch.zeros((), dtype=torch.long, device="cuda"), 1.0)
        assert not device.syncs
        assert product.grad is not None and product.grad.device.type == "cuda"
        for wait in (
            lambda: float(product),
            lambda: value[value > 1],
            lambda: value.cpu(),
            lambda: value.tolist(),
            lambda: torch.ones(2).to("cuda"),
            lambda: torch.tensor([1], device="cuda"),
            lambda: value.new_tensor([1]),
            lambda: value[[0, 1]],
            lambda: torch.nonzero(value),
        ):
            before = device.syncs.total()
            wait()
            assert device.syncs.total() == before + 1
