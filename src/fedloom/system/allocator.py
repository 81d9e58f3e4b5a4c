"""Keep freed memory in the process, because new pages cost more than the arithmetic on them.

Every training step allocates and frees the same hundreds of megabytes. By default the C library returns them to the
system in between, which has to clear every page before the process gets it again.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

# The C library's names for what `mallopt` sets (malloc.h).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT = 2**28
"""Free bytes at the end of the heap above which they are returned to the system. Each copy of a process has as many, so
the number is not larger."""
LARGE = 2**25
"""Bytes above which an allocation has pages of its own, which are returned with it; the largest value that glibc accepts."""


def keep_freed() -> bool:
    """Make this process keep the memory that it frees, where the C library is glibc.

    No result changes. The process holds up to 256 MiB more than it uses.

    Returns:
        Whether the C library accepted the settings.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library, or another system
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGE)) and bool(mallopt(M_TRIM_THRESHOLD, KEPT))


def release_freed() -> None:
    """Return freed memory to the system, where the C library is glibc, so that what is in use can be measured."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
