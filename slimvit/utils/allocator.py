"""glibc's malloc settings: freed memory stays with the process for the next tensor.

By default glibc returns every large block to the system when it is freed, and requests new, zeroed pages for the next
one. A network with large activations pays for that in every layer, pruned or not. The settings hold for the whole
process, so commands change them and the library does not.
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Keys of `mallopt`, from glibc's malloc.h."""
TRIM_THRESHOLD, TOP_PAD = 2**31 - 1, 2**28
"""Free bytes kept at the top of the heap, and bytes requested from the system at once."""


AS_ENVIRONMENT = f"MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_={TRIM_THRESHOLD}"
"""Environment variables with the same effect, for other programs."""


def keep_freed_memory() -> bool:
    """Keep up to 2 GiB of freed memory in this process, and return whether its C library supports that."""
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # a C library other than glibc
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, TRIM_THRESHOLD), (M_TOP_PAD, TOP_PAD))
    return all([mallopt(key, value) == 1 for key, value in settings])
