"""Peak memory of the process that asks."""

from __future__ import annotations

import re
from pathlib import Path

import torch


def peak_gib() -> float:
    """GiB: on a GPU what torch allocated, on a CPU what the process held at most.

    Read from Linux's VmHWM; ``resource.ru_maxrss`` begins with what the process that started this one held.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    held = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert held is not None
    return int(held[1]) / 2**20
