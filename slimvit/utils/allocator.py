"""Freed memory is kept for the next tensor.

By default the C library gives every large block back to the system when it is freed and asks for new pages, filled with
zeros, for the next one: a network whose activations are large pays for that in every layer, cut or not. It is a
setting of the whole process, so the commands make it and the library leaves it alone.
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Of glibc's malloc.h."""
KEPT, AHEAD = 2**31 - 1, 2**28
"""Bytes that stay at the end of the heap, and that are asked for at once."""


AS_ENVIRONMENT = f"MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_={KEPT}"
"""The same for a program that cannot be changed."""


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, up to 2 GiB at the end of its heap; whether its C library can."""
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library than glibc
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, KEPT), (M_TOP_PAD, AHEAD))
    return all([mallopt(key, value) == 1 for key, value in settings])
