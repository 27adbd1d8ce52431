"""Peak memory of the process that asks."""

from __future__ import annotations

import torch

from slimvit.measure.latency.peak_memory import process_peak


def peak_gib() -> float:
    """GiB: on a GPU what torch allocated, on a CPU what the process held at most."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    held = process_peak()
    assert held is not None
    return held / 2**30
