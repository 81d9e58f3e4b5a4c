"""Freed memory stays with the process: fetching fresh pages costs more than the arithmetic on them.

A training step frees and asks for the same hundreds of megabytes again and again. By default the C library hands
them back to the system in between, which has to clear every page before it lends it again.
"""

from __future__ import annotations

import ctypes

# The C library's names for what `mallopt` sets (malloc.h).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT = 2**28
"""Bytes that may lie free at the end of the heap before they are handed back; much more would count several times over
where a process is copied."""
LARGE = 2**25
"""Bytes from which a piece has pages of its own, which are handed back with it; the most that can be said."""


def keep_freed() -> bool:
    """Let this process keep the memory that it frees, where the C library is glibc.

    It changes no result. The process holds up to 256 MiB more than it uses.

    Returns:
        Whether the C library could be told.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library, or another system
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGE)) and bool(mallopt(M_TRIM_THRESHOLD, KEPT))
