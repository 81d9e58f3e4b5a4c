"""Choose a model's device, the precision of its language model and its kernels, where experiments leave them to the machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedloom.system.errors import UserError

BFLOAT16_FROM = (8, 0)
"""The first generation of NVIDIA's GPUs (compute capability) that multiplies in bfloat16; a T4 is 7.5 and a V100 7.0."""


def device_of(setting: str) -> str:
    """Return the kind of device that `model.device` means here; only "cpu" does not ask for a GPU, and auto is cuda or cpu.

    Raises:
        UserError: There is no such device here.
    """
    if setting == "cpu":
        return "cpu"  # without a question to CUDA, after which this process could not be copied
    kind = "cuda" if setting == "auto" else setting
    there = {"cuda": torch.cuda, "mps": torch.backends.mps, "xpu": torch.xpu}[kind].is_available()
    if not there and setting != "auto":
        raise UserError(f"model.device: there is no {kind} device here; choose cpu or auto")
    return kind if there else "cpu"


def precision_of(setting: str, device: str) -> str:
    """Return the data type that `model.precision` means on a kind of device.

    "auto" is float32 on CPUs, MPS and XPU; on NVIDIA's GPUs it is bfloat16 where the GPU multiplies in it, and otherwise float16, for which
    losses are scaled (`fedloom.client.backpropagation`).

    Args:
        setting: "auto", or the name of a data type.
        device: The result of `device_of`.
    """
    if setting != "auto":
        return setting
    if device != "cuda":
        return "float32"
    return "bfloat16" if torch.cuda.get_device_capability() >= BFLOAT16_FROM else "float16"


@contextmanager
def deterministic_kernels(enabled: bool, setting: str) -> Iterator[None]:
    """Let an accelerator use only kernels that give equal results in equal calls inside this block.

    Attention runs without fused kernels, whose backward passes add in any order. An operation for which torch has no
    deterministic kernel raises RuntimeError. Nothing changes on CPUs.

    Args:
        enabled: `engine.deterministic`; False changes nothing.
        setting: `model.device`.
    """
    if not enabled or device_of(setting) != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first call
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.use_deterministic_algorithms(before)
