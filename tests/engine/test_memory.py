"""Freed memory is used again without asking the system for pages."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

COUNT = """
import resource, torch
from fedloom.system.allocator import keep_freed
keep = {keep}
if keep:
    assert keep_freed()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    pieces = [torch.ones(2_000_000) for _ in range(16)]
    del pieces
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for _ in range(9):  # small pieces that lie between at first are used up
    faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_memory_that_was_freed_comes_back_without_fresh_pages() -> None:
    """128 MB are some 31,000 pages of 4 KiB, or 61 of 2 MiB."""
    plain, kept = (
        int(
            subprocess.run(
                [sys.executable, "-c", COUNT.format(keep=keep)], check=True, capture_output=True
            ).stdout
        )
        for keep in (False, True)
    )
    assert kept < max(16, plain / 10)
