"""Adapters that start from the weights they adapt, as YOCO's do.

    W ≈ U_R Σ_R V_Rᵀ,   A = √Σ_R V_Rᵀ,   B = U_R √Σ_R

with W a frozen weight, U, Σ, V its singular value decomposition, and R the rank. So B·A is the best approximation of W of
rank R, and the layer computes W + (alpha / rank) · B A in place of W.

Reference: B. Xu et al., "You Only Communicate Once: One-shot Federated Low-Rank Adaptation of MLLM",
NeurIPS 2025, openreview.net/forum?id=FoVF3iL6o3.

Differs from the paper: its public code starts only B this way and leaves A random. A singular vector is defined up to its
sign; here the largest value of every column of U is positive, so that all machines agree.

Shape legend: I and O a linear layer's inputs and outputs, R rank.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from fedloom.models.linear_layers import plain_weight
from fedloom.params import Params
from fedloom.system.errors import UserError
from fedloom.tuning.adapters import Tuned


def svd_start(tuned: Tuned) -> Params:
    """Return the start of a tuned model with every adapter computed from its layer's weight.

    All other tensors keep their values. This costs one singular value decomposition for each adapted layer. A model without
    values (`fedloom.tuning.adapters.empty_tuned`) keeps its own start, which has the same shapes.

    Raises:
        UserError: The rank is larger than a layer's smaller side, or a layer is quantized or in the host's memory.
    """
    start = tuned.start.with_flat(tuned.start.flat.clone())
    if tuned.stage.lora is not None and not tuned.adapters:
        return start
    for name in start.layout.names:
        layer, _, factor = name.partition("/")[2].rpartition(":")
        if factor == "lora_a":
            weight = plain_weight(tuned.vlm.model.get_submodule(f"{layer}.base"))
            if weight is None:
                raise UserError(
                    f"yoco starts from the values of a layer's weight, and {layer} is quantized or in the host's memory; leave out "
                    "model.quantize and model.device_map"
                )
            weight = weight.detach().float()
            rank, most = len(start[name]), min(weight.shape)
            if rank > most:
                raise UserError(
                    f"strategy.rank is {rank}, but {layer} has only {most} singular vectors to start YOCO from; "
                    f"use a rank of at most {most}, or leave the layer out of strategy.targets"
                )
            a, b = factors(weight, rank)
            start[name].copy_(a)
            start[f"{name.removesuffix('a')}b"].copy_(b)
    return start


def factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return A [R, I] and B [O, R] whose product B·A is nearest to a weight [O, I]; R ≤ min(O, I).

    Example:
        >>> a, b = factors(torch.diag(torch.tensor([4.0, 9.0, 1.0])), rank=2)
        >>> (b @ a).round().tolist()
        [[4.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 0.0]]
    """
    svd = torch.linalg.svd(weight, full_matrices=False)
    u, values, vt = cast("tuple[Tensor, Tensor, Tensor]", svd)
    largest = u.abs().argmax(dim=0, keepdim=True)
    signs = u.gather(0, largest).sign()[0, :rank]
    root = signs * values[:rank].sqrt()
    return root[:, None] * vt[:rank], u[:, :rank] * root
