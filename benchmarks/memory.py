"""Peak memory of the current process."""

from __future__ import annotations

import torch

from slimvit.measure.latency.peak_memory import process_peak


def peak_gib() -> float:
    """Peak memory in GiB: allocated by torch on a GPU, resident on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    resident = process_peak()
    assert resident is not None
    return resident / 2**30
