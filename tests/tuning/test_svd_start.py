"""A start from the layers' own weights: the best approximation of its rank, the same on every machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedloom.models.load_model import load_vlm
from fedloom.system.errors import UserError
from fedloom.tuning.adapters import Tuned, prepare
from fedloom.tuning.strategies import LoRA, stage
from fedloom.tuning.svd_start import factors, svd_start


def tune(folder: Path, rank: int) -> Tuned:
    return prepare(
        load_vlm(str(folder)), stage("both", LoRA(rank=rank, targets=("q_proj", "down_proj"))), seed=0
    )


def weight(tuned: Tuned, name: str) -> torch.Tensor:
    place = name.partition("/")[2].removesuffix(":lora_a")
    return tuned.vlm.model.get_submodule(place).get_parameter("base.weight").detach()


def test_every_adapter_is_the_nearest_of_its_rank(tiny_model: Path) -> None:
    tuned = tune(tiny_model, rank=3)
    start = svd_start(tuned)
    adapted = [name for name in start.layout.names if name.endswith(":lora_a")]
    assert adapted
    for name in adapted:
        a, b, full = start[name], start[name[:-1] + "b"], weight(tuned, name)
        # Eckart and Young: what is left over has the norm of the other singular values.
        rest = torch.linalg.svdvals(full)[3:].norm()
        torch.testing.assert_close((full - b @ a).norm(), rest, rtol=1e-3, atol=1e-5)
        # Both factors get the same share of it.
        torch.testing.assert_close(a @ a.T, b.T @ b, rtol=1e-3, atol=1e-5)


def test_the_start_changes_adapters_only_and_not_the_model(tiny_model: Path) -> None:
    tuned = tune(tiny_model, rank=2)
    before, live = tuned.start.flat.clone(), tuned.flat.clone()
    start = svd_start(tuned)
    assert torch.equal(tuned.start.flat, before)
    assert torch.equal(tuned.flat, live)
    for name, value in start.items():
        assert torch.equal(value, tuned.start[name]) == (":lora_" not in name), name


def test_signs_do_not_depend_on_the_machine() -> None:
    full = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    a, b = factors(full, 4)
    torch.testing.assert_close(b @ a, full)
    for column in b.T:
        assert column[column.abs().argmax()] > 0


def test_a_rank_above_a_layers_is_refused(tiny_model: Path) -> None:
    with pytest.raises(UserError, match=r"strategy\.rank is 500, but .*_proj has only"):
        svd_start(tune(tiny_model, rank=500))
