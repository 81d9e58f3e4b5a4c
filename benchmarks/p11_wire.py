"""P11: size and speed of the codecs for 19 MB of float32, and their speed against reading arrays one by one."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from statistics import median

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Bench, Measured, agree, pairs
from fedloom.wire.compression import decode, encode

TENSORS = 420
VALUES = 4_800_000 // TENSORS * TENSORS


@cache
def flat() -> Tensor:
    """Return an update of 4.8 million values."""
    return torch.randn(VALUES, generator=torch.Generator().manual_seed(0)) * 1e-3


def size(codec: str) -> Callable[[], Measured]:
    """Measure encoded bytes over float32 bytes."""

    def measure() -> Measured:
        encoded = len(encode(flat(), codec))
        return [encoded / (4 * VALUES)], f"{4 * VALUES / 1e6:.1f} MB become {encoded / 1e6:.2f} MB"

    return measure


def speed(codec: str) -> Callable[[], Measured]:
    """Measure gigabytes of float32 values per second, for the slower of encoding and decoding."""

    def measure() -> Measured:
        encoded = bytearray(encode(flat(), codec))
        measured = pairs(lambda: encode(flat(), codec), lambda: decode(encoded), 15)
        slower = median(measured.ours) > median(measured.rival)
        times = measured.ours if slower else measured.rival
        summary = measured.summary(ours="encoding", rival="decoding")
        return [4 * VALUES / 1e9 / seconds for seconds in times], summary

    return measure


def against_numpy() -> Measured:
    """Decode one float32 buffer, or read 420 arrays from their bytes as Flower's messages hold them."""
    encoded, files = bytearray(encode(flat())), []
    for part in np.split(flat().numpy(), TENSORS):
        file = io.BytesIO()
        np.save(file, part)
        files.append(file.getvalue())

    def rival() -> list[np.ndarray]:
        return [np.load(io.BytesIO(file)) for file in files]

    agree("values", float(np.abs(np.concatenate(rival()) - decode(encoded).numpy()).max()), 0)
    measured = pairs(lambda: decode(encoded), rival, 25)
    return measured.gain, measured.summary(ours="decode", rival="np.load")


ROWS = {
    "P11-int8-size": Bench("int8 / fp32 bytes", 0.253, 0.26, size("int8"), higher=False),
    "P11-int4-size": Bench("4-bit / fp32 bytes", 0.141, 0.15, size("int4"), higher=False),
    "P11-top16-size": Bench("top-1/16 / fp32 bytes", 0.045, 0.06, size("top16"), higher=False),
    **{
        f"P11-{codec}-speed": Bench(f"{codec}, slower way", 1, 0.4, speed(codec), unit="GB/s")
        for codec in ("fp32", "bf16", "int8", "int4", "top16")
    },
    "P11-decode": Bench("vs np.load per tensor", 8, None, against_numpy),
}
