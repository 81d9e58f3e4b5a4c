"""P13: one of the engine's LoRA layers against PEFT's, forward and backward, at the bundled model's widths."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.harness import Bench, Measured, agree, needs, pairs
from fedloom.tuning.lora import LoRALinear

RANK, ALPHA = 8, 16


def layer(inputs: int, outputs: int) -> Callable[[], Measured]:
    """Compare a layer on 8 conversations of 62 tokens."""

    def measure() -> Measured:
        needs("peft")
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        base = nn.Linear(inputs, outputs, bias=False).requires_grad_(False)
        config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["0"], init_lora_weights=False)
        theirs = get_peft_model(nn.Sequential(base), config)  # type: ignore[arg-type]
        a, b = (value for value in theirs.parameters() if value.requires_grad)
        own = [nn.Parameter(value.detach().clone()) for value in (a, b)]
        mine = LoRALinear(base, *own, ALPHA / RANK)
        x = torch.randn(8, 62, inputs, requires_grad=True)
        weights = torch.randn(8, 62, outputs)

        def side(module: nn.Module, trained: list[Tensor]) -> Callable[[], list[Tensor]]:
            return lambda: list(torch.autograd.grad(module(x), [x, *trained], weights))

        ours, rival = side(mine, [*own]), side(theirs, [a, b])
        for one, other in zip(ours(), rival(), strict=True):
            agree("gradients", float((one - other).norm() / other.norm()), 1e-5)
        times = pairs(ours, rival, 60)
        return times.gain, times.summary(rival="PEFT")

    return measure


ROWS = {
    "P13-square": Bench("LoRA 256 to 256 vs PEFT", 1.1, 1, layer(256, 256)),
    "P13-up": Bench("LoRA 256 to 768 vs PEFT", 1.1, 1, layer(256, 768)),
    "P13-down": Bench("LoRA 768 to 256 vs PEFT", 1.05, 1, layer(768, 256)),
}
